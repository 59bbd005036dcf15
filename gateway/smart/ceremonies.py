"""Ceremonies: what the server said once and takes back once (a challenge, a nonce, a state).

Owns their rows; refuses one that is unknown, expired, used, of another kind, or brought by another browser than the one
it was given to.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import apsw
import orjson

from gateway.errors import Unprocessable
from gateway.smart.issuer import Smart
from gateway.smart.sealing import open_sealed, seal

Kind = Literal["passkey-add", "passkey-use", "wallet-add", "wallet-use", "upstream", "upstream-new"]
LIFE_MS: Final = 10 * 60_000


def begin(connection: apsw.Connection, smart: Smart, kind: Kind, handle: str, *, bound: str, now_ms: int,
          body: dict[str, Any] | None = None) -> None:
    """Keep ``handle`` (random, at least 96 bits) for who holds the cookie ``bound``."""
    hashed = _hash(smart, kind, handle)
    connection.execute("INSERT INTO ceremony (hash,kind,bound,body,expires_ms) VALUES (?,?,?,?,?)", (
        hashed, kind, smart.tokens.hash(f"bound {bound}"),
        seal(smart, orjson.dumps(body or {}), f"ceremony {hashed.hex()}"), now_ms + LIFE_MS))


def finish(connection: apsw.Connection, smart: Smart, kind: Kind, handle: str, *, bound: str,
           now_ms: int) -> dict[str, Any]:
    """Take it back: once, whatever comes of it. What was kept with it. Raises Unprocessable."""
    hashed = _hash(smart, kind, handle)
    row: tuple[Any, ...] | None = next(iter(connection.execute(
        "SELECT bound, body, expires_ms FROM ceremony WHERE hash=? AND kind=?", (hashed, kind)).fetchall()), None)
    connection.execute("DELETE FROM ceremony WHERE hash=?", (hashed,))
    if row is None or row[2] <= now_ms or row[0] != smart.tokens.hash(f"bound {bound}"):
        raise Unprocessable("this has expired or was used already: begin once more")
    body: dict[str, Any] = orjson.loads(open_sealed(smart, row[1], f"ceremony {hashed.hex()}"))
    return body


def sweep(connection: apsw.Connection, now_ms: int) -> int:
    """Delete those that expired; how many rows went."""
    connection.execute("DELETE FROM ceremony WHERE expires_ms < ?", (now_ms,))
    return connection.changes()


def _hash(smart: Smart, kind: Kind, handle: str) -> bytes:
    return smart.tokens.hash(f"ceremony {kind} {handle}")
