"""Gas of anchoring, measured on the EVM with the committed contracts."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from tests.running import REPOSITORY

SIZES = (1, 16, 64, 256, 1024)
_CLASSES = (16, 64, 256, 1024, 4096)


def _artifact(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(REPOSITORY) / "contracts" / "artifacts" / f"{name}.json").read_text())
    return found


def gas_table() -> dict[int, int]:
    """Gas of the second and later anchor of a custodian, by number of records in the batch."""
    from eth_tester import EthereumTester, PyEVMBackend
    from web3 import EthereumTesterProvider, Web3

    web3 = Web3(EthereumTesterProvider(EthereumTester(PyEVMBackend())))
    sender = web3.eth.accounts[0]

    def deploy(name: str, *arguments: object) -> Any:
        artifact = _artifact(name)
        factory = web3.eth.contract(abi=artifact["abi"], bytecode=artifact["bytecode"])
        receipt = web3.eth.wait_for_transaction_receipt(factory.constructor(*arguments).transact({"from": sender}))
        return web3.eth.contract(address=receipt["contractAddress"], abi=artifact["abi"])

    registry = deploy("HospitalRegistry", bytes(32))
    anchor = deploy("RecordAnchor", registry.address)
    head, found = bytes(32), {}
    for size in (1, *SIZES):
        klass = next(place for place, most in enumerate(_CLASSES) if size <= most)
        receipt = web3.eth.wait_for_transaction_receipt(
            anchor.functions.anchor(head, os.urandom(32), os.urandom(32), klass).transact({"from": sender}))
        found[size] = int(receipt["gasUsed"])
        head = anchor.functions.head(sender).call()
    return found
