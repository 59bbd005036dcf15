"""Intents: the acts patients signed for the chain, on their way there.

Owns the columns of ``intent`` and the stored form of a signed call; refuses to relay one signed act twice (its id is
the hash of the call) and to know how it was signed or sent. An intent is committed with the provision that rests on it.

    call    dag-cbor {kind, and the call's own members; numbers as 32 bytes}
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Final, Literal, cast

import apsw

from gateway.errors import BlockCorrupt, Moved
from gateway.ledger.address import address
from gateway.ledger.calls import GrantCall, RevokeAllCall, RevokeCall
from gateway.store.cbor import Value, decode, encode

IntentKind = Literal["grant", "revoke", "revoke-all"]
IntentState = Literal["signed", "submitted", "mined", "final", "failed"]
SignedCall = GrantCall | RevokeCall | RevokeAllCall

WITHDRAWN: Final = "Withdrawn"
"""Error of a grant that its patient ended before it was sent."""
_CALLS: Final[dict[str, type[GrantCall] | type[RevokeCall] | type[RevokeAllCall]]] = {
    "grant": GrantCall, "revoke": RevokeCall, "revoke-all": RevokeAllCall}
_COLUMNS: Final = "pk, id, kind, consent, call, state, created_ms, tx_hash, block_number, block_hash, error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """One row. ``error`` is the contract's error of a failed one."""

    pk: int
    id: str
    kind: IntentKind
    consent: str | None
    call: SignedCall
    state: IntentState
    created_ms: int
    tx_hash: bytes | None
    block_number: int | None
    block_hash: bytes | None
    error: str | None

    @property
    def recorded(self) -> tuple[int, bytes] | None:
        """Block number and hash where it is known to have landed."""
        if self.block_number is None or self.block_hash is None:
            return None
        return self.block_number, self.block_hash


def enqueue(connection: apsw.Connection, *, kind: IntentKind, consent: str | None, call: SignedCall,
            created_ms: int) -> str:
    """Store a signed act for the relay inside the open transaction; its id. The same call again is the same intent,
    tried anew if it had failed. Raises ValueError when ``kind`` is not the call's."""
    if not isinstance(call, _CALLS[kind]):
        raise ValueError(f"a {type(call).__name__} is no {kind}")
    data = encode_call(call)
    id_ = hashlib.sha256(data).hexdigest()
    connection.execute(
        "INSERT INTO intent (id,kind,consent,call,state,created_ms) VALUES (?,?,?,?,'signed',?) "
        "ON CONFLICT (id) DO UPDATE SET state='signed', error=NULL WHERE state='failed'",
        (id_, kind, consent, data, created_ms))
    return id_


def grant_of_consent(connection: apsw.Connection, consent: str) -> GrantCall | None:
    """The grant signed for a Consent, None before that and when the chain refused it."""
    for (data,) in connection.execute(
            "SELECT call FROM intent WHERE consent=? AND kind='grant' AND state<>'failed' ORDER BY pk DESC LIMIT 1",
            (consent,)):
        return cast(GrantCall, decode_call(cast(bytes, data)))
    return None


def refusal_of_consent(connection: apsw.Connection, consent: str) -> str | None:
    """Why the chain refused what was signed last for a Consent (the contract's error), None when it did not."""
    for state, error in connection.execute(
            "SELECT state, error FROM intent WHERE consent=? AND kind='grant' ORDER BY pk DESC LIMIT 1", (consent,)):
        return str(error) if state == "failed" else None
    return None


def act_of_consent(connection: apsw.Connection, consent: str, kind: IntentKind) -> Intent | None:
    """The latest act of a kind for a Consent, whatever became of it."""
    for row in connection.execute(f"SELECT {_COLUMNS} FROM intent WHERE consent=? AND kind=? "  # noqa: S608
                                  "ORDER BY pk DESC LIMIT 1", (consent, kind)):
        return _intent(row)
    return None


def failures_of_consent(connection: apsw.Connection, consent: str, kind: IntentKind) -> int:
    """How many acts of a kind for a Consent the chain refused."""
    return int(str(connection.execute("SELECT count(*) FROM intent WHERE consent=? AND kind=? AND state='failed'",
                                      (consent, kind)).get))


def has_open(connection: apsw.Connection) -> bool:
    """Whether any intent is on its way; one indexed read."""
    return connection.execute(
        "SELECT 1 FROM intent WHERE state NOT IN ('final','failed') LIMIT 1").fetchone() is not None


def open_intents(connection: apsw.Connection, *, limit: int) -> tuple[Intent, ...]:
    """Intents on their way, oldest first."""
    return tuple(_intent(row) for row in connection.execute(
        f"SELECT {_COLUMNS} FROM intent WHERE state NOT IN ('final','failed') ORDER BY pk LIMIT ?",  # noqa: S608
        (limit,)))


def revoke_alls_on_their_way(connection: apsw.Connection) -> tuple[RevokeAllCall, ...]:
    """The ends of epochs that are not final yet, of any patient, oldest first."""
    return tuple(cast(RevokeAllCall, decode_call(cast(bytes, data))) for (data,) in connection.execute(
        "SELECT call FROM intent WHERE state NOT IN ('final','failed') AND kind='revoke-all' ORDER BY pk"))


def intent(connection: apsw.Connection, id_: str) -> Intent | None:
    """One intent by its id."""
    for row in connection.execute(f"SELECT {_COLUMNS} FROM intent WHERE id=?", (id_,)):  # noqa: S608
        return _intent(row)
    return None


def submitted(connection: apsw.Connection, pk: int) -> None:
    """A transaction for it was signed, or a reorg took back the one that had landed. Raises Moved: it was withdrawn."""
    connection.execute("UPDATE intent SET state='submitted', tx_hash=NULL, block_number=NULL, block_hash=NULL "
                       "WHERE pk=? AND state<>'failed'", (pk,))
    if not connection.changes():
        raise Moved("the act was withdrawn")


def withdraw_grant(connection: apsw.Connection, consent: str) -> bool:
    """A Consent's grant that no transaction was signed for, and that no block was seen with, is never sent: its
    signature goes. Whether it was so."""
    for pk, data in connection.execute(
            "SELECT pk, call FROM intent i WHERE consent=? AND state='signed' AND kind='grant' AND NOT EXISTS "
            "(SELECT 1 FROM provision p WHERE p.consent=i.consent AND (p.state='final' OR p.epoch IS NOT NULL))",
            (consent,)).fetchall():
        call = cast(GrantCall, decode_call(cast(bytes, data)))
        connection.execute("UPDATE intent SET state='failed', error=?, call=? WHERE pk=?",
                           (WITHDRAWN, encode_call(replace(call, signature=b"")), pk))
        return True
    return False


def failed_of_kind(connection: apsw.Connection, kind: IntentKind, errors: Sequence[str]) -> tuple[Intent, ...]:
    """Acts of a kind that the chain refused with one of ``errors``, oldest first."""
    return tuple(_intent(row) for row in connection.execute(
        f"SELECT {_COLUMNS} FROM intent WHERE state='failed' AND kind=? AND error IN "  # noqa: S608
        f"({','.join('?' * len(errors))}) ORDER BY pk", (kind, *errors)))


def renewed(connection: apsw.Connection, pk: int) -> None:
    """Another act stands for this refused one."""
    connection.execute("UPDATE intent SET error='Renewed' WHERE pk=? AND state='failed'", (pk,))


def landed(connection: apsw.Connection, pk: int, state: Literal["mined", "final"], *, tx_hash: bytes,
           block_number: int, block_hash: bytes) -> None:
    """It took effect in this block."""
    connection.execute("UPDATE intent SET state=?, tx_hash=?, block_number=?, block_hash=?, error=NULL WHERE pk=?",
                       (state, tx_hash, block_number, block_hash, pk))


def failed(connection: apsw.Connection, pk: int, error: str) -> None:
    """A contract refuses it for good."""
    connection.execute("UPDATE intent SET state='failed', error=? WHERE pk=?", (error, pk))


def taken_back(connection: apsw.Connection, fork: int) -> int:
    """Intents final in blocks above ``fork`` are to be judged again; how many."""
    connection.execute("UPDATE intent SET state='mined' WHERE state='final' AND block_number>?", (fork,))
    return connection.changes()


def encode_call(call: SignedCall) -> bytes:
    """The stored form. Raises ValueError for a number that is negative or over 256 bits."""
    kind = next(name for name, made in _CALLS.items() if isinstance(call, made))
    members: dict[str, Value] = {"kind": kind}
    for name in (field.name for field in fields(call)):
        value = getattr(call, name)
        if isinstance(value, int):
            try:
                value = value.to_bytes(32, "big")
            except OverflowError as error:
                raise ValueError(f"{name} is not a number of 256 bits") from error
        members[name] = value
    return encode(members)


def decode_call(data: bytes) -> SignedCall:
    """Read the stored form. Raises BlockCorrupt."""
    members = decode(data)
    if not isinstance(members, dict):
        raise BlockCorrupt("a stored call is malformed")
    made = _CALLS.get(str(members.get("kind")))
    if made is None or {field.name for field in fields(made)} | {"kind"} != set(members):
        raise BlockCorrupt("a stored call is malformed")
    values: dict[str, object] = {}
    for field in fields(made):
        value = members[field.name]
        if field.type == "int" and isinstance(value, bytes):
            values[field.name] = int.from_bytes(value, "big")
        elif field.type == "Address" and isinstance(value, str):
            values[field.name] = address(value)
        elif field.type == "bytes" and isinstance(value, bytes):
            values[field.name] = value
        else:
            raise BlockCorrupt(f"a stored call's {field.name} is malformed")
    return made(**values)  # type: ignore[arg-type]  # each checked against its field above


def _intent(row: tuple[object, ...]) -> Intent:
    names = _COLUMNS.split(", ")
    values = dict(zip(names, row, strict=True))
    values["call"] = decode_call(cast(bytes, values["call"]))
    return Intent(**values)  # type: ignore[arg-type]  # columns as declared
