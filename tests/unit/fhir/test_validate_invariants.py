"""Invariants: every one of R4's compiles, and each native test answers as HL7's FHIRPath does."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.fhir.definitions import Constraint, Definitions
from gateway.fhir.fhirpath.model import DefinitionsModel
from gateway.fhir.invariants import NATIVE, OMITTED, compile_constraint
from gateway.fhir.resource import parse_json
from gateway.fhir.run import Run

DEFINITIONS = Definitions.load()
MODEL = DefinitionsModel.load(DEFINITIONS)


def all_constraints() -> dict[str, tuple[Constraint, str]]:
    """Expression -> (constraint, type of its focus)."""
    found: dict[str, tuple[Constraint, str]] = {}
    for name in sorted(DEFINITIONS.type_names):
        for node in DEFINITIONS.type(name).nodes.values():
            for constraint in node.constraints:
                found.setdefault(constraint.expression, (constraint, node.path))
            for element in node.elements.values():
                for constraint in element.constraints:
                    found.setdefault(constraint.expression, (constraint, element.node or element.types[0].code))
    return found


CONSTRAINTS = all_constraints()


def test_every_invariant_of_r4_compiles_or_says_why_not() -> None:
    for constraint, focus in CONSTRAINTS.values():
        if constraint.key not in OMITTED:
            compile_constraint(constraint, focus, MODEL, native=False)


def test_every_native_test_stands_for_an_expression_of_the_definitions() -> None:
    assert set(NATIVE) <= set(CONSTRAINTS)


def text(*values: str) -> st.SearchStrategy[Any]:
    return st.sampled_from(values)


EXTENSION = st.fixed_dictionaries({"url": st.just("u"), "valueString": st.just("v")})
SIBLING = st.fixed_dictionaries({"extension": st.lists(EXTENSION, min_size=1, max_size=1)})
QUANTITY = st.fixed_dictionaries(
    {
        "value": st.integers(-3, 3) | st.sampled_from([parse_json(b"1.10"), parse_json(b"-0.5")]),
        "system": st.just("http://unitsofmeasure.org"),
        "code": st.just("kg"),
    }
)
CODING = st.fixed_dictionaries({"system": text("s", "t"), "code": text("a", "b")})
CONCEPT = st.fixed_dictionaries({}, optional={"text": st.just("x"), "coding": st.lists(CODING, min_size=1, max_size=2)})


def shape(**optional: Any) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=optional)


FOCI: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "ext-1": shape(
        url=st.just("u"),
        valueString=text("a"),
        _valueString=SIBLING,
        valueBoolean=st.booleans(),
        valueQuantity=QUANTITY,
        extension=st.lists(EXTENSION, min_size=1, max_size=2),
    ),
    "per-1": shape(
        start=text("2020-01-01", "2020-02-29", "2021-12-31"), end=text("2020-01-01", "2020-03-01"), _start=SIBLING
    )
    | shape(
        start=text("2020-01-01T00:00:00Z", "2020-01-01T00:30:00+01:00"),
        end=text("2020-01-01T00:00:00.000Z", "2019-12-31T23:29:59Z"),
    ),
    "ref-1": shape(reference=text("#a", "#b", "Patient/1", "urn:uuid:1"), display=text("x")),
    "qty-3": shape(code=text("kg"), _code=SIBLING, system=text("s"), _system=SIBLING, value=st.integers(0, 3)),
    "cpt-2": shape(value=text("v"), _value=SIBLING, system=text("phone"), _system=SIBLING),
    "att-1": shape(data=text("AAAA"), _data=SIBLING, contentType=text("a/b"), _contentType=SIBLING),
    "rng-2": shape(low=QUANTITY, high=QUANTITY),
    "mdd-1": shape(whenHandedOver=text("2020-01-02", "2020-01-01"), whenPrepared=text("2020-01-02", "2020-01-03")),
    "ras-2": st.fixed_dictionaries(
        {
            "probabilityDecimal": st.integers(99, 101)
            | st.sampled_from([parse_json(b"100.0"), parse_json(b"100.01"), parse_json(b"0.1"), parse_json(b"1e3")])
        }
    ),
    "obs-6": shape(
        dataAbsentReason=CONCEPT.filter(bool), valueString=text("a"), _valueString=SIBLING, valueQuantity=QUANTITY
    ),
    "obs-7": st.fixed_dictionaries(
        {"resourceType": st.just("Observation"), "code": CONCEPT},
        optional={
            "valueString": text("a"),
            "_valueString": SIBLING,
            "component": st.lists(st.fixed_dictionaries({"code": CONCEPT}), min_size=1, max_size=2),
        },
    ),
    "obs-3": shape(low=QUANTITY, high=QUANTITY, text=text("x"), _text=SIBLING, appliesTo=st.lists(CONCEPT, min_size=1)),
    "pat-1": shape(
        name=shape(family=text("x")).filter(bool),
        telecom=st.just([{"value": "1"}]),
        address=st.just({"text": "x"}),
        organization=st.just({"display": "x"}),
        gender=text("male"),
    ),
}
PATHS = st.lists(st.fixed_dictionaries({"path": text("X", "X.a", "X.b.c", "Y", "Y.a", "Xa")}), max_size=3)
STRUCTURE = st.fixed_dictionaries(
    {"resourceType": st.just("StructureDefinition"), "kind": text("logical", "resource"), "type": text("X", "Y"),
     "snapshot": st.fixed_dictionaries({"element": PATHS.filter(bool)}),
     "differential": st.fixed_dictionaries({"element": PATHS.filter(bool)})})
BY_KEY = {
    constraint.key: (constraint, focus) for constraint, focus in CONSTRAINTS.values() if constraint.expression in NATIVE
}


def test_every_native_test_is_compared_here() -> None:
    # que-7 says `Boolean` where FHIR's type is `boolean`: its divergence has a test of its own below.
    assert set(FOCI) | {"que-7", "sdf-8", "sdf-8a"} == set(BY_KEY)


@pytest.mark.parametrize("key", sorted(FOCI))
def test_native_tests_answer_as_fhirpath_does(key: str) -> None:
    constraint, focus = BY_KEY[key]
    native = compile_constraint(constraint, focus, MODEL)
    reference = compile_constraint(constraint, focus, MODEL, native=False)

    @settings(max_examples=120, deadline=None)
    @given(FOCI[key].filter(bool))
    def compare(value: dict[str, Any]) -> None:
        resource = (
            value if key == "obs-7" else {"resourceType": "Basic", "contained": [{"resourceType": "Basic", "id": "a"}]}
        )
        run = Run(resource, MODEL)
        run.contained = {"a": "Basic"}
        assert native(value, run) == reference(value, run)

    compare()


@settings(max_examples=150, deadline=None)
@given(STRUCTURE)
def test_paths_of_a_structure_definition_answer_as_fhirpath_does(resource: dict[str, Any]) -> None:
    for key, part in (("sdf-8", "snapshot"), ("sdf-8a", "differential")):
        constraint, focus = BY_KEY[key]
        native = compile_constraint(constraint, focus, MODEL)
        reference = compile_constraint(constraint, focus, MODEL, native=False)
        run = Run(resource, MODEL)
        assert native(resource[part], run) == reference(resource[part], run), key


def test_many_components_are_compared_in_linear_time() -> None:
    """obs-7 on a hostile Observation."""
    codings = [{"system": "s", "code": str(i)} for i in range(5000)]
    components = [{"code": {"coding": [{"system": "t", "code": str(i)}]}} for i in range(5000)]
    resource = {"resourceType": "Observation", "valueString": "x", "code": {"coding": codings}, "component": components}
    constraint, focus = BY_KEY["obs-7"]
    holds = compile_constraint(constraint, focus, MODEL)
    assert holds(resource, Run(resource, MODEL))
    components[4999]["code"]["coding"][0]["system"] = "s"
    assert not holds(resource, Run(resource, MODEL))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("per-1", {"start": "2020", "end": "2020-01-01"}),
        ("per-1", {"start": "2020-05", "end": "2020"}),
        ("rng-2", {"low": {"value": 2, "unit": "g"}, "high": {"value": 1, "unit": "kg"}}),
        ("ras-2", {}),
        ("ref-1", {"reference": "#"}),
        ("que-7", {"operator": "exists", "answerBoolean": True}),
    ],
)
def test_what_cannot_be_decided_holds(key: str, value: dict[str, Any]) -> None:
    """The divergences named in invariants.py."""
    constraint, focus = BY_KEY[key]
    assert compile_constraint(constraint, focus, MODEL)(value, Run({"resourceType": "Basic"}, MODEL))


def test_partial_dates_that_surely_end_before_they_start_are_refused() -> None:
    constraint, focus = BY_KEY["per-1"]
    holds = compile_constraint(constraint, focus, MODEL)
    assert not holds({"start": "2021", "end": "2020-12-31"}, Run({"resourceType": "Basic"}, MODEL))
    assert not holds({"start": "2020-02", "end": "2020-01-31T00:00:00Z"}, Run({"resourceType": "Basic"}, MODEL))
