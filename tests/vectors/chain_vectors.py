"""Vectors for what both the gateway and the contracts compute: leaf, proof, signed messages.

Owns `leaf.json`, `proof.json` and `consent_messages.json`, read by pytest and by `contracts/test/Vectors.t.sol`. They
are made here from eth-abi, eth-account and cryptography alone, so neither side is its own witness; refuses to import
either. `python tests/vectors/chain_vectors.py` writes them; signatures are deterministic (RFC 6979).

Spec: https://eips.ethereum.org/EIPS/eip-712, https://www.w3.org/TR/webauthn-2/#sctn-verifying-assertion
"""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import rlp
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from eth_abi import encode
from eth_account import Account
from eth_account.messages import encode_typed_data
from eth_utils import keccak, to_checksum_address

HERE = Path(__file__).resolve().parent

DEPLOYER = "0xD0D0D0D0D0D0D0D0D0D0D0D0D0D0D0D0D0D0D0D0"
"""The Solidity test deploys as this account: the member registry first, the consent registry second."""
CHAIN_ID = 20_213
P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551

TAG = keccak(text="fhir-gateway entry 1")

TYPES: dict[str, list[dict[str, str]]] = {
    "EIP712Domain": [
        {"name": "name", "type": "string"}, {"name": "version", "type": "string"},
        {"name": "chainId", "type": "uint256"}, {"name": "verifyingContract", "type": "address"},
    ],
    "Terms": [
        *({"name": name, "type": "string"}
          for name in ("statement", "hospital", "grantee", "purposes", "records", "period")),
        {"name": "salt", "type": "bytes32"},
    ],
    "Grant": [
        {"name": "patient", "type": "address"}, {"name": "grantee", "type": "bytes32"},
        {"name": "terms", "type": "Terms"}, {"name": "validFrom", "type": "uint64"},
        {"name": "validUntil", "type": "uint64"}, {"name": "epoch", "type": "uint64"},
        {"name": "nonce", "type": "uint256"}, {"name": "deadline", "type": "uint64"},
    ],
    "Revoke": [
        {"name": "patient", "type": "address"}, {"name": "grantId", "type": "bytes32"},
        {"name": "nonce", "type": "uint256"}, {"name": "deadline", "type": "uint64"},
    ],
    "RevokeAll": [
        {"name": "patient", "type": "address"}, {"name": "epoch", "type": "uint64"},
        {"name": "nonce", "type": "uint256"}, {"name": "deadline", "type": "uint64"},
    ],
}


def _hex(value: bytes) -> str:
    return "0x" + value.hex()


def _seeded(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _leaf(block_digest: bytes, commitment: bytes) -> bytes:
    return keccak(keccak(encode(["bytes32"] * 3, [TAG, block_digest, commitment])))


def leaf_vectors() -> dict[str, Any]:
    """Leaves of a few entries, the extreme ones among them."""
    pairs = [(bytes(32), bytes(32)), (b"\xff" * 32, b"\xff" * 32), (bytes(32), b"\x01" + bytes(31))]
    pairs += [(_seeded(f"block {n}"), _seeded(f"commitment {n}")) for n in range(4)]
    return {
        "tag": _hex(TAG),
        "cases": [{"blockDigest": _hex(b), "contentCommitment": _hex(c), "leaf": _hex(_leaf(b, c))} for b, c in pairs],
    }


def _levels(leaves: list[bytes]) -> list[list[bytes]]:
    levels = [leaves]
    while len(levels[-1]) > 1:
        level = levels[-1]
        levels.append([keccak(min(a, b) + max(a, b)) for a, b in zip(level[::2], level[1::2], strict=True)])
    return levels


def proof_vectors() -> dict[str, Any]:
    """Whole trees of one and of two size classes. The padding leaves are given, however they were chosen."""
    trees = []
    for name, capacity, entries in (("16 full", 16, 16), ("16 with 5", 16, 5), ("64 with 17", 64, 17)):
        pairs = [(_seeded(f"{name} block {n}"), _seeded(f"{name} commitment {n}")) for n in range(entries)]
        leaves = [_leaf(*pair) for pair in pairs]
        leaves += [_seeded(f"{name} padding {n}") for n in range(entries, capacity)]
        levels = _levels(leaves)
        proofs = [
            {"index": n, "blockDigest": _hex(pairs[n][0]), "contentCommitment": _hex(pairs[n][1]),
             "leaf": _hex(leaves[n]),
             "path": [_hex(level[(n >> depth) ^ 1]) for depth, level in enumerate(levels[:-1])]}
            for n in sorted({0, entries // 2, entries - 1})
        ]
        trees.append({"name": name, "sizeClass": {16: 0, 64: 1}[capacity], "root": _hex(levels[-1][0]),
                      "leaves": [_hex(leaf) for leaf in leaves], "proofs": proofs})
    return {"trees": trees}


def _created(deployer: str, nonce: int) -> str:
    return to_checksum_address(keccak(rlp.encode([bytes.fromhex(deployer[2:]), nonce]))[12:])


def _hash_struct(primary: str, message: dict[str, Any]) -> bytes:
    signable = encode_typed_data(full_message=_typed(primary, message, terms_only=True))
    return bytes(signable.body)


def _typed(primary: str, message: dict[str, Any], *, terms_only: bool = False) -> dict[str, Any]:
    wanted = {"Terms"} if terms_only else {primary, "Terms"} if primary == "Grant" else {primary}
    return {
        "domain": {"name": "FHIR Gateway Consent", "version": "1", "chainId": CHAIN_ID,
                   "verifyingContract": _created(DEPLOYER, 1)},
        "types": {name: fields for name, fields in TYPES.items() if name in wanted | {"EIP712Domain"}},
        "primaryType": primary,
        "message": message,
    }


def _digest(typed: dict[str, Any]) -> bytes:
    signable = encode_typed_data(full_message=typed)
    return keccak(b"\x19\x01" + signable.header + signable.body)


def _wallet(seed: str) -> Any:  # Any: eth-account's LocalAccount is untyped here
    return Account.from_key(_seeded(seed))


TERMS = {
    "statement": "I allow the named doctor to read these records for my treatment.",
    "hospital": "Demonstration Hospital",
    "grantee": "Dr. Bosco, Cardiology",
    "purposes": "TREAT",
    "records": "Observation, MedicationStatement; label N",
    "period": "2026-11-21 to 2027-11-21",
    "salt": _hex(_seeded("salt 1")),
}
BANGLA = {**TERMS, "statement": "আমি আমার চিকিৎসার জন্য অনুমতি দিচ্ছি।", "period": "", "salt": _hex(_seeded("salt 2"))}
FAR = 4_000_000_000


def _grant(patient: str, terms: dict[str, str], nonce: int, until: int) -> dict[str, Any]:
    return {"patient": patient, "grantee": _hex(_seeded("grantee")), "terms": terms, "validFrom": 1_700_000_000,
            "validUntil": until, "epoch": 0, "nonce": nonce, "deadline": FAR}


def message_vectors() -> dict[str, Any]:
    """Every message as eth_signTypedData_v4 takes it, what the contract takes, digest and signature."""
    wallet, kept = _wallet("wallet"), _wallet("custodial")
    cases = [
        _case("grant by wallet", "Grant", _grant(wallet.address, TERMS, 7, FAR), wallet),
        _case("grant without end by custodial key", "Grant", _grant(kept.address, BANGLA, (1 << 248) | 1, 2**40 - 1),
              kept),
        _case("grant attested, largest nonce", "Grant",
              _grant(kept.address, TERMS, (3 << 248) | (2**248 - 1), 2**64 - 1), kept),
    ]
    grant_id = cases[0]["grantId"]
    cases += [
        _case("revoke by wallet", "Revoke",
              {"patient": wallet.address, "grantId": grant_id, "nonce": 8, "deadline": FAR}, wallet),
        _case("revoke all by wallet", "RevokeAll",
              {"patient": wallet.address, "epoch": 0, "nonce": 9, "deadline": FAR}, wallet),
    ]
    return {"deployer": DEPLOYER, "chainId": CHAIN_ID, "domainSeparator": cases[0]["domainSeparator"], "cases": cases,
            "passkey": _passkey_case()}


def _described(name: str, primary: str, message: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    typed = _typed(primary, message)
    signable = encode_typed_data(full_message=typed)
    digest = _digest(typed)
    case = {"name": name, "typedData": _json_safe(typed), "domainSeparator": _hex(signable.header),
            "structHash": _hex(signable.body), "digest": _hex(digest)}
    if primary == "Grant":
        terms_hash = _hash_struct("Terms", message["terms"])
        grantee = bytes.fromhex(message["grantee"][2:])
        case["termsHash"] = _hex(terms_hash)
        case["grantId"] = _hex(keccak(encode(["address", "bytes32", "bytes32"],
                                             [message["patient"], grantee, terms_hash])))
    return case, digest


def _case(name: str, primary: str, message: dict[str, Any], account: Any) -> dict[str, Any]:
    case, digest = _described(name, primary, message)
    return {**case, "signer": account.address, "signature": _hex(account.unsafe_sign_hash(digest).signature)}


def _json_safe(typed: dict[str, Any]) -> dict[str, Any]:
    """Integers a JavaScript number cannot hold become decimal strings, which wallets take."""
    message = {k: str(v) if isinstance(v, int) and v >= 2**53 else v for k, v in typed["message"].items()}
    return {**typed, "message": message}


def _passkey_case() -> dict[str, Any]:
    key = ec.derive_private_key(int.from_bytes(_seeded("passkey")) % P256_ORDER, ec.SECP256R1())
    point = key.public_key().public_numbers()
    x, y = point.x.to_bytes(32), point.y.to_bytes(32)
    patient = to_checksum_address(keccak(x + y)[12:])
    case, digest = _described("grant by passkey", "Grant", _grant(patient, TERMS, (2 << 248) | 5, FAR))
    challenge = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
    tail = ',"origin":"https://portal.example.org","crossOrigin":false}'
    client_data = '{"type":"webauthn.get","challenge":"' + challenge + '"' + tail
    authenticator_data = hashlib.sha256(b"portal.example.org").digest() + b"\x05" + (3).to_bytes(4)
    signed = authenticator_data + hashlib.sha256(client_data.encode()).digest()
    r, s = decode_dss_signature(key.sign(signed, ec.ECDSA(hashes.SHA256(), deterministic_signing=True)))
    low_s = min(s, P256_ORDER - s)
    parts = [x, y, r.to_bytes(32), low_s.to_bytes(32), authenticator_data, tail]
    return {**case, "signer": patient, "x": _hex(x), "y": _hex(y), "clientDataJSON": client_data,
            "clientDataTail": tail, "authenticatorData": _hex(authenticator_data),
            "r": _hex(parts[2]), "s": _hex(parts[3]),
            "signature": _hex(encode(["bytes32", "bytes32", "bytes32", "bytes32", "bytes", "string"], parts))}


def all_vectors() -> dict[str, dict[str, Any]]:
    """Content by file name."""
    return {"leaf.json": leaf_vectors(), "proof.json": proof_vectors(), "consent_messages.json": message_vectors()}


def render(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for file_name, content in all_vectors().items():
        (HERE / file_name).write_text(render(content), encoding="utf-8")
