"""Where the follower stands on the chain, and what the chain's events did to provisions.

Owns the rows of ``chain_block``, the settings ``chain_*`` and each event's effect on ``provision``; refuses to undo a
denial: going back makes grants wait again and leaves what was revoked. Invariant 6;
``README.md``, Paths: Grant, revoke.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import apsw
import orjson

from gateway.ledger.address import Address
from gateway.ledger.chain import Block
from gateway.ledger.events import Granted
from gateway.store import batches, journal, outbox, provisions

_REMEMBERED: Final = 256
FRESH: Final = "chain_fresh_until_ms"
HEAD: Final = "chain_head"
_FINAL: Final = "chain_final"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cursor:
    """Blocks up to ``seen`` were read (its hash remembered, empty before the first), grants up to ``final`` final."""

    seen: int
    seen_hash: bytes
    final: int


def cursor(connection: apsw.Connection, *, before: int = -1) -> Cursor:
    """Where it stands; ``before`` is the block ahead of the first that is read."""
    seen, seen_hash, final = before, b"", before
    for number, hash_ in connection.execute("SELECT number, hash FROM chain_block ORDER BY number DESC LIMIT 1"):
        seen, seen_hash = number, hash_
    for (value,) in connection.execute("SELECT value FROM setting WHERE name=?", (_FINAL,)):
        final = max(value, before)
    return Cursor(seen=seen, seen_hash=seen_hash, final=final)


def remembered(connection: apsw.Connection) -> list[tuple[int, bytes]]:
    """Number and hash of every remembered block, newest first."""
    found: list[tuple[int, bytes]] = connection.execute(
        "SELECT number, hash FROM chain_block ORDER BY number DESC").fetchall()  # type: ignore[assignment]  # as declared
    return found


def moved_on(connection: apsw.Connection, block: Block, final: int) -> None:
    """Everything up to ``block`` was read, and grants up to block ``final`` are final."""
    connection.execute("INSERT OR REPLACE INTO chain_block VALUES (?,?,?)", (block.number, block.hash, block.time_s))
    connection.execute("DELETE FROM chain_block WHERE number NOT IN "
                       "(SELECT number FROM chain_block ORDER BY number DESC LIMIT ?)", (_REMEMBERED,))
    _set(connection, _FINAL, final)


def go_back(connection: apsw.Connection, fork: int) -> None:
    """A reorg left the chain as it was only up to block ``fork``: what was final above it waits again."""
    connection.execute("DELETE FROM chain_block WHERE number>?", (fork,))
    connection.execute("UPDATE setting SET value=min(value,?) WHERE name=?", (fork, _FINAL))
    connection.execute("UPDATE provision SET state='pending', block=NULL WHERE state='final' AND block>?", (fork,))
    if connection.changes():
        journal.bump_decision_seq(connection)
    batches.taken_back(connection, fork)
    outbox.taken_back(connection, fork)


def granted(connection: apsw.Connection, event: Granted) -> None:
    """Seen in some block: the epoch it was granted in, so that a revocation of that epoch finds it."""
    connection.execute("UPDATE provision SET epoch=? WHERE grant_id=? AND state<>'revoked'",
                       (event.epoch, event.grant_id))


def granted_for_good(connection: apsw.Connection, event: Granted) -> int:
    """Its block has its confirmations: pending provisions count from this commit on; how many."""
    connection.execute("UPDATE provision SET block=?, epoch=? WHERE grant_id=? AND state='pending'",
                       (event.place.block_number, event.epoch, event.grant_id))
    return provisions.set_state_of_grant(connection, event.grant_id, "final", only=("pending",))


def is_pending(connection: apsw.Connection, grant_id: bytes) -> bool:
    """Whether provisions still wait for the grant to be final."""
    return connection.execute("SELECT 1 FROM provision WHERE grant_id=? AND state='pending' LIMIT 1",
                              (grant_id,)).get is not None


def refused(connection: apsw.Connection, grant_id: bytes) -> None:
    """The contract will not have it. A deny that has permits inside protects on, whatever becomes of these."""
    connection.execute("UPDATE provision SET state='revoked' WHERE grant_id=? AND state='pending' "
                       "AND (permit=1 OR exception=1)", (grant_id,))
    if connection.changes():
        journal.bump_decision_seq(connection)


def revoked(connection: apsw.Connection, grant_id: bytes) -> int:
    """Revoked in some block, final or not: denied from this commit on; how many provisions."""
    return provisions.set_state_of_grant(connection, grant_id, "revoked", only=("pending", "final"))


def revoked_all(connection: apsw.Connection, patient: Address, epoch: int) -> int:
    """The patient ended every epoch below ``epoch``; how many provisions were revoked.

    A permit that was not granted yet is of the epoch it was signed in: it ends too unless that is a later one. What is
    denied inside a permit ends with it; what is denied outright stays.
    """
    epoch_is(connection, patient, epoch)
    open_ = connection.execute(
        "SELECT DISTINCT consent FROM provision WHERE address=? AND epoch IS NULL AND state<>'revoked'",
        (patient,)).fetchall()
    later = [
        str(consent) for (consent,) in open_
        if (granted := outbox.grant_of_consent(connection, str(consent))) is not None and granted.epoch >= epoch]
    connection.execute(
        "UPDATE provision SET state='revoked' WHERE address=? AND (permit=1 OR exception=1) "  # noqa: S608
        "AND state<>'revoked' AND (epoch<? OR (epoch IS NULL AND coalesce(consent,'') NOT IN "
        f"({','.join('?' * len(later))})))",
        (patient, epoch, *later))
    moved = connection.changes()
    if moved:
        journal.bump_decision_seq(connection)
    return moved


def epoch_is(connection: apsw.Connection, patient: Address, epoch: int) -> None:
    """The epoch a patient address is in on chain."""
    connection.execute("INSERT OR REPLACE INTO patient_epoch VALUES (?,?)", (patient, epoch))


def epoch_of(connection: apsw.Connection, patient: Address) -> int:
    """The epoch a patient address was in when last seen: what a revoke-all ends."""
    for (epoch,) in connection.execute("SELECT epoch FROM patient_epoch WHERE address=?", (patient,)):
        return int(str(epoch))
    return 0


def epoch_to_sign(connection: apsw.Connection, patient: Address) -> int:
    """The epoch of what the address signs now: the one behind every revoke-all of it that is on its way."""
    ahead = [call.epoch + 1 for call in outbox.revoke_alls_on_their_way(connection) if call.patient == patient]
    return max((epoch_of(connection, patient), *ahead))


def beat(connection: apsw.Connection, head: Block, *, now_ms: int, fresh_until_ms: int | None) -> None:
    """The node answered, and everything up to ``head`` was read. ``fresh_until_ms`` None: its head is too old."""
    _set(connection, HEAD, orjson.dumps({"number": head.number, "hash": "0x" + head.hash.hex(), "time_s": head.time_s,
                                         "seen_ms": now_ms}).decode())
    if fresh_until_ms is not None:
        _set(connection, FRESH, fresh_until_ms)


def head_number(connection: apsw.Connection) -> int:
    """The chain's newest block as it was last seen, -1 before that."""
    return int(_head(connection).get("number", -1))


def seen_ms(connection: apsw.Connection) -> int:
    """When the chain's newest block was last seen, 0 before that."""
    return int(_head(connection).get("seen_ms", 0))


def _head(connection: apsw.Connection) -> dict[str, Any]:
    """What ``beat`` noted last; nothing before that."""
    for (value,) in connection.execute("SELECT value FROM setting WHERE name=?", (HEAD,)):
        found: dict[str, Any] = orjson.loads(str(value))
        return found
    return {}


def _set(connection: apsw.Connection, name: str, value: int | str) -> None:
    connection.execute("INSERT OR REPLACE INTO setting VALUES (?,?)", (name, value))
