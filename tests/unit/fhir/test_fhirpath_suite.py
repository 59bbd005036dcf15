"""The HL7 FHIRPath test suite for R4, where it is beside the checkout (FHIR/fhir-test-cases, r4/fhirpath)."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import jiter
import pytest

from gateway.errors import FHIRPathError
from gateway.fhir.definitions import Definitions
from gateway.fhir.fhirpath import Context, Node, Quantity, Temporal, compile_expression
from gateway.fhir.fhirpath.checking import check_types
from gateway.fhir.fhirpath.model import DefinitionsModel
from gateway.fhir.fhirpath.operators import as_text, boolean
from tests.shared_data import SHARED, needs_shared

FLOOR = 549
"""Of 556; ``tests/conformance/README.md`` names the others, and why."""


def _text(item: Any) -> str:
    if type(item) is Quantity:
        return str(item)
    text = as_text(item)
    return json.dumps(item.value) if text is None else text


def _same(item: Any, output: dict[str, str]) -> bool:
    wanted, kind = output.get("value") or "", output.get("type")
    text = _text(item)
    if kind in ("decimal", "integer") or (kind is None and type(item) in (int, Decimal)):
        try:
            return Decimal(text) == Decimal(wanted)
        except ArithmeticError:
            return False
    if type(item) is Temporal or kind in ("date", "dateTime", "time", "instant"):
        return text.removeprefix("@").removeprefix("T") == wanted.removeprefix("@").removeprefix("T")
    return text == wanted


def _run(case: dict[str, Any], model: DefinitionsModel, inputs: dict[str, Any]) -> bool:
    resource = inputs.get(case.get("inputfile", "").replace(".xml", ".json"), {})
    context = Context(resource=resource, model=model, now=datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC))
    try:
        check_types(case["expression"], model)
        expression = compile_expression(case["expression"], model)
        items = expression.nodes(resource, context)
    except FHIRPathError:
        return "expression_invalid" in case
    if case.get("expression_invalid"):
        return False
    if case.get("predicate") == "true":
        return bool(items) and [{"true": True, "false": False}[o["value"]] for o in case["outputs"]] == [True]
    outputs = case["outputs"]
    if [o.get("type") for o in outputs] == ["boolean"]:
        return str(boolean(items)).lower() == outputs[0]["value"]
    items = [item for item in items if type(item) is not Node or item.value is not None]
    return len(items) == len(outputs) and all(map(_same, items, outputs))


@needs_shared
def test_the_suite_passes_as_far_as_it_did(capsys: pytest.CaptureFixture[str]) -> None:
    assert SHARED is not None
    folder = SHARED / "fhirpath"
    cases = json.loads((folder / "tests.json").read_bytes())
    inputs = {
        file.name: jiter.from_json(file.read_bytes(), float_mode="lossless-float")
        for file in (folder / "input").glob("*.json")
    }
    model = DefinitionsModel.load(Definitions.load())
    failed = [case for case in cases if not _run(case, model, inputs)]
    with capsys.disabled():
        print(f"\nFHIRPath suite: {len(cases) - len(failed)} of {len(cases)}")
    assert len(cases) - len(failed) >= FLOOR, [case["name"] for case in failed]
