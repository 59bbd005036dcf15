"""``gateway user``: proofed accounts and their logins, by whoever runs the gateway.

Owns the words of the command; refuses a password among its arguments, which every process of the machine can see.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from gateway.access.period import date_range
from gateway.config import load_settings
from gateway.errors import Misconfigured


def parsers(commands: Any) -> None:  # Any: argparse does not name the type of its subparsers
    """Add the command and its actions."""
    user = commands.add_parser("user", help="proofed accounts").add_subparsers(required=True, metavar="ACTION")
    # No abbreviations: --password would else be read as --password-file, and the password be taken for a file's name.
    add = user.add_parser("add", help="open an account for a person whose identity was proofed", allow_abbrev=False)
    add.add_argument("--user", required=True, metavar="TYPE/ID", help="Practitioner/ID, Patient/ID, RelatedPerson/ID")
    add.add_argument("--role", required=True)
    add.add_argument("--name", required=True)
    add.add_argument("--organization", action="append", default=[], metavar="Organization/ID")
    add.add_argument("--wallet", help="the patient's own address, 0x…; one already registered stays: see `wallet`")
    add.add_argument("--represents", metavar="Patient/ID", help="whom a delegate acts for")
    add.add_argument("--until", metavar="DATE", help="the last day of a delegate's mandate; a minor's: the majority")
    add.add_argument("--login", metavar="NAME", help="also a login for the portal; its password is asked for")
    add.add_argument("--password-file", type=Path, metavar="FILE", help="take that password from a file instead")
    add.set_defaults(run=_add)
    reset = user.add_parser("reset", allow_abbrev=False, help="after a loss or a theft: end all a person signs in "
                            "with, their sessions and apps' access, and give one login a new password")
    reset.add_argument("user", metavar="TYPE/ID")
    reset.add_argument("--login", required=True, metavar="NAME", help="the one way in from now on; its password is "
                       "asked for")
    reset.add_argument("--password-file", type=Path, metavar="FILE", help="take that password from a file instead")
    reset.set_defaults(run=_reset)
    wallet = user.add_parser("wallet", help="register a patient's wallet, or another one after a loss or a theft: "
                             "sessions and tokens end, the patient and the privacy officer are told")
    wallet.add_argument("user", metavar="Patient/ID")
    wallet.add_argument("wallet", metavar="0x…")
    wallet.set_defaults(run=_wallet)
    close = user.add_parser("close", help="close an account and revoke its tokens")
    close.add_argument("user")
    close.set_defaults(run=_close)

    waiting = user.add_parser("waiting", help="logins that wait to be verified")
    waiting.add_argument("--json", action="store_true")
    waiting.set_defaults(run=_waiting)
    verify = user.add_parser("verify", help="bind a waiting login to the person it is")
    verify.add_argument("login", metavar="LOGIN", help="its id, as `gateway user waiting` shows it")
    verify.add_argument("--user", required=True, metavar="TYPE/ID", help="Patient/ID or Practitioner/ID")
    verify.add_argument("--organization", action="append", default=[], metavar="Organization/ID")
    verify.set_defaults(run=_verify)
    reject = user.add_parser("reject", help="refuse a waiting login")
    reject.add_argument("login", metavar="LOGIN")
    reject.add_argument("--reason", required=True, help="which the person reads")
    reject.set_defaults(run=_reject)


def _add(given: argparse.Namespace) -> int:
    from gateway.app import opened_smart
    from gateway.smart.accounts import add_user
    from gateway.smart.passwords import check_new_password

    if given.password_file is not None and given.login is None:
        raise Misconfigured("--password-file goes with --login")
    password = None if given.login is None else _password(given.password_file)
    if password is not None:
        check_new_password(password, login_name=given.login)
    smart = opened_smart(load_settings())
    add_user(smart, fhir_user=given.user, role=given.role, name=given.name, organizations=given.organization,
             wallet=given.wallet, represents=given.represents,
             mandate_until_ms=None if given.until is None else _end_of(given.until))
    if given.login is not None and password is not None:
        from gateway.smart.logins import set_by_operator

        uri = set_by_operator(smart, name=given.login, fhir_user=given.user, role=given.role, shown=given.name,
                              password=password)
        if uri is not None:
            print(f"one-time codes, shown this once (for an authenticator app): {uri}")
    return 0


def _reset(given: argparse.Namespace) -> int:
    from gateway.app import opened_smart
    from gateway.smart.passwords import check_new_password
    from gateway.smart.resets import reset

    password = _password(given.password_file)
    check_new_password(password, login_name=given.login)
    found = reset(opened_smart(load_settings()), fhir_user=given.user, name=given.login, password=password)
    print(f"ended: {found.closed_logins} other logins, {found.passkeys} passkeys, {found.identities} links to the "
          "identity provider, every session, every app's access")
    if found.wallet is not None:
        print(f"still registered, and a way in: the wallet {found.wallet}")
    if found.uri is not None:
        print(f"one-time codes, shown this once (for an authenticator app): {found.uri}")
    return 0


def _wallet(given: argparse.Namespace) -> int:
    from gateway.app import opened_smart
    from gateway.smart.wallets import change_wallet

    found = change_wallet(opened_smart(load_settings()), given.user, given.wallet)
    if found.before == found.after:
        print(f"{found.after} is registered already: nothing was changed")
        return 0
    print(f"registered: {found.after}" + (f", in place of {found.before}" if found.before else ""))
    if found.standing:
        print(f"grants signed by {found.before} that go on: {found.standing}. Revoked here they let nobody in from "
              "that moment; on the chain its own signature alone ends them")
    return 0


def _end_of(date: str) -> int:
    try:
        return date_range(date)[1]
    except (ValueError, OverflowError) as error:
        raise Misconfigured("--until is a date, like 2030-12-31") from error


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


def _waiting(given: argparse.Namespace) -> int:
    from dataclasses import asdict

    from gateway.app import opened_smart
    from gateway.smart.proofing import OPERATOR, Decider, waiting

    found = waiting(opened_smart(load_settings()), Decider(user=None, role=OPERATOR))
    if given.json:
        print(json.dumps([asdict(one) for one in found], indent=2))
        return 0
    for one in found:
        print(f"{one.id}  {one.wanted:<9}  {one.shown}  born {one.birth_date}  number {one.identifier}"
              + ("" if one.is_ready else "  (no second factor yet)"))
    return 0


def _verify(given: argparse.Namespace) -> int:
    from gateway.app import opened_smart
    from gateway.smart.proofing import OPERATOR, Decider, verify

    verify(opened_smart(load_settings()), given.login, fhir_user=given.user, organizations=given.organization,
           decider=Decider(user=None, role=OPERATOR))
    return 0


def _reject(given: argparse.Namespace) -> int:
    from gateway.app import opened_smart
    from gateway.smart.proofing import OPERATOR, Decider, reject

    reject(opened_smart(load_settings()), given.login, reason=given.reason, decider=Decider(user=None, role=OPERATOR))
    return 0


def _close(given: argparse.Namespace) -> int:
    from gateway.app import opened_smart
    from gateway.smart.accounts import close_user

    close_user(opened_smart(load_settings()), given.user)
    return 0
