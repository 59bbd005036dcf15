"""``python -m gateway.fhir.compile_terminology SRC_DIR [OUT_DIR=mappings/fhir]``: HL7's terminology, one a line.

Owns trimming the CodeSystems, ValueSets and ConceptMaps of hl7.fhir.r4.core to what the terminology operations answer
from; the same input gives the same bytes. A line is type, url, version and the resource's JSON, with tabs between.
https://hl7.org/fhir/R4/terminologies-systems.html
"""

from __future__ import annotations

import gzip
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gateway.fhir.terminology_core import FILE

_FILES = ("valuesets", "v3-codesystems", "v2-tables", "conceptmaps")
_KEPT = {
    "CodeSystem": ("url", "version", "name", "title", "status", "copyright", "content", "caseSensitive",
                   "hierarchyMeaning", "supplements", "property", "concept"),
    "ValueSet": ("url", "version", "name", "title", "status", "copyright", "compose", "expansion"),
    "ConceptMap": ("url", "version", "name", "title", "status", "copyright", "sourceUri", "sourceCanonical",
                   "targetUri", "targetCanonical", "group"),
}

Json = dict[str, Any]


def main(arguments: list[str]) -> int:
    """Compile and print the size; 2 on wrong usage."""
    if len(arguments) not in (1, 2):
        print(__doc__, file=sys.stderr)
        return 2
    content = table(Path(arguments[0]))
    target = Path(arguments[1]) if len(arguments) == 2 else Path("mappings/fhir")
    (target / FILE).write_bytes(content)
    print(f"{FILE}: {len(content):,} bytes")
    return 0


def table(source: Path) -> bytes:
    """The gzipped lines, from the folder of HL7's definition bundles."""
    lines = sorted({_line(resource) for resource in _resources(source)})
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=buffer, mtime=0, compresslevel=9) as file:
        file.write("\n".join(lines).encode())
    return buffer.getvalue()


def _resources(source: Path) -> Iterator[Json]:
    for name in _FILES:
        path = source / f"{name}.json.gz"
        if path.is_file():
            for entry in json.loads(gzip.decompress(path.read_bytes()))["entry"]:
                if entry["resource"]["resourceType"] in _KEPT:
                    yield entry["resource"]


def _line(resource: Json) -> str:
    kind = resource["resourceType"]
    kept = {"resourceType": kind, **{key: _trimmed(resource[key]) for key in _KEPT[kind] if key in resource}}
    return "\t".join((kind, resource["url"], resource.get("version", ""),
                      json.dumps(kept, separators=(",", ":"), ensure_ascii=False)))


def _trimmed(value: Any) -> Any:
    """Without extensions: comments and expansion hints, which no operation answers."""
    if isinstance(value, dict):
        return {key: _trimmed(one) for key, one in value.items() if key != "extension" and not key.startswith("_")}
    if isinstance(value, list):
        return [_trimmed(one) for one in value]
    return value


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
