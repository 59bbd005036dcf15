"""Accounts: the proofed people of this hospital, and what they are here.

Owns who a person is (role, organisations, mandate, wallet), which no resource a client writes can say; refuses a
role that does not fit the kind of person. A change of standing revokes the person's tokens at once.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import apsw
from eth_utils.address import is_checksum_formatted_address, is_hex_address, to_checksum_address

from gateway.access.roles import policy
from gateway.errors import Conflict, NotFound, Unprocessable
from gateway.smart.issuer import Smart
from gateway.smart.sessions import end_sessions
from gateway.smart.tokens import revoke_user

REFERENCE: Final = re.compile(r"[A-Z][A-Za-z]{1,63}/[A-Za-z0-9\-.]{1,64}")
_USER: Final = re.compile(r"(Practitioner|Patient|RelatedPerson|Person)/[A-Za-z0-9\-.]{1,64}")
_COLUMNS: Final = "fhir_user, role, name, organizations, wallet, represents, mandate_until_ms, closed_ms"


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """A person. ``represents``: a delegate's ``Patient/1``, until ``mandate_until_ms``."""

    fhir_user: str
    role: str
    name: str
    organizations: tuple[str, ...]
    wallet: str | None
    represents: str | None
    mandate_until_ms: int | None
    closed_ms: int | None


def find_account(connection: apsw.Connection, fhir_user: str) -> Account | None:
    """The account, open or closed."""
    row: tuple[Any, ...]
    for row in connection.execute(f"SELECT {_COLUMNS} FROM account WHERE fhir_user=?", (fhir_user,)):  # noqa: S608
        return Account(fhir_user=row[0], role=row[1], name=row[2], organizations=tuple(row[3].split()), wallet=row[4],
                       represents=row[5], mandate_until_ms=row[6], closed_ms=row[7])
    return None


def check_user(fhir_user: str) -> str:
    """The type of a ``fhirUser`` reference. Raises Unprocessable."""
    match = _USER.fullmatch(fhir_user)
    if match is None:
        raise Unprocessable("a user is Practitioner/ID, Patient/ID, RelatedPerson/ID or Person/ID")
    return match[1]


def default_role(fhir_user: str) -> str | None:
    """The role of a user without an account; None where only an account can say."""
    return {"Practitioner": "clinician", "Patient": "patient"}.get(check_user(fhir_user))


def add_user(smart: Smart, *, fhir_user: str, role: str, name: str, organizations: Sequence[str] = (),
             wallet: str | None = None, represents: str | None = None, mandate_until_ms: int | None = None) -> None:
    """Add a person, or give one already here a new standing (which revokes their tokens and reopens the account).

    ``organizations``: references a patient's grant may name to reach them; ``wallet``: an Ethereum address, None:
    whatever is registered; ``represents`` and ``mandate_until_ms``: of a delegate alone. Raises Unprocessable, Conflict
    (another wallet is registered: ``wallets.py`` changes it).
    """
    now_ms = smart.now_ms()

    def work(connection: apsw.Connection) -> None:
        known = find_account(connection, fhir_user)
        put_user(connection, fhir_user=fhir_user, role=role, name=name, organizations=organizations, wallet=wallet,
                 represents=represents, mandate_until_ms=mandate_until_ms, now_ms=now_ms)
        smart.audit_operator(connection, "account", "C" if known is None else "U", fhir_user, role, now_ms)
    smart.database.transact(work)


def put_user(connection: apsw.Connection, *, fhir_user: str, role: str, name: str, organizations: Sequence[str] = (),
             wallet: str | None = None, represents: str | None = None, mandate_until_ms: int | None = None,
             now_ms: int) -> None:
    """``add_user`` inside the open transaction; the audit is the caller's. Raises Unprocessable."""
    kind = check_user(fhir_user)
    _check_role(kind, role)
    if not name.strip() or len(name) > 200 or not name.isprintable():
        raise Unprocessable("an account needs a name of at most 200 printable characters")
    for organization in organizations:
        if not REFERENCE.fullmatch(organization) or not organization.startswith("Organization/"):
            raise Unprocessable("an organisation is given as Organization/ID")
    _check_mandate(role, represents, mandate_until_ms)
    address = None if wallet is None else wallet_address(wallet)
    known = find_account(connection, fhir_user)
    if known is not None and known.wallet is not None and address not in (None, wallet_address(known.wallet)):
        raise Conflict(f"{fhir_user} has the wallet {known.wallet} registered: change it with `gateway user wallet "
                       f"{fhir_user} {address}`")
    connection.execute(
        "INSERT INTO account (fhir_user,role,name,organizations,wallet,represents,mandate_until_ms,proofed,"
        "created_ms) VALUES (?,?,?,?,?,?,?,1,?) ON CONFLICT (fhir_user) DO UPDATE SET role=excluded.role, "
        "name=excluded.name, organizations=excluded.organizations, wallet=coalesce(account.wallet,excluded.wallet), "
        "represents=excluded.represents, mandate_until_ms=excluded.mandate_until_ms, closed_ms=NULL",
        (fhir_user, role, name, " ".join(organizations), address, represents, mandate_until_ms, now_ms))
    revoke_user(connection, fhir_user, now_ms)
    end_sessions(connection, fhir_user, now_ms)


def close_user(smart: Smart, fhir_user: str) -> None:
    """Close an account: its tokens are refused from this commit on, on every worker. Raises NotFound."""
    now_ms = smart.now_ms()

    def work(connection: apsw.Connection) -> None:
        known = find_account(connection, fhir_user)
        if known is None:
            raise NotFound(f"there is no account {fhir_user}")
        connection.execute("UPDATE account SET closed_ms=? WHERE fhir_user=? AND closed_ms IS NULL",
                           (now_ms, fhir_user))
        revoke_user(connection, fhir_user, now_ms)
        end_sessions(connection, fhir_user, now_ms)
        smart.audit_operator(connection, "account", "D", fhir_user, known.role, now_ms)
    smart.database.transact(work)


def _check_role(kind: str, role: str) -> None:
    if role not in policy().roles or role == "system":
        people = ", ".join(sorted(policy().roles.keys() - {"system"}))
        raise Unprocessable(f"{role} is not a person's role: one of {people}")
    fitting = {"patient": {"Patient"}, "delegate": {"RelatedPerson", "Person"}}.get(role, {"Practitioner"})
    if kind not in fitting:
        raise Unprocessable(f"the role {role} is for {' or '.join(sorted(fitting))}, not {kind}")


def _check_mandate(role: str, represents: str | None, mandate_until_ms: int | None) -> None:
    if role != "delegate":
        if represents is not None or mandate_until_ms is not None:
            raise Unprocessable("only a delegate represents a patient")
        return
    if represents is None or not REFERENCE.fullmatch(represents) or not represents.startswith("Patient/"):
        raise Unprocessable("a delegate represents one patient, given as Patient/ID")
    if mandate_until_ms is None:
        raise Unprocessable("a delegate's mandate needs an end")


def wallet_address(wallet: str) -> str:
    """EIP-55 form. Raises Unprocessable: a mixed-case address whose checksum is wrong was mistyped."""
    if not wallet.startswith("0x") or not is_hex_address(wallet):
        raise Unprocessable("a wallet is an address: 0x and 40 hex digits")
    address = str(to_checksum_address(wallet))
    if is_checksum_formatted_address(wallet) and wallet != address:
        raise Unprocessable("the wallet's address has a wrong EIP-55 checksum")
    return address
