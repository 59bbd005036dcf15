"""What an EHR launch may carry (SMART App Launch 2.2, scopes-and-launch-context, fhirContext)."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import OAuthError
from gateway.smart.launches import check_fhir_context, launch_url


@pytest.mark.parametrize("entry", [
    {"reference": "ImagingStudy/123"}, {"reference": "ImagingStudy/123/_history/2"},
    {"reference": "Questionnaire/1", "role": "https://example.org/role"}, {"reference": "List/1", "role": "launch"},
    {"canonical": "http://example.org/Questionnaire/1|2.0", "type": "Questionnaire"},
    {"identifier": {"system": "urn:oid:1.2.3", "value": "7"}, "type": "ServiceRequest"},
    {"reference": "Task/9", "identifier": {"value": "7"}, "canonical": "urn:uuid:1", "type": "Task"},
    {"reference": "Patient/2", "role": "https://example.org/sibling"},
    {"reference": "Encounter/2", "role": "urn:example:previous-visit"},
])
def test_what_smart_allows_is_kept_as_it_came(entry: dict[str, Any]) -> None:
    assert check_fhir_context([entry]) == [entry]


@pytest.mark.parametrize("entry", [
    {}, {"type": "Task"}, {"role": "launch"}, "ImagingStudy/1", None, [], {"reference": None}, {"reference": 5},
    {"reference": "https://ehr.example/fhir/ImagingStudy/1"}, {"reference": "/ImagingStudy/1"},
    {"reference": "ImagingStudy"}, {"reference": "ImagingStudy?identifier=1"}, {"reference": "#1"},
    {"reference": "ImagingStudy/1", "type": "Task"}, {"reference": "Task/1", "type": "task"},
    {"reference": "Task/1", "role": ""}, {"reference": "Task/1", "role": "reader"}, {"reference": "Task/1", "role": 1},
    {"canonical": "Questionnaire/1"}, {"canonical": ["urn:uuid:1"]}, {"identifier": "7"}, {"identifier": {}},
    {"identifier": {"system": "x"}}, {"identifier": {"value": ""}}, {"identifier": {"value": "7", "system": "x"}},
    {"identifier": {"value": "7", "other": 1}}, {"reference": "Task/1", "display": "A task"},
    # Patient and Encounter have parameters of their own
    {"reference": "Patient/1"}, {"reference": "Patient/1", "role": "launch"}, {"reference": "Encounter/1"},
    {"identifier": {"value": "7"}, "type": "Patient"}, {"canonical": "urn:uuid:1", "type": "Encounter"},
    {"reference": "Task/1", "identifier": {"value": "9" * 201}},
])
def test_what_smart_does_not_allow_is_refused_by_its_place(entry: Any) -> None:
    with pytest.raises(OAuthError, match=r"fhirContext\[1\]"):
        check_fhir_context([{"reference": "Task/1"}, entry])


def test_its_size_is_bounded() -> None:
    assert len(check_fhir_context([{"reference": "Task/1"}] * 20)) == 20
    with pytest.raises(OAuthError, match="at most 20"):
        check_fhir_context([{"reference": "Task/1"}] * 21)
    with pytest.raises(OAuthError, match="bytes"):
        check_fhir_context([{"canonical": "urn:" + "x" * 1_900}] * 5)


json_values = st.recursive(st.none() | st.booleans() | st.floats() | st.text(max_size=8), lambda inner: st.lists(
    inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3), max_leaves=8)


@given(st.lists(st.dictionaries(
    st.sampled_from(["reference", "canonical", "identifier", "type", "role", "x"]),
    json_values | st.sampled_from(["Patient/1", "Task/1", "Encounter/2", "Task", "launch", "urn:x:y"]), max_size=4),
    max_size=3))
def test_whatever_is_kept_is_what_the_kit_asks_for(entries: list[dict[str, Any]]) -> None:
    """Inferno: objects with reference, canonical or identifier; a reference is relative; it can be told as JSON."""
    try:
        kept = check_fhir_context(entries)
    except OAuthError:
        return
    assert json.loads(json.dumps(kept, allow_nan=False)) == kept
    for entry in kept:
        assert entry.keys() & {"reference", "canonical", "identifier"}
        assert "://" not in entry.get("reference", "")
        if entry.get("reference", "").startswith(("Patient/", "Encounter/")):
            assert entry.get("role", "launch") != "launch"


def test_the_launch_url_keeps_the_query_of_the_app() -> None:
    assert launch_url("https://a.example/launch", "https://e.example/fhir", "h") == (
        "https://a.example/launch?iss=https%3A%2F%2Fe.example%2Ffhir&launch=h")
    assert launch_url("https://a.example/l?x=1", "https://e.example/fhir", "h").startswith("https://a.example/l?x=1&iss=")
