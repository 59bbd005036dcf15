"""Importing: what landed is marked in the same commit, what is refused is named, nothing lands twice (issue line 9)."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import apsw
import pytest

from gateway import cli, import_command
from gateway.app import build_node, open_database, open_ring
from gateway.audit import Audit, rows_of_all
from gateway.config import Settings, load_settings
from gateway.errors import Misconfigured, StoreBusy
from gateway.import_command import import_paths
from gateway.records import importer, transaction
from gateway.records.node import Node
from gateway.store import imports, journal

ADDRESSES = {name: "0x" + digit * 40 for name, digit in (
    ("custodian", "1"), ("record_anchor", "2"), ("consent_registry", "3"), ("hospital_registry", "4"))}


def patient(id_: str, **more: Any) -> dict[str, Any]:
    return {"resourceType": "Patient", "id": id_, **more}


def observation(id_: str | None = None, subject: str = "Patient/p1", **more: Any) -> dict[str, Any]:
    return {"resourceType": "Observation", **({"id": id_} if id_ else {}), "status": "final", "code": {"text": "x"},
            "subject": {"reference": subject}, **more}


def bundle(kind: str, *resources: dict[str, Any]) -> dict[str, Any]:
    return {"resourceType": "Bundle", "type": kind, "entry": [
        {"fullUrl": f"urn:uuid:00000000-0000-4000-8000-{place:012}", "resource": resource}
        for place, resource in enumerate(resources)]}


@dataclass
class Place:
    """A data folder after a first start, and a folder of files to import."""

    settings: Settings
    folder: Path
    node: Node

    def write(self, name: str, *values: Any) -> Path:
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        text = "\n".join(value if isinstance(value, str) else json.dumps(value) for value in values).encode()
        path.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
        return path

    def report(self, *paths: Path, again: bool = False) -> tuple[int, list[dict[str, Any]]]:
        """Exit code and JSON lines of one import."""
        file = self.settings.data_dir / "report.jsonl"
        code = import_paths(self.settings, paths or [self.folder], report=file, again=again)
        return code, [json.loads(line) for line in file.read_text().splitlines()]

    def stored(self) -> dict[str, int]:
        """Current versions by place."""
        return {f"{type_}/{id_}": vid for type_, id_, vid in self.node.database.reader.execute(
            "SELECT type, id, vid FROM version WHERE superseded IS NULL AND NOT deleted")}

    def content(self, place: str) -> dict[str, Any]:
        row = journal.current(self.node.database.reader, *place.split("/"))
        assert row is not None
        found: dict[str, Any] = json.loads(self.node.versions.open(self.node.database.reader, row).stored)
        return found


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    settings = load_settings({"GATEWAY_DATA_DIR": str(tmp_path / "data")})
    settings.chain_path.mkdir(parents=True)
    settings.deployment_path.write_text(json.dumps({"chain_id": 7, **ADDRESSES}))
    ring = open_ring(settings)
    database = open_database(settings, ring)
    (tmp_path / "files").mkdir()
    yield Place(settings, tmp_path / "files", build_node(settings, ring, database))
    database.close()
    ring.close()


def refusals(lines: list[dict[str, Any]]) -> list[tuple[str, list[Any]]]:
    return [(Path(line["refused"]).name, [issue.get("expression", [None])[0] for issue in line["issues"]])
            for line in lines if isinstance(line.get("refused"), str)]


def test_every_kind_of_file_lands_under_its_ids(place: Place) -> None:
    place.write("patient.json", patient("p1", name=[{"family": "Muster"}]))
    place.write("lines.ndjson", observation("o1"), "", observation("o2"))
    place.write("more.ndjson.gz", observation("o3"), observation())
    place.write("searchset.json.gz", bundle("searchset", patient("p2"), observation("o4", "Patient/p2")))
    place.write("requests.json", {"resourceType": "Bundle", "type": "batch", "entry": [
        {"request": {"method": "PUT", "url": "Patient/p3"}, "resource": patient("p3")}]})
    code, lines = place.report()
    assert (code, refusals(lines)) == (0, [])
    assert {"type": "Observation", "imported": 5} in lines
    assert {"type": "Patient", "imported": 3} in lines
    stored = place.stored()
    assert len(stored) == 8
    assert {"Patient/p1", "Patient/p2", "Patient/p3", "Observation/o1", "Observation/o4"} <= stored.keys()


def test_links_within_a_collection_are_resolved(place: Place) -> None:
    link = "urn:uuid:00000000-0000-4000-8000-000000000000"
    place.write("c.json", bundle("collection", {"resourceType": "Patient"}, observation("o1", link)))
    assert place.report()[0] == 0
    subject = place.content("Observation/o1")["subject"]["reference"]
    assert subject in place.stored()


def test_decimals_keep_their_text(place: Place) -> None:
    place.write("o.ndjson", json.dumps(observation("o1")).removesuffix("}") + ',"valueQuantity":{"value":1.10}}')
    place.report()
    row = journal.current(place.node.database.reader, "Observation", "o1")
    assert row is not None
    assert b'"value":1.10}' in place.node.versions.open(place.node.database.reader, row).stored


def test_a_second_import_of_the_same_files_brings_in_nothing(place: Place) -> None:
    place.write("a.ndjson", patient("p1"), observation(), observation())
    place.write("b.json", bundle("collection", observation()))
    assert place.report()[0] == 0
    before = place.stored()
    code, lines = place.report()
    assert code == 0
    assert (lines[-1]["imported"], lines[-1]["there_already"]) == (0, 4)
    (place.folder / "a.ndjson").rename(place.folder / "renamed.ndjson")
    place.report()
    assert place.stored() == before
    assert place.report(again=True)[1][-1]["imported"] == 4
    assert len(place.stored()) == len(before) + 3


def test_two_files_of_the_same_bytes_land_once(place: Place) -> None:
    place.write("a.json", observation())
    place.write("b.json", observation())
    assert place.report()[0] == 0
    assert len(place.stored()) == 1


def test_good_lines_of_a_group_land_and_each_bad_one_is_named_with_its_place(place: Place) -> None:
    place.write("a.ndjson", patient("p1"), observation("o1", status="nonsense"), observation("o2"), "not json",
                {"resourceType": "Alien"}, {"resourceType": "Patient", "id": "a/b"}, "[]", '{"a":1,"a":2}',
                observation("o3", effectiveDateTime="2024-02-30"), observation("o4"), {"id": "x"})
    code, lines = place.report()
    assert code == 1
    assert place.stored().keys() == {"Patient/p1", "Observation/o2", "Observation/o4"}
    assert sorted(refusals(lines)) == sorted([
        ("a.ndjson:2", ["Observation.status"]), ("a.ndjson:4", [None]), ("a.ndjson:5", ["Alien.resourceType"]),
        ("a.ndjson:6", ["Patient.id"]), ("a.ndjson:7", [None]), ("a.ndjson:8", [None]),
        ("a.ndjson:9", ["Observation.effective.ofType(dateTime)"]), ("a.ndjson:11", ["resourceType"])])


def test_a_refused_line_is_tried_again_by_the_next_import(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.write("a.ndjson", patient("p1"), observation("o1"))
    process = transaction.process

    async def refuse(*arguments: Any, **keywords: Any) -> bytes:
        if any(entry["resource"]["resourceType"] == "Observation" for entry in arguments[2]["entry"]):
            raise ValueError("a fault of ours")
        return await process(*arguments, **keywords)

    monkeypatch.setattr(transaction, "process", refuse)
    code, lines = place.report()
    assert (code, refusals(lines)) == (1, [("a.ndjson:2", [None])])
    assert "a fault of ours" not in json.dumps(lines)  # what a fault says may quote a record
    monkeypatch.undo()
    assert place.report()[0] == 0
    assert place.stored().keys() == {"Patient/p1", "Observation/o1"}


@pytest.mark.parametrize("kind", ["transaction", "collection"])
def test_never_half_a_bundle(place: Place, kind: str) -> None:
    made = bundle(kind, patient("p1"), observation("o1"), observation("o2", status="nonsense"))
    for entry in made["entry"]:
        entry["request"] = {"method": "PUT", "url": f"{entry['resource']['resourceType']}/{entry['resource']['id']}"}
    place.write("a.json", made)
    place.write("b.ndjson", patient("p9"), made, patient("p8"))
    code, lines = place.report()
    assert code == 1
    assert refusals(lines) == [("a.json", ["Bundle.entry[2].resource.status"]),
                               ("b.ndjson:2", ["Bundle.entry[2].resource.status"])]
    assert place.stored().keys() == {"Patient/p8", "Patient/p9"}


@pytest.mark.parametrize("hostile", [
    {"resourceType": "Bundle"}, {"resourceType": "Bundle", "type": 7},
    {"resourceType": "Bundle", "type": "transaction", "entry": 7},
    {"resourceType": "Bundle", "type": "transaction", "entry": [7]},
    {"resourceType": "Bundle", "type": "transaction", "entry": [{"resource": 7, "request": 7}]},
    {"resourceType": "Bundle", "type": "batch", "entry": [{"request": {"method": "PUT", "url": 7}}]},
    {"resourceType": "Bundle", "type": "collection", "entry": "x"},
    {"resourceType": "Bundle", "type": "collection", "entry": [{"resource": {"resourceType": {}}}]},
    {"resourceType": "Bundle", "type": "history", "entry": []},
    {"resourceType": "Patient", "id": {}}, {"resourceType": "Patient", "meta": 7}, {"resourceType": []},
    "[" * 100_000, "NaN", '{"resourceType":"Patient","x":NaN}', "\\u0000", "{}", "null", '"x"',
    '{"resourceType":"Patient","id":"\ud800"}'.encode("utf-8", "surrogatepass").decode("latin-1"),
    observation("o1", subject="urn:uuid:dangling"), observation("o1", subject="Patient?identifier=none"),
    observation("o1", subject="Patient?nonsense=1")], ids=repr)
def test_hostile_input_is_refused_by_name_and_never_a_traceback(
        place: Place, hostile: Any, capsys: pytest.CaptureFixture[str]) -> None:
    place.write("a.json", hostile)
    place.write("b.ndjson", hostile, patient("p1"))
    code, lines = place.report()
    assert code == 1
    assert [name for name, _ in refusals(lines)] == ["a.json", "b.ndjson:1"]
    assert place.stored().keys() == {"Patient/p1"}
    assert all(issue["code"] != "exception" for line in lines for issue in line.get("issues", ()))
    shown = capsys.readouterr()
    assert "Traceback" not in shown.out + shown.err


def test_a_resource_over_the_body_limit_is_refused_and_a_bundle_over_it_is_not(place: Place) -> None:
    small = Place(replace(place.settings, max_body_bytes=2_000), place.folder, place.node)
    small.write("a.json", patient("p1", name=[{"text": "x" * 3_000}]))
    small.write("b.json", bundle("collection", *(patient(f"q{number}", name=[{"text": "x" * 900}])
                                                 for number in range(5))))
    code, lines = small.report()
    assert (code, refusals(lines)) == (1, [("a.json", [None])])
    assert len(place.stored()) == 5


def test_two_versions_of_one_resource_land_in_their_order(place: Place) -> None:
    place.write("a.ndjson", patient("p1", gender="male"), patient("p2"), patient("p1", gender="female"))
    assert place.report()[0] == 0
    assert place.stored() == {"Patient/p1": 2, "Patient/p2": 1}
    assert place.content("Patient/p1")["gender"] == "female"


def test_small_files_share_commits(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    marked: list[int] = []
    mark = imports.mark

    def count(connection: apsw.Connection, marks: Any) -> None:
        marked.append(len(marks))
        mark(connection, marks)

    monkeypatch.setattr(imports, "mark", count)
    for number in range(150):
        place.write(f"{number:03}.json", patient(f"p{number}"))
    assert place.report()[0] == 0
    assert marked == [importer.GROUP_ENTRIES, 50]


def test_a_mark_is_in_the_commit_of_what_it_says(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash between a commit and its mark is not possible: fail the mark, and nothing is stored."""
    place.write("a.ndjson", patient("p1"))

    def fail(*_: Any) -> None:
        raise RuntimeError

    monkeypatch.setattr(imports, "mark", fail)
    assert place.report()[0] == 1
    assert place.stored() == {}


def test_a_busy_store_is_waited_for_and_then_ends_the_import(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.write("a.json", patient("p1"))
    process, refused = transaction.process, [0]

    async def busy(*arguments: Any, **keywords: Any) -> bytes:
        refused[0] += 1
        if refused[0] < 3:
            raise StoreBusy("for a moment")
        return await process(*arguments, **keywords)

    monkeypatch.setattr(transaction, "process", busy)
    monkeypatch.setattr(importer, "_BUSY_WAIT_S", 0.0)
    assert place.report()[0] == 0
    refused[0] = -1_000
    place.write("b.json", patient("p2"))
    with pytest.raises(StoreBusy):
        place.report()
    last = json.loads((place.settings.data_dir / "report.jsonl").read_text().splitlines()[-1])
    assert last["complete"] is False


def test_what_is_imported_is_audited_as_the_feeds_with_a_token_that_ends(place: Place) -> None:
    place.write("a.json", patient("p1"))
    place.report()
    audit = Audit(place.node.ring, ADDRESSES["custodian"])
    place.node.disclosures.settle()
    entries = [audit.open(row) for row in rows_of_all(place.node.database.reader, below=2**62, limit=10)]
    assert {(entry.interaction, entry.client, entry.operator) for entry in entries} == {
        ("token-minted", "feed", True), ("update", "feed", True)}
    revoked = place.node.database.reader.execute("SELECT count(*) FROM token WHERE revoked_ms IS NULL").get
    assert revoked == 0


def test_a_token_is_renewed_before_it_ends(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_command, "TOKEN_TTL_S", 200)  # under what is left when it is renewed
    place.write("a.ndjson", patient("p1"), bundle("collection", patient("p2")), patient("p3"))
    assert place.report()[0] == 0
    assert place.node.database.reader.execute("SELECT count(*) FROM token").get == 3


def test_the_report_says_how_much_of_what_and_steers_no_terminal(
        place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.write("a.ndjson", patient("p1"), patient("p2"), {"resourceType": "\x1b[2J"})
    assert place.report(place.folder, place.folder / "none.json")[0] == 1
    shown = capsys.readouterr().out
    assert "imported        2 resources (2 new)" in shown
    assert "refused         2" in shown
    assert "a.ndjson:3" in shown
    assert "there is no such file" in shown
    assert "\x1b" not in shown
    assert (place.settings.data_dir / "report.jsonl").stat().st_mode & 0o777 == 0o600


def test_one_import_at_a_time_and_none_before_the_first_start(
        place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with import_command._alone(place.settings), pytest.raises(Misconfigured, match="another import"):
        place.report()
    fresh = load_settings({"GATEWAY_DATA_DIR": str(tmp_path / "fresh")})
    with pytest.raises(Misconfigured):
        import_paths(fresh, [place.folder])
    assert not fresh.data_dir.exists()
    monkeypatch.setattr(cli, "load_settings", lambda: fresh)
    assert cli.main(["import", str(place.folder)]) == 2
