"""history of an instance, a type and the system. https://hl7.org/fhir/R4/http.html#history"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from gateway.records import pace
from gateway.records.versions import Versions
from tests.journeys.hospital import Client, Hospital, next_link, places


def shown(client: Client, url: str) -> list[str]:
    """Every entry of every page, as ``METHOD Type/id/version``."""
    found: list[str] = []
    following: str | None = url
    while following is not None:
        answer = client.get(following)
        assert answer.status_code == 200, answer.text
        bundle = answer.json()
        assert bundle["type"] == "history"
        for one in bundle.get("entry", ()):
            place = one["fullUrl"].removeprefix(client.hospital.base + "/")
            found.append(f"{one['request']['method']} {place}/{one['response']['etag'][3:-1]}")
            assert ("resource" in one) is (one["request"]["method"] != "DELETE")
        following = next_link(answer)
    return found


def change(hospital: Hospital, id_: str, **elements: Any) -> str:
    answer = hospital.feed.put(f"Patient/{id_}", {"resourceType": "Patient", "id": id_, **elements})
    assert answer.status_code in (200, 201), answer.text
    return str(answer.json()["meta"]["lastUpdated"])


def test_a_type_and_the_system_show_every_version_newest_first(hospital: Hospital) -> None:
    start = change(hospital, "hist-0")
    change(hospital, "hist-a")
    change(hospital, "hist-b")
    change(hospital, "hist-a", active=True)
    organization = hospital.new({"resourceType": "Organization", "name": "H"})
    hospital.feed.delete("Patient/hist-b")
    expected = ["DELETE Patient/hist-b/2", "PUT Patient/hist-a/2", "POST Patient/hist-b/1", "POST Patient/hist-a/1"]
    for count in (1, 2, 3, 50):
        assert shown(hospital.feed, f"Patient/_history?_since={start}&_count={count}")[:4] == expected
        everything = shown(hospital.feed, f"_history?_since={start}&_count={count}")
        assert everything[:5] == [expected[0], f"POST Organization/{organization}/1", *expected[1:]]
    assert len(set(everything)) == len(everything)


def test_since_and_at_choose_versions(hospital: Hospital) -> None:
    change(hospital, "at-1", multipleBirthInteger=1)
    second = change(hospital, "at-1", multipleBirthInteger=2)
    third = change(hospital, "at-1", multipleBirthInteger=3)
    for base in ("Patient/at-1/_history", "Patient/_history", "_history"):
        def versions(query: str, base: str = base) -> list[str]:
            return [one[-1] for one in shown(hospital.feed, f"{base}?{query}") if "/at-1/" in one]

        assert versions(f"_since={third}") == ["3"]
        assert versions(f"_since={second}") == ["3", "2"]
        assert versions("_since=2999-01-01T00:00:00Z") == []
        if second != third:
            assert "2" in versions(f"_at={second}")
            assert "3" not in versions(f"_at={second}")
        assert versions("_at=1999") == []
        assert versions("_at=2999") == ["3"]


@pytest.mark.parametrize("query", ["_since=yesterday", "_at=2024-99", "_since=", "_count=x", "shoe=1", "_page=x"])
@pytest.mark.parametrize("base", ["Patient/_history", "_history"])
def test_a_history_that_cannot_be_given_is_refused(hospital: Hospital, base: str, query: str) -> None:
    answer = hospital.feed.get(f"{base}?{query}")
    assert answer.status_code == 400, answer.text
    assert places(answer)[0].startswith("http._") or places(answer) == ["http.shoe"]


def test_a_page_link_is_of_its_place_and_of_its_holder(hospital: Hospital) -> None:
    for number in range(3):
        change(hospital, "page-1", multipleBirthInteger=number)
    link = next_link(hospital.feed.get("Patient/_history?_count=1"))
    assert link is not None
    assert hospital.feed.get(link).status_code == 200
    assert hospital.feed.get(link.replace("/Patient/_history", "/_history")).status_code == 400
    assert hospital.feed.get(link.replace("/Patient/_history", "/Group/_history")).status_code == 400
    assert hospital.clinician().get(link).status_code == 400
    search = hospital.feed.get("Patient?_count=1")
    found = next_link(search)
    assert found is not None
    assert hospital.feed.get("Patient/_history?_page=" + found.rpartition("=")[2]).status_code == 400


def test_who_was_granted_nothing_learns_nothing_by_a_history(hospital: Hospital) -> None:
    """Not in a history, total or page link (invariant 4)."""
    patient = hospital.new_patient(gender="male")
    for number in range(4):
        change(hospital, patient, multipleBirthInteger=number)
    clinician = hospital.clinician("dr-history")
    for base in ("Patient/_history", "_history"):
        for count in (1, 100):
            bundle = clinician.get(f"{base}?_count={count}").json()
            entries = bundle.get("entry", [])
            assert not any("/Patient/" in one["fullUrl"] for one in entries)
            assert "total" not in bundle or bundle["total"] == len(entries)
    grant = hospital.grant(patient, "Practitioner/dr-history")
    assert [one.split()[1] for one in shown(clinician, "Patient/_history?_count=2")] == [
        f"Patient/{patient}/{version}" for version in (5, 4, 3, 2, 1)]
    link = next_link(clinician.get("Patient/_history?_count=2"))
    assert link is not None
    hospital.revoke(grant)
    assert "entry" not in clinician.get(link).json()
    assert shown(clinician, "Patient/_history") == []


def test_a_label_raised_later_hides_the_versions_before(hospital: Hospital) -> None:
    patient = hospital.new_patient()
    hospital.grant(patient, "Practitioner/dr-label")
    clinician = hospital.clinician("dr-label")
    assert len(shown(clinician, "Patient/_history")) == 1
    change(hospital, patient, meta={"security": [
        {"system": "http://terminology.hl7.org/CodeSystem/v3-Confidentiality", "code": "V"}]})
    assert shown(clinician, "Patient/_history") == []


def test_what_a_history_shows_is_in_the_patients_audit(hospital: Hospital) -> None:
    patient = hospital.new_patient()
    hospital.feed.get("Patient/_history?_count=1")
    assert hospital.audited(patient)[0].interaction == "history-type"
    hospital.feed.get("_history?_count=1")
    assert hospital.audited(patient)[0].interaction == "history-system"


def test_a_history_of_a_type_needs_its_search_scope(hospital: Hospital) -> None:
    """SMART 2.2: `s` covers type-level and system-level history."""
    hospital.new_patient()
    reader, finder = hospital.client(scope="system/Patient.r"), hospital.client(scope="system/Patient.s")
    assert reader.get("Patient/_history").status_code == 403
    assert reader.get("_history").status_code == 403
    assert finder.get("Patient/_history").status_code == 200
    assert finder.get("Observation/_history").status_code == 403
    assert {one.split()[1].split("/")[0] for one in shown(finder, "_history?_count=5")} == {"Patient"}


def test_the_largest_page_is_a_limit(hospital_with: Callable[..., Hospital]) -> None:
    hospital = hospital_with(max_page="2")
    for number in range(5):
        change(hospital, "many-1", multipleBirthInteger=number)
    assert len(hospital.feed.get("_history?_count=100").json()["entry"]) == 2
    assert len(shown(hospital.feed, "_history?_count=100")) == 5


def test_the_versions_of_a_history_are_opened_beside_the_event_loop(hospital: Hospital,
                                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        change(hospital, "beside-1", multipleBirthInteger=number)
    threads: set[int] = set()
    opened = Versions._opened

    def noted(self: Versions, *given: Any) -> Any:
        threads.add(threading.get_ident())
        return opened(self, *given)

    monkeypatch.setattr(Versions, "_opened", noted)
    assert len(shown(hospital.feed, "Patient/beside-1/_history?_count=1000")) == 3
    assert threads
    assert threading.get_ident() not in threads


@pytest.mark.parametrize("url", ["Patient/_history", "_history", "Patient/$everything",
                                 "DocumentReference/$docref?patient=slow-1"])
def test_a_walk_that_finds_too_slowly_is_given_up(hospital: Hospital, url: str,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    change(hospital, "slow-1")
    monkeypatch.setattr(pace, "STATEMENTS_S", -1.0)
    monkeypatch.setattr(pace, "_STEPS", 1)
    answer = hospital.feed.get(url)
    assert answer.status_code == 400, answer.text
    assert answer.json()["issue"][0]["code"] == "too-costly"


def test_versions_are_shown_in_part_where_asked(hospital: Hospital) -> None:
    patient = hospital.new_patient(name=[{"family": "Partial"}], gender="male", birthDate="1980-01-01")
    hospital.feed.put(f"Patient/{patient}", {"resourceType": "Patient", "id": patient, "gender": "male"})
    for url in (f"Patient/{patient}/_history?_elements=gender", "Patient/_history?_elements=gender&_count=2"):
        bundle = hospital.feed.get(url).json()
        for entry in bundle["entry"]:
            assert set(entry["resource"]) == {"resourceType", "id", "meta", "gender"}
            assert entry["resource"]["meta"]["tag"][0]["code"] == "SUBSETTED"
        assert "_elements=gender" in bundle["link"][0]["url"]
    link = next_link(hospital.feed.get("Patient/_history?_elements=gender&_count=1"))
    assert "birthDate" not in hospital.feed.get(link).json()["entry"][0]["resource"]
    assert hospital.feed.get(f"Patient/{patient}/_history?_summary=count").status_code == 400
    whole = hospital.feed.get("_history?_summary=data&_count=1").json()
    assert whole["entry"][0]["resource"]["meta"]["tag"][0]["code"] == "SUBSETTED"
