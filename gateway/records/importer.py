"""An import: pieces of files carried out as transactions, each landing once however often the import is killed.

Owns the grouping of single resources, the way from a refused group to the entries at fault, and the marks; refuses to
bring in half a bundle. A group or bundle and the marks of its lines are one commit (``store/imports.py``), so a line is
either stored and marked or neither. What may be stored is decided as for any write: the import has no door of its own.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol

import apsw
import orjson

from gateway.crypto.index_hash import Pseudonymizer
from gateway.errors import GatewayError, InputRefused, Issue, TooLarge, Unavailable
from gateway.fhir.bundle import without_resources
from gateway.fhir.resource import Resource, parse
from gateway.records import transaction
from gateway.records.answer import Answer
from gateway.records.gate import Caller
from gateway.records.import_bundle import REQUESTS, as_entry, as_transaction
from gateway.records.import_source import Fault, Piece
from gateway.records.node import Hook, Node
from gateway.records.references import Dangling
from gateway.store import imports

LOG = logging.getLogger("gateway.import")

BUNDLE_BYTES_MAX: Final = 64 << 20
GROUP_ENTRIES: Final = 100
GROUP_BYTES: Final = 4 << 20
_WINDOW: Final = 1_000
_BUSY_ATTEMPTS: Final = 10
_BUSY_WAIT_S: Final = 0.5
_PLACE: Final = re.compile(r"Bundle\.entry\[(\d+)\]")


class Report(Protocol):
    """Where an import says what became of each piece."""

    def imported(self, type_: str, *, new: bool) -> None:
        """One resource is stored; ``new``: under an id that did not exist."""
        ...

    def there_already(self) -> None:
        """One line was brought in by an earlier import of the same file."""
        ...

    def refused(self, file: Path, line: int, issues: Sequence[Issue]) -> None:
        """One line (0: the whole file) was refused."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Single:
    """A resource waiting for its group."""

    piece: Piece
    entry: dict[str, Any]
    type: str
    mark: imports.Mark


class Importer:
    """Carries out one import; used from one event loop."""

    def __init__(self, node: Node, caller: Callable[[], Caller], report: Report, *, again: bool = False,
                 guard: Hook | None = None, recall: bool = False) -> None:
        """``caller``: who imports, read anew; ``again``: marks of earlier imports do not count; ``guard``: raises
        within a commit that may not be made any more; ``recall``: what lines refer to that landed before counts too."""
        self._node = node
        self._caller = caller
        self._report = report
        self._again = again
        self._guard = guard
        self._recall = recall
        self._names = Pseudonymizer(node.ring.secret("pseudonym"))
        self._files: dict[bytes, bytes] = {}
        self._window: tuple[bytes, int, set[int]] = (b"", -1, set())
        self._dangling = Dangling()
        self._group: list[_Single] = []
        self._group_places: set[str] = set()
        self._group_bytes = 0

    async def take(self, piece: Piece | Fault) -> None:
        """Import one piece, or put it with those that wait. Raises Unavailable when the store stays busy."""
        if isinstance(piece, Fault):
            self._report.refused(piece.file, piece.line, (piece.issue,))
            return
        mark = self._mark(piece)
        if not self._again and self._landed(mark):
            self._report.there_already()
            if self._recall:
                self._note(parse(piece.body))
            return
        try:
            resource = parse(piece.body)
            if resource["resourceType"] == "Bundle":
                await self.flush()
                await self._bundle(piece, resource, mark)
            else:
                await self._single(piece, resource, mark)
        except InputRefused as error:
            self._report.refused(piece.file, piece.line, error.issues)

    def dangling(self) -> dict[str, int]:
        """What imported records refer to that is not here, with how many references lead to it: ask at the end."""
        return self._dangling.found(self._node)

    async def flush(self) -> None:
        """Carry out what waits."""
        group, self._group = self._group, []
        self._group_places, self._group_bytes = set(), 0
        alone: list[_Single] = []
        while group:
            try:
                await self._carry_out(
                    {"resourceType": "Bundle", "type": "transaction", "entry": [one.entry for one in group]},
                    [one.mark for one in group])
                break
            except Unavailable:
                raise
            except GatewayError as error:
                faulty = _places(error)
                # The others go on together; without a place to blame each is tried for itself.
                alone += [one for place, one in enumerate(group) if place in faulty or not faulty]
                group = [one for place, one in enumerate(group) if faulty and place not in faulty]
            except Exception:
                LOG.exception("a group could not be imported")
                alone, group = alone + group, []
        for one in alone:
            await self._alone(one)

    def _note(self, landed: Resource) -> None:
        entries = landed.get("entry", ()) if landed["resourceType"] == "Bundle" else ({"resource": landed},)
        for entry in entries:
            if "resource" in entry:
                self._dangling.note(self._node, entry["resource"])

    async def _single(self, piece: Piece, resource: Resource, mark: imports.Mark) -> None:
        if len(piece.body) > self._node.settings.max_body_bytes:
            raise TooLarge(f"a resource may hold {self._node.settings.max_body_bytes} bytes", code="too-long")
        type_ = str(resource["resourceType"])
        entry = as_entry(resource, self._node.definitions.resource_types, at=type_)
        place = entry["request"]["url"]
        if place in self._group_places:  # a transaction holds each resource once: this is its next version
            await self.flush()
        if entry["request"]["method"] == "PUT":
            self._group_places.add(place)
        self._group.append(_Single(piece=piece, entry=entry, type=type_, mark=mark))
        self._group_bytes += len(piece.body)
        if len(self._group) >= GROUP_ENTRIES or self._group_bytes >= GROUP_BYTES:
            await self.flush()

    async def _alone(self, one: _Single) -> None:
        try:
            await self._carry_out({"resourceType": "Bundle", "type": "transaction", "entry": [one.entry]}, [one.mark])
        except Unavailable:
            raise
        except Exception as error:
            issues = [replace(issue, expression=_unwrapped(issue.expression, one.type)) for issue in _issues(error)]
            self._report.refused(one.piece.file, one.piece.line, issues)

    async def _bundle(self, piece: Piece, bundle: Resource, mark: imports.Mark) -> None:
        try:
            if bundle.get("type") in REQUESTS:
                self._node.validator.require(without_resources(bundle), expected_type="Bundle")
            await self._carry_out(as_transaction(bundle, self._node.definitions.resource_types), [mark])
        except Unavailable:
            raise
        except Exception as error:
            self._report.refused(piece.file, piece.line, _issues(error))

    async def _carry_out(self, bundle: Resource, marks: Sequence[imports.Mark]) -> None:
        def also(connection: apsw.Connection) -> None:
            if self._guard is not None:
                self._guard(connection)
            imports.mark(connection, marks)

        attempt = 0
        while True:
            try:
                answer = await transaction.process(self._node, self._caller(), bundle, _nothing_to_fetch, also=also,
                                                   check_references=False)
                break
            except Unavailable:
                attempt += 1
                if attempt == _BUSY_ATTEMPTS:
                    raise
                await asyncio.sleep(_BUSY_WAIT_S)
        for entry, done in zip(bundle.get("entry", ()), orjson.loads(answer).get("entry", ()), strict=True):
            status = done["response"]["status"]
            if entry["request"]["method"] in ("POST", "PUT") and status[:3] in ("200", "201"):
                self._dangling.note(self._node, entry["resource"])
                self._report.imported(entry["resource"]["resourceType"], new=status.startswith("201"))

    def _mark(self, piece: Piece) -> imports.Mark:
        known = self._files.get(piece.digest)
        if known is None:
            known = self._files[piece.digest] = self._names.pseudonym("import file", piece.digest.hex())[:16]
        return known, piece.line

    def _landed(self, mark: imports.Mark) -> bool:
        file, line = mark
        start = line - line % _WINDOW
        if self._window[:2] != (file, start):
            found = imports.landed(self._node.database.reader, file, start, start + _WINDOW - 1)
            self._window = file, start, found
        return line in self._window[2]


def _places(error: GatewayError) -> set[int]:
    """Which entries of the transaction an error blames."""
    places = [issue.expression for issue in error.issues] if isinstance(error, InputRefused) else [error.expression]
    found = [_PLACE.match(place or "") for place in places]
    return {int(match[1]) for match in found if match is not None}


def _issues(error: Exception) -> Sequence[Issue]:
    if isinstance(error, InputRefused):
        return error.issues
    if isinstance(error, GatewayError):
        text = str(error).removeprefix(f"{error.expression}: ")
        return (Issue("error", "processing", text, error.expression),)
    LOG.error("an import failed unexpectedly", exc_info=error)
    return (Issue("fatal", "exception", f"unexpected {type(error).__name__}: a fault of the gateway; the log has it"),)


def _unwrapped(expression: str | None, type_: str) -> str | None:
    """A place in the one resource of a transaction, as a place in the resource."""
    if expression is None:
        return None
    return re.sub(r"^Bundle\.entry\[0\](\.resource)?", type_, expression)


async def _nothing_to_fetch(caller: Caller, place: int, entry: object) -> Answer:
    """An import answers nothing: what its bundles ask to read is passed over."""
    return Answer(404)
