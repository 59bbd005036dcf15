"""SMART App Launch 2.2, scopes and launch context: grammar, union, narrowing, subset."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.access.scopes import ResourceScope, ScopeSet, as_v1, parse, parse_strict
from gateway.errors import OAuthError
from tests.shared_data import SHARED, needs_shared

RECORDED = [
    ("patient/Observation.read", "patient/Observation.rs"),
    ("patient/Observation.write", "patient/Observation.cud"),
    ("user/*.*", "user/*.cruds"),
    ("patient/Observation.read patient/Observation.write", "patient/Observation.cruds"),
    ("patient/*.rs patient/Observation.crus", "patient/*.rs patient/Observation.cu"),
    ("patient/Observation.rs patient/Observation.rs?category=a", "patient/Observation.rs"),
    ("patient/Observation.rs?category=b&code=a patient/Observation.r?category=b", (
        "patient/Observation.r?category=b patient/Observation.s?category=b&code=a")),
    ("launch/patient openid fhirUser offline_access patient/Patient.r",
     "fhirUser launch/patient offline_access openid patient/Patient.r"),
    ("patient/Observation.rs?category=http://terminology.hl7.org/CodeSystem/observation-category|laboratory",
     "patient/Observation.rs?category=http://terminology.hl7.org/CodeSystem/observation-category|laboratory"),
    ("patient/Observation.rs?code=a%20b%26c", "patient/Observation.rs?code=a%20b%26c"),
    ("launch launch/encounter launch/imagingstudy?role=x __tenant https://example.org/scope",
     "__tenant https://example.org/scope launch launch/encounter launch/imagingstudy?role=x"),
    ("", ""),
]

REFUSED = {
    "letters out of order": "patient/Observation.sr",
    "letters repeated": "patient/Observation.rrs",
    "no letters": "patient/Observation.",
    "an unknown word": "patient/Observation.export",
    "an unknown context": "practitioner/Observation.rs",
    "a lower-case type": "patient/observation.rs",
    "another separator": "patient.Observation.rs",
    "an encoded slash": "patient%2FObservation.rs",
    "a modifier": "patient/Observation.rs?code:in=http://x",
    "a chain": "patient/Observation.rs?subject.name=x",
    "a reverse chain": "patient/Patient.rs?_has:Observation:patient:code=1",
    "a filter": "patient/Observation.rs?_filter=code%20eq%201",
    "an include": "patient/Observation.rs?_include=Observation:subject",
    "a result parameter": "patient/Observation.rs?_count=1",
    "a modifier hidden by encoding": "patient/Observation.rs?code%3Anot=1",
    "a v1 scope with parameters": "patient/Observation.read?code=1",
    "a parameter without value": "patient/Observation.rs?code=",
    "a parameter without sign": "patient/Observation.rs?code",
    "an empty query": "patient/Observation.rs?",
    "an empty pair": "patient/Observation.rs?code=1&",
    "a second question mark": "patient/Observation.rs?code=1?x=2",
    "a quote": 'patient/Observation.rs?code="1"',
    "a bare word": "admin",
    "nothing before the slash": "/Observation.rs",
}


@pytest.mark.parametrize(("text", "canonical"), RECORDED)
def test_a_scope_string_has_one_canonical_form(text: str, canonical: str) -> None:
    assert str(parse_strict(text)) == canonical
    assert parse(text) == parse_strict(text) == parse_strict(canonical)


@pytest.mark.parametrize("text", REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_honoured_is_dropped_or_refused(text: str) -> None:
    assert parse(f"{text} patient/Patient.r") == parse("patient/Patient.r")
    with pytest.raises(OAuthError) as refused:
        parse_strict(text)
    assert refused.value.error == "invalid_scope"


def test_strict_reading_asks_which_types_and_parameters_there_are() -> None:
    def knows(type_: str, name: str) -> bool:
        return (type_, name) in {("Observation", "code"), ("Resource", "_tag")}

    assert parse_strict("patient/Observation.rs?code=1 user/*.r?_tag=x", types={"Observation"}, knows=knows)
    with pytest.raises(OAuthError, match="not a resource type"):
        parse_strict("patient/Foobar.rs", types={"Observation"})
    with pytest.raises(OAuthError, match="not a search parameter"):
        parse_strict("patient/Observation.rs?flavour=1", knows=knows)


def test_write_does_not_imply_read() -> None:
    scopes = parse("user/Observation.write")
    assert scopes.allows("Observation", "c", "user")
    assert not scopes.allows("Observation", "r")
    assert not scopes.allows("Observation", "c", "patient")
    assert not scopes.allows("Condition", "c")


def test_granular_scopes_are_alternatives_and_a_whole_one_swallows_them() -> None:
    scopes = parse("patient/Observation.rs?category=a patient/Observation.r?category=b&status=final")
    assert sorted(scopes.criteria("Observation", "r")) == [
        (("category", "a"),), (("category", "b"), ("status", "final"))]
    assert scopes.criteria("Observation", "s", "patient") == ((("category", "a"),),)
    assert scopes.criteria("Observation", "c") == ()
    assert scopes.union(parse("patient/*.rs")).criteria("Observation", "r") == ((),)


def test_a_request_is_narrowed_to_its_ceiling() -> None:
    asked = parse("openid launch patient/*.cruds user/Patient.rs")
    ceiling = parse("openid patient/Observation.rs?category=a patient/Condition.crs")
    assert str(asked.narrow(ceiling)) == "openid patient/Condition.crs patient/Observation.rs?category=a"
    assert asked.narrow(ceiling).within(asked)


def test_alternatives_within_a_value_are_a_union() -> None:
    assert parse("patient/Observation.r?code=a").within(parse("patient/Observation.r?code=a,b"))
    assert not parse("patient/Observation.r?code=a,c").within(parse("patient/Observation.r?code=a,b"))


def test_v1_is_given_back_to_who_asked_in_v1() -> None:
    assert as_v1(parse("openid patient/*.read user/Task.*")) == "openid patient/*.read user/Task.*"
    assert as_v1(parse("patient/*.r")) is None
    assert as_v1(parse("patient/Observation.rs?code=1")) is None


resource_scopes = st.builds(
    ResourceScope, st.sampled_from(("patient", "user", "system")), st.sampled_from(("*", "Patient", "Observation")),
    st.sets(st.sampled_from("cruds"), min_size=1).map(lambda held: "".join(x for x in "cruds" if x in held)),
    st.sets(st.tuples(st.sampled_from(("code", "status")), st.sampled_from(("a", "b", "a,b", "b,a", "x y"))),
            max_size=2).map(lambda criteria: tuple(sorted(criteria))))
scope_sets = st.builds(ScopeSet, st.lists(resource_scopes, max_size=4).map(tuple),
                       st.frozensets(st.sampled_from(("openid", "launch", "offline_access"))))

CONTEXTS, TYPES = ("patient", "user", "system"), ("Patient", "Observation", "Task")
RESOURCES = [{"code": code, "status": status} for code in "abc" for status in "abc"]


def admitted(scopes: ScopeSet) -> set[tuple[str, str, str, int]]:
    """The meaning of a set: every (context, type, letter, resource) it lets through."""
    return {(context, type_, letter, number) for context in CONTEXTS for type_ in TYPES for letter in "cruds"
            for number, resource in enumerate(RESOURCES)
            if any(all(resource[name] in value.split(",") for name, value in criteria)
                   for criteria in scopes.criteria(type_, letter, context))}  # type: ignore[arg-type]


@given(scope_sets)
def test_the_canonical_text_reads_back_equal(scopes: ScopeSet) -> None:
    assert parse_strict(str(scopes)) == parse(str(scopes)) == scopes
    assert ScopeSet(scopes.resources, scopes.others) == scopes


@given(st.lists(resource_scopes, max_size=4))
def test_canonical_form_changes_no_meaning(scopes: list[ResourceScope]) -> None:
    whole = set().union(*(admitted(ScopeSet((scope,))) for scope in scopes))
    assert admitted(ScopeSet(tuple(scopes))) == whole
    assert ScopeSet(tuple(scopes)) == ScopeSet(tuple(reversed(scopes)))


@given(scope_sets, scope_sets)
def test_union_and_narrowing_mean_or_and_and(one: ScopeSet, other: ScopeSet) -> None:
    assert admitted(one.union(other)) == admitted(one) | admitted(other)
    assert admitted(one.narrow(other)) == admitted(one) & admitted(other)
    assert one.narrow(other).within(one)
    assert one.narrow(other).within(other)
    assert one.within(one.union(other))


@given(scope_sets, scope_sets)
def test_a_subset_is_never_claimed_wrongly(one: ScopeSet, other: ScopeSet) -> None:
    if one.within(other):
        assert admitted(one) <= admitted(other)


@given(st.text())
def test_no_text_breaks_the_lenient_reader(text: str) -> None:
    assert parse(str(parse(text))) == parse(text)


OWN_RULES = {
    "a separator that SMART does not have": lambda v: any(
        mark in word for word in v["scope"].split() for mark in ("$", "%2f"))
    or any("/" not in word for word in v["scope"].split() if "." in word),
    "'all' for '*'": lambda v: "all." in v["scope"] or ".all" in v["scope"],
    "refuses v1 beside v2, which SMART does not": lambda v: v["group"] == "GetMixedSmartScopeVersions",
    "refuses mixed contexts, which SMART does not": lambda v: v["group"] == "GetMixedSmartScopeContexts",
}
"""Vectors that are another server's own choice, with the reason each is left out."""
WORDS = {"Create": "c", "Read": "r", "ReadById": "r", "Update": "u", "Delete": "d", "Search": "s"}


@needs_shared
def test_another_servers_vectors_agree_where_they_state_smart_rules() -> None:
    assert SHARED is not None
    followed = left = 0
    for vector in json.loads((SHARED / "smart-scopes" / "vectors.json").read_text("utf-8")):
        if any(rule(vector) for rule in OWN_RULES.values()):
            left += 1
            continue
        followed += 1
        if vector["kind"] == "invalid":
            with pytest.raises(OAuthError):
                parse_strict(vector["scope"], types={"Patient", "Observation", "Condition", "Encounter"})
            continue
        expected = ScopeSet(tuple(ResourceScope(
            row["context"], row["resource"], "".join(WORDS.get(action, "") for action in row["actions"]),
            tuple(sorted(tuple(pair) for pair in row["search"]))) for row in vector["restrictions"]))
        assert parse_strict(vector["scope"]).resources == expected.resources, vector["scope"]
    print(f"{followed} vectors followed, {left} left: {'; '.join(OWN_RULES)}")
    assert followed > 35
