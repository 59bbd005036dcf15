"""``gateway/FORMATS.md`` says what the code does: its examples open the vectors, its lists lack nothing."""

from __future__ import annotations

import ast
import hashlib
import hmac
import json
import re
import struct
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from gateway.access.marks import BITS
from gateway.audit import Audit, AuditEntry
from gateway.crypto.index_hash import Pseudonymizer
from gateway.crypto.keys import KeyRing
from gateway.crypto.root import LABELS, Root, fixed_roots
from gateway.crypto.wrap import KeyName, secret_aad
from gateway.errors import Unprocessable
from gateway.ledger.audit_run import row_hash
from gateway.records.signing import parameters_of
from gateway.web.fhir import ROUTES
from tests.running import REPOSITORY

PAGE = (REPOSITORY / "gateway" / "FORMATS.md").read_text("utf-8")
VECTORS = REPOSITORY / "tests" / "vectors"
KEY = bytes(range(32))


@cache
def strings_of_the_code() -> frozenset[str]:
    """Strings of the gateway's code that are no docstring, of the files that coin a URI or a secret."""
    found: set[str] = set()
    for file in (REPOSITORY / "gateway").rglob("*.py"):
        text = file.read_text("utf-8")
        if "urn:fhir-gateway:" not in text and '"gw' not in text:
            continue
        tree = ast.parse(text)
        said = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        found |= {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)
                  and isinstance(node.value, str) and id(node) not in said}
    return frozenset(found)


def section(name: str) -> str:
    return PAGE.partition(f"\n## {name}\n")[2].partition("\n## ")[0]


def example(name: str) -> dict[str, Any]:
    """What the example of a section defines."""
    made: dict[str, Any] = {}
    exec(section(name).partition("```python\n")[2].partition("```")[0], made)  # noqa: S102  # our own page
    return made


def vectors(name: str) -> dict[str, Any]:
    made: dict[str, Any] = json.loads((VECTORS / name).read_text())
    return made


def members(document: dict[str, Any]) -> Iterator[str]:
    for name, value in document.items():
        yield name
        if isinstance(value, dict):
            yield from members(value)


@pytest.mark.parametrize("case", vectors("envelope.json")["cases"], ids=lambda case: str(case["name"]))
def test_who_follows_the_page_opens_an_envelope(case: dict[str, Any]) -> None:
    material, header = bytes.fromhex(case["material"]), case["header"]
    keys = [material[at:at + 32] for at in range(0, len(material), 32)]
    stored = case["stored"].encode()
    assert example("Envelope")["open_envelope"](bytes.fromhex(case["envelope"]), keys[::-1], case["custodian"]) == (
        header["type"], header["id"], header["version_id"], stored, bytes.fromhex(case["content_commitment"]))


def test_who_follows_the_page_checks_a_receipt() -> None:
    vector = vectors("receipt.json")
    holds, stored = example("Receipt")["holds"], vector["stored"].encode()
    holds(vector["receipt"], stored)
    with pytest.raises(AssertionError):
        holds(vector["receipt"], stored + b"\n")
    with pytest.raises(AssertionError):
        holds({**vector["receipt"], "path": vector["receipt"]["path"][::-1]}, stored)


def test_every_identifier_we_coin_is_on_the_page() -> None:
    coined = {match for text in strings_of_the_code() for match in re.findall(r"urn:fhir-gateway:[a-z-]+:?", text)}
    assert len(coined) > 10
    assert not {one for one in coined if f"`{one}`" not in section("Identifiers")
                and f"`{one.rpartition(':')[0]}:`" not in section("Identifiers")}


def test_every_operation_we_define_is_on_the_page() -> None:
    ours = {row.definition.rpartition(":")[2] for row in ROUTES
            if row.definition is not None and row.definition.startswith("urn:fhir-gateway:operation:")}
    listed = section("Identifiers").partition("Operations:")[2].partition(";")[0]
    assert set(re.findall(r"`([a-z-]+)`", listed)) == ours


@pytest.mark.parametrize(("name", "words"), [
    ("Keys", LABELS), ("Audit", tuple(field.name for field in fields(AuditEntry))), ("Identifiers", tuple(BITS)),
    ("Receipt", tuple(members(vectors("receipt.json")["receipt"])))])
def test_a_list_lacks_nothing(name: str, words: tuple[str, ...]) -> None:
    assert not [word for word in words if f"`{word}`" not in section(name)]


def test_keys_are_bound_to_their_names_as_the_page_says() -> None:
    name = KeyName(id=5, owner="p1", kind="category", group="general", generation=2)
    assert name.aad() == b"gateway key 1 category\0" + struct.pack(">QiH", 5, 2, 2) + b"p1general"
    assert secret_aad("manifest", 1) == b"gateway secret 1 manifest" + struct.pack(">I", 1)


def test_what_a_consent_hides_behind_is_derived_as_the_page_says() -> None:
    parts = (b"terms salt", b"c1", b"2", b"wallet", b"0x1")
    expected = hmac.digest(KEY, b"".join(struct.pack(">I", len(part)) + part for part in parts), "sha256")
    assert Pseudonymizer(KEY).pseudonym(*(part.decode() for part in parts)) == expected


def test_an_audit_row_is_sealed_and_chained_as_the_page_says(tmp_path: Path) -> None:
    ring = KeyRing(tmp_path / "keystore.db", fixed_roots(Root(KEY)))
    entry = AuditEntry(time_ms=7, action="R", interaction="read", outcome="0", what=("Patient/p1/_history/1",),
                       client="feed", user=None, role="feed", purpose="TREAT")
    row = Audit(ring, "0xc").seal(entry, "p1")
    keys = ring.category_keys(("p1",), "audit")
    inner = hmac.digest(hmac.digest(b"", keys.material, "sha256"), b"gateway audit row 1\x01", "sha256")
    opened = AESGCM(inner).decrypt(row.sealed[:12], row.sealed[12:], b"0xc" + struct.pack(">q", 7) + keys.refs)
    assert json.loads(opened) == {
        "time_ms": 7, "action": "R", "interaction": "read", "what": ["Patient/p1/_history/1"], "client": "feed",
        "role": "feed", "purpose": "TREAT", "outcome": "0"}
    ring.close()
    joined = bytes(32) + struct.pack(">qII", 7, 8, len(row.sealed)) + keys.refs + row.sealed
    assert row_hash(bytes(32), 7, row.keys, row.sealed) == hashlib.sha256(joined).digest()


def test_what_sign_takes_is_on_the_page() -> None:
    with pytest.raises(Unprocessable) as refused:
        parameters_of({"resourceType": "Parameters", "parameter": [{"name": "other", "valueString": "x"}]})
    names = refused.value.issues[0].diagnostics.removeprefix("is none of ").split(", ")
    assert len(names) == 7
    assert not [name for name in names if f"`{name}`" not in section("Consent")]


def test_the_signed_types_are_those_of_the_vectors() -> None:
    types = {name: listed for case in vectors("typed_data.json")["cases"]
             for name, listed in case["typed_data"]["types"].items() if name != "EIP712Domain"}
    assert set(types) == {"Grant", "Terms", "Revoke", "RevokeAll"}
    for name, listed in types.items():
        text = ",".join(f"{one['type']} {one['name']}" for one in listed)
        assert f"\n{name}({text})\n" in section("Messages")


def test_every_prefix_of_a_secret_is_on_the_page() -> None:
    prefixes = {text for text in strings_of_the_code() if re.fullmatch(r"gw[a-z]?_", text)}
    assert prefixes == set(re.findall(r"`(gw[a-z]?_)`", section("Tokens and links")))


def test_every_vector_and_test_the_page_names_is_there() -> None:
    for path in re.findall(r"`((?:unit|journeys|house|vectors|contracts)/[\w./-]+\.\w+)`", PAGE):
        root = REPOSITORY if path.startswith("contracts/") else REPOSITORY / "tests"
        assert (root / path).is_file(), path
    assert {path.name for path in VECTORS.glob("*.json")} <= set(re.findall(r"(\w+\.json)`", PAGE))


def test_every_module_the_page_names_is_there() -> None:
    modules = {path.name for path in (REPOSITORY / "gateway").rglob("*.py")} | {
        path.name for path in (REPOSITORY / "tests").rglob("*.py")}
    for path in re.findall(r"`([\w/]+\.py)`", PAGE):
        assert Path(path).name in modules, path
        if "/" in path:
            assert (REPOSITORY / "gateway" / path).is_file() or (REPOSITORY / "tests" / path).is_file(), path
