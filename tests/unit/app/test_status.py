"""``gateway status``: read-only, of a running or a stopped gateway (issue line 2)."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path

import httpx
import pytest

from gateway import cli
from gateway.config import Settings, load_settings
from gateway.crypto.keys import KeyRing
from gateway.crypto.root import create_root, root_file
from gateway.errors import Misconfigured
from gateway.status import status
from gateway.store.sql import Database


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings({"GATEWAY_DATA_DIR": str(tmp_path / "data"), "GATEWAY_PORT": "9"})


@pytest.fixture
def started(settings: Settings) -> Settings:
    """A folder as a first start leaves it, with five versions, three of them in batches."""
    create_root(settings.root_key_path)
    ring = KeyRing(settings.key_store_path, root_file(settings.root_key_path))
    database = Database(settings.database_path, ring.secret("page"))
    database.migrate()

    def fill(tx: object) -> None:
        execute = tx.execute  # type: ignore[attr-defined]
        for number, batch in enumerate((None, None, 1, 2, 2)):
            execute("INSERT INTO version (type,id,vid,deleted,updated_ms,others,client,confidentiality,labels,"
                    "categories,keys,digest,commitment,batch) VALUES ('Patient',?,1,0,1,0,'feed',0,0,'','','','',?)",
                    (str(number), batch))
        execute("INSERT INTO audit (time_ms,keys,sealed,hash) VALUES (1,'','','')")
        for pk, entries, state in ((1, 1, "final"), (2, 2, "submitted")):
            execute("INSERT INTO batch (pk,created_ms,manifest_digest,root,size_class,entries,state) "
                    "VALUES (?,1,'','',0,?,?)", (pk, entries, state))
        for number, (kind, state, error) in enumerate((
                ("grant", "submitted", None), ("grant", "final", None), ("grant", "failed", "SignatureExpired"),
                ("revoke", "failed", "NonceUsed"), ("grant", "failed", "SignatureExpired"))):
            execute("INSERT INTO intent (id,kind,call,state,created_ms,error) VALUES (?,?,'',?,1,?)",
                    (str(number), kind, state, error))

    database.transact(fill)
    database.close()
    ring.close()
    settings.chain_path.mkdir()
    settings.rpc_path.write_text(json.dumps({"rpc": "http://127.0.0.1:8545"}))
    settings.deployment_path.write_text(json.dumps({
        "chain_id": 7, "custodian": "0xc", "record_anchor": "0xa", "consent_registry": "0xb",
        "hospital_registry": "0xd"}))
    return settings


def answer(request: httpx.Request) -> httpx.Response:
    if request.url.path == "/health/ready":
        return httpx.Response(200, json={"status": "ready"})
    assert json.loads(request.content)["method"] == "eth_blockNumber"
    return httpx.Response(200, json={"jsonrpc": "2.0", "id": 1, "result": "0x2a"})


def test_it_says_where_it_is_and_how_far_anchoring_has_come(started: Settings) -> None:
    found = status(started, transport=httpx.MockTransport(answer))
    assert found == {
        "fhir_base": "http://127.0.0.1:9/fhir", "data_dir": str(started.data_dir),
        "running": False,  # it is another gateway that answers: nobody holds this folder
        "entries": {"pending": 4, "anchored": 1, "batches": {"final": 1, "submitted": 1}},
        "audit": {"rows": 1, "waiting": 1},
        "acts": {"waiting": 1, "refused": {"grant: SignatureExpired": 2, "revoke: NonceUsed": 1}},
        "chain": {"rpc": "http://127.0.0.1:8545", "chain_id": 7, "head": 42, "contracts": {
            "RecordAnchor": "0xa", "ConsentRegistry": "0xb", "HospitalRegistry": "0xd"}}}


def test_it_runs_when_it_holds_the_folder_and_answers(started: Settings) -> None:
    descriptor = os.open(started.data_dir / "serve.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        assert status(started, transport=httpx.MockTransport(answer))["running"] is True
    finally:
        os.close(descriptor)


def test_a_stopped_gateway_has_no_head(started: Settings) -> None:
    def refuse(_: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    found = status(started, transport=httpx.MockTransport(refuse))
    assert (found["running"], found["chain"]["head"]) == (False, None)
    assert found["entries"]["pending"] == 4


def test_before_the_first_start_it_says_so_in_one_line_and_makes_nothing(
        settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Misconfigured):
        status(settings)
    monkeypatch.setattr(cli, "load_settings", lambda: settings)
    assert cli.main(["status"]) == 2
    shown = capsys.readouterr()
    assert (shown.out, len(shown.err.splitlines())) == ("", 1)
    assert not settings.data_dir.exists()


def test_the_command_prints_json_or_lines(
        started: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(cli, "load_settings", lambda: started)
    assert cli.main(["status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["chain"]["contracts"]["RecordAnchor"] == "0xa"
    assert cli.main(["status"]) == 0
    shown = capsys.readouterr().out
    assert "4 pending, 1 anchored" in shown
    assert "1 waiting for the chain; refused: 2 grant: SignatureExpired; refused: 1 revoke: NonceUsed" in shown
