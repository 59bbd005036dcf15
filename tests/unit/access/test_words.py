"""The words of scopes: every type has a name, every kind and date is a search parameter of R4."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from gateway.access.scopes import parse, parse_strict
from gateway.access.words import OF_A_PATIENT, YOURS, load, represented, sentences, words
from gateway.errors import Misconfigured
from gateway.fhir.definitions import Definitions

# SMART 2.2 and US Core: the sub-scopes a server must offer (Condition, Observation), by code.
MUST_HAVE = {
    "Condition": {"encounter-diagnosis", "problem-list-item", "health-concern"},
    "Observation": {"laboratory", "social-history", "vital-signs", "survey", "sdoh", "procedure"},
}
LABORATORY = "http://terminology.hl7.org/CodeSystem/observation-category|laboratory"


@cache
def definitions() -> Definitions:
    return Definitions.load()


def test_every_type_has_a_name_and_nothing_else_has() -> None:
    assert set(words().types) == set(definitions().resource_types)


def test_every_type_of_the_patient_compartment_has_a_heading() -> None:
    assert {type_ for type_ in definitions().resource_types if definitions().patient_compartment(type_)} <= {
        type_ for type_, row in words().types.items() if row.group is not None}


@pytest.mark.parametrize("type_", [name for name, row in words().types.items() if row.date is not None])
def test_only_since_uses_a_date_parameter_of_the_type(type_: str) -> None:
    date = words().types[type_].date
    assert date is not None
    assert definitions().search_parameters(type_)[date].type == "date"


def test_every_kind_is_a_criterion_scopes_may_have() -> None:
    known = definitions()
    for type_, kinds in words().kinds.items():
        for kind in kinds:
            parameter, value = kind.criterion
            parse_strict(f"patient/{type_}.rs?{parameter}={value}", types=known.resource_types,
                         knows=lambda name, parameter: parameter in known.search_parameters(name))
            assert known.search_parameters(type_)[parameter].type == "token"


@pytest.mark.parametrize("type_", MUST_HAVE)
def test_the_kinds_servers_must_offer_are_offered(type_: str) -> None:
    offered = {kind.criterion[1].rpartition("|")[2] for kind in words().kinds[type_]
               if kind.criterion[0] == "category"}
    assert MUST_HAVE[type_] <= offered


@pytest.mark.parametrize(("scope", "text"), [
    ("patient/Observation.rs", "See your test results, vital signs and other observations"),
    (f"patient/Observation.rs?category={LABORATORY}", "See your laboratory results"),
    ("patient/Observation.rs?category=laboratory", "See your laboratory results"),
    (f"patient/Observation.rs?category={LABORATORY}&date=ge2024-01-01",
     "See your laboratory results dated 2024-01-01 or later"),
    ("patient/Observation.rs?code=8867-4",
     "See your test results, vital signs and other observations whose code is 8867-4"),
    ("patient/Appointment.crus", "See, add and change your appointments"),
    ("patient/*.cruds", "See, add, change and delete your records of every kind"),
])
def test_a_scope_reads_as_a_sentence(scope: str, text: str) -> None:
    assert sentences(parse(scope), YOURS, words()) == (text,)


def test_whose_records_is_said() -> None:
    asked = parse("patient/Immunization.rs user/Immunization.rs")
    assert sentences(asked, OF_A_PATIENT, words()) == (
        "See the vaccinations of this patient", "See the vaccinations of every patient whose records you may see")
    assert sentences(parse("patient/Immunization.rs"), represented("Ada {Lovelace}"), words()) == (
        "See the vaccinations of Ada {Lovelace}",)


def test_a_table_that_does_not_hold_together_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "words.toml"
    path.write_text("[letters]\n[groups]\n[type]\nPatient = { name = 'x', group = 'none' }\nkind = []\n")
    with pytest.raises(Misconfigured):
        load(path)
