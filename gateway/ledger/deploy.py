"""Puts the three contracts on a chain once, and says on every start that they are what they should be.

Owns the contracts file: written and synced *before* anything is sent, with the addresses the deployer's nonces give, so
that a crash in the middle is taken up where it stopped and nothing is deployed twice. Refuses code that is not the
artifact's, contracts tied to another registry, and a file of another chain. The deployer is the first member and its
own operator.
Spec: https://ethereum.org/developers/docs/accounts/ (CREATE addresses), https://eips.ethereum.org/EIPS/eip-712
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from eth_typing import HexAddress, HexStr
from web3.types import Nonce
from web3.utils.address import get_create_address

from gateway.errors import ChainUnavailable, Misconfigured, TransactionRefused
from gateway.ledger.address import Address, address
from gateway.ledger.chain import Contracts
from gateway.ledger.contract_codec import NAMES, load_artifact
from gateway.ledger.ethereum import EthereumChain
from gateway.ledger.ethereum_node import EthereumNode
from gateway.ledger.events import ZERO_HASH
from gateway.ledger.keccak import keccak
from gateway.ledger.transactions import Fees

PUSH32: Final = 0x7F
WAIT_S: Final = 90.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """``first_nonce`` None: done, or deployed by somebody else."""

    chain_id: int
    contracts: Contracts
    deployer: Address | None
    first_nonce: int | None


def ensure_contracts(node: EthereumNode, file: Path, *, endpoint_digest: bytes = ZERO_HASH, may_deploy: bool = True,
                     wait_s: float = WAIT_S, sleep: Callable[[float], None] = time.sleep) -> Contracts:
    """The contracts named in ``file``, verified; deployed first where there is no file and ``may_deploy``.

    ``Misconfigured``: other chain, missing or foreign code, nothing to deploy with. ``ChainUnavailable``: not mined in
    ``wait_s`` (call again: it goes on).
    """
    plan = _read(file) if file.exists() else None
    if plan is not None and plan.chain_id != node.chain_id:
        raise Misconfigured(f"{file} is about chain {plan.chain_id}, the node is on {node.chain_id}: "
                            "point GATEWAY_CHAIN_RPC at that chain, or name another contracts file")
    if plan is None and not may_deploy:
        raise Misconfigured(f"the contracts file {file} is missing: get it from the network's members")
    if plan is None or plan.first_nonce is not None:
        plan = _deploy(node, file, plan, endpoint_digest, wait_s, sleep)
    verify_contracts(node, plan.contracts)
    return plan.contracts


def create_address(deployer: Address, nonce: int) -> Address:
    """Where CREATE puts the deployer's contract of that nonce."""
    return address(get_create_address(HexAddress(HexStr(deployer)), Nonce(nonce)))


# -- deploying --------------------------------------------------------------------------------------------------------


def _deploy(node: EthereumNode, file: Path, plan: Plan | None, endpoint_digest: bytes, wait_s: float,
            sleep: Callable[[float], None]) -> Plan:
    if plan is None or plan.deployer != node.operator or not _can_go_on(node, plan):
        plan = _fresh(node)
        _write(file, plan)
    assert plan.first_nonce is not None  # noqa: S101  # _fresh sets it, and done plans do not come here
    fees = node.fees()
    for position, (target, creation) in enumerate(_creations(plan.contracts, endpoint_digest)):
        if not node.code(target):
            _send(node, creation, plan.first_nonce + position, fees)
    deadline = time.monotonic() + wait_s
    while any(not node.code(target) for target in _addresses(plan.contracts)):
        if time.monotonic() > deadline:
            raise ChainUnavailable(f"the contracts were not mined in {wait_s:.0f} s: start again to go on waiting")
        sleep(0.1)
    done = Plan(chain_id=plan.chain_id, contracts=plan.contracts, deployer=plan.deployer, first_nonce=None)
    _write(file, done)
    return done


def _fresh(node: EthereumNode) -> Plan:
    first = node.nonce("pending")
    registry, anchor, consent = (create_address(node.operator, first + position) for position in range(len(NAMES)))
    contracts = Contracts(hospital_registry=registry, record_anchor=anchor, consent_registry=consent,
                          from_block=node.head().number)
    return Plan(chain_id=node.chain_id, contracts=contracts, deployer=node.operator, first_nonce=first)


def _can_go_on(node: EthereumNode, plan: Plan) -> bool:
    """Every nonce of the plan is either unspent or gave the contract it should."""
    assert plan.first_nonce is not None  # noqa: S101  # a done plan is never gone on with
    mined = node.nonce("latest")
    return all(plan.first_nonce + position >= mined or node.code(target)
               for position, target in enumerate(_addresses(plan.contracts)))


def _addresses(contracts: Contracts) -> tuple[Address, Address, Address]:
    """In the order of their nonces."""
    return contracts.hospital_registry, contracts.record_anchor, contracts.consent_registry


def _creations(contracts: Contracts, endpoint_digest: bytes) -> list[tuple[Address, bytes]]:
    registry = bytes(12) + bytes.fromhex(contracts.hospital_registry[2:])
    arguments = (endpoint_digest, registry, registry)
    return [(target, load_artifact(name).bytecode + argument)
            for target, name, argument in zip(_addresses(contracts), NAMES, arguments, strict=True)]


def _send(node: EthereumNode, creation: bytes, nonce: int, fees: Fees) -> None:
    # 200 gas per byte of code kept, 16 per byte sent, and room for the constructor.
    signed = node.sign(to=None, payload=creation, nonce=nonce, fees=fees, gas=400_000 + 230 * len(creation))
    try:
        node.broadcast(signed)
    except TransactionRefused as refused:
        if refused.reason == "insufficient-funds":
            raise Misconfigured(f"the operator {node.operator} cannot pay for the contracts: send it ether") \
                from refused
        if refused.reason not in ("underpriced", "nonce-too-low"):  # sent before, at another price: it is waited for
            raise


# -- verifying --------------------------------------------------------------------------------------------------------


def verify_contracts(node: EthereumNode, contracts: Contracts) -> None:
    """``Misconfigured`` unless each address runs its artifact's code, tied to this registry, chain and address."""
    for target, name in zip(_addresses(contracts), NAMES, strict=True):
        code = node.code(target)
        if not code:
            raise Misconfigured(f"there is no {name} at {target} on chain {node.chain_id}: wrong node or wrong file")
        if not is_code_of(code, load_artifact(name).bytecode):
            raise Misconfigured(f"the code at {target} is not this version's {name}")
    chain = EthereumChain(node, contracts)
    for name in ("RecordAnchor", "ConsentRegistry"):
        if chain.registry_of(name) != contracts.hospital_registry:
            raise Misconfigured(f"{name} is tied to another HospitalRegistry")
    if chain.consent_domain() != consent_domain(node.chain_id, contracts.consent_registry):
        raise Misconfigured("ConsentRegistry takes signatures of another domain")


def is_code_of(code: bytes, creation: bytes) -> bool:
    """Whether ``code`` is what ``creation`` leaves on the chain: its last bytes, up to the immutables, which are
    32-byte zeros behind a PUSH32 there."""
    template = creation[-len(code):]
    if not code or len(template) != len(code):
        return False
    at = 0
    while at < len(template):
        opcode = template[at]
        operand = opcode - 0x5F if 0x60 <= opcode <= PUSH32 else 0
        if code[at] != opcode:
            return False
        mine, theirs = template[at + 1:at + 1 + operand], code[at + 1:at + 1 + operand]
        if mine != theirs and not (opcode == PUSH32 and not any(mine)):
            return False
        at += 1 + operand
    return True


def consent_domain(chain_id: int, contract: Address) -> bytes:
    """EIP-712 domain separator of ("FHIR Gateway Consent", "1", chain id, contract)."""
    kind = keccak(b"EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)")
    return keccak(kind + keccak(b"FHIR Gateway Consent") + keccak(b"1") + chain_id.to_bytes(32, "big")
                  + bytes(12) + bytes.fromhex(contract[2:]))


# -- the file ---------------------------------------------------------------------------------------------------------


def _read(file: Path) -> Plan:
    try:
        loaded: dict[str, Any] = json.loads(file.read_bytes())
        named = loaded["contracts"]
        deploying = loaded.get("deploying") or {}
        return Plan(chain_id=int(loaded["chain_id"]),
                    contracts=Contracts(record_anchor=address(named["RecordAnchor"]),
                                        consent_registry=address(named["ConsentRegistry"]),
                                        hospital_registry=address(named["HospitalRegistry"]),
                                        from_block=int(loaded.get("from_block", 0))),
                    deployer=address(deploying["deployer"]) if deploying else None,
                    first_nonce=int(deploying["first_nonce"]) if deploying else None)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Misconfigured(f"{file} is not a contracts file") from error


def _write(file: Path, plan: Plan) -> None:
    """Whole or not at all, and on disk when this returns."""
    body: dict[str, Any] = {
        "chain_id": plan.chain_id, "from_block": plan.contracts.from_block,
        "contracts": {"RecordAnchor": plan.contracts.record_anchor, "ConsentRegistry": plan.contracts.consent_registry,
                      "HospitalRegistry": plan.contracts.hospital_registry}}
    if plan.first_nonce is not None:
        body["deploying"] = {"deployer": plan.deployer, "first_nonce": plan.first_nonce}
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f".{file.name}.new")
    try:
        with aside.open("w") as handle:
            json.dump(body, handle, indent=1)
            handle.flush()
            os.fsync(handle.fileno())
        aside.replace(file)
        folder = os.open(file.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        raise Misconfigured(f"the contracts file {file} cannot be written: {error.strerror}") from error
