"""Access ends at once, on every channel that was open: by $revoke and by $revoke-all alike. Invariant 6.

Each journey opens a channel on a Consent that was proposed, signed and final, ends it over HTTP, and goes on using what
was open. A refresh token's end is in ``test_app_consents.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from gateway.records import finality
from tests.consent import consent
from tests.journeys.bulk import ASYNC, as_backend, backend, kicked_off, lines, manifest, work
from tests.journeys.hospital import Client, Hospital, next_link
from tests.journeys.receiver import Receiver
from tests.journeys.test_consents import granted_on_chain, signed, states
from tests.journeys.test_subscriptions import (
    Serving,
    events,
    hospital,
    receiver,
    serving,
    subscribed,
    topical,
    written,
)

__all__ = ["hospital", "receiver", "serving"]  # fixtures
End = Callable[[Client, str, str], httpx.Response]


def by_revoke(own: Client, patient: str, id_: str) -> httpx.Response:
    return own.request("POST", f"Consent/{id_}/$revoke")


def by_revoke_all(own: Client, patient: str, id_: str) -> httpx.Response:
    return own.request("POST", f"Patient/{patient}/$revoke-all")


@pytest.fixture(params=[by_revoke, by_revoke_all], ids=lambda one: one.__name__)
def end(request: pytest.FixtureRequest) -> End:
    found: End = request.param
    return found


class Granted:
    """A patient with observations who granted ``grantee`` everything; ``end`` ends it."""

    def __init__(self, hospital: Hospital, grantee: str, observations: int = 5) -> None:
        self.hospital = hospital
        self.patient = hospital.new_patient()
        self.ids = [written(hospital, self.patient, value=str(60 + number)) for number in range(observations)]
        self.own = hospital.patient(self.patient)
        answer = self.own.post("Consent", consent(self.patient, grantee))
        assert answer.status_code == 201, answer.text
        self.id = str(answer.json()["id"])
        assert signed(self.own, self.id).status_code == 200
        granted_on_chain(hospital, self.id)
        finality.show_finality(hospital.node)
        assert self.own.get(f"Consent/{self.id}").json()["status"] == "active"

    def ends(self, end: End) -> None:
        answer = end(self.own, self.patient, self.id)
        assert answer.status_code == 200, answer.text
        assert states(self.hospital, self.id) == ["revoked"]
        assert self.own.get(f"Consent/{self.id}").json()["status"] == "inactive"


def test_reads_and_histories(hospital: Hospital, end: End) -> None:
    granted, doctor = Granted(hospital, "Practitioner/dr-reads"), hospital.clinician("dr-reads")
    place = f"Observation/{granted.ids[0]}"
    urls = [place, f"{place}/_history", f"{place}/_history/1", f"Patient/{granted.patient}",
            f"Patient/{granted.patient}/$everything"]
    assert [doctor.get(url).status_code for url in urls] == [200] * 5
    tag = doctor.get(place).headers["etag"]
    granted.ends(end)
    assert [doctor.get(url).status_code for url in urls] == [404] * 5
    assert doctor.get(place, If_None_Match=tag).status_code == 404, "nor is it said that nothing changed"
    assert doctor.put(place, {"resourceType": "Observation", "id": granted.ids[0], "status": "final",
                              "code": {"text": "x"}, "subject": {"reference": f"Patient/{granted.patient}"}}
                      ).status_code in (404, 422)


def test_searches_and_their_open_pages(hospital: Hospital, end: End) -> None:
    granted, doctor = Granted(hospital, "Practitioner/dr-pages"), hospital.clinician("dr-pages")
    first = doctor.get(f"Observation?patient={granted.patient}&_count=2&_total=accurate")
    assert first.json()["total"] == 5
    following = next_link(first)
    assert following is not None
    granted.ends(end)
    page = doctor.get(following)
    assert page.status_code == 200
    assert "entry" not in page.json()
    assert "total" not in page.json() or page.json()["total"] == 0
    assert doctor.total(f"Observation?patient={granted.patient}&_total=accurate") == 0
    assert doctor.ids(f"Patient?_id={granted.patient}&_revinclude=Observation:patient") == []


def test_subscriptions(hospital: Hospital, serving: Serving, receiver: Receiver, end: End) -> None:
    granted, doctor = Granted(hospital, "Practitioner/dr-told"), hospital.clinician("dr-told")
    subscribed(doctor, serving, receiver, topical(receiver.url, "Observation"))
    written(hospital, granted.patient)
    serving.step()
    assert len(events(receiver.taken())) == 1
    written(hospital, granted.patient)
    granted.ends(end)
    written(hospital, granted.patient)
    serving.step()
    assert receiver.taken() == []


def test_exports_in_flight(hospital: Hospital, tmp_path: Path, end: End) -> None:
    client_id = backend(hospital, tmp_path)
    other = as_backend(hospital, client_id)
    waiting, done = (Granted(hospital, f"Device/{client_id}", 2) for _ in range(2))
    place = kicked_off(other.get("$export?_type=Observation", **ASYNC))
    waiting.ends(end)
    work(hospital)
    [output] = manifest(other, place)["output"]
    found = {one["id"] for one in lines(other, output["url"])}
    assert found >= set(done.ids)
    assert not found & set(waiting.ids)
    done.ends(end)
    assert not set(done.ids) & {one["id"] for named in manifest(other, place).get("output", ())
                                for one in lines(other, named["url"])}
    assert other.get(output["url"]).status_code in (200, 404)


def test_asynchronous_answers(hospital: Hospital, end: End) -> None:
    granted, doctor = Granted(hospital, "Practitioner/dr-later"), hospital.clinician("dr-later")
    place = kicked_off(doctor.get(f"Observation?patient={granted.patient}", **ASYNC))
    work(hospital)
    assert granted.ids[0] in doctor.get(place).text
    granted.ends(end)
    assert granted.ids[0] not in doctor.get(place).text


def test_the_grantees_own_list(hospital: Hospital, end: End) -> None:
    granted, doctor = Granted(hospital, "Practitioner/dr-list"), hospital.clinician("dr-list")

    def patients() -> list[str]:
        answer = doctor.get("Practitioner/dr-list/$access-list")
        assert answer.status_code == 200, answer.text
        return [part["valueReference"]["reference"] for one in answer.json().get("parameter", ())
                for part in one.get("part", ()) if part["name"] == "patient"]

    assert patients() == [f"Patient/{granted.patient}"]
    granted.ends(end)
    assert patients() == []


def test_everything_ends_together_and_denials_stay(hospital: Hospital) -> None:
    granted = Granted(hospital, "Practitioner/dr-many")
    own, patient = granted.own, granted.patient
    more = []
    for number in range(12):
        id_ = str(own.post("Consent", consent(patient, f"Practitioner/dr-many-{number}")).json()["id"])
        assert signed(own, id_).status_code == 200
        more.append(id_)
    denied = consent(patient, "Practitioner/dr-no")
    denied["provision"]["type"] = "deny"
    denies = str(own.post("Consent", denied).json()["id"])
    assert signed(own, denies).status_code == 200
    open_ = str(own.post("Consent", consent(patient, "Practitioner/dr-perhaps")).json()["id"])
    before = int(str(hospital.database.reader.execute("SELECT max(seq) FROM version").get))
    answer = own.request("POST", f"Patient/{patient}/$revoke-all")
    assert answer.status_code == 200, answer.text
    assert answer.json()["parameter"][0] == {"name": "ended", "valueInteger": 13}
    assert int(str(hospital.database.reader.execute("SELECT max(seq) FROM version").get)) == before + 13
    for id_ in (granted.id, *more):
        assert states(hospital, id_) == ["revoked"]
        assert own.get(f"Consent/{id_}").json()["status"] == "inactive"
    assert states(hospital, denies) == ["final"]
    assert own.get(f"Consent/{open_}").json()["status"] == "proposed"
    acts = [str(kind) for (kind,) in hospital.database.reader.execute(
        "SELECT i.kind FROM intent i WHERE i.kind<>'grant' AND (i.consent IS NULL OR i.consent IN "
        "(SELECT consent FROM provision p JOIN patient h ON h.pk=p.patient WHERE h.id=?)) ORDER BY i.pk DESC LIMIT 1",
        (patient,))]
    assert acts == ["revoke-all"], "one act for the chain, whatever number of grants"
    assert {one.interaction for one in hospital.audited(patient)} >= {"revoke-all", "update"}
    again = own.request("POST", f"Patient/{patient}/$revoke-all")
    assert again.json()["parameter"] == [{"name": "ended", "valueInteger": 0}]


@pytest.mark.parametrize("who", ["clinician", "stranger", "feed", "scope"])
def test_nobody_else_ends_or_lists_a_patients_grants(hospital: Hospital, who: str) -> None:
    granted = Granted(hospital, "Practitioner/dr-else")
    client = {"clinician": lambda: hospital.clinician("dr-else"),
              "stranger": lambda: hospital.patient(hospital.new_patient()),
              "feed": lambda: hospital.feed,
              "scope": lambda: hospital.patient(granted.patient, scope="patient/Observation.rs")}[who]()
    expected = 403 if who == "scope" else 404
    for method, operation in (("POST", "$revoke-all"), ("GET", "$revoke-all"), ("GET", "$access-list")):
        there = client.request(method, f"Patient/{granted.patient}/{operation}")
        absent = client.request(method, f"Patient/nobody-at-all/{operation}")
        assert there.status_code == absent.status_code == expected, (method, operation, there.text)
        assert there.text.replace(granted.patient, "nobody-at-all") == absent.text
    assert states(hospital, granted.id) == ["final"]
