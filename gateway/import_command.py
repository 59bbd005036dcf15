"""``gateway import``: FHIR files brought in by this hospital's own feed, beside a running gateway or without one.

Owns putting the parts together, the progress bar and the report; refuses to run twice at once on one data folder, and
before the first start. Exit codes: 0 everything landed, 1 something was refused (the report says what and why), 2 it
could not be carried on; the same command run again goes on where it stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final

import orjson
from tqdm import tqdm  # type: ignore[import-untyped]  # ships no types

from gateway import app
from gateway.config import Settings
from gateway.errors import Issue, Misconfigured
from gateway.ledger.deployment import read_deployment
from gateway.records.gate import Caller
from gateway.records.import_source import WHOLE, Fault, Piece, find, pieces, size_bytes
from gateway.records.importer import BUNDLE_BYTES_MAX, Importer
from gateway.smart.issuer import Smart
from gateway.smart.minting import mint_token
from gateway.store.sql import now_ms

TOKEN_TTL_S: Final = 900
_RENEW_MS: Final = 300_000
_SHOWN_MAX: Final = 200


def import_paths(settings: Settings, paths: Sequence[Path], *, report: Path | None = None, again: bool = False) -> int:
    """Import files and folders; the exit code. ``report``: a file for the outcome as JSON lines (mode 0600).

    Raises Misconfigured before the first start, Unavailable when the store stays busy.
    """
    custodian = read_deployment(settings).custodian
    files, faults = find(paths)
    with _alone(settings), Outcome(report) as outcome:
        ring = app.open_ring(settings)
        database = app.open_database(settings, ring)
        try:
            node = app.build_node(settings, ring, database)
            smart = app.build_smart(settings, ring, database, node.definitions, custodian)
            with Feed(smart, app.authenticator(node, smart)) as feed:
                asyncio.run(_carry_out(Importer(node, feed.caller, outcome, again=again), outcome, files, faults))
        finally:
            database.close()
            ring.close()
        return outcome.close(complete=True)


async def _carry_out(importer: Importer, outcome: Outcome, files: Sequence[Path], faults: Sequence[Fault]) -> None:
    for fault in faults:
        await importer.take(fault)
    with tqdm(total=size_bytes(files), unit="B", unit_scale=True, unit_divisor=1024, disable=None,
              desc="import", leave=False) as bar:
        for piece in _pieces(files, bar.update):
            await importer.take(piece)
        await importer.flush()
    outcome.dangling(importer.dangling())


def _pieces(files: Sequence[Path], advance: Callable[[int], object]) -> Iterator[Piece | Fault]:
    """Every piece of every file; a file whose bytes were another's already is not read twice."""
    seen: dict[bytes, Path] = {}
    for file in files:
        for piece in pieces(file, most_bytes=BUNDLE_BYTES_MAX, advance=advance):
            if isinstance(piece, Piece) and seen.setdefault(piece.digest, file) != file:
                break
            yield piece


@contextlib.contextmanager
def _alone(settings: Settings) -> Iterator[None]:
    """One import at a time on one data folder: two of the same file would both bring in what has no id."""
    descriptor = os.open(settings.data_dir / "import.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise Misconfigured(f"another import runs on {settings.data_dir}: wait for it") from None
    try:
        yield
    finally:
        os.close(descriptor)


class Feed:
    """This hospital's feed client as the import's caller: a short token, minted as by ``gateway token``, audited."""

    def __init__(self, smart: Smart, authenticate: Callable[[str | None], Caller]) -> None:
        self._smart = smart
        self._authenticate = authenticate
        self._secret: str | None = None
        self._expires_ms = 0

    def __enter__(self) -> Feed:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._revoke()

    def caller(self) -> Caller:
        """Who imports, as things stand now; the token is renewed well before it runs out."""
        if self._secret is None or self._expires_ms - now_ms() < _RENEW_MS:
            self._revoke()
            secret, grant = mint_token(self._smart, ttl_s=TOKEN_TTL_S)
            self._secret, self._expires_ms = str(secret), grant.expires_ms
        return self._authenticate(f"Bearer {self._secret}")

    def _revoke(self) -> None:
        secret, self._secret = self._secret, None
        if secret is not None:
            self._smart.database.transact(lambda tx: self._smart.tokens.revoke(tx, secret, now_ms()))


class Outcome:
    """What became of it: counts, and what was refused and why; on standard output and as JSON lines."""

    def __init__(self, file: Path | None) -> None:
        self._file = None if file is None else _report_file(file)
        self._imported: Counter[str] = Counter()
        self._dangling: Counter[str] = Counter()
        self._new = self._already = self._refused = 0
        self._shown: list[str] = []
        self._started_s = time.monotonic()
        self._open = True

    def __enter__(self) -> Outcome:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if self._open:
            self.close(complete=False)
        if self._file is not None:
            self._file.close()

    def imported(self, type_: str, *, new: bool) -> None:
        """See Report."""
        self._imported[type_] += 1
        self._new += new

    def there_already(self) -> None:
        """See Report."""
        self._already += 1

    def refused(self, file: Path, line: int, issues: Sequence[Issue]) -> None:
        """See Report."""
        self._refused += 1
        place = str(file) if line == WHOLE else f"{file}:{line}"
        self._write({"refused": place, "file": str(file), "line": line or None, "issues": [
            {"severity": issue.severity, "code": issue.code, "diagnostics": issue.diagnostics,
             **({"expression": [issue.expression]} if issue.expression else {})} for issue in issues]})
        if len(self._shown) < _SHOWN_MAX:
            self._shown += [_plain(f"  {place}  {issue.expression + ': ' if issue.expression else ''}"
                                   f"{issue.diagnostics}") for issue in issues]

    def dangling(self, found: Mapping[str, int]) -> None:
        """What imported records refer to that is not here: records come in any order, so it is told, not refused."""
        for name, count in sorted(found.items()):
            self._write({"dangling": name, "references": count})
        self._dangling = Counter(name.partition("/")[0] for name in found)

    def close(self, *, complete: bool) -> int:
        """Print the report; the exit code."""
        self._open = False
        seconds = time.monotonic() - self._started_s
        total = self._imported.total()
        for type_, count in sorted(self._imported.items()):
            self._write({"type": type_, "imported": count})
        self._write({"complete": complete, "imported": total, "new": self._new, "there_already": self._already,
                     "refused": self._refused, "seconds": round(seconds, 3)})
        print(f"imported        {total} resources ({self._new} new) in {seconds:.1f} s, "
              f"{total / max(seconds, 0.001):.0f}/s")
        for type_, count in sorted(self._imported.items()):
            print(f"  {type_:<30} {count:>9}")
        if self._already:
            print(f"there already   {self._already} files or lines of an earlier import (--again brings them in anew)")
        print(f"refused         {self._refused}")
        if self._dangling:
            kinds = ", ".join(f"{type_} {count}" for type_, count in sorted(self._dangling.items()))
            print(f"dangling        records refer to {self._dangling.total()} resources that are not here ({kinds})")
        for line in self._shown[:_SHOWN_MAX]:
            print(line)
        if len(self._shown) > _SHOWN_MAX or self._refused > len(self._shown):
            print("  ... --report FILE has all of them")
        if not complete:
            print("not finished: run the same command again to go on")
        return int(self._refused > 0)

    def _write(self, record: dict[str, Any]) -> None:  # Any: JSON
        if self._file is not None:
            self._file.write(orjson.dumps(record, default=str) + b"\n")
            self._file.flush()


def _report_file(path: Path) -> IO[bytes]:
    try:
        # What was refused may quote a record: nobody else's to read.
        return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb")
    except OSError as error:
        raise Misconfigured(f"the report {path} cannot be written: {error.strerror}") from error


def _plain(text: str) -> str:
    """What a file holds may not steer the terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)
