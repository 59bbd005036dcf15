"""FHIR NPM packages on disk: their StructureDefinitions, ValueSets and CodeSystems by canonical URL.

Owns reading ``.tgz`` files and unpacked folders, once, at start; refuses the network, packages of another FHIR release
and files that are no JSON. https://confluence.hl7.org/display/FHIR/NPM+Package+Specification
"""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gateway.errors import Malformed, Misconfigured
from gateway.fhir.resource import parse_json

_KINDS = frozenset({"StructureDefinition", "ValueSet", "CodeSystem"})
_RELEASE = "4.0"
_MAX_BYTES = 64 * 1024 * 1024
"""Largest file read of a package."""

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Packages:
    """What the packages hold. Kept packed, since most of a package is never asked for; the first package wins."""

    names: tuple[str, ...] = ()
    _held: Mapping[str, Mapping[str, bytes]] = field(default_factory=dict)
    """Kind -> url and ``url|version`` -> packed JSON."""

    @classmethod
    def load(cls, paths: Iterable[Path]) -> Packages:
        """Read every package. Raises Misconfigured, naming the package and the file."""
        held: dict[str, dict[str, bytes]] = {kind: {} for kind in _KINDS}
        names = []
        for path in paths:
            names.append(_read(path, held))
        return cls(tuple(names), held)

    def get(self, kind: str, canonical: str) -> Json | None:
        """The ``kind`` of resource with this canonical URL, ``|version`` or not; None where no package has it."""
        packed = self._held.get(kind, {}).get(canonical)
        return None if packed is None else dict(parse_json(zlib.decompress(packed)))

    def urls(self, kind: str) -> tuple[str, ...]:
        """Every canonical URL of a kind, without versions."""
        return tuple(url for url in self._held.get(kind, ()) if "|" not in url)


def _read(path: Path, held: dict[str, dict[str, bytes]]) -> str:
    name, resources = path.name, 0
    try:
        for file, body in _files(path):
            try:
                content = parse_json(body)
            except Malformed as error:
                raise Misconfigured(f"package {path}: {file} is not JSON: {error}") from error
            if type(content) is not dict:
                continue
            if file == "package.json":
                name = _manifest(path, content)
            elif content.get("resourceType") in _KINDS and type(content.get("url")) is str:
                resources += 1
                _hold(held[content["resourceType"]], content, body)
    except (OSError, tarfile.TarError, EOFError, zlib.error) as error:
        raise Misconfigured(f"package {path} cannot be read: {error}") from error
    if not resources:
        raise Misconfigured(f"package {path} holds no StructureDefinition, ValueSet or CodeSystem: name a .tgz file or "
                            "the folder that has package.json, or is above package/package.json")
    return name


def _hold(table: dict[str, bytes], content: Json, body: bytes) -> None:
    packed = zlib.compress(body, 1)
    table.setdefault(content["url"], packed)
    table.setdefault(f"{content['url']}|{content.get('version')}", packed)


def _manifest(path: Path, content: Json) -> str:
    releases = content.get("fhirVersions") or content.get("fhir-version-list") or ()
    if releases and not any(str(one).startswith(_RELEASE) for one in releases):
        raise Misconfigured(f"package {path} is for FHIR {', '.join(map(str, releases))}, not for R4")
    return f"{content.get('name', path.name)}#{content.get('version', '')}"


def _files(path: Path) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of the JSON files at the top of a package, its examples left out."""
    if path.is_dir():
        folder = path / "package" if (path / "package" / "package.json").is_file() else path
        for file in sorted(folder.glob("*.json")):
            if file.stat().st_size <= _MAX_BYTES:
                yield file.name, file.read_bytes()
        return
    with tarfile.open(path, "r:gz") as archive:
        for member in archive:
            folder_name, _, name = member.name.removeprefix("./").rpartition("/")
            if not member.isfile() or folder_name != "package" or not name.endswith(".json"):
                continue
            stream = archive.extractfile(member)
            if stream is not None and member.size <= _MAX_BYTES:
                yield name, stream.read()
