"""``gateway client``: registered clients, by whoever runs the gateway.

Owns the words of the command; what may be registered, approved and told is ``smart``'s to say.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from gateway.config import load_settings


def parsers(commands: Any) -> None:  # Any: argparse does not name the type of its subparsers
    """Add the command and its actions."""
    client = commands.add_parser("client", help="registered clients").add_subparsers(required=True, metavar="ACTION")
    add = client.add_parser("add", help="register a client; prints its id, and below it the secret where it has one")
    add.add_argument("--name", required=True)
    add.add_argument("--jwks", metavar="FILE|URL", help="its public keys, for private_key_jwt")
    add.add_argument("--scope", required=True)
    add.add_argument("--purpose", action="append", help="v3-ActReason code its tokens may carry; TREAT when absent")
    add.add_argument("--kind", choices=("feed", "backend", "app"), default="feed",
                     help="feed: this hospital's own system (default); backend: a foreign one; app: with a person")
    add.add_argument("--auth", choices=("none", "client_secret_basic", "private_key_jwt"), default="private_key_jwt",
                     help="how it authenticates: an app in a browser or on a phone by none (and PKCE)")
    add.add_argument("--redirect-uri", action="append", default=[], metavar="URI",
                     help="of an app, compared exactly; a loopback address (http://127.0.0.1/cb) takes any port")
    add.add_argument("--launch-uri", metavar="URI", help="where an EHR starts the app")
    add.set_defaults(run=_add)
    listed = client.add_parser("list", help="id, standing, kind and name of each, a line each")
    listed.add_argument("--state", choices=("pending", "approved", "rejected", "closed"))
    listed.set_defaults(run=_list)
    show = client.add_parser("show", help="all that is known of a client, as JSON; no secret")
    show.add_argument("id")
    show.set_defaults(run=_show)
    approve = client.add_parser("approve", help="let a client in that registered itself")
    approve.add_argument("id")
    approve.add_argument("--revision", required=True, help="of what `show` printed: it may have changed since")
    approve.add_argument("--scope", help="less than it asks for")
    approve.add_argument("--purpose", action="append", help="v3-ActReason code its tokens may carry; TREAT when absent")
    approve.set_defaults(run=_approve)
    reject = client.add_parser("reject", help="turn one away, or the change it asks for")
    reject.add_argument("id")
    reject.add_argument("--reason", required=True, help="the client is shown it")
    reject.set_defaults(run=_reject)
    rotate = client.add_parser("rotate-secret", help="print a new client secret; the old one is refused from now on")
    rotate.add_argument("id")
    rotate.set_defaults(run=_rotate_secret)
    close = client.add_parser("close", help="refuse a client from now on, for good")
    close.add_argument("id")
    close.set_defaults(run=_close)


def _add(given: argparse.Namespace) -> int:
    from gateway.app import opened_smart
    from gateway.smart.clients import add_client, new_client_secret

    secret = new_client_secret() if given.auth == "client_secret_basic" else None
    print(add_client(opened_smart(load_settings()), name=given.name, kind=given.kind, scope=given.scope,
                     jwks=given.jwks, purposes=given.purpose or ["TREAT"], auth=given.auth, secret=secret,
                     redirect_uris=given.redirect_uri, launch_uri=given.launch_uri))
    if secret is not None:
        print(str(secret))  # told this once
    return 0


def _list(given: argparse.Namespace) -> int:
    from gateway.app import opened_smart
    from gateway.smart.approvals import list_clients

    smart, after = opened_smart(load_settings()), ""
    while found := list_clients(smart, given.state, after=after):
        for one in found:
            print(f"{one['client_id']}  {one['state']:<8}  {one['kind']:<7}  {one['name']}")
        after = found[-1]["client_id"]
    return 0


def _show(given: argparse.Namespace) -> int:
    from gateway.app import opened_smart
    from gateway.smart.approvals import show

    print(json.dumps(show(opened_smart(load_settings()), given.id), indent=2, ensure_ascii=False))
    return 0


def _approve(given: argparse.Namespace) -> int:
    from gateway.app import opened_smart
    from gateway.smart.approvals import Decider, approve

    approve(opened_smart(load_settings()), given.id, Decider(), revision=given.revision, scope=given.scope,
            purposes=given.purpose)
    return 0


def _reject(given: argparse.Namespace) -> int:
    from gateway.app import opened_smart
    from gateway.smart.approvals import Decider, reject

    print(reject(opened_smart(load_settings()), given.id, Decider(), reason=given.reason))
    return 0


def _rotate_secret(given: argparse.Namespace) -> int:
    from gateway.app import opened_smart
    from gateway.smart.approvals import Decider, rotate_secret

    print(str(rotate_secret(opened_smart(load_settings()), given.id, Decider())))
    return 0


def _close(given: argparse.Namespace) -> int:
    from gateway.app import opened_smart
    from gateway.smart.approvals import Decider, close

    close(opened_smart(load_settings()), given.id, Decider())
    return 0
