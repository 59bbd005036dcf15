"""A passkey's assertion becomes the bytes the contract takes, or is refused. WebAuthn 2 section 7.2, Solidity's ABI."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from eth_abi import encode
from eth_utils.crypto import keccak
from hypothesis import given
from hypothesis import strategies as st

from gateway.access.passkey import Assertion, PublicKey, RelyingParty, challenge_text, checked
from gateway.errors import Unprocessable

ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
KEY = ec.derive_private_key(7, ec.SECP256R1())
POINT = KEY.public_key().public_numbers()
PUBLIC = PublicKey(x=POINT.x.to_bytes(32, "big"), y=POINT.y.to_bytes(32, "big"))
PARTY = RelyingParty(id="portal.example", origins=("https://portal.example",))
DIGEST = bytes(range(32))


def asserted(client: bytes, *, authenticator: bytes | None = None, high_s: bool = False) -> Assertion:
    if authenticator is None:
        authenticator = sha256(b"portal.example").digest() + b"\x05" + bytes(4)
    r, s = decode_dss_signature(KEY.sign(authenticator + sha256(client).digest(), ec.ECDSA(hashes.SHA256())))
    if high_s != (s > ORDER // 2):
        s = ORDER - s
    return Assertion(authenticator_data=authenticator, client_data=client, signature=encode_dss_signature(r, s))


def client_data(**told: Any) -> bytes:
    said = {"type": "webauthn.get", "challenge": challenge_text(DIGEST), "origin": "https://portal.example", **told}
    return json.dumps(said, separators=(",", ":")).encode()


@given(extra=st.binary(max_size=80), more=st.dictionaries(st.text(max_size=8), st.text(max_size=40), max_size=3),
       high_s=st.booleans())
def test_what_is_accepted_is_encoded_as_solidity_does(extra: bytes, more: dict[str, str], high_s: bool) -> None:
    more = {name: value for name, value in more.items()
            if name not in ("type", "challenge", "origin", "crossOrigin")}
    client = client_data(**more)
    authenticator = sha256(b"portal.example").digest() + b"\x05" + bytes(4) + extra
    assertion = asserted(client, authenticator=authenticator, high_s=high_s)
    encoded = checked(assertion, key=PUBLIC, digest=DIGEST, party=PARTY)
    r, s = decode_dss_signature(assertion.signature)
    tail = client[client.index(challenge_text(DIGEST).encode()) + len(challenge_text(DIGEST)) + 1:]
    assert encoded == encode(
        ["bytes32", "bytes32", "bytes32", "bytes32", "bytes", "string"],
        [PUBLIC.x, PUBLIC.y, r.to_bytes(32, "big"), min(s, ORDER - s).to_bytes(32, "big"), authenticator,
         tail.decode()])


def test_the_account_is_that_of_the_public_key() -> None:
    assert PUBLIC.account == "0x" + keccak(PUBLIC.x + PUBLIC.y)[12:].hex()


@pytest.mark.parametrize("client", [
    client_data(type="webauthn.create"), client_data(challenge=challenge_text(bytes(32))),
    client_data(origin="https://evil.example"), client_data(origin="https://portal.example.evil.example"),
    client_data(crossOrigin=True), client_data(origin=None), b"", b"[]",
    client_data()[:-1] + b',"challenge":"AAAA"}', client_data()[:-1] + b',"type":"webauthn.create"}',
    client_data()[:-1] + b',"origin":"https://evil.example"}', client_data().replace(b'":"', b'": "'),
    b'{"challenge":"' + challenge_text(DIGEST).encode() + b'","type":"webauthn.get"}', client_data() + b"x" * 5000])
def test_other_client_data_is_refused(client: bytes) -> None:
    with pytest.raises(Unprocessable):
        checked(asserted(client), key=PUBLIC, digest=DIGEST, party=PARTY)


@pytest.mark.parametrize("authenticator", [
    sha256(b"other.example").digest() + b"\x05" + bytes(4), sha256(b"portal.example").digest() + b"\x01" + bytes(4),
    sha256(b"portal.example").digest() + b"\x04" + bytes(4), sha256(b"portal.example").digest() + b"\x05" + bytes(3),
    b"", sha256(b"portal.example").digest() + b"\x05" + bytes(5000)])
def test_other_authenticator_data_is_refused(authenticator: bytes) -> None:
    with pytest.raises(Unprocessable):
        checked(asserted(client_data(), authenticator=authenticator), key=PUBLIC, digest=DIGEST, party=PARTY)


def test_another_keys_or_a_changed_signature_is_refused() -> None:
    good = asserted(client_data())
    other = ec.derive_private_key(8, ec.SECP256R1()).public_key().public_numbers()
    with pytest.raises(Unprocessable):
        checked(good, key=PublicKey(x=other.x.to_bytes(32, "big"), y=other.y.to_bytes(32, "big")), digest=DIGEST,
                party=PARTY)
    off = PublicKey(x=PUBLIC.x, y=((POINT.y + 1) % 2**256).to_bytes(32, "big"))
    for key, signature in ((off, good.signature), (PUBLIC, good.signature[:-1] + bytes([good.signature[-1] ^ 1])),
                           (PUBLIC, b""), (PUBLIC, b"\x30\x06\x02\x01\x00\x02\x01\x00")):
        with pytest.raises(Unprocessable):
            checked(Assertion(authenticator_data=good.authenticator_data, client_data=good.client_data,
                              signature=signature), key=key, digest=DIGEST, party=PARTY)
