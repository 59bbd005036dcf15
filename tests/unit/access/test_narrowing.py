"""Narrowing never widens: whatever a person chooses, the app gets no more than it asked. SMART App Launch 2.2."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.access.narrowing import Chosen, Line, Offer, is_nothing, narrowed, offer
from gateway.access.scopes import ResourceScope, ScopeSet, as_v1, parse
from gateway.access.words import OF_A_PATIENT, YOURS, Voice, words
from gateway.errors import Unprocessable

LABORATORY = "http://terminology.hl7.org/CodeSystem/observation-category|laboratory"
VITAL_SIGNS = "http://terminology.hl7.org/CodeSystem/observation-category|vital-signs"
PROBLEMS = "http://terminology.hl7.org/CodeSystem/condition-category|problem-list-item"


SERVED = frozenset({"Observation", "Condition", "Patient", "DocumentReference", "Practitioner", "Coverage", "Location",
                    "Immunization", "Basic"})


def offered(asked: str | ScopeSet, voice: Voice = YOURS) -> Offer:
    return offer(parse(asked) if isinstance(asked, str) else asked, types=SERVED, voice=voice, table=words())


def line(of: Offer, type_: str) -> Line:
    return next(line for line in of.lines if line.type == type_)


def chosen(*ticked: str, **more: object) -> Chosen:
    return Chosen(ticked=frozenset(ticked), **{"how_long": "once", **more})  # type: ignore[arg-type]  # test values


LETTERS = st.sets(st.sampled_from("cruds"), min_size=1).map(lambda held: "".join(x for x in "cruds" if x in held))
CRITERIA = st.sampled_from([(), (), (), (("category", LABORATORY),), (("category", f"{LABORATORY},{VITAL_SIGNS}"),),
                            (("code", "8867-4"),), (("_security", "N"), ("category", "x")),
                            (("date", "ge2020-01-01"),), (("_tag", "a,b"), ("category", "c,d"))])
SCOPES = st.builds(ResourceScope, st.sampled_from(["patient", "user"]),
                   st.sampled_from(["*", "Observation", "Condition", "Patient", "DocumentReference", "Practitioner",
                                    "Coverage", "Immunization"]), LETTERS, CRITERIA)
OTHERS = st.frozensets(st.sampled_from(["openid", "fhirUser", "profile", "launch/patient", "launch", "online_access",
                                        "offline_access", "__tenant", "https://example.org/scope"]))
VOICES = st.sampled_from([YOURS, OF_A_PATIENT])
ASKED = st.builds(ScopeSet, st.lists(SCOPES, max_size=4).map(tuple), OTHERS)
DAYS = st.dates().map(str) | st.none()


@st.composite
def answers(draw: st.DrawFn) -> tuple[Offer, Chosen]:
    of = offered(draw(ASKED), draw(VOICES))
    kinds = sorted({word for line in of.lines for tick in line.kinds for word in tick.words})
    ticked = set(of.everything)
    if of.everything:
        ticked -= set(draw(st.lists(st.sampled_from(sorted(of.everything)), max_size=6)))
        if draw(st.booleans()):
            ticked = set(of.everything) - ticked
    if kinds:
        ticked |= set(draw(st.lists(st.sampled_from(kinds), max_size=3)))
    dated = [line.key for line in of.lines if line.date is not None]
    since_of = draw(st.dictionaries(st.sampled_from(dated), st.dates().map(str), max_size=2)) if dated else {}
    return of, Chosen(ticked=frozenset(ticked), how_long=draw(st.sampled_from(of.how_long)), since=draw(DAYS),
                      since_of=since_of)


@given(answers())
def test_narrowing_never_widens(answer: tuple[Offer, Chosen]) -> None:
    of, what = answer
    assert narrowed(of, what).within(of.asked)


@given(answers(), st.sampled_from(["Observation", "Condition", "Practitioner", "Basic"]), st.sampled_from("cruds"),
       st.sampled_from(["patient", "user"]), st.sampled_from([LABORATORY, VITAL_SIGNS, "x"]), st.booleans())
def test_no_resource_passes_that_what_was_asked_would_stop(
        answer: tuple[Offer, Chosen], type_: str, letter: str, context: str, category: str, coded: bool) -> None:
    of, what = answer

    def passes(scopes: ScopeSet) -> bool:
        facts = {("category", category), ("date", "ge2020-01-01"), *([("code", "8867-4")] if coded else ())}
        return any(all(any((name, part) in facts for part in value.split(",")) for name, value in criteria)
                   for criteria in scopes.criteria(type_, letter, context))  # type: ignore[arg-type]  # a context

    assert passes(of.asked) or not passes(narrowed(of, what))


@given(ASKED, VOICES)
def test_leaving_everything_ticked_gives_what_was_asked(asked: ScopeSet, voice: Voice) -> None:
    of = offered(asked, voice)
    given_ = narrowed(of, Chosen(ticked=of.everything, how_long=of.how_long[-1]))
    identity = frozenset() if "openid" in asked.others else frozenset({"fhirUser", "profile"})
    assert given_ == ScopeSet(asked.resources, asked.others - identity)


@given(ASKED, VOICES)
def test_narrowing_everything_off_gives_nothing(asked: ScopeSet, voice: Voice) -> None:
    of = offered(asked, voice)
    given_ = narrowed(of, chosen())
    assert is_nothing(given_)
    assert not given_.resources


@given(answers())
def test_choosing_kinds_gives_no_resource_level_scope_of_the_type(answer: tuple[Offer, Chosen]) -> None:
    """Acceptance line 11: at least one granular scope of the type, and none at resource level."""
    of, what = answer
    given_ = narrowed(of, what)
    for asked in of.lines:
        picked = [tick for tick in asked.kinds if tick.words & what.ticked]
        if not picked or sum(other.type == asked.type for other in of.lines) > 1:
            continue
        mine = [scope for scope in given_.resources if scope.type in (asked.type, "*")]
        assert mine
        criteria = {tick.criterion for tick in picked}
        assert all(criteria & set(scope.criteria) for scope in mine)


@given(answers())
def test_a_day_limits_every_line_that_has_a_date(answer: tuple[Offer, Chosen]) -> None:
    of, what = answer
    if what.since is None:
        return
    for scope in narrowed(of, what).resources:
        row = words().types.get(scope.type)
        if row is not None and row.date is not None and row.group is not None and set(scope.letters) - {"c"}:
            assert any(name == row.date and value >= f"ge{what.since}" for name, value in scope.criteria)


@given(ASKED)
def test_no_two_boxes_read_the_same_to_a_patient(asked: ScopeSet) -> None:
    """Else somebody unticks one of them and shares by the other."""
    of = offered(asked)
    texts = [tick.text for line in of.lines for tick in (line.read, line.write) if tick is not None]
    assert len(texts) == len(set(texts))


def test_what_is_left_of_everything_says_its_limit() -> None:
    of = offered("patient/*.cr patient/*.s?category=laboratory")
    texts = [tick.text for line in of.lines for tick in (line.read, line.write) if tick is not None]
    assert len(texts) == len(set(texts))
    assert "See everything else: staff, places, code lists and the like whose category is laboratory" in texts


def test_what_reads_the_same_is_decided_together() -> None:
    of = offered("patient/Observation.rs user/Observation.cruds")
    (both,) = of.lines
    assert both.read is not None
    assert both.read.words == {"patient/Observation.rs", "user/Observation.rs"}
    kind = next(tick for tick in both.kinds if tick.text == "See your laboratory results")
    given_ = narrowed(of, Chosen(ticked=kind.words | {"user/Observation.cud"}, how_long="once"))
    assert str(given_) == (f"patient/Observation.rs?category={LABORATORY} "
                           f"user/Observation.cruds?category={LABORATORY}")
    apart = offered("patient/Observation.rs user/Observation.rs", OF_A_PATIENT)
    assert len(apart.lines) == 2


def test_a_kind_that_was_asked_by_itself_has_that_box_alone() -> None:
    of = offered(f"user/Observation.rs user/Observation.rs?category={LABORATORY} patient/Observation.c")
    assert narrowed(of, chosen(*of.everything)) == of.asked
    laboratory = f"user/Observation.rs?category={LABORATORY}"
    assert sum(laboratory in tick.words for line in of.lines for tick in (line.read, line.write, *line.kinds)
               if tick is not None) == 1
    assert str(narrowed(of, chosen(laboratory))) == laboratory


def test_laboratory_results_since_a_day() -> None:
    of = offered("patient/Observation.rs patient/Condition.rs patient/Patient.rs launch/patient")
    kind = next(tick for tick in line(of, "Observation").kinds if tick.text == "See your laboratory results")
    given_ = narrowed(of, chosen(kind.value, "patient/Patient.rs", since="2024-01-01"))
    assert str(given_) == (f"launch/patient patient/Observation.rs?category={LABORATORY}&date=ge2024-01-01 "
                           "patient/Patient.rs")


def test_a_kind_holds_for_changes_of_the_type_too() -> None:
    of = offered("patient/Condition.cruds")
    problems = next(tick for tick in line(of, "Condition").kinds if tick.value.endswith("problem-list-item"))
    given_ = narrowed(of, chosen(problems.value, "patient/Condition.cud"))
    assert str(given_) == f"patient/Condition.cruds?category={PROBLEMS}"


def test_a_wildcard_is_spread_over_types_and_whole_again_where_nothing_was_taken_off() -> None:
    of = offered("patient/*.rs")
    assert str(narrowed(of, chosen(*of.everything))) == "patient/*.rs"
    fewer = narrowed(of, chosen(*(of.everything - {"patient/Observation.rs"})))
    assert not fewer.allows("Observation", "r")
    assert fewer.allows("Practitioner", "r")
    assert fewer.allows("Condition", "s")


def test_what_was_asked_in_v1_is_told_in_v1_where_v1_can_say_it() -> None:
    of = offered("patient/Observation.read patient/Condition.read patient/Condition.write")
    assert as_v1(narrowed(of, chosen("patient/Observation.rs", "patient/Condition.rs"))) == (
        "patient/Condition.read patient/Observation.read")


def test_how_long_is_at_most_what_was_asked() -> None:
    of = offered("patient/Observation.rs offline_access")
    assert of.how_long == ("once", "offline")
    assert narrowed(of, chosen("patient/Observation.rs")).others == frozenset()
    assert narrowed(of, chosen("patient/Observation.rs", how_long="offline")).others == {"offline_access"}
    with pytest.raises(Unprocessable):
        narrowed(offered("patient/Observation.rs"), chosen("patient/Observation.rs", how_long="offline"))


@pytest.mark.parametrize("tampered", [
    {"ticked": frozenset({"patient/Condition.rs"})},
    {"ticked": frozenset({"patient/Observation.cruds"})},
    {"ticked": frozenset({"patient/*.rs"})},
    {"ticked": frozenset({"offline_access"})},
    {"ticked": frozenset({"openid"})},
    {"since": "yesterday"},
    {"since": "2024-02-30"},
    {"since": "20240101"},
    {"since": "2024-01-01,gt1900"},
    {"since_of": {"patient/Condition.rs": "2024-01-01"}},
])
def test_what_was_not_offered_is_refused(tampered: dict[str, object]) -> None:
    with pytest.raises(Unprocessable):
        narrowed(offered("patient/Observation.rs"), Chosen(**{  # type: ignore[arg-type]  # test values
            "ticked": frozenset({"patient/Observation.rs"}), "how_long": "once", **tampered}))
