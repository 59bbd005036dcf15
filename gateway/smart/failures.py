"""Failed requests at the OAuth doors, counted by where they come from, by all workers together.

Owns the rows of ``door_failure``; refuses nothing by itself: it says how long an address has to wait. A client is never
locked out by name, or whoever knows its id could. Addresses are kept as keyed hashes.
https://www.rfc-editor.org/rfc/rfc6749#section-10.10
"""

from __future__ import annotations

from typing import Final

import apsw

from gateway.smart.issuer import Smart

WINDOW_MS: Final = 300_000


class Failures:
    """Of one hospital. Safe between threads."""

    def __init__(self, smart: Smart) -> None:
        self._smart = smart
        self._most = smart.settings.address_failures

    def wait_s(self, address: str) -> float:
        """Seconds until ``address`` may try again; 0.0: now. One look-up."""
        if not self._most:
            return 0.0
        now_ms = self._smart.now_ms()
        row = next(self._smart.database.reader.execute(
            "SELECT since_ms FROM door_failure WHERE key=? AND failures>=? AND since_ms>?",
            (self._key(address), self._most, now_ms - WINDOW_MS)), None)
        return 0.0 if row is None else (row[0] + WINDOW_MS - now_ms) / 1_000

    def failed(self, address: str) -> None:
        """Count one, durably. Raises StoreBusy."""
        if not self._most:
            return
        key, now_ms = self._key(address), self._smart.now_ms()
        self._smart.database.transact(lambda tx: tx.execute(
            "INSERT INTO door_failure VALUES (?1,?2,1) ON CONFLICT (key) DO UPDATE SET "
            "failures=CASE WHEN since_ms>?3 THEN failures+1 ELSE 1 END, "
            "since_ms=CASE WHEN since_ms>?3 THEN since_ms ELSE ?2 END", (key, now_ms, now_ms - WINDOW_MS)))

    def _key(self, address: str) -> bytes:
        return self._smart.tokens.hash(f"door {address}")


def sweep_failures(connection: apsw.Connection, now_ms: int) -> int:
    """Delete windows that are over; how many rows went."""
    connection.execute("DELETE FROM door_failure WHERE since_ms<=?", (now_ms - WINDOW_MS,))
    return connection.changes()
