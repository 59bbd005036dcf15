"""EIP-4361: the grammar to the letter, and what must hold of a message."""

from __future__ import annotations

import pytest
from eth_account import Account
from eth_account.messages import encode_defunct
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import Unprocessable
from gateway.smart.wallet_sign_in import check_message, check_signature, message_text, parse_message

ORIGIN, PATH, NOW_MS = "https://hospital.example", "/portal/sign-in", 1_700_000_000_000
ADDRESS = "0xC02aaA39b223FE8D0A0e5C4F27eAD9083C756Cc2"
TEXT = message_text(origin=ORIGIN, path=PATH, address=ADDRESS, statement="Sign in.", chain_id=77, nonce="a1b2c3d4e5",
                    now_ms=NOW_MS)


def checked(text: str, *, now_ms: int = NOW_MS, chain_id: int = 77) -> None:
    check_message(parse_message(text), origin=ORIGIN, path=PATH, chain_id=chain_id, now_ms=now_ms)


def test_the_specifications_own_examples_are_read() -> None:
    """EIP-4361, "Examples": with every field, and with none of the optional ones."""
    full = parse_message(
        "example.com wants you to sign in with your Ethereum account:\n"
        f"{ADDRESS}\n\n"
        "I accept the ExampleOrg Terms of Service: https://example.com/tos\n\n"
        "URI: https://example.com/login\nVersion: 1\nChain ID: 1\nNonce: 32891756\nIssued At: 2021-09-30T16:25:24Z\n"
        "Resources:\n- ipfs://bafybeiemxf5abjwjbikoz4mc3a3dla6ual3jsgpdr4cjr3oz3evfyavhwq/\n"
        "- https://example.com/my-web2-claim.json")
    assert (full.domain, full.address, full.chain_id, full.nonce) == ("example.com", ADDRESS, 1, "32891756")
    assert full.resources
    plain = parse_message(
        f"https://example.com:3388 wants you to sign in with your Ethereum account:\n{ADDRESS}\n\n\n"
        "URI: https://example.com/login\nVersion: 1\nChain ID: 1\nNonce: 32891756\nIssued At: 2021-09-30T16:25:24.123Z")
    assert (plain.scheme, plain.domain, plain.statement) == ("https", "example.com:3388", None)
    assert plain.issued_ms == 1_633_019_124_123


def test_our_own_message_is_taken() -> None:
    checked(TEXT)
    checked(TEXT.replace("Sign in.\n", ""))
    checked(TEXT.replace("hospital.example wants", "https://hospital.example wants"))


@pytest.mark.parametrize(("old", "new"), [
    ("hospital.example wants", "evil.example wants"),
    ("hospital.example wants", "http://hospital.example wants"),
    ("hospital.example wants", "hospital.example.evil.example wants"),
    ("hospital.example wants", "user@hospital.example wants"),
    ("hospital.example wants", "hospital.example\nevil.example wants"),
    ("URI: https://hospital.example/portal/sign-in", "URI: https://evil.example/portal/sign-in"),
    ("URI: https://hospital.example/portal/sign-in", "URI: https://hospital.example/portal/sign-in?x"),
    ("URI: https://hospital.example/portal/sign-in", "URI: javascript:alert(1)"),
    ("Version: 1", "Version: 2"), ("Version: 1", "Version: 01"), ("Version: 1", "version: 1"),
    ("Chain ID: 77", "Chain ID: 1"), ("Chain ID: 77", "Chain ID: 0x4d"), ("Chain ID: 77", "Chain ID: \u0667\u0667"),
    ("Nonce: a1b2c3d4e5", "Nonce: short"), ("Nonce: a1b2c3d4e5", "Nonce: a1b2c3d4-e5"), ("Nonce: a1b2c3d4e5\n", ""),
    ("Issued At: 2023", "Issued At: 2022"), ("Issued At: 2023", "Issued At: 2024"),
    ("Issued At: 2023-11-14T", "Issued At: 2023-13-14T"), ("Issued At: 2023-11-14T", "Issued At: 2023-11-14 "),
    ("Expiration Time: 2023-11-14T22:23", "Expiration Time: 2023-11-14T22:13"),
    ("Expiration Time: 2023-11-14T22:23:20Z", "Not Before: 2024-01-01T00:00:00Z"),
    ("22:23:20Z", "22:23:20Z\nNot Before: 2024-01-01T00:00:00Z"),
    ("22:23:20Z", "22:23:20Z\nResources:\n- urn:recap:eyJhdHQiOnt9fQ"), ("22:23:20Z", "22:23:20Z\nResources:"),
    ("22:23:20Z", "22:23:20Z\n"), ("22:23:20Z", "22:23:20Z\nAnything: else"),
    ("22:23:20Z", "22:23:20Z\nRequest ID: a b"),
    ("\n\nSign in.", "\nSign in."), ("Sign in.\n\n", "Sign in.\n"), ("Sign in.", "Sign \u202ein."),
    ("Sign in.", 'Say "x"'),
    ("Sign in.", "Sign in.\n\nURI: https://evil.example"), ("\n", "\r\n"),
    (ADDRESS, ADDRESS.lower()), (ADDRESS, ADDRESS[:-1]), (ADDRESS, ADDRESS[2:]), (ADDRESS, "0x" + "0" * 39 + "g"),
])
def test_a_message_that_says_anything_else_is_refused(old: str, new: str) -> None:
    assert old in TEXT
    with pytest.raises(Unprocessable):
        checked(TEXT.replace(old, new, 1) if old != "\n" else TEXT.replace(old, new))


def test_a_message_holds_for_its_time_alone() -> None:
    checked(TEXT, now_ms=NOW_MS + 599_000)
    for now_ms in (NOW_MS + 601_000, NOW_MS - 120_000):
        with pytest.raises(Unprocessable):
            checked(TEXT, now_ms=now_ms)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(TEXT)), st.integers(0, 6), st.text(max_size=4))
def test_no_small_change_makes_another_message_ours(at: int, removed: int, added: str) -> None:
    """A changed text is refused, or says what the one we made says of domain, URI, chain and nonce."""
    changed = TEXT[:at] + added + TEXT[at + removed:]
    try:
        message = parse_message(changed)
        check_message(message, origin=ORIGIN, path=PATH, chain_id=77, now_ms=NOW_MS)
    except Unprocessable:
        return
    assert (message.domain, message.uri, message.chain_id) == ("hospital.example", ORIGIN + PATH, 77)
    assert not message.resources


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=400))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        parse_message(text)
    except Unprocessable:
        return


def test_the_signature_is_of_this_text_by_this_address() -> None:
    key, other = Account.create(), Account.create()
    signature = "0x" + key.sign_message(encode_defunct(text=TEXT)).signature.hex().removeprefix("0x")
    check_signature(TEXT, signature, key.address)
    for text, said, address in ((TEXT + " ", signature, key.address), (TEXT, signature, other.address),
                                (TEXT, signature[:-2], key.address), (TEXT, "0x" + "00" * 65, key.address),
                                (TEXT, "0x" + "ff" * 65, key.address), (TEXT, "", key.address)):
        with pytest.raises(Unprocessable):
            check_signature(text, said, address)
