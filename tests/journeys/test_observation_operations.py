"""$lastn and $stats over HTTP. https://hl7.org/fhir/R4/observation-operations.html"""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from gateway.fhir.resource import parse
from tests.journeys.hospital import LOINC, UCUM, Hospital, observation, places


@pytest.fixture
def pulse(hospital: Hospital) -> str:
    """A patient with pulses of five years and a weight."""
    patient = hospital.new_patient()
    for year, value in ((2020, "60"), (2024, "80"), (2021, "62"), (2023, "70"), (2022, "68")):
        assert hospital.feed.post("Observation", observation(patient, value, when=f"{year}-01-01")).is_success
    hospital.feed.post("Observation", observation(patient, "71.5", code="29463-7", when="2019-01-01"))
    return patient


def years(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [entry["resource"]["effectiveDateTime"][:4] for entry in answer.json().get("entry", ())]


def test_lastn_is_the_newest_of_each_code(hospital: Hospital, pulse: str) -> None:
    url = f"Observation/$lastn?patient={pulse}"
    assert years(hospital.feed.get(url)) == ["2024", "2019"]
    assert years(hospital.feed.get(f"{url}&max=3")) == ["2024", "2023", "2022", "2019"]
    assert years(hospital.feed.get(f"{url}&code={LOINC}|8867-4&max=2&date=lt2024")) == ["2023", "2022"]
    answer = hospital.feed.post("Observation/$lastn", {"resourceType": "Parameters", "parameter": [
        {"name": "max", "valuePositiveInt": 2}, {"name": "subject", "valueString": f"Patient/{pulse}"}]})
    assert years(answer) == ["2024", "2023", "2019"]


def test_a_second_code_joins_observations(hospital: Hospital) -> None:
    patient = hospital.new_patient()
    both = {"coding": [{"system": LOINC, "code": "8867-4"}, {"system": "urn:local", "code": "HR"}]}
    local = {"coding": [{"system": "urn:local", "code": "HR"}]}
    hospital.feed.post("Observation", observation(patient, when="2020-01-01"))
    hospital.feed.post("Observation", observation(patient, when="2021-01-01").replace(
        b'{"coding": [{"system": "http://loinc.org", "code": "8867-4"}]}', str(both).replace("'", '"').encode()))
    hospital.feed.post("Observation", observation(patient, when="2022-01-01").replace(
        b'{"coding": [{"system": "http://loinc.org", "code": "8867-4"}]}', str(local).replace("'", '"').encode()))
    assert years(hospital.feed.get(f"Observation/$lastn?patient={patient}")) == ["2022"]


@pytest.mark.parametrize(("query", "place"), [
    ("", "http.patient"), ("patient=1&max=0", "http.max"), ("patient=1&max=x", "http.max"),
    ("patient=1&_count=1", "http._count"), ("patient=1&nonsense=1", "http.nonsense")])
def test_lastn_refuses_by_name(hospital: Hospital, query: str, place: str) -> None:
    answer = hospital.feed.get(f"Observation/$lastn?{query}")
    assert (answer.status_code, places(answer)) == (400, [place])


def components(answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    result = answer.json()["parameter"][0]
    assert result["name"] == "statistics"
    return {one["code"]["coding"][0]["code"]: one.get("valueQuantity", {}).get("value")
            for one in result["resource"]["component"]}


def test_stats_of_a_code(hospital: Hospital, pulse: str) -> None:
    answer = hospital.feed.get(f"Observation/$stats?subject=Patient/{pulse}&code=8867-4&system={LOINC}"
                               "&statistic=average&statistic=maximum,minimum,count,total-count,median,std-dev,sum")
    found = components(answer)
    assert found == {"average": 68, "maximum": 80, "minimum": 60, "count": 5, "total-count": 5, "median": 68,
                     "std-dev": pytest.approx(7.874007874011811), "sum": 340}
    result = answer.json()["parameter"][0]["resource"]
    assert result["component"][0]["valueQuantity"] == {"value": 68, "unit": "/min", "system": UCUM, "code": "/min"}
    assert result["effectivePeriod"] == {"start": "2020-01-01T00:00:00.000Z", "end": "2024-01-02T00:00:00.000Z"}
    assert not hospital.node.validator.validate(parse(json.dumps(result | {"id": "x"}).encode()))


def test_stats_of_a_period_with_its_sources(hospital: Hospital, pulse: str) -> None:
    answer = hospital.feed.post("Observation/$stats", {"resourceType": "Parameters", "parameter": [
        {"name": "subject", "valueUri": f"Patient/{pulse}"},
        {"name": "coding", "valueCoding": {"system": LOINC, "code": "8867-4"}},
        {"name": "period", "valuePeriod": {"start": "2022", "end": "2023"}},
        {"name": "statistic", "valueCode": "average"}, {"name": "include", "valueBoolean": True}]})
    assert components(answer) == {"average": 69}
    assert [one["name"] for one in answer.json()["parameter"]] == ["statistics", "source", "source"]


def test_stats_of_nothing_say_so(hospital: Hospital, pulse: str) -> None:
    answer = hospital.feed.get(f"Observation/$stats?subject=Patient/{pulse}&code=none&statistic=average,count")
    assert components(answer) == {"average": None, "count": 0}


def test_values_in_several_units_are_not_mixed(hospital: Hospital) -> None:
    patient = hospital.new_patient()
    hospital.feed.post("Observation", observation(patient))
    hospital.feed.post("Observation", observation(patient, valueQuantity={"value": 1, "unit": "mmHg"}))
    answer = hospital.feed.get(f"Observation/$stats?subject=Patient/{patient}&code=8867-4&statistic=average")
    assert answer.status_code == 422


def test_only_permitted_observations_count(hospital: Hospital, pulse: str) -> None:
    doctor = hospital.clinician("stats-1")
    stats = f"Observation/$stats?subject=Patient/{pulse}&code=8867-4&statistic=count,average"
    none = {"average": None, "count": 0}
    assert components(doctor.get(stats)) == none
    assert years(doctor.get(f"Observation/$lastn?patient={pulse}")) == []
    hidden, absent = doctor.get(stats), doctor.get(stats.replace(pulse, "nobody-1"))
    assert hidden.text.replace(pulse, "nobody-1") == absent.text
    hospital.grant(pulse, "Practitioner/stats-1", data_period=(1640995200000, 1704067200000))  # 2022 and 2023
    assert components(doctor.get(stats)) == {"average": 69, "count": 2}
    assert years(doctor.get(f"Observation/$lastn?patient={pulse}&max=9")) == ["2023", "2022"]
    entry = hospital.audited(pulse)[0]
    assert (entry.interaction, entry.basis) == ("lastn", "grant")


@pytest.mark.parametrize(("query", "place"), [
    ("code=1&statistic=average", "http.subject"), ("subject=Patient/1&statistic=average", "http.code"),
    ("subject=Patient/1&code=1", "http.statistic"), ("subject=Patient/1&code=1&statistic=x", "http.statistic"),
    ("subject=Patient/1&code=1&statistic=average&duration=x", "http.duration"),
    ("subject=Patient/1&code=1&statistic=average&include=x", "http.include"),
    ("subject=Patient/1&code=1&statistic=average&more=x", "http.more")])
def test_stats_refuses_by_name(hospital: Hospital, query: str, place: str) -> None:
    answer = hospital.feed.get(f"Observation/$stats?{query}")
    assert (answer.status_code, places(answer)) == (400, [place])
