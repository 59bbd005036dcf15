"""What a patient's page says of a Consent: in which words, who can sign it for them, and what of it still waits.

Owns the signers a person is offered; refuses to offer one that ``signing.py`` would refuse. ``FORMATS.md``, Consent.
"""

from __future__ import annotations

from dataclasses import dataclass

import apsw

from gateway.access.passkey import challenge_text
from gateway.access.terms import Terms, terms_of
from gateway.errors import InputRefused
from gateway.fhir.resource import Resource
from gateway.records.consent_standing import rules_of
from gateway.records.gate import Caller
from gateway.records.node import Node
from gateway.records.signing import DEADLINE_S, names_of, passkeys_of, wallet_of
from gateway.store import followed, journal, outbox
from gateway.store.sql import now_ms

_SALT = bytes(32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Passkey:
    """``credential``: base64url; ``address``: what it is on chain."""

    credential: str
    address: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Signers:
    """Who can sign in this session: the registered ``wallet``'s address, ``passkeys``, or the ``kept`` key."""

    wallet: str | None
    passkeys: tuple[Passkey, ...]
    kept: bool


def signers_of(node: Node, caller: Caller, patient: str) -> Signers:
    """``patient`` is a logical id. A delegate uses no passkey of the patient's: it is on another's device."""
    connection = node.database.reader
    wallet = wallet_of(connection, patient)
    passkeys: tuple[Passkey, ...] = ()
    if caller.grant.role == "patient":
        passkeys = tuple(Passkey(credential=challenge_text(one.credential), address=one.address,
                                 name=_name(connection, one.credential)) for one in passkeys_of(connection, patient))
    return Signers(wallet=wallet, passkeys=passkeys, kept=wallet is None)


def _name(connection: apsw.Connection, credential: bytes) -> str:
    return str(connection.execute("SELECT name FROM passkey WHERE id=?", (credential,)).get)


def words_of(node: Node, consent: Resource) -> Terms | None:
    """The words a wallet shows; None of terms that cannot be enforced, which nobody signs."""
    try:
        rules = rules_of(node, consent)
    except InputRefused:
        return None
    return terms_of(rules, hospital=node.settings.hospital_name, names=names_of(node, node.database.reader, rules),
                    salt=_SALT)


def is_late(connection: apsw.Connection, consent: str) -> bool:
    """Whether the time to sign what is proposed has passed: it is proposed anew first."""
    row = journal.current(connection, "Consent", consent)
    return row is not None and row.updated_ms // 1000 + DEADLINE_S < now_ms() // 1000


def end_unsigned(connection: apsw.Connection, consent: str) -> str | None:
    """The address whose grant of an ended Consent the chain still counts, and whose signature alone ends it there."""
    granted = outbox.grant_of_consent(connection, consent)
    if granted is None or followed.epoch_to_sign(connection, granted.patient) > granted.epoch:
        return None
    act = outbox.act_of_consent(connection, consent, "revoke")
    return None if act is not None and act.state != "failed" else granted.patient
