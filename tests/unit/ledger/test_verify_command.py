"""``gateway verify``: every step printed, exit code 0, 1 or 2 (issue line 7)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.cli import main
from gateway.crypto.envelope import VersionHeader, seal
from gateway.ledger import merkle, verify_rpc
from gateway.ledger.batch import Entry, rolling_head
from gateway.ledger.keccak import keccak
from gateway.ledger.receipt import Receipt, to_json
from gateway.ledger.verify import ANCHORED, ChainBlock, ChainLog, ChainTransaction
from gateway.ledger.verify_command import run

STORED = b'{"resourceType":"Patient","id":"p1","meta":{"versionId":"3"},"multipleBirthInteger":1}'


def make() -> Receipt:
    header = VersionHeader(type="Patient", id="p1", version_id=3, time_ms=1, client="", user="", deleted=False)
    sealed = seal(bytes(range(32)), "hospital-a", header, STORED)
    entry = Entry(digest=sealed.digest, content_commitment=sealed.content_commitment, key_refs=bytes(8))
    tree = merkle.build([entry.leaf], bytes(32))
    manifest, prior = keccak(b"manifest"), keccak(b"prior")
    return Receipt(
        type="Patient", id="p1", version_id=3, content_salt=sealed.content_salt,
        content_commitment=sealed.content_commitment, block_digest=sealed.digest, path=tree.path(entry.leaf),
        root=tree.root, manifest_digest=manifest, size_class=0, prior_head=prior,
        head=rolling_head(prior, tree.root, manifest, 0), chain_id=1337, contract="0x" + "ab" * 20,
        custodian="0x" + "cd" * 20, transaction=keccak(b"tx"), block_number=7, block_hash=keccak(b"7"),
        block_time_s=1_763_000_000, confirmations=1)


RECEIPT = make()


class Node:
    """A node that holds the anchor, in place of the one behind ``--rpc``."""

    def __init__(self, url: str, *, timeout_s: float) -> None:
        assert url == "http://node"
        assert timeout_s <= 30

    def __enter__(self) -> Node:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def chain_id(self) -> int:
        return 1337

    def head_number(self) -> int:
        return 8

    def transaction(self, transaction_hash: bytes) -> ChainTransaction | None:
        data = b"".join((RECEIPT.root, RECEIPT.manifest_digest, bytes(32), RECEIPT.prior_head))
        log = ChainLog(address=RECEIPT.contract, data=data,
                       topics=(ANCHORED, bytes(12) + bytes.fromhex(RECEIPT.custodian[2:])))
        return ChainTransaction(succeeded=True, block_number=7, block_hash=RECEIPT.block_hash, logs=(log,))

    def block(self, number: int) -> ChainBlock | None:
        return ChainBlock(hash=RECEIPT.block_hash, time_s=RECEIPT.block_time_s, transactions=(RECEIPT.transaction,))


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    receipt, resource = tmp_path / "receipt.json", tmp_path / "patient.json"
    receipt.write_bytes(to_json(RECEIPT))
    resource.write_bytes(STORED)
    return receipt, resource


def test_offline_every_step_but_the_chains_is_checked_and_the_code_is_2(
        files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(files[0], resource=files[1], rpc=None, confirmations=1) == 2
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[2] for line in lines[:7]] == ["ok"] * 5 + ["unknown"] * 2
    assert lines[7].startswith("CONSISTENT, NOT TRUSTED YET: no chain asked")


def test_a_node_that_holds_the_anchor_makes_it_0(
        files: tuple[Path, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify_rpc, "RpcReceiptChain", Node)
    assert main(["verify", str(files[0]), "--resource", str(files[1]), "--rpc", "http://node"]) == 0
    shown = capsys.readouterr().out
    assert "VERIFIED" in shown
    assert f"contract {RECEIPT.contract}" in shown  # believed from the receipt: it says so
    trusted = ["--contract", RECEIPT.contract, "--custodian", RECEIPT.custodian]
    assert main(["verify", str(files[0]), "--rpc", "http://node", *trusted]) == 0
    assert "believed" not in capsys.readouterr().out


def test_too_few_confirmations_are_2_and_another_contract_is_1(
        files: tuple[Path, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify_rpc, "RpcReceiptChain", Node)
    assert main(["verify", str(files[0]), "--rpc", "http://node", "--confirmations", "3"]) == 2
    assert "2 of 3 confirmations" in capsys.readouterr().out
    assert main(["verify", str(files[0]), "--rpc", "http://node", "--contract", "0x" + "11" * 20]) == 1
    assert "FALSE: step 6 (anchored)" in capsys.readouterr().out


def test_a_node_that_does_not_answer_is_2_and_says_so(
        files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    for rpc in ("http://127.0.0.1:9", "not a url", "ftp://x"):
        assert run(files[0], resource=None, rpc=rpc, confirmations=1) == 2
        assert "the node does not answer" in capsys.readouterr().out.splitlines()[-1]


def test_other_bytes_are_1_and_the_step_is_named(
        files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    files[1].write_bytes(STORED + b"\n")
    assert run(files[0], resource=files[1], rpc=None, confirmations=1) == 1
    assert "FALSE: step 2 (content)" in capsys.readouterr().out


@pytest.mark.parametrize("content", [
    b"", b"{", b"\x00" * 100_000, b"[" * 10_000, b'{"\x1b[2J":1}', json.dumps({"format": "x"}).encode()])
def test_a_malformed_receipt_is_1_and_nothing_in_it_steers_the_terminal(
        tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "receipt").write_bytes(content)
    assert run(tmp_path / "receipt", resource=None, rpc=None, confirmations=1) == 1
    shown = capsys.readouterr().out
    assert "FALSE: step 1 (document)" in shown
    assert "\x1b" not in shown


def test_an_unreadable_file_is_1_never_consistent(
        tmp_path: Path, files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "none", resource=None, rpc=None, confirmations=1) == 1
    assert run(tmp_path, resource=None, rpc=None, confirmations=1) == 1
    assert run(files[0], resource=tmp_path / "none", rpc=None, confirmations=1) == 1
    assert "cannot be read" in capsys.readouterr().out


def test_wrong_usage_is_neither_false_nor_consistent() -> None:
    with pytest.raises(SystemExit) as ended:
        main(["verify"])
    assert ended.value.code == 64


def test_verify_loads_none_of_the_heavy_rooms() -> None:
    code = ("import sys, gateway.cli, gateway.ledger.verify_command; "
            "print([m for m in ('web3','fhir','starlette','fastapi','pydantic','httpx','gateway.app') "
            "if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.strip() == "[]"
