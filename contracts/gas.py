"""What each external function of the contracts costs, measured on a London chain.

Owns the gas table of README.md: one row at least for every external function. `python contracts/gas.py` measures the
committed artifacts on py-evm and rewrites the table, `--check` exits 1 where it differs. Every figure is the gas a
whole transaction used, a view's too. Keys, nonces and signatures are fixed, so the figures are the same everywhere.

Spec: https://ethereum.github.io/yellowpaper/paper.pdf (appendix G), EIP-2028, EIP-2929, EIP-3529
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from eth.vm.forks import LondonVM
from eth_abi import encode
from eth_account import Account
from eth_tester import EthereumTester, PyEVMBackend
from web3 import EthereumTesterProvider, Web3

HOME = Path(__file__).resolve().parent
FAR = 4_000_000_000
P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
WALLET, CUSTODIAL, PASSKEY = 0, 1, 2
_BEGIN, _END = "<!-- gas -->", "<!-- /gas -->"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """``gas`` of a whole transaction; ``signature`` is the function's name and types, empty for a deployment."""

    contract: str
    signature: str
    case: str
    gas: int


def artifact(name: str) -> dict[str, Any]:
    """The committed artifact of a contract."""
    content: dict[str, Any] = json.loads((HOME / "artifacts" / f"{name}.json").read_text())
    return content


def functions(name: str) -> set[str]:
    """Signatures of every external function of a contract."""
    from eth_utils.abi import abi_to_signature

    return {abi_to_signature(entry) for entry in artifact(name)["abi"] if entry["type"] == "function"}


def digest_of(text: str) -> bytes:
    """32 bytes without a zero byte among them, which would be cheaper in calldata."""
    return bytes(byte or 1 for byte in hashlib.sha256(text.encode()).digest())


class Passkey:
    """A P-256 key that signs as an authenticator does, deterministically (RFC 6979)."""

    def __init__(self, seed: str) -> None:
        self._key = ec.derive_private_key(int.from_bytes(digest_of(seed), "big") % P256_ORDER, ec.SECP256R1())
        point = self._key.public_key().public_numbers()
        self.x, self.y = point.x.to_bytes(32, "big"), point.y.to_bytes(32, "big")
        self.address = Web3.to_checksum_address(Web3.keccak(self.x + self.y)[12:])

    def sign(self, digest: bytes) -> bytes:
        tail = ',"origin":"https://portal.example.org","crossOrigin":false}'
        challenge = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        client = '{"type":"webauthn.get","challenge":"' + challenge + '"' + tail
        data = hashlib.sha256(b"portal.example.org").digest() + b"\x05" + (1).to_bytes(4, "big")
        signed = self._key.sign(data + hashlib.sha256(client.encode()).digest(),
                                ec.ECDSA(hashes.SHA256(), deterministic_signing=True))
        r, s = decode_dss_signature(signed)
        parts = [self.x, self.y, r.to_bytes(32, "big"), min(s, P256_ORDER - s).to_bytes(32, "big"), data, tail]
        return encode(["bytes32"] * 4 + ["bytes", "string"], parts)


class Wallet:
    """A secp256k1 key."""

    def __init__(self, seed: str) -> None:
        self._account = Account.from_key(digest_of(seed))
        self.address: str = self._account.address

    def sign(self, digest: bytes) -> bytes:
        return bytes(self._account.unsafe_sign_hash(digest).signature)


class Bench:
    """The three contracts on a fresh London chain, and a row for every transaction sent."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        backend = PyEVMBackend(vm_configuration=((0, LondonVM),))
        self.web3 = Web3(EthereumTesterProvider(EthereumTester(backend=backend)))
        self.hospital, self.other, self.third, self.operator, *_ = self.web3.eth.accounts
        self.members = self.deploy("HospitalRegistry", digest_of("endpoint"))
        self.anchors = self.deploy("RecordAnchor", self.members.address)
        self.consents = self.deploy("ConsentRegistry", self.members.address)

    def deploy(self, name: str, *arguments: Any) -> Any:
        made = artifact(name)
        factory = self.web3.eth.contract(abi=made["abi"], bytecode=made["bytecode"])
        receipt = self._mined(factory.constructor(*arguments).transact({"from": self.hospital, "gas": 10_000_000}))
        self.rows.append(Row(contract=name, signature="", case="deploy", gas=receipt["gasUsed"]))
        return self.web3.eth.contract(address=receipt["contractAddress"], abi=made["abi"])

    def send(self, contract: Any, call: Any, case: str = "", *, sender: str | None = None) -> None:
        """Send, require success, note the gas."""
        transaction = {"from": sender or self.hospital, "to": contract.address, "gas": 3_000_000,
                       "data": call.build_transaction({"gas": 1, "from": self.hospital, "maxFeePerGas": 10**10,
                                                       "maxPriorityFeePerGas": 0, "nonce": 0, "chainId": 1})["data"]}
        receipt = self._mined(self.web3.eth.send_transaction(transaction))
        if receipt["status"] != 1:
            raise RuntimeError(f"{call.fn_name} ({case}) reverted")
        name = next(n for n, c in (("HospitalRegistry", self.members), ("RecordAnchor", self.anchors),
                                   ("ConsentRegistry", self.consents)) if c is contract)
        self.rows.append(Row(contract=name, signature=call.abi_element_identifier, case=case, gas=receipt["gasUsed"]))

    def _mined(self, transaction: Any) -> Any:
        return self.web3.eth.wait_for_transaction_receipt(transaction)

    def grant(self, signer: Wallet | Passkey, kind: int, number: int) -> tuple[tuple[Any, ...], bytes]:
        """A grant request and its signature."""
        request = (signer.address, digest_of("grantee"), digest_of(f"terms {number}"), 1_700_000_000, FAR, 0,
                   kind << 248 | number, FAR)
        return request, signer.sign(self.consents.functions.grantDigest(request).call())

    def revocation(self, signer: Wallet | Passkey, kind: int, number: int) -> tuple[tuple[Any, ...], bytes]:
        """A revocation of grant ``number`` and its signature."""
        request = (signer.address, digest_of("grantee"), digest_of(f"terms {number}"), kind << 248 | number + 1000, FAR)
        return request, signer.sign(self.consents.functions.revokeDigest(request).call())


def measure() -> list[Row]:
    """Every row of the table."""
    bench = Bench()
    _anchors(bench)
    _consents(bench)
    _members(bench)
    return bench.rows


def _anchors(bench: Bench) -> None:
    f, head = bench.anchors.functions, bytes(32)
    for number, case in enumerate(("first batch of a custodian", "every later batch")):
        root, manifest = digest_of(f"root {number}"), digest_of(f"manifest {number}")
        bench.send(bench.anchors, f.anchor(head, root, manifest, 3), case)
        head = f.head(bench.hospital).call()
    path = [digest_of(f"sibling {n}") for n in range(10)]
    bench.send(bench.anchors, f.head(bench.hospital))
    bench.send(bench.anchors, f.includes(digest_of("root"), digest_of("block"), digest_of("content"), path),
               "batch of 1,024")
    bench.send(bench.anchors, f.registry())


def _consents(bench: Bench) -> None:
    f = bench.consents.functions
    wallet, passkey, patient = Wallet("wallet"), Passkey("passkey"), bench.third
    for number, case in ((1, "wallet, first of a patient"), (2, "wallet, later")):
        bench.send(bench.consents, f.grantBySig(*bench.grant(wallet, WALLET, number)), case)
    kept = Wallet("kept")
    for number, case in ((1, "custodial, first of a patient"), (2, "custodial, later")):
        bench.send(bench.consents, f.grantBySig(*bench.grant(kept, CUSTODIAL, number)), case)
    for number, case in ((1, "passkey, first of a patient"), (2, "passkey, later")):
        bench.send(bench.consents, f.grantBySig(*bench.grant(passkey, PASSKEY, number)), case)
    batch = [bench.grant(wallet, WALLET, number) for number in range(10, 30)]
    bench.send(bench.consents, f.grantBatchBySig([r for r, _ in batch], [s for _, s in batch]), "20 of one patient")
    strangers = [bench.grant(Wallet(f"wallet {n}"), WALLET, 1) for n in range(20)]
    bench.send(bench.consents, f.grantBatchBySig([r for r, _ in strangers], [s for _, s in strangers]),
               "20 of 20 new patients")
    terms = digest_of("grantee"), digest_of("terms direct")
    bench.send(bench.consents, f.grant(*terms, 1_700_000_000, FAR), "first of a patient", sender=patient)
    request = bench.grant(wallet, WALLET, 1)[0]
    grant_id = f.grantIdOf(*request[:3]).call()
    bench.send(bench.consents, f["isGranted(bytes32)"](grant_id))
    bench.send(bench.consents, f["isGranted(address,bytes32,bytes32)"](*request[:3]))
    bench.send(bench.consents, f.revoke(*terms), sender=patient)
    bench.send(bench.consents, f.revokeBySig(*bench.revocation(wallet, WALLET, 1)), "wallet, first nonce of a word")
    bench.send(bench.consents, f.revokeBySig(*bench.revocation(wallet, WALLET, 2)), "wallet, later")
    bench.send(bench.consents, f.revokeBySig(*bench.revocation(passkey, PASSKEY, 1)), "passkey")
    ends = [bench.revocation(wallet, WALLET, number) for number in range(10, 30)]
    bench.send(bench.consents, f.revokeBatchBySig([r for r, _ in ends], [s for _, s in ends]), "20 of one patient")
    everything = (wallet.address, 0, 1100, FAR)
    signature = wallet.sign(f.revokeAllDigest(everything).call())
    bench.send(bench.consents, f.revokeAllBySig(everything, signature), "wallet")
    bench.send(bench.consents, f.revokeAll(), sender=patient)
    bench.send(bench.consents, f.cancelNonces(7, 2**256 - 1), "256 nonces", sender=patient)
    end = bench.revocation(wallet, WALLET, 3)[0]
    for call in (f.grantedCount(wallet.address), f.grantOf(grant_id), f.epochOf(wallet.address),
                 f.isNonceUsed(wallet.address, 1), f.grantIdOf(*request[:3]), f.grantDigest(request),
                 f.revokeDigest(end), f.revokeAllDigest(everything), f.domainSeparator(), f.eip712Domain(),
                 f.registry()):
        bench.send(bench.consents, call)


def _members(bench: Bench) -> None:
    f = bench.members.functions
    bench.send(bench.members, f.proposeAdmission(bench.other, digest_of("second")), "by the only member, admitted")
    bench.send(bench.members, f.proposeAdmission(bench.third, digest_of("third")), "by one of two, opened")
    bench.send(bench.members, f.vote(2, True), "deciding, admits", sender=bench.other)
    bench.send(bench.members, f.proposeSuccessor(b"RecordAnchor".ljust(32, b"\0"), bench.operator), "opened")
    bench.send(bench.members, f.vote(3, False), "not deciding", sender=bench.other)
    bench.send(bench.members, f.proposeRemoval(bench.third), "opened")
    bench.send(bench.members, f.addOperator(bench.operator))
    for call in (f.memberOf(bench.operator), f.isMember(bench.other), f.isOperator(bench.operator),
                 f.endpointOf(bench.other), f.members(), f.operatorsOf(bench.hospital), f.proposal(1),
                 f.proposalCount(), f.successorOf(b"RecordAnchor".ljust(32, b"\0"))):
        bench.send(bench.members, call)
    bench.send(bench.members, f.removeOperator(bench.operator))
    bench.send(bench.members, f.setEndpoint(digest_of("newer")))
    bench.send(bench.members, f.resign(), sender=bench.third)


def _lines(rows: list[Row]) -> Iterator[str]:
    yield "| function | case | gas |"
    yield "|---|---|--:|"
    for contract in ("RecordAnchor", "ConsentRegistry", "HospitalRegistry"):
        for row in (row for row in rows if row.contract == contract):
            name = f"{contract}.{row.signature.split('(')[0]}" if row.signature else contract
            each = f" ({row.gas // 20:,} each)" if row.case.startswith("20 ") else ""
            yield f"| `{name}` | {row.case} | {row.gas:,}{each} |"


def table(rows: list[Row]) -> str:
    """The table as README.md holds it."""
    return "\n".join(_lines(rows)) + "\n"


def committed_table() -> str:
    """The table README.md holds now."""
    return (HOME / "README.md").read_text().split(_BEGIN + "\n")[1].split(_END)[0]


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure the gas of the contracts")
    parser.add_argument("--check", action="store_true", help="only say whether the table is right")
    options = parser.parse_args()
    measured, held = table(measure()), committed_table()
    if options.check:
        if measured != held:
            print("contracts/README.md: the gas table is not what the artifacts cost: run python contracts/gas.py")
        return int(measured != held)
    readme = HOME / "README.md"
    readme.write_text(readme.read_text().replace(_BEGIN + "\n" + held, _BEGIN + "\n" + measured))
    print(measured, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
