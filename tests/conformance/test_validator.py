"""The validator against public sets: R4's examples, implementation guides' examples, Synthea, HL7's validator cases.

https://hl7.org/fhir/R4/validation.html - what is not agreed on is listed in README.md beside this file.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from fhir.resources.R4B import get_fhir_model_class

from gateway.errors import Malformed
from gateway.fhir.definitions import Definitions
from gateway.fhir.primitives import PRIMITIVES
from gateway.fhir.resource import parse, parse_json, serialise
from gateway.fhir.validate import Validator
from tests.conformance.validator_sets import KNOWN_DEFECTS, SETS, bodies
from tests.shared_data import SHARED, needs_shared

VALIDATOR = Validator(Definitions.load())
FIXTURES = sorted((Path(__file__).parents[1] / "fixtures" / "fhir").glob("*.json"))

NOT_OURS = re.compile(
    r"Wrong Display Name|Unknown code .* in the CodeSystem|None of the codings provided are in the value set"
    r"|could not be found so is not allowed here|Example URLs are not allowed|magic LOINC code"
    r"|Hyperlink .* does not resolve|No code provided, and a code is required"
)
"""What the Java validator says from a terminology server, from profiles it applies by itself, from a policy against
unknown extensions and example URLs, and of a required code that an extension says is absent."""


def errors(body: bytes, *, thorough: bool = False) -> list[str]:
    try:
        issues = VALIDATOR.validate(parse(body), thorough=thorough)
    except Malformed as error:
        issues = list(error.issues)
    return [f"{i.expression}: {i.diagnostics}" for i in issues if i.severity in ("error", "fatal")]


@needs_shared
@pytest.mark.parametrize("name", SETS)
def test_published_examples_are_valid(name: str) -> None:
    assert SHARED is not None
    seen: set[tuple[str, str]] = set()
    for file, body in bodies(SHARED / name):
        resource = parse(body)
        key = (name, f"{resource['resourceType']}/{resource.get('id')}")
        found = errors(body)
        if key in KNOWN_DEFECTS:
            assert found, f"{key} is valid now: take it out of KNOWN_DEFECTS"
            seen.add(key)
        else:
            assert found == [], f"{file} {key}"
    assert seen == {key for key in KNOWN_DEFECTS if key[0] == name}


@needs_shared
def test_hl7s_own_definitions_are_valid() -> None:
    """StructureDefinitions, ValueSets, CodeSystems and SearchParameters of hl7.fhir.r4.core, by their own rules."""
    assert SHARED is not None
    defects = {
        "v2-0550",
        "structuredefinition-fhir-type",
        "structuredefinition-json-type",
        "structuredefinition-rdf-type",
        "structuredefinition-xml-type",
    }
    wrong = set()
    for file in ("profiles-types", "search-parameters", "valuesets", "v2-tables", "extension-definitions"):
        for _, body in bodies_of(SHARED / "fhir-r4-core" / f"{file}.json.gz"):
            for entry in parse(body)["entry"]:
                # Several claim R4's shareable profiles without what those ask for; what R4 itself asks is meant here.
                issues = VALIDATOR.validate(entry["resource"])
                if any(i.severity == "error" and "(profile " not in i.diagnostics for i in issues):
                    wrong.add(entry["resource"]["id"])
    assert wrong <= defects


def bodies_of(path: Path) -> list[tuple[str, bytes]]:
    return [(name, body) for name, body in bodies(path.parent) if name == path.name]


SNAKE = {
    "base64_binary": "base64Binary",
    "date_time": "dateTime",
    "positive_int": "positiveInt",
    "unsigned_int": "unsignedInt",
}
LENIENT = {("xhtml.valid", '""'), ("base64_binary.valid", "null")}
"""google/fhir's parser takes an empty narrative, R4's txt-2 does not; a lone null is judged with its array."""


@needs_shared
def test_primitive_vectors() -> None:
    """https://hl7.org/fhir/R4/datatypes.html#primitive"""
    assert SHARED is not None
    for path in sorted((SHARED / "fhir-primitives").glob("*.ndjson")):
        name, _, verdict = path.stem.partition(".")
        check = PRIMITIVES.get(SNAKE.get(name, name))
        for line in path.read_bytes().splitlines():
            if check is None or line == b"null" or (path.stem, line.decode()) in LENIENT:
                continue
            try:
                problem = check(parse_json(line))
            except Malformed as error:
                problem = str(error)
            assert (problem is None) == (verdict == "valid"), f"{path.name}: {line!r}: {problem}"


@needs_shared
def test_reference_vectors() -> None:
    assert SHARED is not None
    for verdict in ("valid", "invalid"):
        for line in (SHARED / "fhir-primitives" / f"reference.{verdict}.ndjson").read_bytes().splitlines():
            body = b'{"resourceType":"Basic","code":{"text":"x"},"subject":' + line + b"}"
            assert (errors(body) == []) == (verdict == "valid"), line


@needs_shared
def test_agreement_with_hl7s_java_validator(capsys: pytest.CaptureFixture[str]) -> None:
    """JSON cases that need no support files: valid or not as the Java validator has it."""
    assert SHARED is not None
    folder = SHARED / "validator-cases"
    agreed, judged, outside, differing = 0, 0, [], []
    for case in json.loads((folder / "cases.json").read_bytes()):
        if case["needs_support"] or case["errors"] is None or not case["file"].endswith(".json"):
            continue
        judged += 1
        ours = errors((folder / "files" / case["file"]).read_bytes(), thorough=True)
        if bool(ours) == bool(case["errors"]):
            agreed += 1
        elif not ours and all(NOT_OURS.search(text) for text in java_errors(folder, case)):
            outside.append(case["name"])
        else:
            differing.append(case["name"])
    within = judged - len(outside)
    with capsys.disabled():
        print(
            f"\nJava validator: {agreed} of {judged} agree; {agreed} of {within} without the "
            f"{len(outside)} that need terminology, profiles or a policy on extensions; differing: {differing}"
        )
    assert agreed >= 0.95 * within
    listed = (Path(__file__).parent / "README.md").read_text("utf-8")
    assert all(f"`{name}`" in listed for name in (*outside, *differing)), "list it in README.md"


def java_errors(folder: Path, case: dict[str, Any]) -> list[str]:
    outcome = json.loads((folder / "outcomes" / case["outcome"]).read_bytes())
    return [
        issue.get("details", {}).get("text", "")
        for issue in outcome["issue"]
        if issue["severity"] in ("error", "fatal")
    ]


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_what_the_validator_accepts_fhir_resources_parses(path: Path) -> None:
    """The R4B models of fhir.resources, a second opinion where they have the type."""
    resource = parse(path.read_bytes())
    assert errors(path.read_bytes()) == []
    model = get_fhir_model_class(resource["resourceType"])
    model.model_validate_json(serialise(resource))


@needs_shared
@pytest.mark.parametrize("name", [*SETS, "ig-single-examples", "nhs-bars", "extracted-by-type"])
def test_every_example_comes_back_with_its_decimals_and_its_order(name: str) -> None:
    """'The precision of the decimal value has significance' (datatypes.html#decimal); order is kept too."""
    assert SHARED is not None

    def written(body: bytes) -> Any:  # Any: objects as pairs in order, numbers as their text
        return json.loads(body, object_pairs_hook=list, parse_float=str, parse_int=str)

    resources = [(file, body) for file, body in bodies(SHARED / name) if b'"resourceType"' in body]
    assert resources
    for file, body in resources:
        resource = parse(body)
        assert written(serialise(resource)) == written(body.removeprefix(b"\xef\xbb\xbf")), file
