"""The life of an Appointment. https://hl7.org/fhir/R4/valueset-appointmentstatus.html"""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gateway.fhir.appointments import FINAL, HOLDING, OPEN, beyond_patient, following, held, settled, step

STATUSES = sorted(OPEN | FINAL | HOLDING | {"waitlist"})
ME, DOCTOR = "Patient/1", "Practitioner/1"
answers = st.sampled_from(["accepted", "declined", "tentative", "needs-action"])


@st.composite
def appointments(draw: st.DrawFn) -> dict[str, Any]:
    made: dict[str, Any] = {
        "resourceType": "Appointment", "status": draw(st.sampled_from(STATUSES)),
        "participant": [{"actor": {"reference": who}, "status": draw(answers), **draw(st.sampled_from([
            {}, {"required": "required"}, {"required": "optional"}]))} for who in (ME, DOCTOR)]}
    if draw(st.booleans()):
        made |= {"start": draw(st.sampled_from(["2030-01-01T08:00:00Z", "2030-01-02T08:00:00Z"])),
                 "end": "2030-01-03T08:00:00Z"}
    if draw(st.booleans()):
        made["slot"] = [{"reference": draw(st.sampled_from(["Slot/1", "Slot/2"]))}]
    return made


@given(appointments(), st.none() | appointments(), st.sampled_from([None, ME]))
def test_settling_is_settled(new: dict[str, Any], old: dict[str, Any] | None, patient: str | None) -> None:
    once = settled(old, new, patient=patient)
    assert settled(old, once, patient=patient) == once
    assert {name: value for name, value in once.items() if name not in ("status", "participant")} == {
        name: value for name, value in new.items() if name not in ("status", "participant")}


@given(appointments())
def test_booked_is_what_all_who_must_come_accepted(appointment: dict[str, Any]) -> None:
    required = [one["status"] for one in appointment["participant"] if one.get("required") != "optional"]
    found = following(appointment)
    assert (found == "booked") is (bool(required) and set(required) == {"accepted"} and "start" in appointment)
    assert (found == "cancelled") is ("declined" in required)
    if "start" not in appointment:
        assert found in ("proposed", "cancelled")


@given(appointments())
def test_without_a_slot_a_patient_answers_for_nobody_else(appointment: dict[str, Any]) -> None:
    appointment.pop("slot", None)
    assert all(one["status"] != "accepted" for one in settled(None, appointment, patient=ME)["participant"]
               if one["actor"]["reference"] != ME)


@given(appointments(), appointments())
def test_a_patient_changes_no_ones_answer_but_their_own(old: dict[str, Any], new: dict[str, Any]) -> None:
    if beyond_patient(old, new, ME) is None:
        before, after = old["participant"][1], new["participant"][1]
        assert before == after or after["status"] == "needs-action"
        assert new["status"] not in ("noshow", "entered-in-error")


@given(st.sampled_from(STATUSES), st.sampled_from(STATUSES))
def test_nothing_leads_out_of_what_is_over_but_the_correction_of_an_error(before: str, after: str) -> None:
    if before in FINAL and before != after:
        assert step(before, after) is (after == "entered-in-error")
    assert step(before, before)


@given(appointments())
def test_only_what_stands_holds_its_slots(appointment: dict[str, Any]) -> None:
    assert bool(held(appointment)) is (appointment["status"] in HOLDING and "slot" in appointment)
