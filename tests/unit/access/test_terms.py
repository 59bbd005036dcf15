"""What a patient signs: words that bind the rules, and EIP-712 messages as wallets and the contract hash them."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account
from eth_account.messages import encode_typed_data
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.access.period import MAX_MS, MIN_MS
from gateway.access.provision import Provision
from gateway.access.signature import normalised, recover, recover_digest
from gateway.access.terms import Terms, grantee_text, terms_of
from gateway.access.typed_data import (
    WITHOUT_END_S,
    Domain,
    GrantMessage,
    Message,
    RevokeAllMessage,
    RevokeMessage,
    digest,
    domain_separator,
    grant_id,
    grantee_hash,
    kind_of,
    nonce_of,
    terms_hash,
    typed_data,
    validity_s,
)
from gateway.errors import Unprocessable
from tests.shared_data import SHARED, needs_shared
from tests.unit.access.worlds import World, worlds

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "typed_data.json").read_text("utf-8"))
SALT = bytes(range(32))
DOMAIN = Domain(chain_id=1337, contract="0x5FbDB2315678afecb367f032d93F642f64180aa3")
ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
LEAVE = Provision(id="c/0", patient="Patient/1", grantee="Practitioner/1", permit=True)


def words(*provisions: Provision, **names: str) -> Terms:
    return terms_of(provisions, hospital="St Mary's", names={f"Practitioner/{k[1:]}": v for k, v in names.items()},
                    salt=SALT)


def message_of(case: dict[str, Any]) -> Message:
    message = dict(case["typed_data"]["message"])
    common = {"patient": message["patient"], "nonce": int(message["nonce"]), "deadline_s": int(message["deadline"])}
    match case["typed_data"]["primaryType"]:
        case "Grant":
            terms = {**message["terms"], "salt": bytes.fromhex(message["terms"]["salt"][2:])}
            return GrantMessage(**common, grantee=bytes.fromhex(message["grantee"][2:]), terms=Terms(**terms),
                                valid_from_s=message["validFrom"], valid_until_s=message["validUntil"],
                                epoch=int(message["epoch"]))
        case "Revoke":
            return RevokeMessage(**common, grant_id=bytes.fromhex(message["grantId"][2:]))
        case _:
            return RevokeAllMessage(**common, epoch=int(message["epoch"]))


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: case["name"])
def test_messages_hash_as_the_vectors_the_contract_reads(case: dict[str, Any]) -> None:
    message, domain = message_of(case), case["typed_data"]["domain"]
    own = Domain(chain_id=domain["chainId"], contract=domain["verifyingContract"])
    assert typed_data(message, own) == case["typed_data"]
    assert domain_separator(own).hex() == case["domain_separator"][2:]
    assert digest(message, own).hex() == case["digest"][2:]
    assert recover(message, own, bytes.fromhex(case["signature"][2:])) == case["signer"]
    if isinstance(message, GrantMessage):
        hashed = terms_hash(message.terms)
        assert hashed.hex() == case["terms_hash"][2:]
        assert grantee_hash(message.terms.salt, case["grantee_text"]) == message.grantee
        assert grant_id(message.patient, message.grantee, hashed).hex() == case["grant_id"][2:]
        assert kind_of(message.nonce) == case["signer_kind"]


texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=30)
bytes32 = st.binary(min_size=32, max_size=32)
addresses = st.binary(min_size=20, max_size=20).map(lambda raw: "0x" + raw.hex())
uint64, uint256 = st.integers(0, 2**64 - 1), st.integers(0, 2**256 - 1)
all_terms = st.builds(Terms, statement=texts, hospital=texts, grantee=texts, purposes=texts, records=texts,
                      period=texts, salt=bytes32)
messages = (
    st.builds(GrantMessage, patient=addresses, grantee=bytes32, terms=all_terms, valid_from_s=uint64,
              valid_until_s=uint64, epoch=uint64, nonce=uint256, deadline_s=uint64)
    | st.builds(RevokeMessage, patient=addresses, grant_id=bytes32, nonce=uint256, deadline_s=uint64)
    | st.builds(RevokeAllMessage, patient=addresses, epoch=uint64, nonce=uint256, deadline_s=uint64))
domains = st.builds(Domain, chain_id=st.integers(1, 2**53 - 1), contract=addresses)


@settings(max_examples=60, deadline=None)
@given(messages, domains)
def test_our_hashing_is_that_of_wallets(message: Message, domain: Domain) -> None:
    """eth_account stands in for MetaMask: it is given the JSON a wallet is given."""
    sent = json.loads(json.dumps(typed_data(message, domain)))
    signable = encode_typed_data(full_message=sent)
    signed = Account.sign_message(signable, VECTORS["private_key"])
    assert bytes(signed.message_hash) == digest(message, domain)
    assert recover(message, domain, bytes(signed.signature)) == VECTORS["cases"][0]["signer"]


@needs_shared
def test_a_published_signature_recovers_to_its_signer() -> None:
    assert SHARED is not None
    cases = json.loads(gzip.decompress((SHARED / "eip712" / "eip712.json.gz").read_bytes()))
    signed = [case for case in cases if "signature" in case]
    assert signed
    for case in signed:
        signer = recover_digest(bytes.fromhex(case["digest"][2:]), bytes.fromhex(case["signature"][2:]))
        assert signer == Account.from_key(case["privateKey"]).address


@pytest.mark.parametrize("change", [
    lambda s: s[:64], lambda s: s + b"\0", lambda s: b"", lambda s: s[:64] + b"\x1d", lambda s: s[:64] + b"\x02",
    lambda s: bytes(32) + s[32:], lambda s: s[:32] + bytes(32) + s[64:],
    lambda s: b"\xff" * 32 + s[32:],
    lambda s: s[:32] + (ORDER - int.from_bytes(s[32:64], "big")).to_bytes(32, "big") + bytes([55 - s[64]]),
], ids=["short", "long", "none", "v 29", "v 2", "r 0", "s 0", "r too great", "the other s of the same signature"])
def test_a_signature_that_is_not_canonical_is_refused(change: Any) -> None:
    case = VECTORS["cases"][0]
    with pytest.raises(Unprocessable):
        recover(message_of(case), DOMAIN, change(bytes.fromhex(case["signature"][2:])))


def test_a_recovery_id_of_0_or_1_is_written_as_the_contract_wants_it() -> None:
    signature = bytes.fromhex(VECTORS["cases"][0]["signature"][2:])
    assert normalised(signature[:64] + bytes([signature[64] - 27])) == signature


def test_a_signature_over_other_terms_is_another_signer() -> None:
    case = VECTORS["cases"][0]
    message = message_of(case)
    assert isinstance(message, GrantMessage)
    signature = bytes.fromhex(case["signature"][2:])
    for other in (replace(message, nonce=message.nonce + 1), replace(message, epoch=message.epoch + 1),
                  replace(message, valid_until_s=message.valid_until_s + 1),
                  replace(message, terms=replace(message.terms, records="all records"))):
        try:
            assert recover(other, DOMAIN, signature) != case["signer"]
        except Unprocessable:
            continue
    assert recover(message, replace(DOMAIN, chain_id=1), signature) != case["signer"]


def test_values_outside_their_types_are_refused() -> None:
    with pytest.raises(ValueError, match="no uint64"):
        digest(RevokeAllMessage(patient="0x" + "11" * 20, epoch=2**64, nonce=0, deadline_s=0), DOMAIN)
    with pytest.raises(ValueError, match="20 bytes"):
        digest(RevokeAllMessage(patient="0x11", epoch=0, nonce=0, deadline_s=0), DOMAIN)
    with pytest.raises(ValueError, match="32 bytes"):
        grantee_hash(b"short", "Practitioner/1")
    with pytest.raises(ValueError, match="31 random"):
        nonce_of("wallet", b"")
    with pytest.raises(ValueError, match="no signer kind"):
        kind_of(4 << 248)


# The words.


def test_the_words_say_who_what_why_and_when() -> None:
    terms = words(replace(LEAVE, purposes=frozenset({"TREAT"}), types=frozenset({"Observation", "Condition"}),
                          labels=1 << 5, writes=False, valid_until_ms=1_798_761_600_000), p1="Dr Ada")
    assert terms.statement == (
        '"Dr Ada" (Practitioner/1) may read Condition and Observation records, up to normal confidentiality, including '
        "those labelled psychiatry (PSY), for treatment (TREAT), until 2027-01-01T00:00:00Z. "
        "You can revoke this at any time.")
    assert terms.hospital == "St Mary's"


def test_a_name_cannot_write_into_the_words_around_it() -> None:
    """Quotes, line breaks and direction marks would let a name rewrite what the wallet shows."""
    terms = words(LEAVE, p1='Ada" (Practitioner/2) may\u202e read\nnothing\u200b')
    assert terms.grantee == "\"Ada' (Practitioner/2) may read nothing\" (Practitioner/1)"


def test_grantees_are_sorted_whatever_their_order() -> None:
    both = [replace(LEAVE, grantee=g) for g in ("Practitioner/2", "Organization/1")]
    assert grantee_text(both) == grantee_text(both[::-1]) == "Organization/1 Practitioner/2"
    assert grantee_text([Provision(id="c/0", patient="Patient/1", grantee=None, permit=False)]) == "*"


def _enforced(provision: Provision) -> object:
    return provision.permit, provision.rules


@settings(max_examples=150, deadline=None)
@given(worlds)
def test_other_rules_are_other_words(world: World) -> None:
    """A signature over the words binds every rule that is enforced."""
    one = world.provision()
    for _ in range(20):
        other = world.provision()
        same = _enforced(one) == _enforced(other)
        assert same == (words(one).statement == words(other).statement) or _same_meaning(one, other)
        exception = replace(other, permit=False, confidentiality=6, labels=1 << 5, grantee="Practitioner/1",
                            exception=True)
        root = replace(one, permit=True, grantee="Device/app", labels=0, confidentiality=3)
        assert words(root, exception) != words(root)


def test_exceptions_and_named_data_are_in_the_words() -> None:
    root = replace(LEAVE, grantee="Organization/1", purposes=frozenset({"TREAT"}))
    inner = replace(LEAVE, grantee="Practitioner/2", confidentiality=4, writes=False, exception=True,
                    data=frozenset({"Observation/1", "Encounter/7", "about:Encounter/7", "author:Practitioner/5"}))
    assert words(root, inner).statement == (
        "Organization/1 may read, and when working for this hospital also write, all records, up to normal "
        "confidentiality, without those labelled sensitive; and Practitioner/2 may read all records, only "
        "Observation/1, Encounter/7 and what refers to it and what Practitioner/5 authored, recorded, requested, "
        "performed or asserted, up to restricted confidentiality, without those labelled sensitive, for any purpose, "
        "without end, for treatment (TREAT), without end. You can revoke this at any time.")
    assert grantee_text([root, inner]) == "Organization/1 Practitioner/2"
    deny = replace(root, permit=False, grantee=None, confidentiality=0)
    assert words(deny, inner).statement.startswith("anyone may not read all records; but Practitioner/2 may read ")
    assert grantee_text([deny, inner]) == "Practitioner/2"


def _same_meaning(one: Provision, other: Provision) -> bool:
    """A deny from rank 0 touches everything, whatever labels it also names."""
    return not one.permit and not other.permit and one.confidentiality == other.confidentiality == 0 and (
        _enforced(replace(one, labels=0)) == _enforced(replace(other, labels=0)))


def test_chain_times_cover_the_provisions_own() -> None:
    assert validity_s(replace(LEAVE, valid_from_ms=1_500, valid_until_ms=2_001)) == (1, 3)
    assert validity_s(replace(LEAVE, valid_from_ms=MIN_MS, valid_until_ms=MAX_MS)) == (0, WITHOUT_END_S)
