"""Growing delays after failed sign-ins: per login, per known device, per source.

Owns the count of failures; refuses attempts while a delay runs, and refuses to be a weapon: the longest delay is a
quarter of an hour, an attempt during it does not lengthen it, a browser the person signed in from before is counted
apart, and passkeys, wallets and the identity provider are not held up at all.
https://cheatsheetseries.owasp.org/cheatsheets/Authentication_Cheat_Sheet.html#account-lockout, OWASP "device cookies"
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import apsw

from gateway.smart.issuer import Smart

FORGOTTEN_MS: Final = 24 * 3_600_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """``free`` failures cost nothing; then the delay doubles from one second up to ``longest_s``."""

    free: int
    longest_s: int

    def delay_ms(self, failures: int) -> int:
        """The delay after so many failures."""
        over = failures - self.free
        return 0 if over <= 0 else 1_000 * min(2 ** min(over - 1, 20), self.longest_s)


LOGIN: Final = Limit(free=5, longest_s=900)
DEVICE: Final = Limit(free=5, longest_s=900)
SOURCE: Final = Limit(free=40, longest_s=60)
SIGN_UP: Final = Limit(free=20, longest_s=900)


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """One thing attempts are counted by."""

    key: bytes
    limit: Limit
    shared: bool = False
    """Others use it too: one success takes back one attempt, not all."""


def by_login(smart: Smart, name: str) -> Counted:
    """A login name, whether there is such a login or not."""
    return Counted(key=smart.tokens.hash(f"failures login {name}"), limit=LOGIN)


def by_device(smart: Smart, login: str, device: str) -> Counted:
    """A browser the person signed in from before."""
    return Counted(key=smart.tokens.hash(f"failures device {login} {device}"), limit=DEVICE)


def by_source(smart: Smart, address: str | None) -> Counted:
    """An address; of IPv6 its /64, which one host has all of."""
    return Counted(key=smart.tokens.hash(f"failures source {_network(address)}"), limit=SOURCE, shared=True)


def by_sign_up(smart: Smart, address: str | None) -> Counted:
    """Sign-ups of an address."""
    return Counted(key=smart.tokens.hash(f"failures sign-up {_network(address)}"), limit=SIGN_UP, shared=True)


def source_of(smart: Smart, address: str | None) -> bytes:
    """What is kept of where somebody came from: the keyed hash of the address, of IPv6 of its /48: what is counted is
    few, and one customer may have all of that (RFC 6177)."""
    return smart.tokens.hash(f"source {_network(address, bits=48)}")


def reserve(connection: apsw.Connection, counted: Sequence[Counted], now_ms: int) -> bool:
    """Count an attempt as failed before it is looked at (many at once gain nothing); False when it must wait."""
    rows = [_row(connection, one.key, now_ms) for one in counted]
    if any(until_ms > now_ms for _, until_ms in rows):
        return False
    for one, (failures, _) in zip(counted, rows, strict=True):
        connection.execute(
            "INSERT INTO sign_in_failure VALUES (?,?,?,?) ON CONFLICT (key) DO UPDATE SET failures=excluded.failures, "
            "last_ms=excluded.last_ms, until_ms=excluded.until_ms",
            (one.key, failures + 1, now_ms, now_ms + one.limit.delay_ms(failures + 1)))
    return True


def wait_s(connection: apsw.Connection, one: Counted, now_ms: int) -> float:
    """Seconds until an attempt may be made; 0.0: now."""
    return max(0.0, (_row(connection, one.key, now_ms)[1] - now_ms) / 1_000)


def succeeded(connection: apsw.Connection, counted: Sequence[Counted]) -> None:
    """The attempt that was reserved was right."""
    for one in counted:
        if one.shared:
            connection.execute("UPDATE sign_in_failure SET failures=max(failures-1, 0), until_ms=0 WHERE key=?",
                               (one.key,))
        else:
            connection.execute("DELETE FROM sign_in_failure WHERE key=?", (one.key,))


def sweep(connection: apsw.Connection, now_ms: int) -> int:
    """Forget failures of more than a day ago; how many rows went."""
    connection.execute("DELETE FROM sign_in_failure WHERE last_ms < ?", (now_ms - FORGOTTEN_MS,))
    return connection.changes()


def _row(connection: apsw.Connection, key: bytes, now_ms: int) -> tuple[int, int]:
    row: tuple[Any, ...]
    for row in connection.execute("SELECT failures, until_ms FROM sign_in_failure WHERE key=? AND last_ms>=?",
                                  (key, now_ms - FORGOTTEN_MS)).fetchall():
        return int(row[0]), int(row[1])
    return 0, 0


def _network(address: str | None, *, bits: int = 64) -> str:
    """``address``, or the network it was counted as already, as one source: of IPv6 its network of so many bits."""
    try:
        parsed = ipaddress.ip_network(address or "", strict=False)
    except ValueError:
        return "unknown"
    if isinstance(parsed, ipaddress.IPv4Network):
        return str(parsed.network_address)
    mapped = parsed.network_address.ipv4_mapped
    return str(mapped) if mapped else str(parsed if parsed.prefixlen <= bits else parsed.supernet(new_prefix=bits))
