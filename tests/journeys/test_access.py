"""Who sees what over HTTP: default deny, and not permitted looks like absent. Invariants 4, 5, 6."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from gateway.records import read
from gateway.smart.accounts import add_user
from gateway.store import journal
from gateway.store.sql import now_ms
from tests.journeys.hospital import LOINC, Client, Hospital, next_link, observation, reopened

ABSENT = "nobody-1"


@pytest.fixture
def doctor(hospital: Hospital) -> Client:
    return hospital.clinician("access-1")


def alike(one: httpx.Response, other: httpx.Response, *names: str) -> None:
    """The same answer, byte for byte once each side's own ids are struck out; ``names`` pairs (one's, other's)."""
    def shown(answer: httpx.Response, ids: tuple[str, ...]) -> tuple[int, list[tuple[str, str]], bytes]:
        body = answer.content
        for number, id_ in enumerate(ids):
            body = body.replace(quote(id_).encode(), b"<%d>" % number).replace(id_.encode(), b"<%d>" % number)
        body = re.sub(rb'"lastUpdated":"[^"]+"', b'"lastUpdated":""', body)
        headers = sorted((name, value) for name, value in answer.headers.items() if name != "content-length")
        return answer.status_code, headers, body

    assert shown(one, names[::2]) == shown(other, names[1::2])


@pytest.fixture
def hidden(hospital: Hospital) -> dict[str, str]:
    """A patient who granted nothing, an Observation of theirs with two versions, and a deleted one."""
    patient = hospital.new_patient(identifier=[{"system": "urn:hidden", "value": "1"}])
    id_ = hospital.feed.post("Observation", observation(patient, code="hidden")).json()["id"]
    hospital.feed.put(f"Observation/{id_}", observation(patient, "2.0", code="hidden", id=id_))
    gone = hospital.feed.post("Observation", observation(patient, code="hidden")).json()["id"]
    hospital.feed.delete(f"Observation/{gone}")
    return {"patient": patient, "observation": id_, "gone": gone}


@pytest.mark.parametrize("url", [
    "Observation/{}", "Observation/{}/_history/1", "Observation/{}/_history/2", "Observation/{}/_history",
    "Observation/{}/_history/1/$receipt", "Observation?_id={}", "Observation?_id={}&_summary=count",
    "Observation?_id={}&_sort=-date", "Observation?_id={}&_sort=code", "Observation?_id={}&_count=0"])
def test_what_is_not_permitted_reads_as_absent(hospital: Hospital, doctor: Client, hidden: dict[str, str],
                                               url: str) -> None:
    for id_ in (hidden["observation"], hidden["gone"]):
        alike(doctor.get(url.format(id_)), doctor.get(url.format(ABSENT)), id_, ABSENT)
        etag = {"If_None_Match": 'W/"2"'}
        alike(doctor.get(url.format(id_), **etag), doctor.get(url.format(ABSENT), **etag), id_, ABSENT)


@pytest.mark.parametrize("query", ["code=hidden", "patient={patient}", "subject=Patient/{patient}&_sort=-date",
                                   "subject:Patient={patient}", "patient={patient}&code:not=x", "date=ge1900",
                                   "patient={patient}&_summary=count"])
def test_a_search_counts_and_shows_only_what_may_be_seen(hospital: Hospital, doctor: Client, hidden: dict[str, str],
                                                         query: str) -> None:
    there, nowhere = query.format(**hidden), query.format(patient=ABSENT)
    alike(doctor.get(f"Observation?{there}&_id={hidden['observation']}"),
        doctor.get(f"Observation?{nowhere}&_id=nobody-2"),
          hidden["patient"], ABSENT, hidden["observation"], "nobody-2")
    assert doctor.total(f"Observation?{there}") == 0


@pytest.mark.parametrize("header", [{}, {"If_Match": 'W/"2"'}, {"If_Match": 'W/"9"'}, {"If_Match": "*"}])
def test_a_write_to_what_is_not_permitted_answers_as_to_absent(hospital: Hospital, doctor: Client,
                                                               hidden: dict[str, str], header: dict[str, str]) -> None:
    before = hospital.stored()
    for subject in (hidden["patient"], "nobody-2", doctor_patient(hospital)):
        for id_ in (hidden["observation"], hidden["gone"]):
            alike(doctor.put(f"Observation/{id_}", observation(subject, id=id_), **header),
                  doctor.put(f"Observation/{ABSENT}", observation("nobody-2", id=ABSENT), **header),
                  id_, ABSENT, subject, "nobody-2")
    stranger = hospital.patient(doctor_patient(hospital))
    for id_ in (hidden["observation"], hidden["gone"]):
        alike(stranger.delete(f"Observation/{id_}", **header), stranger.delete(f"Observation/{ABSENT}", **header),
              id_, ABSENT)
    assert hospital.stored()[0] <= before[0] + 4, "the patients made here, and nothing else"
    assert hospital.feed.get(f"Observation/{hidden['observation']}").headers["etag"] == 'W/"2"'


def doctor_patient(hospital: Hospital) -> str:
    """Another patient, of no concern to anyone."""
    return hospital.new_patient()


def test_a_create_cannot_tell_a_forbidden_patient_from_an_unknown_one(hospital: Hospital, doctor: Client,
                                                                     hidden: dict[str, str]) -> None:
    before = hospital.stored()
    alike(doctor.post("Observation", observation(hidden["patient"])),
          doctor.post("Observation", observation(ABSENT)), hidden["patient"], ABSENT)
    for body in (b'{"resourceType":"Patient","identifier":[{"system":"urn:hidden","value":"1"}]}',):
        answer = doctor.post("Patient", body, If_None_Exist="identifier=urn:hidden|1")
        other = doctor.post("Patient", body, If_None_Exist="identifier=urn:hidden|none")
        assert answer.status_code == other.status_code
    assert hospital.stored() == before


def bundle(*entries: dict[str, Any], kind: str = "transaction") -> dict[str, Any]:
    return {"resourceType": "Bundle", "type": kind, "entry": list(entries)}


def test_a_conditional_reference_finds_only_what_may_be_seen(hospital: Hospital, doctor: Client,
                                                            hidden: dict[str, str]) -> None:
    def linked(value: str) -> httpx.Response:
        resource = json.loads(observation(None))
        resource["subject"] = {"reference": f"Patient?identifier=urn:hidden|{value}"}
        return doctor.post("", bundle({"resource": resource, "request": {"method": "POST", "url": "Observation"}}))

    before = hospital.stored()
    alike(linked("1"), linked("none"), "urn:hidden|1", "urn:hidden|none")
    assert hospital.stored() == before


@pytest.mark.parametrize("kind", ["batch", "transaction"])
@pytest.mark.parametrize(("method", "url"), [
    ("GET", "Observation/{}"), ("GET", "Observation/{}/_history/1"), ("GET", "Observation?_id={}"),
    ("DELETE", "Observation/{}"),
    ("PUT", "Observation/{}")])
def test_a_bundle_entry_answers_as_to_absent(hospital: Hospital, doctor: Client, hidden: dict[str, str], kind: str,
                                             method: str, url: str) -> None:
    client = hospital.patient(doctor_patient(hospital)) if method == "DELETE" else doctor

    def sent(id_: str, subject: str) -> httpx.Response:
        resource = {"resource": json.loads(observation(subject, id=id_))} if method == "PUT" else {}
        return client.post("", bundle({**resource, "request": {"method": method, "url": url.format(id_)}}, kind=kind))

    alike(sent(hidden["observation"], hidden["patient"]), sent(ABSENT, "nobody-2"), hidden["observation"], ABSENT,
          hidden["patient"], "nobody-2")


@pytest.mark.parametrize("scope", ["user/Organization.rs", "user/Observation.u", "user/Observation.c",
    "openid user/Patient.r"])
def test_outside_the_scopes_is_403_whether_it_is_there_or_not(hospital: Hospital, hidden: dict[str, str],
                                                              scope: str) -> None:
    client = hospital.clinician("scoped-1", scope=scope)
    for url in ("Observation/{}", "Observation/{}/_history", "Observation/{}/_history/1", "Observation?_id={}",
                "Observation/{}/_history/1/$receipt"):
        there = client.get(url.format(hidden["observation"]))
        assert there.status_code == 403, url
        alike(there, client.get(url.format(ABSENT)), hidden["observation"], ABSENT)
    if ".u" not in scope:
        body = observation(hidden["patient"], id=hidden["observation"])
        there = client.put(f"Observation/{hidden['observation']}", body)
        assert there.status_code == 403
        alike(there, client.put(f"Observation/{ABSENT}", observation(hidden["patient"], id=ABSENT)))
    there = client.delete(f"Observation/{hidden['observation']}")
    assert there.status_code == 403
    alike(there, client.delete(f"Observation/{ABSENT}"))


def test_without_a_grant_a_clinician_sees_nothing_and_with_one_exactly_it(hospital: Hospital, doctor: Client) -> None:
    patient = hospital.new_patient()
    seen = hospital.feed.post("Observation", observation(patient, code="granted")).json()["id"]
    labelled = hospital.feed.post("Observation", observation(patient, code="granted", meta={"security": [
        {"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "HIV"}]})).json()["id"]
    assert doctor.get(f"Observation/{seen}").status_code == 404
    grant = hospital.grant(patient, "Practitioner/access-1", types=frozenset({"Observation"}))
    assert doctor.get(f"Observation/{seen}").status_code == 200
    assert doctor.get(f"Observation/{labelled}").status_code == 404
    assert doctor.get(f"Patient/{patient}").status_code == 404
    assert doctor.ids(f"Observation?patient={patient}") == [seen]
    assert doctor.total("Observation?code=granted&_summary=count") == 1
    assert hospital.clinician("access-2").get(f"Observation/{seen}").status_code == 404
    assert hospital.clinician("access-1", purpose="HRESCH").get(f"Observation/{seen}").status_code == 200
    hospital.revoke(grant)
    assert doctor.get(f"Observation/{seen}").status_code == 404
    assert doctor.ids(f"Observation?patient={patient}") == []


def test_a_deny_wins_and_a_stalled_chain_stops_grants_alone(hospital: Hospital, doctor: Client) -> None:
    patient = hospital.new_patient()
    id_ = hospital.feed.post("Observation", observation(patient)).json()["id"]
    hospital.grant(patient, "Practitioner/access-1")
    assert doctor.get(f"Observation/{id_}").status_code == 200
    try:
        hospital.chain_fresh(False)
        hospital.database.transact(journal.bump_decision_seq)
        stalled = hospital_without_cache(hospital)
        assert stalled.get(f"Observation/{id_}").status_code == 404
        assert hospital.patient(patient).get(f"Observation/{id_}").status_code == 200
        assert hospital.feed.get(f"Observation/{id_}").status_code == 200
    finally:
        hospital.chain_fresh(True)
    deny = hospital.grant(patient, "Practitioner/access-1", permit=False)
    assert doctor.get(f"Observation/{id_}").status_code == 404
    assert doctor.ids(f"Observation?patient={patient}") == []
    hospital.revoke(deny)
    assert doctor.get(f"Observation/{id_}").status_code == 200


def hospital_without_cache(hospital: Hospital) -> Client:
    """The doctor, at a gateway process that has just started on the same data."""
    return Client(reopened(hospital), hospital.token(user="Practitioner/access-1"))


def test_every_home_patient_must_permit(hospital: Hospital, doctor: Client) -> None:
    one, two = hospital.new_patient(), hospital.new_patient()
    appointment = hospital.new({"resourceType": "Appointment", "status": "proposed", "participant": [
        {"actor": {"reference": f"Patient/{id_}"}, "status": "accepted"} for id_ in (one, two)]})
    hospital.grant(one, "Practitioner/access-1")
    assert doctor.get(f"Appointment/{appointment}").status_code == 404
    assert doctor.ids(f"Appointment?patient={one}") == []
    hospital.grant(two, "Practitioner/access-1")
    assert doctor.get(f"Appointment/{appointment}").status_code == 200
    assert doctor.ids(f"Appointment?patient={one}") == [appointment]


def test_a_patient_sees_what_is_their_own(hospital: Hospital) -> None:
    mine, theirs = hospital.new_patient(), hospital.new_patient()
    ids = {id_: hospital.feed.post("Observation", observation(id_, code="own")).json()["id"] for id_ in (mine, theirs)}
    own = hospital.patient(mine)
    assert own.get(f"Patient/{mine}").status_code == 200
    assert own.get(f"Patient/{theirs}").status_code == 404
    assert own.ids("Observation?code=own") == [ids[mine]]
    assert own.ids(f"Observation?patient={theirs}") == []


def test_what_may_be_read_but_not_changed_is_refused_as_such(hospital: Hospital) -> None:
    """Nothing is hidden, so a refusal can be called one."""
    patient = hospital.new_patient()
    id_ = hospital.feed.post("Observation", observation(patient)).json()["id"]
    own = hospital.patient(patient)
    before = hospital.stored()
    assert own.get(f"Observation/{id_}").status_code == 200
    assert own.put(f"Observation/{id_}", observation(patient, "9", id=id_)).status_code == 403
    assert own.delete(f"Observation/{id_}").status_code == 403
    assert hospital.stored() == before


def test_a_page_link_shows_nothing_that_was_revoked_since(hospital: Hospital, doctor: Client) -> None:
    kept, lost = hospital.new_patient(), hospital.new_patient()
    hospital.grant(kept, "Practitioner/access-1")
    grant = hospital.grant(lost, "Practitioner/access-1")
    for patient in (kept, lost, lost, kept):
        hospital.feed.post("Observation", observation(patient, code="pagerevoke"))
    first = doctor.get("Observation?code=pagerevoke&_count=1")
    hospital.revoke(grant)
    link = next_link(first)
    assert link is not None
    rest = [entry for url in pages(doctor, link) for entry in url]
    assert [one["resource"]["subject"]["reference"] for one in rest] == [f"Patient/{kept}"]


def pages(client: Client, url: str | None) -> Iterator[list[dict[str, Any]]]:
    while url is not None:
        answer = client.get(url)
        assert answer.status_code == 200, answer.text
        yield answer.json().get("entry", [])
        url = next_link(answer)


def test_a_history_leaves_out_versions_that_are_not_permitted_and_goes_on(hospital: Hospital, doctor: Client) -> None:
    patient = hospital.new_patient()
    hospital.grant(patient, "Practitioner/access-1")
    id_ = hospital.feed.post("Observation", observation(patient, "1")).json()["id"]
    label = {"security": [{"system": "http://terminology.hl7.org/CodeSystem/v3-Confidentiality", "code": "R"}]}
    for number in range(2, 6):
        hospital.feed.put(f"Observation/{id_}", observation(patient, str(number), id=id_, meta=label))
    assert _officer(hospital).put(f"Observation/{id_}", observation(patient, "5", id=id_)).status_code == 200
    versions = [entry["response"]["etag"] for page in pages(doctor, f"Observation/{id_}/_history?_count=1")
                for entry in page]
    assert versions == ['W/"6"', 'W/"1"']
    assert doctor.get(f"Observation/{id_}/_history/3").status_code == 404


def _officer(hospital: Hospital) -> Client:
    add_user(hospital.smart, fhir_user="Practitioner/officer", role="privacy-officer", name="O")
    return hospital.client(user="Practitioner/officer", purpose="HOPERAT")


@pytest.mark.parametrize(("scope", "allowed"), [
    ("user/Observation.read", "rs"), ("user/Observation.write", "cu"), ("user/Observation.*", "crus"),
    ("user/*.read", "rs"), ("user/Observation.rs", "rs"), ("user/Observation.r", "r"), ("user/Observation.s", "s"),
    ("user/Observation.c", "c"), ("user/Observation.u", "u"), ("user/Observation.cruds", "crus"),
    ("user/Patient.cruds", ""), ("user/Observation.cu user/Observation.rs", "crus")])
def test_scopes_of_both_versions_open_their_letters_alone(hospital: Hospital, scope: str, allowed: str) -> None:
    patient = hospital.new_patient()
    hospital.grant(patient, "Practitioner/access-1")
    id_ = hospital.feed.post("Observation", observation(patient)).json()["id"]
    client = hospital.clinician("access-1", scope=scope)
    done = {
        "r": client.get(f"Observation/{id_}").status_code == 200,
        "s": client.get(f"Observation?patient={patient}").status_code == 200,
        "c": client.post("Observation", observation(patient)).status_code == 201,
        "u": client.put(f"Observation/{id_}", observation(patient, "3", id=id_)).status_code == 200,
        "d": client.delete(f"Observation/{id_}").status_code == 204}
    assert "".join(letter for letter in "cruds" if done[letter]) == allowed


def test_granular_scopes_hold_at_every_door(hospital: Hospital) -> None:
    """SMART 2.2, finer-grained resource constraints using search parameters."""
    patient = hospital.new_patient()
    hospital.grant(patient, "Practitioner/access-1")
    client = hospital.clinician("access-1", scope=f"user/Observation.crus?code={LOINC}|inside")
    inside, outside = (hospital.feed.post("Observation", observation(patient, code=code)).json()["id"]
                       for code in ("inside", "outside"))
    assert client.get(f"Observation/{inside}").status_code == 200
    alike(client.get(f"Observation/{outside}"), client.get(f"Observation/{ABSENT}"), outside, ABSENT)
    assert client.ids(f"Observation?patient={patient}") == [inside]
    assert client.total(f"Observation?patient={patient}&_summary=count") == 1
    assert client.total("Observation?code=outside") == 0
    before = hospital.stored()
    assert client.post("Observation", observation(patient, code="outside")).status_code == 422
    assert client.put(f"Observation/{inside}", observation(patient, code="outside", id=inside)).status_code == 403
    assert client.put(f"Observation/{outside}", observation(patient, code="inside", id=outside)).status_code == 404
    assert hospital.stored() == before
    assert client.post("Observation", observation(patient, code="inside")).status_code == 201
    assert client.put(f"Observation/{inside}", observation(patient, "7", code="inside", id=inside)).status_code == 200


def test_a_launch_patient_narrows_patient_scopes_at_every_door(hospital: Hospital) -> None:
    one, two = hospital.new_patient(), hospital.new_patient()
    for patient in (one, two):
        hospital.grant(patient, "Practitioner/access-1")
    ids = {patient: hospital.feed.post("Observation", observation(patient, code="launch")).json()["id"]
           for patient in (one, two)}
    client = hospital.clinician("access-1", scope="patient/Observation.crus", patient=one)
    assert client.ids("Observation?code=launch") == [ids[one]]
    alike(client.get(f"Observation/{ids[two]}"), client.get(f"Observation/{ABSENT}"), ids[two], ABSENT)
    alike(client.post("Observation", observation(two)), client.post("Observation", observation(ABSENT)), two, ABSENT)
    assert client.post("Observation", observation(one)).status_code == 201


def test_lowering_a_label_or_moving_a_record_needs_authority(hospital: Hospital) -> None:
    patient, other = hospital.new_patient(), hospital.new_patient()
    label = {"security": [{"system": "http://terminology.hl7.org/CodeSystem/v3-Confidentiality", "code": "R"}]}
    id_ = hospital.feed.post("Observation", observation(patient, "1.10", meta=label)).json()["id"]
    before = hospital.stored()
    assert hospital.feed.put(f"Observation/{id_}", observation(patient, "1.10", id=id_)).status_code == 403
    assert hospital.feed.put(f"Observation/{id_}", observation(other, "1.10", id=id_, meta=label)).status_code == 403
    assert hospital.stored() == before
    assert hospital.patient(patient).put(f"Observation/{id_}", observation(patient, "1.10", id=id_)).status_code == 200
    assert hospital.patient(patient).get(f"Observation/{id_}").headers["etag"] == 'W/"2"'


def test_a_resource_a_client_writes_gives_nobody_a_role(hospital: Hospital, doctor: Client) -> None:
    """Authority comes from accounts: writing a Practitioner or RelatedPerson opens nothing."""
    patient = hospital.new_patient()
    id_ = hospital.feed.post("Observation", observation(patient)).json()["id"]
    hospital.feed.put("Practitioner/access-1", {"resourceType": "Practitioner", "id": "access-1"})
    hospital.new({"resourceType": "RelatedPerson", "patient": {"reference": f"Patient/{patient}"}})
    hospital.new({"resourceType": "PractitionerRole", "practitioner": {"reference": "Practitioner/access-1"}})
    assert doctor.get(f"Observation/{id_}").status_code == 404


def test_a_breaker_of_the_glass_sees_one_patient_and_is_audited(hospital: Hospital) -> None:
    patient, other = hospital.new_patient(), hospital.new_patient()
    ids = [hospital.feed.post("Observation", observation(one)).json()["id"] for one in (patient, other)]
    client = hospital.clinician("access-1", patient=patient, purpose="BTG", reason="unconscious")
    assert client.get(f"Observation/{ids[0]}").status_code == 200
    assert client.get(f"Observation/{ids[1]}").status_code == 404
    entry = hospital.audited(patient)[0]
    assert (entry.basis, entry.purpose, entry.reason) == ("break-glass", "BTG", "unconscious")


def test_a_revocation_between_decision_and_commit_is_seen(hospital: Hospital, doctor: Client,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    patient = hospital.new_patient()
    id_ = hospital.feed.post("Observation", observation(patient)).json()["id"]
    grant = hospital.grant(patient, "Practitioner/access-1")
    opened: Callable[..., Any] = read.opened_off_loop

    async def revoked_meanwhile(*arguments: Any) -> Any:
        found = await opened(*arguments)
        hospital.revoke(grant)
        return found

    monkeypatch.setattr(read, "opened_off_loop", revoked_meanwhile)
    assert doctor.get(f"Observation/{id_}").status_code == 404


RESTRICTED = {"security": [{"system": "http://terminology.hl7.org/CodeSystem/v3-Confidentiality", "code": "R"}]}


def test_an_earlier_version_is_read_only_by_who_may_read_the_present_one(hospital: Hospital, doctor: Client) -> None:
    """A label or a home patient set right later would else be passed by asking for the version before."""
    patient = hospital.new_patient()
    hospital.grant(patient, "Practitioner/access-1")
    id_ = hospital.feed.post("Observation", observation(patient)).json()["id"]
    assert doctor.get(f"Observation/{id_}/_history/1").status_code == 200
    assert hospital.feed.put(f"Observation/{id_}", observation(patient, id=id_, meta=RESTRICTED)).status_code == 200
    for url in ("", "/_history", "/_history/1", "/_history/2", "/_history/1/$receipt"):
        assert doctor.get(f"Observation/{id_}{url}").status_code == 404, url
    assert hospital.audited(patient)[0].outcome == "4"
    for client in (hospital.patient(patient), hospital.feed):
        assert client.get(f"Observation/{id_}/_history/1").status_code == 200


def test_who_wrote_a_version_reads_it_back_whatever_became_of_it(hospital: Hospital) -> None:
    patient = hospital.new_patient()
    id_ = hospital.feed.post("Observation", observation(patient)).json()["id"]
    hospital.grant(patient, "Practitioner/access-2")
    changed = hospital.clinician("access-2").put(f"Observation/{id_}", observation(patient, "2", id=id_))
    assert changed.status_code == 200
    assert hospital.feed.get(f"Observation/{id_}/_history/1").status_code == 200
    assert hospital.feed.get(f"Observation/{id_}/_history/2").status_code == 404


@pytest.mark.parametrize("sort", ["", "&_sort=-date", "&_sort=code"])
def test_an_open_page_leaves_out_what_was_labelled_since(hospital: Hospital, doctor: Client, sort: str) -> None:
    patient = hospital.new_patient()
    hospital.grant(patient, "Practitioner/access-1")
    ids = [hospital.feed.post("Observation", observation(patient)).json()["id"] for _ in range(3)]
    first = doctor.get(f"Observation?patient={patient}&_count=1{sort}")
    [shown] = [entry["resource"]["id"] for entry in first.json()["entry"]]
    labelled = next(id_ for id_ in ids if id_ != shown)
    assert hospital.feed.put(f"Observation/{labelled}",
                             observation(patient, id=labelled, meta=RESTRICTED)).status_code == 200
    following = next_link(first)
    assert following is not None
    assert sorted([shown, *doctor.all_ids(following)]) == sorted({*ids} - {labelled})


def test_what_moves_no_counter_is_seen_by_the_next_search_of_the_same_token(hospital: Hospital) -> None:
    """Invariant 5: a patient's first record, and the end of a permit's time."""
    own, doctor = hospital.patient("first-of-all"), hospital.clinician("until-then")
    assert own.ids("Observation?code=8867-4") == []
    hospital.feed.put("Patient/first-of-all", {"resourceType": "Patient", "id": "first-of-all"})
    made = hospital.new(json.loads(observation("first-of-all")))
    assert own.ids("Observation?code=8867-4") == [made]

    until_ms = now_ms() + 1_500
    hospital.grant("first-of-all", "Practitioner/until-then", valid_until_ms=until_ms)
    asked = "Observation?subject=Patient/first-of-all&_summary=count"
    assert doctor.total(asked) == 1
    time.sleep(max(0.0, (until_ms - now_ms()) / 1000) + 0.01)
    assert doctor.total(asked) == 0
    assert doctor.ids("Observation?subject=Patient/first-of-all") == []


@pytest.mark.parametrize("url", ["Observation/{}", "Observation/{}/_history/1", "Observation/{}/_history"])
def test_what_is_absent_leaves_as_many_rows_as_what_is_hidden(hospital: Hospital, doctor: Client,
                                                              hidden: dict[str, str], url: str) -> None:
    """Writing is most of a refusal's time (``tests/bench/absence.py`` holds a clock to it)."""
    def left(id_: str) -> list[int]:
        def rows() -> list[int]:
            return [int(str(hospital.database.reader.execute(f"SELECT count(*) FROM {table}").get))
                    for table in ("audit", "notice_due")]
        before = rows()
        assert doctor.get(url.format(id_)).status_code == 404
        return [now - then for now, then in zip(rows(), before, strict=True)]

    assert left(hidden["observation"]) == left(ABSENT) == [1, 1]
