"""FHIRPath as the gateway's definitions use it. http://hl7.org/fhirpath/N1/"""

from __future__ import annotations

import contextlib
import gzip
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import jiter
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import FHIRPathError, InputRefused
from gateway.fhir.definitions import Definitions
from gateway.fhir.fhirpath import Context, compile_expression
from gateway.fhir.fhirpath.model import DefinitionsModel
from gateway.fhir.fhirpath.operators import boolean
from tests.shared_data import SHARED, needs_shared

DEFINITIONS = Definitions.load()
MODEL = DefinitionsModel.load(DEFINITIONS)
MOMENT = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)


def parsed(text: str) -> Any:
    return jiter.from_json(text.encode(), float_mode="lossless-float")


OBSERVATION = parsed(
    '{"resourceType": "Observation", "status": "final", "code": {"coding": [{"system": "http://loinc.org",'
    '"code": "8480-6"}]}, "subject": {"reference": "Patient/1"}, "valueQuantity": {"value": 6.30, "unit": "mg"},'
    '"component": [{"code": {"coding": [{"code": "a"}]}, "valueInteger": 3}, {"code": {"text": "b"}}],'
    '"_status": {"extension": [{"url": "http://e", "valueString": "x"}]}}'
)


def evaluate(expression: str, resource: Any = OBSERVATION, **context: Any) -> list[Any]:
    return compile_expression(expression, MODEL).evaluate(
        resource, Context(resource=resource, model=MODEL, now=MOMENT, **context)
    )


def holds(expression: str, value: Any, resource: Any = None) -> bool:
    return compile_expression(expression, MODEL).is_true(value, Context(resource=resource or value, model=MODEL))


@pytest.mark.parametrize(
    ("expression", "outcome"),
    [
        ("value.unit", ["mg"]),
        ("Observation.value.unit", ["mg"]),
        ("Patient.value.unit", []),
        ("value is Quantity", [True]),
        ("(Observation.value as Quantity).unit", ["mg"]),
        ("value.ofType(string)", []),
        ("component.value.ofType(integer)", [3]),
        ("component.value is decimal", [False]),
        ("subject.where(resolve() is Patient).reference", ["Patient/1"]),
        ("subject.where(resolve() is Group)", []),
        ("status.extension('http://e').value", ["x"]),
        ("component.code.where(coding.exists()).count()", [1]),
        ("component.select($index)", [0, 1]),
        ("(1 | 2 | 3).aggregate($this + $total, 0)", [6]),
        ("component[0].value + 1", [4]),
        ("today() = @2024-05-06", [True]),
        ("@2024-05 = @2024-05-06", []),
        ("@2024-05-06T10:00:00+02:00 = @2024-05-06T08:00:00Z", [True]),
        ("value.value > 6.29 and value.value < 6.31", [True]),
        ("value.value.toString()", ["6.30"]),
        ("{} or true", [True]),
        ("{} and true", []),
        ("{} implies true", [True]),
        ("iif(status = 'final', 'a', 'b')", ["a"]),
        ("'a' in ('b' | 'a')", [True]),
        ("%ucum", ["http://unitsofmeasure.org"]),
        ("code.coding.memberOf('http://x')", []),
        ("descendants().ofType(Quantity).count()", [1]),
        ("(3 | 1 | 2).sort(-$this)", [3, 2, 1]),
        ("@2012-02.highBoundary() = @2012-02-29", [True]),
        ("1.587.lowBoundary(2) = 1.58", [True]),
    ],
)
def test_an_expression_gives_what_n1_says(expression: str, outcome: list[Any]) -> None:
    assert evaluate(expression) == outcome


def test_a_decimal_leaves_as_it_was_written() -> None:
    assert [str(value) for value in evaluate("value.value")] == ["6.30"]


@pytest.mark.parametrize("text", ["", "a.", "a b", "(1", "nosuch()", "where()", "'open", "1 +", "@2024-13", "is(1)"])
def test_what_is_no_expression_is_refused_when_compiled(text: str) -> None:
    with pytest.raises(FHIRPathError):
        compile_expression(text)
    assert issubclass(FHIRPathError, InputRefused)


def test_deep_nesting_is_refused_and_does_not_exhaust_the_stack() -> None:
    with pytest.raises(FHIRPathError):
        compile_expression("(" * 5000 + "1" + ")" * 5000)
    with pytest.raises(FHIRPathError):
        compile_expression("-" * 5000 + "1")


@given(st.text(alphabet="abt'.()[]{}|=<>!~&%$@0123456789-+ \"`\\/*", max_size=40))
def test_any_text_compiles_or_is_refused(text: str) -> None:
    with contextlib.suppress(FHIRPathError):
        compile_expression(text).evaluate({"a": "b"}, Context())


@pytest.mark.parametrize(
    ("expression", "good", "bad"),
    [
        ("dataAbsentReason.empty() or value.empty()", {"valueString": "x"},
         {"valueString": "x", "dataAbsentReason": {}}),
        ("start.hasValue().not() or end.hasValue().not() or (start <= end)", {"start": "2012", "end": "2013-01"},
         {"start": "2012-02-01", "end": "2012-01-31"}),
        ("reference.startsWith('#').not() or (reference.substring(1).trace('url') in "
         "%rootResource.contained.id.trace('ids'))", {"display": "no reference at all"}, {"reference": "#gone"}),
        ("fullUrl.contains('/_history/').not()", {}, {"fullUrl": "http://a/b/_history/1"}),
        ("extension.exists() != value.exists()", {"url": "u", "valueCode": "x"}, {"url": "u"}),
        ("duration.exists() implies duration >= 0", {"duration": 0}, {"duration": -1}),
        ("type in ('a' | 'b')", {"type": "b"}, {"type": "c"}),
        ("code.exists() or abstract = true", {"abstract": True}, {}),
        ("repeats=true or initial.count() <= 1", {"initial": [1]}, {"initial": [1, 2]}),
        ("type='x' implies item.empty().not()", {"type": "y"}, {"type": "x"}),
        ("low.empty() or high.empty() or (low <= high)", {"low": {"value": 1}, "high": {"value": 2}},
         {"low": {"value": 3}, "high": {"value": 2}}),
    ],
)
def test_an_invariant_tells_good_from_bad(expression: str, good: Any, bad: Any) -> None:
    assert holds(expression, good)
    assert not holds(expression, bad)


def test_ref_1_finds_the_contained_resource() -> None:
    expression = "reference.startsWith('#').not() or (reference.substring(1) in %rootResource.contained.id)"
    root = {"resourceType": "Observation", "contained": [{"resourceType": "Patient", "id": "p"}]}
    assert holds(expression, {"reference": "#p"}, root)
    assert not holds(expression, {"reference": "#q"}, root)


def test_dom_3_wants_every_contained_resource_referred_to() -> None:
    dom_3 = next(c.expression for c in DEFINITIONS.type("Observation").root.constraints if c.key == "dom-3")
    contained = {"resourceType": "Patient", "id": "p"}
    used = {"resourceType": "Observation", "contained": [contained], "subject": {"reference": "#p"}}
    assert holds(dom_3, used)
    assert not holds(dom_3, {**used, "subject": {"reference": "#q"}})


def _invariants() -> Iterator[str]:
    for name in DEFINITIONS.type_names:
        for node in DEFINITIONS.type(name).nodes.values():
            yield from (one.expression for one in node.constraints)
            yield from (one.expression for element in node.elements.values() for one in element.constraints)


def test_every_invariant_and_search_parameter_of_the_tables_compiles() -> None:
    for text in set(_invariants()):
        compile_expression(text, MODEL)
    for name in DEFINITIONS.resource_types:
        for parameter in DEFINITIONS.search_parameters(name).values():
            if parameter.expression:
                compile_expression(parameter.expression, MODEL)
            for _, text in parameter.components:
                compile_expression(text, MODEL)


_INVARIANTS = sorted(set(_invariants()))
_WORDS = (
    "code system value valueQuantity valueString type status start end name text extension url reference item "
    "low high initial contained meta required component dataAbsentReason entry request kind id"
)
_NAMES = st.sampled_from(_WORDS.split())
_JSON = st.recursive(
    st.one_of(st.sampled_from(["a", "display", "2012-01-01", "#p"]), st.booleans(), st.integers(-3, 3)),
    lambda inner: st.dictionaries(_NAMES, st.one_of(inner, st.lists(inner, min_size=1, max_size=2)), max_size=5),
    max_leaves=12,
)


@given(st.sampled_from(_INVARIANTS), st.dictionaries(_NAMES, _JSON, max_size=6))
def test_the_quick_way_agrees_with_the_general_way(text: str, value: dict[str, Any]) -> None:
    if any(word in text for word in ("startsWith", "contains(", "matches")):
        return  # the stated divergence: absent text
    expression, context = compile_expression(text, MODEL), Context(resource=value, model=MODEL)
    try:
        general = boolean(expression.nodes(value, context)) is True
    except FHIRPathError:
        return
    assert expression.is_true(value, context) is general


@needs_shared
def test_every_expression_hl7_published_compiles() -> None:
    assert SHARED is not None
    folder = SHARED / "fhir-r4-core"
    texts = set()
    for name in ("profiles-resources", "profiles-types"):
        for entry in json.loads(gzip.decompress((folder / f"{name}.json.gz").read_bytes()))["entry"]:
            for element in entry["resource"].get("snapshot", {}).get("element", []):
                texts |= {one["expression"] for one in element.get("constraint", []) if "expression" in one}
    for entry in json.loads(gzip.decompress((folder / "search-parameters.json.gz").read_bytes()))["entry"]:
        resource = entry["resource"]
        texts |= {resource["expression"]} if resource.get("expression") else set()
        texts |= {one["expression"] for one in resource.get("component", [])}
    assert len(texts) > 1000
    for text in texts:
        compile_expression(text, MODEL)
