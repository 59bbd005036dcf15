"""HL7's own R4 terminology, and the tables of what was read lately: the parts terminology is asked of.

Owns the packaged table (made by ``compile_terminology.py``), unpacked when a process is first asked and read resource
by resource; refuses to say anything of systems HL7 does not list there. https://hl7.org/fhir/R4/terminologies.html
"""

from __future__ import annotations

import gzip
from collections import OrderedDict
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import orjson

from gateway.errors import Misconfigured
from gateway.fhir.definitions import mappings_folder
from gateway.fhir.resource import Resource
from gateway.fhir.terminology_tables import CodeSystem

FILE = "terminology.tsv.gz"
_RECENT = 64
_RECENT_BYTES = 16 * 2**20


class Source(Protocol):
    """Where resources come from by canonical url; ``version`` None: whichever the source prefers."""

    def value_set(self, url: str, version: str | None) -> Resource | None: ...

    def code_system(self, url: str, version: str | None) -> CodeSystem | None: ...

    def concept_map(self, url: str, version: str | None) -> Resource | None: ...


class Library:
    """One process's terminology of R4. Cheap to make; the table is unpacked on first use. Safe to share by threads."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._lock = Lock()
        self._lines: dict[tuple[str, str], tuple[str, bytes]] | None = None
        self._resources: dict[tuple[str, str], Resource] = {}
        self._systems: dict[str, CodeSystem] = {}
        self._recent: OrderedDict[int, tuple[int, Any]] = OrderedDict()  # Any: a resource, or its table

    def value_set(self, url: str, version: str | None) -> Resource | None:
        return self._resource("ValueSet", url, version)

    def concept_map(self, url: str, version: str | None) -> Resource | None:
        return self._resource("ConceptMap", url, version)

    def code_system(self, url: str, version: str | None) -> CodeSystem | None:
        if not self._has("CodeSystem", url, version):
            return None
        found = self._systems.get(url)
        if found is None:
            line = self._table()["CodeSystem", url][1]
            found = self._systems[url] = CodeSystem.of(orjson.loads(line))
        return found

    def urls(self, type_: str) -> list[str]:
        """The canonical urls of every resource of a type."""
        return [url for kind, url in self._table() if kind == type_]

    def recent(self, seq: int) -> Any:
        """What was kept of the stored version ``seq``, or None."""
        with self._lock:
            known = self._recent.get(seq)
            if known is None:
                return None
            self._recent.move_to_end(seq)
            return known[1]

    def keep(self, seq: int, size: int, read: Any) -> None:
        """Keep what was read of a stored version of ``size`` bytes, as long as it is asked for among the latest."""
        with self._lock:
            self._recent[seq] = size, read
            while len(self._recent) > _RECENT or (
                    len(self._recent) > 1 and sum(one for one, _ in self._recent.values()) > _RECENT_BYTES):
                self._recent.popitem(last=False)

    def _has(self, type_: str, url: str, version: str | None) -> bool:
        found = self._table().get((type_, url))
        return found is not None and version in (None, found[0])

    def _resource(self, type_: str, url: str, version: str | None) -> Resource | None:
        if not self._has(type_, url, version):
            return None
        found = self._resources.get((type_, url))
        if found is None:
            found = self._resources[type_, url] = orjson.loads(self._table()[type_, url][1])
        return found

    def _table(self) -> dict[tuple[str, str], tuple[str, bytes]]:
        lines = self._lines
        if lines is None:
            with self._lock:
                if self._lines is None:
                    self._lines = _lines((self._folder or mappings_folder() / "fhir") / FILE)
                lines = self._lines
        return lines


def _lines(path: Path) -> dict[tuple[str, str], tuple[str, bytes]]:
    try:
        unpacked = gzip.decompress(path.read_bytes())
        found: dict[tuple[str, str], tuple[str, bytes]] = {}
        for line in unpacked.split(b"\n"):
            kind, url, version, resource = line.split(b"\t", 3)
            found[kind.decode(), url.decode()] = version.decode(), resource
    except (OSError, ValueError, EOFError) as error:
        raise Misconfigured(f"the terminology table {path} cannot be read: {error}") from error
    return found
