"""Patients by what they sign with: ``Patient?identifier=urn:fhir-gateway:wallet|0x...`` and ``...:public-key|0x...``.

Owns resolving an Ethereum address (a wallet's, or a passkey's patient address) or a public key (secp256k1 or P-256,
compressed or not) to the proofed account that holds it; refuses to take it from a resource, and to let one say it: an
identifier of these systems cannot be written. What is found is shown by ``decide`` like any patient.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, Final

import apsw

from gateway.access.passkey import PublicKey
from gateway.errors import BadSearch, Unprocessable
from gateway.fhir.query import Criterion, IdIs, Query
from gateway.fhir.resource import Resource
from gateway.records.cose import public_key_of

WALLET: Final = "urn:fhir-gateway:wallet"
PUBLIC_KEY: Final = "urn:fhir-gateway:public-key"
_SYSTEMS: Final = (WALLET, PUBLIC_KEY)
_ADDRESS: Final = re.compile(r"0x[0-9A-Fa-f]{40}")
_KEY: Final = re.compile(r"(?:0x)?((?:0[23][0-9A-Fa-f]{64})|(?:04)?[0-9A-Fa-f]{128})")
_MOST: Final = 10
Pairs = Sequence[tuple[str, str]]


def parted(type_: str, pairs: Pairs) -> tuple[Pairs, Pairs]:
    """The parameters of a search, and those among them that name patients by what they sign with."""
    if type_ != "Patient":
        return pairs, ()
    ours = [pair for pair in pairs if pair[0] == "identifier" and "urn:fhir-gateway:" in pair[1]]
    return ([pair for pair in pairs if pair not in ours], ours) if ours else (pairs, ())


def narrowed(connection: apsw.Connection, query: Query, pairs: Pairs, ours: Pairs) -> Query:
    """``query`` for the patients that ``ours`` names, told as it was asked. Raises BadSearch."""
    if query.results.contained != "false":  # whoever writes a Patient into a record of theirs gives it any id
        raise _refused("names no address within other resources")
    criteria = [Criterion(tuple(IdIs(id_) for id_ in _ids(connection, value))) for _, value in ours]
    known = {*query.used, *ours}
    return replace(query, criteria=(*query.criteria, *criteria), used=tuple(pair for pair in pairs if pair in known))


def _ids(connection: apsw.Connection, value: str) -> list[str]:
    found: list[str] = []
    named = value.split(",")
    if len(named) > _MOST:
        raise _refused(f"names at most {_MOST} addresses")
    for one in named:
        system, _, text = one.partition("|")
        accounts = _accounts(system, text)
        found += [id_ for account in accounts for id_ in _holders(connection, account)]
    return list(dict.fromkeys(found)) or [str(uuid.uuid4())]  # nobody's, now and later


def _accounts(system: str, text: str) -> list[str]:
    """The patient addresses that are meant, in lower case."""
    if system == WALLET and _ADDRESS.fullmatch(text):
        return [text.lower()]
    match = _KEY.fullmatch(text) if system == PUBLIC_KEY else None
    if match is None:
        raise _refused(f"is {WALLET}|0x and 40 hex digits, or {PUBLIC_KEY}|0x and a public key of 33, 64 or 65 bytes")
    raw = bytes.fromhex(match[1])
    if len(raw) >= 64:
        return [PublicKey(x=raw[-64:-32], y=raw[-32:]).account]
    return list(_decompressed(raw))


def _decompressed(raw: bytes) -> list[str]:
    """On either curve: 33 bytes do not say which."""
    from cryptography.hazmat.primitives.asymmetric import ec  # loaded by the few searches that need it

    found = []
    for curve in (ec.SECP256K1(), ec.SECP256R1()):
        try:
            point = ec.EllipticCurvePublicKey.from_encoded_point(curve, raw).public_numbers()
        except ValueError:
            continue
        found.append(PublicKey(x=point.x.to_bytes(32, "big"), y=point.y.to_bytes(32, "big")).account)
    return found


def _holders(connection: apsw.Connection, account: str) -> list[str]:
    """Logical ids of the patients whose proofed, open account signs as this address."""
    users = [str(user) for (user,) in connection.execute(
        "SELECT fhir_user FROM account WHERE lower(wallet)=? AND role='patient' AND proofed=1 AND closed_ms IS NULL",
        (account,)).fetchall()]
    rows: list[Any] = connection.execute(
        "SELECT p.public_key, l.fhir_user FROM passkey p JOIN login l ON l.id=p.login JOIN account a "
        "ON a.fhir_user=l.fhir_user WHERE l.state='verified' AND a.role='patient' AND a.proofed=1 "
        "AND a.closed_ms IS NULL").fetchall()
    users += [str(user) for cose, user in rows if _account_of(bytes(cose)) == account]
    return [user.removeprefix("Patient/") for user in dict.fromkeys(users)]


@lru_cache(maxsize=65_536)
def _account_of(cose: bytes) -> str | None:
    key = public_key_of(cose)
    return None if key is None else key.account


def _refused(why: str) -> BadSearch:
    return BadSearch(f"identifier {why}", code="value", expression="http.identifier")


def check_write(node: object, caller: object, old: Resource | None, new: Resource) -> None:
    """A Patient does not say what its person signs with, whoever writes it. Raises Unprocessable."""
    for place, one in enumerate(new.get("identifier") or ()):
        if one.get("system") in _SYSTEMS:
            raise Unprocessable("what a patient signs with is registered with their account", code="business-rule",
                                expression=f"Patient.identifier[{place}].system")
