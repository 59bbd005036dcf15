"""``python -m gateway.fhir.compile_definitions SRC_DIR [OUT_DIR=mappings/fhir]``: HL7's JSON -> compact tables.

Owns turning the StructureDefinitions, ValueSets, CodeSystems, SearchParameters and CompartmentDefinitions of
hl7.fhir.r4.core into tables that hold only the facts the gateway uses; the same input gives the same bytes.
Refuses to invent: a value set that cannot be expanded from the sources becomes an open rule, named here.
https://hl7.org/fhir/R4/downloads.html
"""

from __future__ import annotations

import gzip
import io
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gateway.fhir.expand_value_sets import MAXIMUM, Expander

_FHIR_TYPE = "http://hl7.org/fhir/StructureDefinition/structuredefinition-fhir-type"
_PROFILE = "http://hl7.org/fhir/StructureDefinition/"
_SYSTEM = "http://hl7.org/fhirpath/System."
_NATIVE = frozenset({"ele-1"})
"""ele-1 sits on all 7,675 elements and is a matter of JSON shape: the structure checks hold it."""
_PROFILE_CONSTRAINTS = frozenset({"SimpleQuantity"})
_PROFILE_KEYS = ("url", "version", "type", "derivation", "baseDefinition", "context")
_ELEMENT_KEYS = frozenset({"id", "path", "sliceName", "slicing", "min", "max", "type", "binding", "constraint"})
_COMPARTMENTS = ("device", "encounter", "patient", "practitioner", "relatedperson")

Json = dict[str, Any]


def main(arguments: list[str]) -> int:
    """Compile and print the sizes; 2 on wrong usage."""
    if len(arguments) not in (1, 2):
        print(__doc__, file=sys.stderr)
        return 2
    source = Path(arguments[0])
    target = Path(arguments[1]) if len(arguments) == 2 else Path("mappings/fhir")
    target.mkdir(parents=True, exist_ok=True)
    for name, content in tables(source).items():
        (target / name).write_bytes(content)
        print(f"{name}: {len(content):,} bytes")
    return 0


def tables(source: Path) -> dict[str, bytes]:
    """File name -> gzipped JSON for every table, from the folder of HL7's definition bundles."""
    definitions = [*_entries(source / "profiles-types.json.gz"), *_entries(source / "profiles-resources.json.gz")]
    types = {d["name"]: _type(d) for d in definitions
             if d["resourceType"] == "StructureDefinition" and d.get("derivation") != "constraint"}
    expander = Expander(entry for file in ("valuesets", "v3-codesystems", "v2-tables")
                        for entry in _entries(source / f"{file}.json.gz"))
    value_sets = {url: expander.expand(url) for url in sorted(_bound_value_sets(types))}
    parameters = _search_parameters(list(_entries(source / "search-parameters.json.gz")), types)
    profiles = [*_entries(source / "profiles-others.json.gz"), *_entries(source / "extension-definitions.json.gz")]
    return {
        "types.json.gz": _pack(types),
        "value_sets.json.gz": _pack(value_sets),
        "profiles.json.gz": _pack({definition["url"]: compact_profile(definition) for definition in profiles}),
        "search_parameters.json.gz": _pack(parameters),
        "compartments.json.gz": _pack(_compartments(source / "compartments")),
    }


def _pack(table: Json) -> bytes:
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=buffer, mtime=0, compresslevel=9) as file:
        file.write(json.dumps(table, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode())
    return buffer.getvalue()


def _entries(path: Path) -> Iterator[Json]:
    for entry in json.loads(gzip.decompress(path.read_bytes()))["entry"]:
        yield entry["resource"]


def _type(definition: Json) -> Json:
    name = definition["name"]
    snapshot = definition["snapshot"]["element"]
    parents = {name} | {e["path"].rpartition(".")[0] for e in snapshot if "." in e["path"]}
    nodes: Json = {}
    for element in snapshot:
        path = element["path"]
        if path in parents:
            nodes[path] = {"elements": []}
            own = _constraints(element, skip=frozenset())
            if own:
                nodes[path]["constraints"] = own
        if "." in path and not (definition["kind"] == "primitive-type" and path == f"{name}.value"):
            nodes[path.rpartition(".")[0]]["elements"].append(_element(definition, element, parents))
    row: Json = {"kind": definition["kind"], "nodes": nodes}
    if definition["abstract"]:
        row["abstract"] = True
    if "baseDefinition" in definition:
        row["base"] = definition["baseDefinition"].removeprefix(_PROFILE)
    return row


def _element(definition: Json, element: Json, parents: set[str]) -> Json:
    path: str = element["path"]
    name = path.rpartition(".")[2]
    row: Json = {"name": name.removesuffix("[x]"), "types": [_element_type(definition, path, t)
                                                             for t in element.get("type", ())]}
    if name.endswith("[x]"):
        row["choice"] = True
    if element["min"]:
        row["min"] = element["min"]
    if element["max"] != "1":
        row["max"] = element["max"] if element["max"] == "*" else int(element["max"])
    if path in parents:
        row["node"] = path
    if "contentReference" in element:
        row["node"] = element["contentReference"].removeprefix("#")
        row["types"] = [{"code": "BackboneElement"}]
    binding = element.get("binding")
    if binding and "valueSet" in binding:
        row["binding"] = {"strength": binding["strength"], "value_set": binding["valueSet"].partition("|")[0]}
        for extension in binding.get("extension", ()):
            if extension["url"] == MAXIMUM:
                row["binding"]["maximum"] = extension.get("valueCanonical") or extension["valueUri"]
    # Constraints of a backbone sit on its node; those of Extension and Narrative on the datatypes themselves.
    constraints = _constraints(element, skip=frozenset({"ext-1"})) if path not in parents else []
    if constraints:
        row["constraints"] = constraints
    if "xmlAttr" in element.get("representation", ()):
        row["attribute"] = True
    if element.get("isModifier"):
        row["modifier"] = True
    if element.get("isSummary"):
        row["summary"] = True
    return row


def _element_type(definition: Json, path: str, type_: Json) -> Json:
    code: str = type_["code"]
    if code.startswith(_SYSTEM):
        code = next((e.get("valueUrl") or e["valueUri"] for e in type_.get("extension", ())
                     if e["url"] == _FHIR_TYPE), "string")
        if definition["kind"] == "resource" and path.count(".") == 1 and path.endswith(".id"):
            code = "id"  # 4.0.1 says "string" here and "id" in its prose (resource.html#id).
    row: Json = {"code": code}
    targets = [t.removeprefix(_PROFILE) for t in type_.get("targetProfile", ())]
    if targets and "Resource" not in targets:
        row["targets"] = targets
    for profile in type_.get("profile", ()):
        if profile.removeprefix(_PROFILE) in _PROFILE_CONSTRAINTS:
            row["profile"] = profile.removeprefix(_PROFILE)
    return row


def _constraints(element: Json, *, skip: frozenset[str]) -> list[list[str]]:
    return [[c["key"], c["severity"], c["human"], c["expression"]] for c in element.get("constraint", ())
            if c["key"] not in _NATIVE and c["key"] not in skip and "expression" in c]


def _bound_value_sets(types: Json) -> set[str]:
    urls: set[str] = set()
    for row in types.values():
        for node in row["nodes"].values():
            for element in node["elements"]:
                binding = element.get("binding", {})
                if binding.get("strength") == "required":
                    urls.add(binding["value_set"])
                if "maximum" in binding:
                    urls.add(binding["maximum"])
    return urls


def compact_profile(definition: Json) -> Json:
    """A constraint StructureDefinition with what judging by it needs: its differential, without the prose."""
    row = {key: definition[key] for key in _PROFILE_KEYS if key in definition}
    row["differential"] = {"element": [_profile_element(element) for element in definition["differential"]["element"]]}
    return row


def _profile_element(element: Json) -> Json:
    row = {key: value for key, value in element.items()
           if key in _ELEMENT_KEYS or key.startswith(("fixed", "pattern"))}
    if "binding" in row:
        row["binding"] = {key: row["binding"][key] for key in ("strength", "valueSet") if key in row["binding"]}
    if "constraint" in row:
        row["constraint"] = [{key: one[key] for key in ("key", "severity", "human", "expression") if key in one}
                             for one in row["constraint"]]
    return row


def _search_parameters(rows: list[Json], types: Json) -> Json:
    codes = {row["url"]: row["code"] for row in rows}
    table: dict[str, list[Json]] = {}
    for row in sorted(rows, key=lambda r: str(r["url"])):
        for base in row["base"]:
            entry: Json = {"code": row["code"], "type": row["type"], "url": row["url"]}
            expression = _part_for(row.get("expression", ""), base, types)
            if expression:
                entry["expression"] = expression
            if "target" in row:
                entry["targets"] = row["target"]
            if "component" in row:
                entry["components"] = [[codes[c["definition"]], c["expression"]] for c in row["component"]]
            table.setdefault(base, []).append(entry)
    return table


def _part_for(expression: str, base: str, types: Json) -> str:
    """The alternatives of a union that speak of ``base``; all of it where none names a type."""
    parts = _alternatives(expression)
    heads = [re.match(r"\(*([A-Z]\w*)", part) for part in parts]
    mine = [part for part, head in zip(parts, heads, strict=True)
            if head is None or head[1] not in types or head[1] == base]
    return " | ".join(mine)


def _alternatives(expression: str) -> list[str]:
    parts, depth, start = [], 0, 0
    for place, character in enumerate(expression):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if character == "|" and depth == 0:
            parts.append(expression[start:place].strip())
            start = place + 1
    parts.append(expression[start:].strip())
    return [part for part in parts if part]


def _compartments(folder: Path) -> Json:
    table: Json = {}
    for name in _COMPARTMENTS:
        definition = json.loads((folder / f"compartmentdefinition-{name}.json").read_bytes())
        table[definition["code"]] = {r["code"]: r["param"] for r in definition["resource"] if r.get("param")}
    return table


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
