"""The ``gateway`` command.

Owns arguments, exit codes and what is printed; refuses nothing the rooms accept. Each command imports only what it
needs, so that ``status`` and ``verify`` answer at once.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from gateway.config import Settings, load_settings
from gateway.errors import GatewayError, InputRefused, Misconfigured

if TYPE_CHECKING:
    from gateway.smart.issuer import Smart


class _Parser(argparse.ArgumentParser):
    """Wrong usage exits with 64, sysexits' EX_USAGE: 2 means something to who runs ``verify``."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(64, f"{self.prog}: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code. An error of ours is one line on stderr and exit 2, wrong usage is 64."""
    given = _parser().parse_args(arguments)
    try:
        return int(given.run(given))
    except InputRefused as error:
        for issue in error.issues:
            print(f"gateway: {issue.diagnostics}" + (f" ({issue.expression})" if issue.expression else ""),
                  file=sys.stderr)
    except GatewayError as error:
        print(f"gateway: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        return 130
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="gateway", description="A FHIR R4 gateway; settings are GATEWAY_* variables.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", help="start everything and keep it running")
    serve.set_defaults(run=_serve)

    check = commands.add_parser("check", help="say what is wrong before a start, and how to mend it")
    check.set_defaults(run=_check)

    status = commands.add_parser("status", help="where it is and how far anchoring has come")
    status.add_argument("--json", action="store_true")
    status.set_defaults(run=_status)

    token = commands.add_parser("token", help="print a bearer token (audited)")
    token.add_argument("--scope")
    token.add_argument("--client", help="client id; this hospital's own feed when neither it nor --user is given")
    token.add_argument("--user", help="Practitioner/ID or Patient/ID")
    token.add_argument("--patient", help="launch context: the patient's ID")
    token.add_argument("--purpose", help="v3-ActReason code, TREAT for clinicians")
    token.add_argument("--reason", help="why the glass is broken (purpose BTG or ETREAT)")
    token.add_argument("--ttl", type=int, metavar="SECONDS")
    token.set_defaults(run=_token)

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
    add.add_argument("--redirect-uri", action="append", default=[], metavar="URI", help="of an app, compared exactly")
    add.add_argument("--launch-uri", metavar="URI", help="where an EHR starts the app")
    add.set_defaults(run=_client_add)
    listed = client.add_parser("list", help="id, standing, kind and name of each, a line each")
    listed.add_argument("--state", choices=("pending", "approved", "rejected", "closed"))
    listed.set_defaults(run=_client_list)
    show = client.add_parser("show", help="all that is known of a client, as JSON; no secret")
    show.add_argument("id")
    show.set_defaults(run=_client_show)
    approve = client.add_parser("approve", help="let a client in that registered itself")
    approve.add_argument("id")
    approve.add_argument("--revision", required=True, help="of what `show` printed: it may have changed since")
    approve.add_argument("--scope", help="less than it asks for")
    approve.add_argument("--purpose", action="append", help="v3-ActReason code its tokens may carry; TREAT when absent")
    approve.set_defaults(run=_client_approve)
    reject = client.add_parser("reject", help="turn one away, or the change it asks for")
    reject.add_argument("id")
    reject.add_argument("--reason", required=True, help="the client is shown it")
    reject.set_defaults(run=_client_reject)
    rotate = client.add_parser("rotate-secret", help="print a new client secret; the old one is refused from now on")
    rotate.add_argument("id")
    rotate.set_defaults(run=_client_rotate_secret)
    close = client.add_parser("close", help="refuse a client from now on, for good")
    close.add_argument("id")
    close.set_defaults(run=_client_close)

    user = commands.add_parser("user", help="proofed accounts").add_subparsers(required=True, metavar="ACTION")
    # No abbreviations: --password would else be read as --password-file, and the password be taken for a file's name.
    add = user.add_parser("add", help="open an account for a person whose identity was proofed", allow_abbrev=False)
    add.add_argument("--user", required=True, metavar="TYPE/ID", help="Practitioner/ID, Patient/ID, RelatedPerson/ID")
    add.add_argument("--role", required=True)
    add.add_argument("--name", required=True)
    add.add_argument("--organization", action="append", default=[], metavar="Organization/ID")
    add.add_argument("--wallet", help="the patient's own address, 0x…")
    add.add_argument("--login", metavar="NAME", help="also a login for the portal; its password is asked for")
    add.add_argument("--password-file", type=Path, metavar="FILE", help="take that password from a file instead")
    add.set_defaults(run=_user_add)
    close = user.add_parser("close", help="close an account and revoke its tokens")
    close.add_argument("user")
    close.set_defaults(run=_user_close)

    waiting = user.add_parser("waiting", help="logins that wait to be verified")
    waiting.add_argument("--json", action="store_true")
    waiting.set_defaults(run=_user_waiting)
    verify = user.add_parser("verify", help="bind a waiting login to the person it is")
    verify.add_argument("login", metavar="LOGIN", help="its id, as `gateway user waiting` shows it")
    verify.add_argument("--user", required=True, metavar="TYPE/ID", help="Patient/ID or Practitioner/ID")
    verify.add_argument("--organization", action="append", default=[], metavar="Organization/ID")
    verify.set_defaults(run=_user_verify)
    reject = user.add_parser("reject", help="refuse a waiting login")
    reject.add_argument("login", metavar="LOGIN")
    reject.add_argument("--reason", required=True, help="which the person reads")
    reject.set_defaults(run=_user_reject)

    imported = commands.add_parser("import", help="FHIR JSON, NDJSON and bundles, plain or gz")
    imported.add_argument("paths", nargs="+", type=Path)
    imported.add_argument("--report", type=Path, help="write what was done, refused and why, as JSON lines")
    imported.add_argument("--again", action="store_true", help="also what an earlier import has brought in")
    imported.set_defaults(run=_import)

    verify = commands.add_parser("verify", help="check a receipt: 0 verified, 1 false, 2 block not trusted yet")
    verify.add_argument("receipt", type=Path)
    verify.add_argument("--resource", type=Path, help="the exact bytes of the version (vread)")
    verify.add_argument("--rpc", help="JSON-RPC URL of a chain node you trust")
    verify.add_argument("--confirmations", type=int, default=1, metavar="N",
                        help="blocks that make it final, its own counted (default 1)")
    verify.add_argument("--contract", metavar="0x…", help="the RecordAnchor you trust")
    verify.add_argument("--custodian", metavar="0x…", help="the hospital's address you trust")
    verify.set_defaults(run=_verify)

    audited = commands.add_parser("verify-audit", help="hold the audit against what the chain anchored of it: 0 sound, "
                                                       "1 altered, 2 not decidable")
    audited.add_argument("--json", action="store_true")
    audited.add_argument("--rpc", help="JSON-RPC URL of a chain node you trust")
    audited.add_argument("--contract", metavar="0x…", help="the RecordAnchor you trust")
    audited.add_argument("--custodian", metavar="0x…", help="the hospital's address you trust")
    audited.set_defaults(run=_verify_audit)

    rebuild = commands.add_parser("rebuild", help="make the search index anew from the blocks (stop the gateway "
                                                  "first); cut short, it goes on when run again")
    rebuild.set_defaults(run=_rebuild)

    fsck = commands.add_parser("fsck", help="hold journal, blocks, index, audit and batches against each other; "
                                            "1: something is wrong, and which")
    fsck.set_defaults(run=_fsck)

    keys = commands.add_parser("keys", help="the key store").add_subparsers(required=True, metavar="ACTION")
    backup = keys.add_parser("backup", help="write an encrypted copy")
    backup.add_argument("file", type=Path)
    backup.add_argument("--passphrase-file", type=Path, required=True)
    backup.set_defaults(run=_keys_backup)
    restore = keys.add_parser("restore", help="bring a copy back (stop the gateway first)")
    restore.add_argument("file", type=Path)
    restore.add_argument("--passphrase-file", type=Path, required=True)
    restore.add_argument("--root", type=Path, metavar="FILE", help="a copy of the root key the backup was made under")
    restore.set_defaults(run=_keys_restore)
    rotate = keys.add_parser("rotate", help="new keys of one level, online")
    rotate.add_argument("level", choices=("root", "patient", "category", "secret"))
    rotate.add_argument("--patient", help="one patient's id instead of all")
    rotate.add_argument("--label", help="which secret: token-hash, page-link, manifest")
    rotate.set_defaults(run=_keys_rotate)
    root = keys.add_parser("root", help="which root key this is (its fingerprint, never the key)")
    root.set_defaults(run=_keys_root)
    return parser


def _settings() -> Settings:
    return load_settings()


def _smart(settings: Settings) -> Smart:
    from gateway.app import build_smart, deployment, open_database, open_ring
    from gateway.fhir.definitions import Definitions

    ring = open_ring(settings)
    database = open_database(settings, ring)
    return build_smart(settings, ring, database, Definitions.load(), deployment(settings).custodian)


def _serve(_: argparse.Namespace) -> int:
    from gateway.supervisor import Supervisor

    return Supervisor(_settings()).run()


def _check(_: argparse.Namespace) -> int:
    from gateway.preflight import problems

    found = problems(_settings())
    for problem in found:
        print(f"{'WARNING' if problem.warning else 'WRONG'}  {problem.what}\n       mend: {problem.mend}")
    if not found:
        print("ready to start: nothing is wrong")
    return int(any(not problem.warning for problem in found))


def _status(given: argparse.Namespace) -> int:
    from gateway.status import status

    found = status(_settings())
    if given.json:
        print(json.dumps(found, indent=2))
        return 0
    chain, acts = found["chain"], found["acts"]
    refused = "".join(f"; refused: {count} {what}" for what, count in acts["refused"].items())
    print(f"FHIR base       {found['fhir_base']}\ndata directory  {found['data_dir']}\n"
          f"running         {'yes' if found['running'] else 'no'}\n"
          f"entries         {found['entries']['pending']} pending, {found['entries']['anchored']} anchored\n"
          f"audit           {found['audit']['rows']} rows, {found['audit']['waiting']} waiting for a run\n"
          f"signed acts     {acts['waiting']} waiting for the chain{refused}\n"
          f"chain           {chain['rpc']} id {chain['chain_id']} "
          f"{'does not answer' if chain['head'] is None else 'head ' + str(chain['head'])}")
    for name, address in (chain["contracts"] or {}).items():
        print(f"  {name:<17} {address}")
    return 0


def _token(given: argparse.Namespace) -> int:
    from gateway.smart.minting import mint_token

    settings = _settings()
    if not settings.operator_tokens:
        raise Misconfigured("GATEWAY_OPERATOR_TOKENS is false: tokens come from the authorization server alone")
    secret, _ = mint_token(_smart(settings), scope=given.scope, client=given.client, user=given.user,
                           patient=given.patient, purpose=given.purpose, ttl_s=given.ttl, reason=given.reason)
    print(str(secret))
    return 0


def _client_add(given: argparse.Namespace) -> int:
    from gateway.smart.clients import add_client, new_client_secret

    secret = new_client_secret() if given.auth == "client_secret_basic" else None
    print(add_client(_smart(_settings()), name=given.name, kind=given.kind, scope=given.scope, jwks=given.jwks,
                     purposes=given.purpose or ["TREAT"], auth=given.auth, secret=secret,
                     redirect_uris=given.redirect_uri, launch_uri=given.launch_uri))
    if secret is not None:
        print(str(secret))  # told this once
    return 0


def _client_list(given: argparse.Namespace) -> int:
    from gateway.smart.approvals import list_clients

    smart, after = _smart(_settings()), ""
    while found := list_clients(smart, given.state, after=after):
        for one in found:
            print(f"{one['client_id']}  {one['state']:<8}  {one['kind']:<7}  {one['name']}")
        after = found[-1]["client_id"]
    return 0


def _client_show(given: argparse.Namespace) -> int:
    from gateway.smart.approvals import show

    print(json.dumps(show(_smart(_settings()), given.id), indent=2, ensure_ascii=False))
    return 0


def _client_approve(given: argparse.Namespace) -> int:
    from gateway.smart.approvals import Decider, approve

    approve(_smart(_settings()), given.id, Decider(), revision=given.revision, scope=given.scope,
            purposes=given.purpose)
    return 0


def _client_reject(given: argparse.Namespace) -> int:
    from gateway.smart.approvals import Decider, reject

    print(reject(_smart(_settings()), given.id, Decider(), reason=given.reason))
    return 0


def _client_rotate_secret(given: argparse.Namespace) -> int:
    from gateway.smart.approvals import Decider, rotate_secret

    print(str(rotate_secret(_smart(_settings()), given.id, Decider())))
    return 0


def _client_close(given: argparse.Namespace) -> int:
    from gateway.smart.approvals import Decider, close

    close(_smart(_settings()), given.id, Decider())
    return 0


def _user_add(given: argparse.Namespace) -> int:
    from gateway.smart.accounts import add_user
    from gateway.smart.passwords import check_new_password

    if given.password_file is not None and given.login is None:
        raise Misconfigured("--password-file goes with --login")
    password = None if given.login is None else _password(given.password_file)
    if password is not None:
        check_new_password(password, login_name=given.login)
    smart = _smart(_settings())
    add_user(smart, fhir_user=given.user, role=given.role, name=given.name, organizations=given.organization,
             wallet=given.wallet)
    if given.login is not None and password is not None:
        from gateway.smart.logins import set_by_operator

        uri = set_by_operator(smart, name=given.login, fhir_user=given.user, role=given.role, shown=given.name,
                              password=password)
        if uri is not None:
            print(f"one-time codes, shown this once (for an authenticator app): {uri}")
    return 0


def _password(file: Path | None) -> str:
    """From a prompt, twice, or from a file; never from the command line, which every process of the machine can see."""
    if file is not None:
        try:
            return file.read_text().rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            raise Misconfigured(f"{file} cannot be read") from error
    from getpass import getpass

    password = getpass("Password: ")
    if getpass("Once more: ") != password:
        raise Misconfigured("the two passwords differ")
    return password


def _user_waiting(given: argparse.Namespace) -> int:
    from dataclasses import asdict

    from gateway.smart.proofing import OPERATOR, Decider, waiting

    found = waiting(_smart(_settings()), Decider(user=None, role=OPERATOR))
    if given.json:
        print(json.dumps([asdict(one) for one in found], indent=2))
        return 0
    for one in found:
        print(f"{one.id}  {one.wanted:<9}  {one.shown}  born {one.birth_date}  number {one.identifier}"
              + ("" if one.is_ready else "  (no second factor yet)"))
    return 0


def _user_verify(given: argparse.Namespace) -> int:
    from gateway.smart.proofing import OPERATOR, Decider, verify

    verify(_smart(_settings()), given.login, fhir_user=given.user, organizations=given.organization,
           decider=Decider(user=None, role=OPERATOR))
    return 0


def _user_reject(given: argparse.Namespace) -> int:
    from gateway.smart.proofing import OPERATOR, Decider, reject

    reject(_smart(_settings()), given.login, reason=given.reason, decider=Decider(user=None, role=OPERATOR))
    return 0


def _user_close(given: argparse.Namespace) -> int:
    from gateway.smart.accounts import close_user

    close_user(_smart(_settings()), given.user)
    return 0


def _import(given: argparse.Namespace) -> int:
    from gateway.app import set_up_logging
    from gateway.import_command import import_paths

    settings = _settings()
    set_up_logging(settings)
    return import_paths(settings, given.paths, report=given.report, again=given.again)


def _verify(given: argparse.Namespace) -> int:
    from gateway.ledger.verify_command import run

    return run(given.receipt, resource=given.resource, rpc=given.rpc, confirmations=given.confirmations,
               contract=given.contract, custodian=given.custodian)


def _verify_audit(given: argparse.Namespace) -> int:
    from gateway.verify_audit_command import run

    return run(_settings(), as_json=given.json, rpc=given.rpc, contract=given.contract, custodian=given.custodian)


def _rebuild(_: argparse.Namespace) -> int:
    from gateway.upkeep_command import rebuild

    return rebuild(_settings())


def _fsck(_: argparse.Namespace) -> int:
    from gateway.upkeep_command import fsck

    return fsck(_settings())


def _keys_backup(given: argparse.Namespace) -> int:
    from gateway.crypto.key_command import backup

    return backup(_settings().keys_dir, given.file, given.passphrase_file)


def _keys_restore(given: argparse.Namespace) -> int:
    from gateway.crypto.key_command import restore
    from gateway.probes import serving

    settings = _settings()
    if serving(settings):
        raise Misconfigured(f"a gateway runs on {settings.data_dir}: stop it before its keys are restored")
    return restore(settings.keys_dir, given.file, given.passphrase_file, root=given.root)


def _keys_rotate(given: argparse.Namespace) -> int:
    from gateway.crypto.key_command import rotate

    return rotate(_settings().keys_dir, given.level, given.patient, given.label)


def _keys_root(_: argparse.Namespace) -> int:
    from gateway.crypto.key_command import show_root

    return show_root(_settings().keys_dir)


if __name__ == "__main__":
    raise SystemExit(main())
