"""The states of a Subscription's delivery, what one asks for, and the bundles one is sent, as rules alone.

https://hl7.org/fhir/R4/subscription.html#2.46.5, https://hl7.org/fhir/uv/subscriptions-backport/STU1.1/
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import Unprocessable
from gateway.fhir.subscriptions import (
    ERROR_AFTER,
    HANDSHAKES,
    MAX_EVENTS,
    OFF_AFTER,
    TOPIC,
    Event,
    State,
    Step,
    delivered,
    failed,
    may_write,
    notification,
    told,
    topics,
    wanted,
)

TYPES = frozenset({"Patient", "Observation", "Encounter", "AuditEvent", "Subscription"})
KNOWN = topics(TYPES)
STATES = st.sampled_from(["requested", "active", "error", "off"])
OUTCOMES = st.lists(st.booleans(), max_size=60)


def channel(**elements: Any) -> dict[str, Any]:
    return {"resourceType": "Subscription", "status": "requested", "reason": "care", "criteria": "Observation?code=1",
            "channel": {"type": "rest-hook", "endpoint": "https://a.example/", **elements}}


@given(STATES, st.integers(0, 40), st.integers(0, 2**45), st.floats(0, 1))
def test_a_failure_never_activates_and_waits_longer_each_time_within_bounds(
        state: State, failures: int, now_ms: int, jitter: float) -> None:
    step = failed(state, failures, now_ms, jitter)
    assert step.failures == failures + 1
    assert step.state == "off" or step.state == state or (state, step.state) == ("active", "error")
    if state == "off":
        assert step.state == "off"
    if step.state != "off":
        assert 500 <= step.next_ms - now_ms <= 600_000
        low, high = (failed(state, failures, now_ms, one).next_ms for one in (0.0, 1.0))
        assert low <= step.next_ms <= high


@given(OUTCOMES, st.floats(0, 1))
def test_a_delivery_goes_through_the_states_r4_draws(outcomes: list[bool], jitter: float) -> None:
    """requested -> active <-> error -> off: off is left by a client alone, and error follows failures alone."""
    at, last_run = Step("requested", 0, 0), 0
    handshaken = False
    for good in outcomes:
        before = at
        at = delivered(at.state, at.next_ms) if good else failed(at.state, at.failures, at.next_ms, jitter)
        last_run = 0 if good else last_run + 1
        assert at.next_ms >= before.next_ms
        if before.state == "off":
            assert at.state == "off"
            return
        handshaken = handshaken or good
        if good:
            assert (at.state, at.failures) == ("active", 0)
        elif not handshaken:
            assert at.state == ("off" if last_run >= HANDSHAKES else "requested")
        else:
            assert at.state == ("off" if last_run >= OFF_AFTER else "error" if last_run >= ERROR_AFTER else "active")


@given(STATES, STATES)
def test_a_client_asks_or_switches_off_and_nothing_else(old: State, new: State) -> None:
    """R4 Subscription.status: a client can only submit requested or off."""
    stored, sent = {**channel(), "status": old}, {**channel(), "status": new, "reason": "another"}
    assert may_write(stored, sent) is (new in ("requested", "off"))
    assert may_write(None, sent) is (new in ("requested", "off"))
    assert may_write(stored, {**stored, "meta": {"tag": [{"code": "x"}]}})


def test_there_are_topics_for_every_type_but_the_deliveries_own() -> None:
    assert {topic.type for topic in KNOWN.values()} == TYPES - {"AuditEvent", "Subscription"}
    assert KNOWN[f"{TOPIC}Observation"].interactions == {"create", "update", "delete"}
    assert KNOWN[f"{TOPIC}Observation-deleted"].interactions == {"delete"}
    assert KNOWN[f"{TOPIC}encounter-start"].entering == "in-progress"


def test_r4s_criteria_are_a_search_and_a_payload_is_the_resource() -> None:
    found = wanted(channel(header=["X-Key:  v alue "]), TYPES, KNOWN)
    assert (found.topic, found.type, found.filters, found.max_count) == (None, "Observation", (("code", "1"),), 1)
    assert (found.content, found.payload, found.header) == ("empty", None, (("X-Key", "v alue"),))
    assert found.interactions == {"create", "update"}
    assert wanted(channel(payload="application/fhir+xml"), TYPES, KNOWN).content == "full-resource"
    assert wanted({**channel(), "criteria": "Observation"}, TYPES, KNOWN).filters == ()


@given(st.integers(-5, 5_000))
def test_numbers_of_a_channel_are_within_bounds_or_refused(number: int) -> None:
    url = "http://hl7.org/fhir/uv/subscriptions-backport/StructureDefinition/backport-max-count"
    asked = {**channel(extension=[{"url": url, "valuePositiveInt": number}]), "criteria": f"{TOPIC}Observation"}
    if number < 1:
        with pytest.raises(Unprocessable):
            wanted(asked, TYPES, KNOWN)
    else:
        assert wanted(asked, TYPES, KNOWN).max_count == min(number, MAX_EVENTS)


@given(st.text(max_size=40))
def test_a_header_that_is_read_is_one_printable_line(line: str) -> None:
    try:
        found = wanted(channel(header=[line]), TYPES, KNOWN).header
    except Unprocessable:
        return
    assert all(text.isprintable() and text.isascii() for pair in found for text in pair)


@given(st.lists(st.sampled_from(["create", "update", "delete"]), max_size=5),
       st.sampled_from(["empty", "id-only", "full-resource"]), st.integers(0, 10**6))
def test_a_notification_says_of_each_event_what_its_content_allows(
        interactions: list[Any], content: Any, before: int) -> None:
    events = [Event(number=before + place, time_ms=0, type="Observation", id=f"the-id-{place}", interaction=one,
                    stored=b'{"resourceType":"Observation","valueDecimal":1.10}')
              for place, one in enumerate(interactions, 1)]
    body = notification("event-notification", base="https://h/fhir", id_="s", topic=KNOWN[f"{TOPIC}Observation"],
                        state="active", count=before + len(events), now_ms=0, events=events, content=content)
    bundle = json.loads(body)
    assert bundle["type"] == "history"
    assert bundle["entry"][0]["resource"]["resourceType"] == "Parameters"
    assert len(bundle["entry"]) == 1 + (0 if content == "empty" else len(events))
    assert (b"the-id-" in body) is (content != "empty" and bool(events))
    assert body.count(b"1.10}") == (len(events) if content == "full-resource" else 0)


def test_the_server_says_why_and_takes_it_back() -> None:
    broken = told(channel(), "error", "it does not answer")
    assert (broken["status"], broken["error"]) == ("error", "it does not answer")
    assert told(broken, "active", None) == {**channel(), "status": "active"}
