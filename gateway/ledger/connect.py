"""From settings to a chain that is ready: node reached, operator's key read, contracts deployed or verified.

Owns the start of the ledger process, and tells the other processes by ``deployment.py``; refuses another chain id than
expected, and an operator who acts for no member.
"""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from typing import Final

from gateway.config import Settings
from gateway.crypto.root import write_once
from gateway.errors import ChainUnavailable, Misconfigured
from gateway.ledger.deploy import ensure_contracts
from gateway.ledger.deployment import Deployment, write_deployment
from gateway.ledger.devchain.accounts import load_accounts
from gateway.ledger.ethereum import EthereumChain
from gateway.ledger.ethereum_node import EthereumNode, number
from gateway.ledger.ethereum_rpc import JsonRpc, RpcFault

LOG = logging.getLogger(__name__)
_TOLD_S: Final = 30.0
"""How often it is said that the chain does not answer."""
CHAIN_ACCOUNTS = "chain-accounts.json"
_KEY = re.compile(r"(?:0x)?([0-9a-fA-F]{64})\s*")


def connect_chain(settings: Settings, stop: threading.Event) -> EthereumChain | None:
    """The chain, once it answers and the contracts are there; None when stopped before.

    Raises Misconfigured.
    """
    answered = _wait_for_chain(settings, stop)
    if answered is None:
        return None
    url, chain_id = answered
    node = EthereumNode(url, chain_id=settings.chain_id or chain_id, private_key=_operator_key(settings))
    try:
        contracts = ensure_contracts(node, settings.contracts_path, may_deploy=not settings.chain_contracts,
                                     sleep=lambda seconds: _pause(stop, seconds))
    except _Stopped:
        return None
    chain = EthereumChain(node, contracts)
    custodian = chain.member_of()
    if custodian is None:
        raise Misconfigured(f"the operator {chain.operator} acts for no member of HospitalRegistry "
                            f"{contracts.hospital_registry}: a member adds it with addOperator")
    write_deployment(settings, Deployment(
        chain_id=chain.chain_id, custodian=custodian, record_anchor=contracts.record_anchor,
        consent_registry=contracts.consent_registry, hospital_registry=contracts.hospital_registry))
    return chain


def rpc_url(settings: Settings) -> str:
    """Where the chain answers: the setting, or what the supervisor chose for the embedded one."""
    if settings.chain_rpc:
        return settings.chain_rpc
    try:
        return str(json.loads(settings.rpc_path.read_text())["rpc"])
    except (OSError, ValueError, KeyError) as error:
        raise Misconfigured("the embedded chain was never started here: run `gateway serve` first") from error


class _Stopped(Exception):
    """Told to stop while waiting for a block."""


def _pause(stop: threading.Event, seconds: float) -> None:
    if stop.wait(seconds):
        raise _Stopped


def _wait_for_chain(settings: Settings, stop: threading.Event) -> tuple[str, int] | None:
    wait_s, told_s = 0.05, time.monotonic() - _TOLD_S / 2  # an embedded node that is just starting is no news
    while not stop.is_set():
        url = rpc_url(settings)
        rpc = JsonRpc(url, timeout_s=3)
        try:
            return url, number(rpc.call("eth_chainId"))
        except (ChainUnavailable, RpcFault) as error:
            if time.monotonic() - told_s >= _TOLD_S or (settings.chain_rpc and wait_s == 0.05):
                told_s = time.monotonic()
                LOG.warning("the chain does not answer, will retry", extra={"reason": str(error)})
        finally:
            rpc.close()
        stop.wait(wait_s)
        wait_s = min(2.0, wait_s * 1.5)
    return None


def _operator_key(settings: Settings) -> bytes:
    if not settings.chain_rpc:
        return load_accounts(settings.keys_dir / CHAIN_ACCOUNTS)[0].private_key
    path = settings.chain_operator_key_file
    if not path.exists():
        from eth_account import Account

        created = Account.create()
        settings.keys_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_once(path, bytes(created.key).hex().encode())
        raise Misconfigured(f"an operator key was made at {path}: send ether to {created.address} and start again")
    if path.stat().st_mode & 0o077:
        raise Misconfigured(f"{path} holds a private key and others may read it: chmod 600 {path}")
    # Any file may be named: what is no text is no key either.
    try:
        match = _KEY.fullmatch(path.read_bytes().decode("latin-1"))
    except OSError as error:
        raise Misconfigured(f"{path} cannot be read ({error.strerror})") from error
    if match is None:
        raise Misconfigured(f"{path} must hold 64 hex digits")
    return bytes.fromhex(match[1])

