"""Revoke at one hospital, denied at another: how long a revoke-all that a wallet signs at the first takes to be read
off the chain by the second.

Two gateways follow one chain. Each patient address is a wallet of its own that granted one record at the second
hospital; its end is signed and sent at the first, which knows nothing of the grant. Measured: from sending it to the
answer of the first, to the block that holds it (as its node shows it), and to the first refusal at the second. The
promise: one block and a second.
"""

from __future__ import annotations

import json
import random
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from eth_account import Account
from eth_account.messages import encode_typed_data

from gateway.ledger.address import address
from gateway.ledger.chain import Contracts
from gateway.ledger.contract_codec import ContractCodec
from gateway.ledger.devchain.accounts import load_accounts
from gateway.ledger.ethereum import EthereumChain
from gateway.ledger.ethereum_node import EthereumNode
from tests.bench.proposing import proposed
from tests.running import Gateway

REVOCATIONS = 60
GRANTEE = "Practitioner/bench-far"


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """The chain the first hospital is on, and the key of the member it is there as."""

    rpc: str
    chain_id: int
    contracts: Contracts
    member_key: bytes = field(repr=False)

    def chain(self) -> EthereumChain:
        return EthereumChain(EthereumNode(self.rpc, chain_id=self.chain_id, private_key=self.member_key),
                             self.contracts)


def deployment(first: Gateway, rpc: str, member_key: bytes) -> Deployment:
    told = first.status()["chain"]
    named = told["contracts"]
    return Deployment(rpc=rpc, chain_id=told["chain_id"], member_key=member_key, contracts=Contracts(
        record_anchor=address(named["RecordAnchor"]), consent_registry=address(named["ConsentRegistry"]),
        hospital_registry=address(named["HospitalRegistry"])))


def embedded(first: Gateway) -> tuple[Deployment, bytes]:
    """The embedded chain of a running gateway, and the key of its second account."""
    operator, reserve, *_ = load_accounts(first.data / "keys" / "chain-accounts.json")
    rpc = str(json.loads((first.data / "chain" / "rpc.json").read_text())["rpc"])
    return deployment(first, rpc, operator.private_key), reserve.private_key


def second(folder: Path, first: Gateway, on: Deployment, key: bytes, **settings: str) -> Gateway:
    """Another hospital on the same contracts, admitted by the first; not started yet."""
    _admit(on, address(Account.from_key(key).address))
    file = folder / "operator.key"
    folder.mkdir(parents=True, exist_ok=True)
    file.touch(mode=0o600)
    file.write_text(key.hex())
    return Gateway(folder, chain_rpc=on.rpc, chain_id=str(on.chain_id), chain_operator_key_file=str(file),
                   chain_contracts=str(first.data / "chain" / "contracts.json"), **settings)


def _admit(on: Deployment, member: str) -> None:
    """A registry of one member admits at once. Its gateway sends from the same account: what it overtakes is sent
    again."""
    chain, codec = on.chain(), ContractCodec(on.contracts)
    node = EthereumNode(on.rpc, chain_id=on.chain_id, private_key=on.member_key)
    to, payload = codec.question("HospitalRegistry", "proposeAdmission", member, b"\x01" * 32)
    deadline = time.monotonic() + 60
    while chain.member_of(address(member)) is None:
        if time.monotonic() > deadline:
            raise RuntimeError("the second hospital was not admitted")
        try:
            node.broadcast(node.sign(to=to, payload=payload, nonce=node.nonce("pending"), fees=node.fees(),
                                     gas=600_000))
        except Exception as error:  # whatever the node has against this nonce: another one
            print(f"sent again: {error}")
        time.sleep(2)
    node.close()
    chain.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Milliseconds after each revocation was sent, sorted; ``block_s``: the chain's blocks' distance meanwhile."""

    answered: list[float]
    block: list[float]
    denied: list[float]
    after_block: list[float]
    block_s: float


def propagation(first: Gateway, other: Gateway, on: Deployment, *, revocations: int = REVOCATIONS) -> Found:
    """Grant at ``other``, end at ``first``, one by one."""
    wallets = [Account.create() for _ in range(revocations)]
    with first.client("--ttl", "7200") as feed, other.client("--ttl", "7200") as far_feed:
        here, there = _patient(feed), _patient(far_feed)
        with first.client("--user", f"Patient/{here}", "--ttl", "7200") as own, other.client(
                "--user", f"Patient/{there}", "--ttl", "7200") as far, other.client(
                "--user", GRANTEE, "--ttl", "7200") as doctor:
            paths = [_granted(far_feed, far, there, wallet) for wallet in wallets]
            end = time.monotonic() + 120 + 2 * revocations
            while any(doctor.get(path).status_code != 200 for path in (paths[0], paths[-1])):
                if time.monotonic() > end:
                    raise RuntimeError("the grants did not become final")
                time.sleep(0.5)
            return _ended(on, own, here, doctor, list(zip(wallets, paths, strict=True)))


def _patient(feed: httpx.Client) -> str:
    made = feed.post("/Patient", json={"resourceType": "Patient"})
    made.raise_for_status()
    return str(made.json()["id"])


def _granted(feed: httpx.Client, own: httpx.Client, patient: str, wallet: Any) -> str:
    """A record's path, which this wallet permits to read."""
    path, consent = proposed(feed, own, patient, GRANTEE)
    typed = own.get(f"{consent}/$typed-data", params={"wallet": wallet.address}).json()
    own.post(f"{consent}/$sign", json=_signed(wallet, typed)).raise_for_status()
    return path


def _signed(wallet: Any, typed: dict[str, Any]) -> dict[str, Any]:
    signature = wallet.sign_message(encode_typed_data(full_message=typed)).signature.hex().removeprefix("0x")
    return {"resourceType": "Parameters", "parameter": [
        {"name": "wallet", "valueString": wallet.address}, {"name": "signature", "valueString": "0x" + signature}]}


class _Watch(threading.Thread):
    """Looks for the block in which an address's epoch ended."""

    def __init__(self, on: Deployment) -> None:
        super().__init__(daemon=True)
        self._chain = on.chain()
        self.patient: str = ""
        self.seen = threading.Event()
        self.at = 0.0

    def of(self, patient: str) -> None:
        self.seen.clear()
        self.patient = patient

    def run(self) -> None:
        while True:
            if self.patient and not self.seen.is_set() and self._chain.epoch(address(self.patient)) > 0:
                self.at = time.perf_counter()
                self.seen.set()
            time.sleep(0.01)


def _ended(on: Deployment, own: httpx.Client, patient: str, doctor: httpx.Client,
           granted: list[tuple[Any, str]]) -> Found:
    answered, block, denied, after = [], [], [], []
    watch, chain = _Watch(on), on.chain()
    watch.start()
    begun, first_block = time.monotonic(), chain.head().number
    for wallet, path in granted:
        if doctor.get(path).status_code != 200:
            raise RuntimeError("a granted record cannot be read")
        place = f"/Patient/{patient}/$revoke-all"
        typed = own.get(place, params={"wallet": wallet.address}).json()
        time.sleep(random.random())  # at any moment of a block and of the other's loop
        watch.of(wallet.address)
        started = time.perf_counter()
        own.post(place, json=_signed(wallet, typed)).raise_for_status()
        answered.append((time.perf_counter() - started) * 1000)
        while doctor.get(path).status_code == 200:
            if time.perf_counter() - started > 60:
                raise RuntimeError("the other hospital did not hear of a revocation")
            time.sleep(0.005)
        denied.append((time.perf_counter() - started) * 1000)
        watch.seen.wait(5)
        block.append((watch.at - started) * 1000)
        after.append(denied[-1] - block[-1])
    blocks = max(1, chain.head().number - first_block)
    chain.close()
    return Found(answered=sorted(answered), block=sorted(block), denied=sorted(denied), after_block=sorted(after),
                 block_s=(time.monotonic() - begun) / blocks)


def at(times: list[float], share: float) -> float:
    return times[min(len(times) - 1, int(len(times) * share))]


def table(found: Found, chain: str) -> str:
    """The figures in lines."""
    lines = [f"revoke at one hospital, denied at another, {len(found.denied)} revocations, {chain} (a block each "
             f"{found.block_s:.2f} s meanwhile), ms after it was sent:"]
    lines += [f"  {what:<25}p50 {at(times, 0.5):6.0f}  p99 {at(times, 0.99):6.0f}  worst {times[-1]:6.0f}"
              for what, times in (("answered there", found.answered), ("in a block", found.block),
                                  ("denied here", found.denied), ("denied after its block", found.after_block))]
    return "\n".join(lines)


def propagation_table(folder: Path) -> str:
    """Two hospitals of their own on the first one's embedded chain."""
    first = Gateway(folder / "one", log_level="warning", batch_interval_s="5", account_requests_per_s="0", workers="1")
    first.start()
    other: Gateway | None = None
    try:
        on, key = embedded(first)
        other = second(folder / "two", first, on, key, log_level="warning", batch_interval_s="5", workers="1",
                       account_requests_per_s="0")
        other.start()
        return table(propagation(first, other, on), "on the embedded chain")
    finally:
        if other is not None:
            other.stop()
        first.stop()


def main() -> None:
    """These figures alone."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="gateway-bench-") as folder:
        print(propagation_table(Path(folder)))


if __name__ == "__main__":
    main()
