"""``deployment.json``: read by every process as the ledger process wrote it."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from gateway.config import load_settings
from gateway.errors import Misconfigured
from gateway.ledger.deployment import Deployment, deployment_if_any, read_deployment, write_deployment

DEPLOYED = Deployment(chain_id=7, custodian="0x" + "11" * 20, record_anchor="0x" + "a1" * 20,
                      consent_registry="0x" + "c1" * 20, hospital_registry="0x" + "d1" * 20)


def test_it_is_written_where_the_contracts_file_is_another_members(tmp_path: Path) -> None:
    """A second hospital's: nothing of its own chain folder is there yet."""
    settings = load_settings({"GATEWAY_DATA_DIR": str(tmp_path / "data"), "GATEWAY_CHAIN_RPC": "http://127.0.0.1:1",
                              "GATEWAY_CHAIN_ID": "7", "GATEWAY_CHAIN_CONTRACTS": str(tmp_path / "contracts.json")})
    with pytest.raises(Misconfigured):
        read_deployment(settings)
    assert deployment_if_any(settings) is None
    write_deployment(settings, DEPLOYED)
    assert read_deployment(settings) == deployment_if_any(settings) == DEPLOYED


def test_a_start_for_another_member_than_everything_is_sealed_for_is_refused(tmp_path: Path) -> None:
    """The custodian's address is in the AAD of every Envelope: under another one nothing here opens (invariant 1)."""
    settings = load_settings({"GATEWAY_DATA_DIR": str(tmp_path)})
    write_deployment(settings, DEPLOYED)
    other = replace(DEPLOYED, custodian="0x" + "22" * 20)
    with pytest.raises(Misconfigured, match=DEPLOYED.custodian):
        write_deployment(settings, other)
    assert read_deployment(settings) == DEPLOYED
    moved = replace(DEPLOYED, chain_id=8, record_anchor="0x" + "a2" * 20)
    write_deployment(settings, moved)
    assert read_deployment(settings) == moved, "the same member on another chain"
    settings.deployment_path.write_text("{")
    write_deployment(settings, other)
    assert read_deployment(settings) == other, "a damaged file says nothing"


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"chain_id":7}', json.dumps(
    {**asdict(DEPLOYED), "chain_id": "7"}), json.dumps({**asdict(DEPLOYED), "custodian": None})])
def test_what_lacks_something_is_no_deployment(tmp_path: Path, content: str) -> None:
    settings = load_settings({"GATEWAY_DATA_DIR": str(tmp_path)})
    write_deployment(settings, DEPLOYED)
    settings.deployment_path.write_text(content)
    for read in (read_deployment, deployment_if_any):
        with pytest.raises(Misconfigured, match=r"deployment\.json cannot be read"):
            read(settings)
