"""``_text`` and ``_content``: words of narratives and of everything. https://hl7.org/fhir/R4/search.html#content"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from gateway import upkeep_command
from gateway.fhir.search_results import LATER
from gateway.store import index_upkeep, search_parameters
from tests.journeys.hospital import Hospital
from tests.journeys.test_search_parameters import carry_out_jobs, ids


def narrated(hospital: Hospital, patient: str, text: str, **elements: object) -> str:
    return hospital.new({"resourceType": "Condition", "subject": {"reference": f"Patient/{patient}"}, "text": {
        "status": "generated", "div": f'<div xmlns="http://www.w3.org/1999/xhtml"><p>{text}</p></div>'}, **elements})


ASKED = (
    ("bone", {"a", "b"}), ("BONE,liver", {"a", "b", "c"}), ("bone OR liver", {"a", "b", "c"}), ("bone liver", set()),
    ("bone AND metastases", {"a"}), ("bone NOT metastases", {"b"}), ("(bone OR liver) and metastases", {"a", "c"}),
    ("metastases NOT (bone OR spleen)", {"c"}), ("zurich", {"b"}), ("Zürich", {"b"}), ("the bone", {"a", "b"}),
    ("follow-up", {"c"}), ("well & good", {"c"}), ("div", set()), ("nowhere", set()), ("NOT bone", {"c"}))


@pytest.mark.parametrize("setting", ["off", "text", "content"])
def test_words_are_found_alike_with_and_without_an_index(hospital_with: Callable[..., Hospital], setting: str) -> None:
    own = hospital_with(text_search=setting)
    patient = own.new_patient()
    known = {narrated(own, patient, text): name for name, text in (
        ("a", "Bone <b>metastases</b>"), ("b", "the bone, in Zu&#776;rich"),
        ("c", "LIVER metastases; follow-up well &amp; good"))}
    for words, expected in ASKED:
        for code in ("_text", "_content"):
            answer = own.feed.request("POST", "Condition/_search", f"{code}={words}".replace("&", "%26").encode(),
                                      Content_Type="application/x-www-form-urlencoded")
            assert {known[id_] for id_ in ids(answer)} == expected, (code, words)


def test_all_that_is_said_is_content_and_the_narrative_alone_is_text(hospital_with: Callable[..., Hospital]) -> None:
    own = hospital_with(text_search="content")
    patient = own.new_patient()
    one = narrated(own, patient, "rash", code={"text": "Urticaria"}, note=[{"text": "after strawberries"}])
    assert ids(own.feed.get("Condition?_content=strawberries urticaria rash")) == {one}
    assert ids(own.feed.get("Condition?_text=strawberries")) == set()
    assert ids(own.feed.get("Condition?_text=rash")) == {one}
    assert ids(own.feed.get("?_type=Condition,Patient&_content=strawberries")) == {one}


@pytest.mark.parametrize(("words", "code"), [
    ("the", "value"), ("%22bone marrow%22", "not-supported"), ("(bone", "value"), ("bone)", "value"), ("OR", "value"),
    ("bone OR", "value"), ("NOT", "value"), ("+".join(["x"] * 65), "too-costly"), ("(" * 60, "value"), ("!!", "value")])
def test_what_is_no_question_is_refused(hospital: Hospital, words: str, code: str) -> None:
    answer = hospital.feed.get(f"Condition?_text={words}")
    assert answer.status_code == 400
    assert answer.json()["issue"][0]["code"] == code
    assert answer.json()["issue"][0]["expression"] == ["http._text"]


@pytest.mark.parametrize("setting", ["off", "text", "content"])
def test_a_clinician_without_a_grant_finds_nothing_by_a_word(
        hospital_with: Callable[..., Hospital], setting: str) -> None:
    """Invariant 4: not a match, not a count, and a negated word neither."""
    own = hospital_with(text_search=setting)
    patient = own.new_patient()
    one = narrated(own, patient, "Porphyria")
    clinician = own.clinician()
    for code in ("_text", "_content"):
        for words in ("porphyria", "NOT porphyria", "NOT other"):
            for more in ("", "&_summary=count", "&_total=accurate"):
                answer = clinician.get(f"Condition?{code}={words}{more}").json()
                assert answer["total"] == 0
                assert "entry" not in answer
        assert clinician.get(f"Patient?_has:Condition:patient:{code}=porphyria").json()["total"] == 0
    own.grant(patient, "Practitioner/dr-1")
    assert ids(clinician.get("Condition?_text=porphyria")) == {one}


def test_words_of_before_are_found_by_opening_until_a_pass_kept_them(hospital_with: Callable[..., Hospital]) -> None:
    """What the index holds in part is not asked of it."""
    own = hospital_with()
    patient = own.new_patient()
    one = narrated(own, patient, "Porphyria")
    reader = own.database.reader
    assert search_parameters.words(reader) == {"_text", LATER}
    own.database.transact(lambda tx: search_parameters.settle_words(tx, frozenset()))
    own.database.transact(lambda tx: search_parameters.settle_words(tx, frozenset({"_text"})))
    assert search_parameters.words(reader) == set()
    own.database.transact(lambda tx: tx.execute("DELETE FROM index_hash"))
    assert ids(own.feed.get("Condition?_text=porphyria")) == {one}
    assert own.feed.post("$reindex", None).status_code == 202
    carry_out_jobs(own)
    assert search_parameters.words(reader) == {"_text", LATER}
    assert ids(own.feed.get("Condition?_text=porphyria")) == {one}


def test_a_rebuild_keeps_the_words(hospital_with: Callable[..., Hospital]) -> None:
    own = hospital_with(text_search="content")
    one = narrated(own, own.new_patient(), "Porphyria")
    own.database.transact(lambda tx: [tx.execute(f"DELETE FROM {table}") for table in index_upkeep.TABLES])
    assert ids(own.feed.get("Condition?_text=porphyria")) == set()
    assert upkeep_command.rebuild(own.settings) == 0
    assert ids(own.feed.get("Condition?_text=porphyria&_content=porphyria")) == {one}


def test_the_disk_holds_no_word(hospital_with: Callable[..., Hospital]) -> None:
    """Invariant 1."""
    own = hospital_with(text_search="content")
    narrated(own, own.new_patient(), "Porphyria")
    for file in own.settings.data_dir.rglob("*"):
        if file.is_file():
            assert b"orphyria" not in file.read_bytes(), file.name
