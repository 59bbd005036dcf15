"""``gateway check``: each fault is found, named, and comes with a way to mend it (issue line 2)."""

from __future__ import annotations

import fcntl
import ipaddress
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway import preflight
from gateway.config import Settings, load_settings
from gateway.crypto.keys import KeyRing
from gateway.crypto.root import create_root, root_file
from gateway.preflight import Problem
from gateway.probes import Probe
from gateway.store.sql import Database

NOW_S = 1_790_000_000.0
ANCHOR, CONSENT, REGISTRY = ("0x" + digit * 40 for digit in "123")
KEY = bytes.fromhex("4c0883a69102937d6231471b5dbb6204fe5129617082792ae468d01a3f362318")
OPERATOR = "0x2c7536e3605d9c16a7a3d7b1898e529396a65c23"  # the account of KEY in web3's own documentation


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return load_settings({"GATEWAY_DATA_DIR": str(tmp_path / "data"), "GATEWAY_PORT": str(port),
                          "GATEWAY_WORKERS": "1"})


@pytest.fixture
def external(settings: Settings) -> Settings:
    """Settings of a gateway on the hospitals' own chain, started before, whose operator can pay."""
    settings.chain_path.mkdir(parents=True)
    settings.keys_dir.mkdir(mode=0o700)
    settings.deployment_path.write_text(json.dumps({
        "chain_id": 7, "custodian": REGISTRY, "record_anchor": ANCHOR, "consent_registry": CONSENT,
        "hospital_registry": REGISTRY}))
    settings.chain_operator_key_file.write_text(KEY.hex())
    settings.chain_operator_key_file.chmod(0o600)
    return replace(settings, chain_rpc="http://chain", chain_id=7)


def answering(**answers: Any) -> httpx.MockTransport:
    """A chain node whose answers a test changes one of."""
    known = {"eth_chainId": "0x7", "eth_getCode": "0x6001", "eth_getBalance": "0x1",
             "eth_getBlockByNumber": {"timestamp": hex(int(NOW_S))}, **answers}

    def handle(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        answer = known[body["method"]]
        return httpx.Response(200, json={"jsonrpc": "2.0", "id": 1, "result": answer(body["params"]) if callable(answer)
                                         else answer})

    return httpx.MockTransport(handle)


def of_chain(settings: Settings, transport: httpx.MockTransport, *, runs: bool = True) -> list[Problem]:
    probe = Probe(transport=transport)
    try:
        return list(preflight.chain(settings, probe, now_s=NOW_S, runs=runs))
    finally:
        probe.close()


def one(found: list[Problem]) -> Problem:
    [problem] = found
    assert problem.mend
    return problem


@pytest.fixture
def locked(settings: Settings) -> Iterator[None]:
    """As while ``gateway serve`` runs on the folder."""
    settings.data_dir.mkdir()
    descriptor = os.open(settings.data_dir / "serve.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    yield
    os.close(descriptor)


def test_a_fresh_folder_has_nothing_wrong_but_perhaps_a_small_disk(settings: Settings) -> None:
    assert [problem.what for problem in preflight.problems(settings) if "are free" not in problem.what] == []
    assert not settings.data_dir.exists()  # a check makes nothing


def test_an_old_python_is_named() -> None:
    assert "3.10" in one(list(preflight.python((3, 10)))).what
    assert not list(preflight.python((3, 11)))


def test_more_workers_than_cores_bear_is_a_warning(settings: Settings) -> None:
    assert one(list(preflight.workers(replace(settings, workers=9), 2))).warning
    assert not list(preflight.workers(replace(settings, workers=4), 2))


def test_a_port_taken_by_another_program_is_wrong(settings: Settings) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", settings.port))
        other.listen()
        problem = one(list(preflight.port(settings, runs=False)))
        assert (problem.warning, str(settings.port) in problem.what) == (False, True)


def test_a_port_taken_by_this_gateway_is_a_warning(settings: Settings, locked: None) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", settings.port))
        other.listen()
        found = [problem for problem in preflight.problems(settings) if "runs on port" in problem.what]
        assert one(found).warning


@pytest.mark.parametrize(("base_url", "said"), [
    ("https://hospital.example/fhir", "everybody counts as one address"),
    ("http://hospital.example/fhir", "nobody can sign in"), ("http://192.0.2.1:8080/fhir", "nobody can sign in"),
    ("http://localhost:8080/fhir", None), ("http://127.0.0.1:8080/fhir", None), ("http://[::1]:8080/fhir", None)])
def test_how_people_come_to_the_doors_is_looked_at(settings: Settings, base_url: str, said: str | None) -> None:
    """Behind a proxy that is not named, a stranger's wrong passwords would make the whole hospital wait."""
    found = list(preflight.doors(replace(settings, base_url=base_url, trusted_proxies=())))
    assert [said in problem.what and problem.warning for problem in found if said] == [True] * bool(said)
    assert bool(found) is bool(said)
    named = (ipaddress.ip_network("127.0.0.1"),)
    assert not list(preflight.doors(replace(settings, base_url="https://hospital.example/fhir", trusted_proxies=named)))


@pytest.mark.parametrize(("host", "port"), [("192.0.2.1", 0), ("no such host", 0), ("127.0.0.1", 70_000)])
def test_an_address_that_cannot_be_listened_on_is_wrong(settings: Settings, host: str, port: int) -> None:
    assert not one(list(preflight.port(replace(settings, host=host, port=port), runs=False))).warning


def test_a_folder_that_cannot_be_written_is_wrong(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # the superuser of a build machine may write anywhere
    assert "cannot be written" in next(preflight.folders(settings)).what
    monkeypatch.undo()
    settings.data_dir.write_text("a file in its place")
    assert "not a folder" in next(preflight.folders(settings)).what


def test_another_users_folder_is_wrong(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.data_dir.mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: settings.data_dir.stat().st_uid + 1)
    assert "belongs to user" in one(list(preflight.folders(settings))).what


def test_a_keys_folder_others_may_enter_is_wrong(settings: Settings) -> None:
    settings.keys_dir.mkdir(parents=True, mode=0o700)
    assert not list(preflight.folders(settings))
    settings.keys_dir.chmod(0o755)
    assert one(list(preflight.folders(settings))).mend == f"chmod 700 {settings.keys_dir}"


def test_a_low_disk_warns_and_a_full_one_is_wrong(settings: Settings) -> None:
    assert not list(preflight.disk(settings, 10 << 30))
    assert one(list(preflight.disk(settings, 1 << 30))).warning
    assert not one(list(preflight.disk(settings, 10 << 20))).warning


@pytest.mark.parametrize("name", ["root.key", "keystore.db", "keystore.db-wal", "operator.key", "chain-accounts.json"])
def test_a_key_file_others_may_read_is_wrong(settings: Settings, name: str) -> None:
    settings.keys_dir.mkdir(parents=True, mode=0o700)
    file = settings.keys_dir / name
    file.write_bytes(bytes(32))
    file.chmod(0o640)
    problem = one(list(preflight.key_files(settings)))
    assert "0640" in problem.what
    assert f"chmod 600 {file}" in problem.mend
    file.chmod(0o600)
    assert not list(preflight.key_files(settings))


def test_a_link_in_place_of_a_key_file_and_another_users_are_wrong(
        settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.keys_dir.mkdir(parents=True, mode=0o700)
    file = settings.keys_dir / "root.key"
    file.symlink_to("/nowhere")
    assert "symbolic link" in one(list(preflight.key_files(settings))).what
    file.unlink()
    file.write_bytes(bytes(32))
    file.chmod(0o600)
    if os.geteuid() == 0:
        os.chown(file, 12_345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12_345)
    assert "belongs to user" in one(list(preflight.key_files(settings))).what


def test_a_database_without_its_root_key_or_key_store_is_wrong(settings: Settings) -> None:
    settings.database_path.parent.mkdir(parents=True)
    settings.database_path.touch()
    assert "root.key is missing" in one(list(preflight.root_key(settings))).what
    create_root(settings.root_key_path)
    problem = one(list(preflight.root_key(settings)))
    assert "keystore.db is missing" in problem.what
    assert "keys restore" in problem.mend
    KeyRing(settings.key_store_path, root_file(settings.root_key_path)).close()
    assert not list(preflight.root_key(settings))
    settings.root_key_path.unlink()
    create_root(settings.root_key_path)
    assert "does not open" in one(list(preflight.root_key(settings))).what


def test_a_clock_unset_stepped_or_behind_what_is_stored_is_wrong() -> None:
    assert not list(preflight.clock(NOW_S, None, 0.0))
    assert not list(preflight.clock(NOW_S, NOW_S - 3_600, 0.001))
    assert "1970" in one(list(preflight.clock(1_000.0, None, 0.0))).what
    assert "stepped" in one(list(preflight.clock(NOW_S, None, 5.0))).what
    assert "behind the newest stored version" in one(list(preflight.clock(NOW_S, NOW_S + 3_600, 0.0))).what
    assert one(list(preflight.clock(NOW_S, NOW_S - 2 * 365 * 86_400, 0.0))).warning


def test_the_newest_versions_time_is_read_from_the_store(settings: Settings) -> None:
    assert preflight.newest_version_s(settings) is None
    create_root(settings.root_key_path)
    ring = KeyRing(settings.key_store_path, root_file(settings.root_key_path))
    database = Database(settings.database_path, ring.secret("page"))
    database.migrate()
    assert preflight.newest_version_s(settings) is None
    database.transact(lambda tx: tx.execute(
        "INSERT INTO version (type,id,vid,deleted,updated_ms,others,client,confidentiality,labels,categories,keys,"
        "digest,commitment) VALUES ('Patient','1',1,0,1234500,0,'feed',0,0,'','','','')"))
    database.close()
    ring.close()
    assert preflight.newest_version_s(settings) == 1234.5
    ahead = int(time.time() + 86_400) * 1_000
    ring = KeyRing(settings.key_store_path, root_file(settings.root_key_path))
    database = Database(settings.database_path, ring.secret("page"))
    database.transact(lambda tx: tx.execute("UPDATE version SET updated_ms=?", (ahead,)))
    database.close()
    ring.close()
    assert any("behind the newest" in problem.what for problem in preflight.problems(settings))


def test_a_chain_in_order_is_silent(external: Settings) -> None:
    assert of_chain(external, answering()) == []


def test_an_unreachable_chain_is_wrong(external: Settings) -> None:
    def refuse(_: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    for handle in (refuse, lambda _: httpx.Response(200, text="<html>"), lambda _: httpx.Response(200, json=[]),
                   lambda _: httpx.Response(200, json={"result": {"no": "number"}})):
        assert "unreachable" in one(of_chain(external, httpx.MockTransport(handle))).what


def test_an_embedded_chain_is_only_looked_for_while_the_gateway_runs(settings: Settings) -> None:
    assert of_chain(settings, answering(), runs=False) == []
    assert one(of_chain(settings, answering())).warning
    settings.chain_path.mkdir(parents=True)
    settings.rpc_path.write_text(json.dumps({"rpc": "http://chain"}))
    idle = answering(eth_getBlockByNumber={"timestamp": hex(int(NOW_S) - 86_400)})
    assert of_chain(settings, idle) == []


def test_a_wrong_chain_id_is_wrong(external: Settings) -> None:
    assert "chain 8, not 7" in one(of_chain(external, answering(eth_chainId="0x8"))).what
    moved = replace(external, chain_id=8)
    assert "another chain" in one(of_chain(moved, answering(eth_chainId="0x8"))).mend


@pytest.mark.parametrize(("address", "name"), [
    (ANCHOR, "RecordAnchor"), (CONSENT, "ConsentRegistry"), (REGISTRY, "HospitalRegistry")])
def test_a_contract_without_code_is_wrong(external: Settings, address: str, name: str) -> None:
    code: Callable[[list[str]], str] = lambda params: "0x" if params[0] == address else "0x6001"  # noqa: E731
    assert f"no {name} at {address}" in one(of_chain(external, answering(eth_getCode=code))).what


def test_a_given_contracts_file_must_be_there_and_its_contracts_have_code(external: Settings, tmp_path: Path) -> None:
    external.deployment_path.unlink()
    given = replace(external, chain_contracts=str(tmp_path / "contracts.json"))
    assert "not there" in one(of_chain(given, answering())).what
    given.contracts_path.write_text(json.dumps({"chain_id": 7, "contracts": {"RecordAnchor": ANCHOR}}))
    assert of_chain(given, answering()) == []
    assert "no RecordAnchor" in one(of_chain(given, answering(eth_getCode="0x"))).what


def test_an_operator_without_balance_or_key_is_told(external: Settings) -> None:
    asked: list[str] = []

    def balance(params: list[str]) -> str:
        asked.append(params[0])
        return "0x0"

    assert f"send ether of this chain to {OPERATOR}" in one(of_chain(external, answering(eth_getBalance=balance))).mend
    assert asked == [OPERATOR]
    external.chain_operator_key_file.write_text("not a key")
    assert "64 hex digits" in one(of_chain(external, answering())).mend
    external.chain_operator_key_file.unlink()
    assert one(of_chain(external, answering())).warning


def test_the_clock_is_compared_with_the_chains_head(external: Settings) -> None:
    ahead = answering(eth_getBlockByNumber={"timestamp": hex(int(NOW_S) + 3_600)})
    assert "3600 s behind the chain" in one(of_chain(external, ahead)).what
    old = answering(eth_getBlockByNumber={"timestamp": hex(int(NOW_S) - 3_600)})
    assert one(of_chain(external, old)).warning


def test_a_damaged_deployment_file_is_told(external: Settings) -> None:
    for content in ("{", "[]"):
        external.deployment_path.write_text(content)
        assert "deployment.json" in one(of_chain(external, answering())).what


@pytest.mark.parametrize(("answer", "what"), [
    (httpx.Response(200, json={"Version": "0.19.1"}), "older than 0.20"), (httpx.Response(404), "no Kubo RPC"),
    (httpx.Response(200, json=["x"]), "no Kubo RPC"), (httpx.Response(200, text="<html>"), "unreachable")])
def test_a_kubo_unreachable_or_too_old_is_wrong(settings: Settings, answer: httpx.Response, what: str) -> None:
    configured = replace(settings, ipfs_api="/ip4/127.0.0.1/tcp/5001")
    probe = Probe(transport=httpx.MockTransport(lambda _: answer))
    assert what in one(list(preflight.kubo(configured, probe))).what


def test_a_kubo_in_order_or_not_configured_is_silent_and_an_exposed_one_is_wrong(settings: Settings) -> None:
    probe = Probe(transport=httpx.MockTransport(lambda _: httpx.Response(200, json={"Version": "0.35.0-rc1"})))
    assert not list(preflight.kubo(settings, probe))
    assert not list(preflight.kubo(replace(settings, ipfs_api="http://127.0.0.1:5001"), probe))
    assert "not loopback" in one(list(preflight.kubo(replace(settings, ipfs_api="http://10.0.0.1:5001"), probe))).what
