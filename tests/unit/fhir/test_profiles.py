"""Profiles of a package: https://hl7.org/fhir/R4/profiling.html, and the terms they bind to."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import Misconfigured
from gateway.fhir.definitions import Definitions
from gateway.fhir.packages import Packages
from gateway.fhir.profiles import CORE
from gateway.fhir.profiles_terms import PackageTerms
from gateway.fhir.resource import parse, serialise
from gateway.fhir.validate import Validator

PACKAGE = Path(__file__).parents[2] / "fixtures" / "package"
BASE = "http://example.org/fhir/"
OWN = f"{BASE}StructureDefinition/"
WARD = {"url": f"{OWN}ward", "valueCode": "west"}
DEFINITIONS = Definitions.load()


@pytest.fixture(scope="module")
def validator() -> Validator:
    return Validator(DEFINITIONS, packages=Packages.load([PACKAGE]))


def judged(validator: Validator, resource: dict[str, Any], profile: str, *, thorough: bool = False) -> list[str]:
    """``severity code place`` of every issue against a profile."""
    url = profile if ":" in profile else OWN + profile
    issues = validator.validate(parse(serialise(resource)), profiles=[url], thorough=thorough)
    return [f"{issue.severity} {issue.code} {issue.expression}" for issue in issues]


def patient(**elements: Any) -> dict[str, Any]:
    return {"resourceType": "Patient", "extension": [WARD], "name": [{"family": "Ward"}],
            "identifier": [{"system": "http://example.org/ward-numbers", "value": "7"}], **elements}


def component(code: str, **value: Any) -> dict[str, Any]:
    return {"code": {"coding": [{"system": "http://example.org/codes", "code": code, "display": "any"}]}, **value}


GLAD = {"coding": [{"system": "http://example.org/codes", "code": "glad"}]}
MOOD, PAIN = component("mood", valueCodeableConcept=GLAD), component("pain", valueInteger=3)


def observation(*components: dict[str, Any], **elements: Any) -> dict[str, Any]:
    return {"resourceType": "Observation", "status": "final", "code": {"text": "round"},
            "subject": {"reference": "Patient/1"}, **({"component": list(components)} if components else {}),
            **elements}


@pytest.mark.parametrize(("changed", "found"), [
    ({}, []),
    ({"extension": []}, ["error structure Patient.extension"]),
    ({"photo": [{"title": "x"}]}, ["error structure Patient.photo"]),
    ({"name": [{"given": ["x"]}]}, ["error invariant Patient"]),
    ({"identifier": [{"system": "urn:x", "value": "7"}]}, ["error required Patient.identifier"]),
    ({"identifier": [{"system": "http://example.org/ward-numbers", "period": {"start": "2020"}}]},
     ["error required Patient.identifier[0].value"]),
    ({"identifier": [{"system": "http://example.org/ward-numbers", "value": one} for one in "78"]},
     ["error structure Patient.identifier"]),
    ({"extension": [{"url": f"{OWN}ward", "valueCode": "closed"}]},
     ["error code-invalid Patient.extension[0].value.ofType(code)"]),
    ({"extension": [{"url": f"{OWN}ward", "valueString": "west"}]},
     ["error structure Patient.extension[0].value.ofType(string)"]),
    ({"extension": [WARD, {"url": "urn:unknown", "valueString": "x"}]}, []),
    ({"modifierExtension": [{"url": "urn:unknown", "valueString": "x"}]},
     ["error extension Patient.modifierExtension[0]"]),
    ({"generalPractitioner": [{"reference": "Practitioner/1"}]}, []),
    ({"generalPractitioner": [{"reference": "PractitionerRole/1"}]},
     ["error invalid Patient.generalPractitioner[0]"]),
])
def test_what_a_profile_asks_of_its_elements(validator: Validator, changed: dict[str, Any], found: list[str]) -> None:
    assert sorted(set(judged(validator, patient(**changed), "ward-patient"))) == found


def test_a_profile_binds_only_who_claims_or_needs_it(validator: Validator) -> None:
    """A profile says nothing of a resource that neither claims nor needs it."""
    assert validator.validate({"resourceType": "Patient", "photo": [{"title": "x"}]}) == []


def test_claims_are_judged_and_unknown_ones_are_a_warning(validator: Validator) -> None:
    claims = patient(photo=[{"title": "x"}], meta={"profile": [f"{OWN}ward-patient|1.0.0", "urn:not:here"]})
    found = [(issue.severity, issue.expression) for issue in validator.validate(claims)]
    assert found == [("warning", "Patient.meta.profile[1]"), ("error", "Patient.photo")]
    of_another = {"resourceType": "Organization", "name": "x", "meta": {"profile": [f"{OWN}ward-patient"]}}
    assert [issue.code for issue in validator.validate(of_another)] == ["invalid"]
    base = {"resourceType": "Organization", "name": "x", "meta": {"profile": [f"{CORE}Organization"]}}
    assert validator.validate(base) == []


def test_claims_inside_bundles_and_containers_are_judged_too(validator: Validator) -> None:
    inner = patient(photo=[{"title": "x"}], meta={"profile": [f"{OWN}ward-patient"]})
    bundle = {"resourceType": "Bundle", "type": "collection", "entry": [{"resource": inner}]}
    assert [issue.expression for issue in validator.validate(bundle)] == ["Bundle.entry[0].resource.photo"]
    holder = observation(subject={"reference": "#p"}, contained=[{**inner, "id": "p"}])
    assert [issue.expression for issue in validator.validate(holder)] == ["Observation.contained[0].photo"]


@pytest.mark.parametrize(("components", "found"), [
    ([MOOD], []),
    ([MOOD, PAIN, component("else", valueInteger=1)], []),
    ([], ["error required Observation.component"]),
    ([PAIN, MOOD], ["error structure Observation.component"]),
    ([component("else"), MOOD], ["error structure Observation.component[0]"]),
    ([MOOD, MOOD], ["error structure Observation.component"]),
    ([MOOD, component("pain", valueString="much")], ["error structure Observation.component[1].value.ofType(string)"]),
    ([MOOD, component("pain")], ["error required Observation.component[1].value"]),
    ([component("mood", valueCodeableConcept={"coding": [{"system": "urn:x", "code": "glad"}]})],
     ["error code-invalid Observation.component[0].value.ofType(CodeableConcept)"]),
    ([component("mood", valueCodeableConcept={"text": "glad"})],
     ["error code-invalid Observation.component[0].value.ofType(CodeableConcept)"]),
])
def test_slices_by_pattern_ordered_open_at_end_and_a_differential_on_a_profile(
        validator: Validator, components: list[dict[str, Any]], found: list[str]) -> None:
    """``ward-round`` adds to slices that ``ward-observation`` defines; neither has a snapshot."""
    assert judged(validator, observation(*components), "ward-round") == found


def test_a_prohibited_choice_and_a_target_profile(validator: Validator) -> None:
    assert judged(validator, observation(MOOD, valueInteger=1), "ward-round") == ["error structure Observation.value"]
    assert judged(validator, observation(MOOD, subject={"reference": "Group/1"}), "ward-round") == [
        "error invalid Observation.subject"]


@pytest.mark.parametrize(("value", "found"), [
    ({"valueQuantity": {"value": 1, "system": "http://unitsofmeasure.org", "code": "mm[Hg]"}}, []),
    ({"valueQuantity": {"value": 1, "system": "http://unitsofmeasure.org", "code": "kPa"}},
     ["error value Observation.value.ofType(Quantity).code"]),
    ({"valueQuantity": {"value": 1}}, ["error required Observation.value.ofType(Quantity).code"]),
    ({"valueInteger": 1}, []),
    ({"valueString": "x"}, ["error structure Observation.value.ofType(string)"]),
    ({}, []),
])
def test_closed_slices_by_type(validator: Validator, value: dict[str, Any], found: list[str]) -> None:
    assert judged(validator, observation(**value), "ward-value") == found


def section(title: str) -> dict[str, Any]:
    return {"title": title, "text": {"status": "generated", "div": '<div xmlns="http://www.w3.org/1999/xhtml">x</div>'}}


def letter(**doctor: Any) -> dict[str, Any]:
    composition = {"resourceType": "Composition", "status": "final", "type": {"text": "letter"}, "date": "2024",
                   "title": "Letter", "author": [{"reference": "urn:uuid:00000000-0000-4000-8000-000000000002"}],
                   "section": [section("a")]}
    resources = [composition, {"resourceType": "Patient"}, {"resourceType": "Practitioner", **doctor}]
    return {"resourceType": "Bundle", "type": "document", "timestamp": "2024-01-01T00:00:00Z",
            "identifier": {"system": "urn:ietf:rfc:3986", "value": "urn:uuid:1"}, "entry": [
                {"fullUrl": f"urn:uuid:00000000-0000-4000-8000-{at:012}", "resource": one}
                for at, one in enumerate(resources)]}


def test_slices_by_resource_type_and_by_the_profile_of_what_a_reference_leads_to(validator: Validator) -> None:
    assert judged(validator, letter(active=True), "ward-letter") == []
    assert judged(validator, letter(active=False), "ward-letter") == [
        "error required Bundle.entry[0].resource.author"]
    more = letter(active=True)
    more["entry"].append({"fullUrl": "urn:uuid:00000000-0000-4000-8000-000000000009",
                          "resource": {"resourceType": "Basic", "code": {"text": "x"}}})
    assert judged(validator, more, "ward-letter") == ["error structure Bundle.entry[3]"]


def test_slices_by_what_exists(validator: Validator) -> None:
    two = letter(active=True)
    two["entry"][0]["resource"]["section"] = [section(one) for one in "ab"]
    assert judged(validator, two, "ward-letter") == ["error structure Bundle.entry[0].resource.section"]


def test_where_extensions_stand_is_judged_when_asked_thoroughly(validator: Validator) -> None:
    on_name = patient(name=[{"family": "x", "extension": [{"url": f"{OWN}never-mind", "valueBoolean": True}]}])
    assert judged(validator, on_name, "ward-patient", thorough=True) == []
    misplaced = patient(extension=[WARD, {"url": f"{OWN}never-mind", "valueBoolean": True}])
    assert judged(validator, misplaced, "ward-patient", thorough=True) == ["error extension Patient.extension[1]"]
    core = {"resourceType": "Patient", "name": [{"family": "x", "extension": [
        {"url": f"{CORE}humanname-mothers-family", "valueString": "y"}]}]}
    assert [issue.code for issue in validator.validate(core, thorough=True)] == ["extension"]
    assert validator.validate(core) == []


def test_extensible_bindings_warn_only_when_asked_thoroughly(validator: Validator) -> None:
    mood = patient(maritalStatus={"coding": [{"system": "urn:x", "code": "grim"}]})
    assert judged(validator, mood, "ward-patient") == []
    assert "warning code-invalid Patient.maritalStatus" in judged(validator, mood, "ward-patient", thorough=True)


def test_a_required_profile_must_be_there_and_be_of_its_type() -> None:
    packages = Packages.load([PACKAGE])
    held = Validator(DEFINITIONS, packages=packages, required={"Patient": [f"{OWN}ward-patient"]})
    assert [issue.code for issue in held.validate({"resourceType": "Patient"})] == ["required"] * 3
    for wrong in (f"{OWN}ward-round", f"{OWN}nothing"):
        with pytest.raises(Misconfigured, match="required of Patient"):
            Validator(DEFINITIONS, packages=packages, required={"Patient": [wrong]})


def test_r4s_own_profiles_need_no_package(validator: Validator) -> None:
    bare = observation()
    found = judged(validator, bare, f"{CORE}bp")
    assert {"error required Observation.component", "error required Observation.category"} <= set(found)
    assert judged(validator, bare, f"{CORE}bp|3.0.2") == ["error not-found Observation"]


@pytest.fixture(params=["folder", "tgz"])
def packed(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    if request.param == "folder":
        (tmp_path / "package").symlink_to(PACKAGE)
        yield tmp_path
        return
    path = tmp_path / "ward.tgz"
    with tarfile.open(path, "w:gz") as archive:
        for file in PACKAGE.glob("*.json"):
            archive.add(file, f"package/{file.name}")
        archive.add(PACKAGE / "package.json", "package/example/StructureDefinition-x.json")
    yield path


def test_packages_are_read_from_archives_and_folders(packed: Path) -> None:
    packages = Packages.load([packed])
    assert packages.names == ("example.ward#1.0.0",)
    assert f"{OWN}ward-patient" in packages.urls("StructureDefinition")
    assert packages.get("StructureDefinition", f"{OWN}ward-patient|1.0.0") is not None
    assert packages.get("StructureDefinition", f"{OWN}ward-patient|2.0.0") is None


@pytest.mark.parametrize(("name", "body", "words"), [
    ("package.json", '{"name": "x", "fhirVersions": ["5.0.0"]}', "for FHIR 5.0.0"),
    ("StructureDefinition-x.json", "{", "is not JSON"),
    ("other.json", "{}", "holds no StructureDefinition"),
])
def test_what_is_no_package_of_r4_is_refused(tmp_path: Path, name: str, body: str, words: str) -> None:
    (tmp_path / name).write_text(body)
    with pytest.raises(Misconfigured, match=words):
        Packages.load([tmp_path])
    with pytest.raises(Misconfigured, match="cannot be read"):
        Packages.load([tmp_path / "absent.tgz"])


@pytest.mark.parametrize(("value_set", "system", "code", "answer"), [
    ("wards", "wards", "west-1", True), ("wards", "wards", "closed", False), ("wards", "wards", "north", False),
    ("wards", "else", "west", False), ("west", "wards", "west-1", True), ("west", "wards", "east", False),
    ("moods", "wards", "glad", False), ("elsewhere", "wards", "west", True),
    ("elsewhere", "http://snomed.info/sct", "1", None), ("nothing", "wards", "west", None),
])
def test_membership_is_known_or_said_not_to_be(value_set: str, system: str, code: str, answer: bool | None) -> None:
    terms = PackageTerms(DEFINITIONS, Packages.load([PACKAGE]))
    url = system if ":" in system else f"{BASE}CodeSystem/{system}"
    assert terms.member(f"{BASE}ValueSet/{value_set}", url, code) is answer
