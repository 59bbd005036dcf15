"""A Receipt: the proof that one Version, or one row of the audit, was anchored, in a JSON document anybody can check
without this gateway.

Owns the document's members and its strict parser; refuses unknown, missing or double members, wrong lengths,
non-canonical hex and Cids, and a path of another depth than its size class. Pure.
``FORMATS.md``, Receipt.

It holds the content salt, so it is given only to who may read the Version: with it, equal content can be recognised.

    format        "fhir-gateway receipt 1"
    resource      type, id, versionId (text)
    content       salt, commitment = sha256(salt, exact vread bytes)
    block         raw Cid of the envelope
    path          sibling hashes from the leaf up; leaf and pairs by gateway/ledger/merkle.py
    batch         root, manifest (dag-cbor Cid), sizeClass 0-4, priorHead, head
    anchor        chainId, contract, custodian, transaction, blockNumber, blockHash, blockTime (instant), confirmations
    row           of AuditEvent log-N alone: number = N, hash (64 hex digits); what was anchored is then the run of rows
    run           that run (base64), for who may see the rows of others

Hashes are 0x and 64 lower-case hex digits, addresses 0x and 40. ``confirmations`` is what the gateway saw when it wrote
the receipt; a verifier counts again. Stability: format 1 is frozen by tests/vectors/receipt.json.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import jiter

from gateway.errors import BlockCorrupt, Malformed
from gateway.ledger.merkle import DEPTHS
from gateway.store.cid import cid, parse_cid

FORMAT: Final = "fhir-gateway receipt 1"
SIZE_MAX: Final = 16 * 1024
"""Most bytes of a document beside its run."""
RUN_MAX: Final = 4 << 20
"""Most letters of a run."""
_HASH: Final = re.compile(r"0x[0-9a-f]{64}")
_ADDRESS: Final = re.compile(r"0x[0-9a-f]{40}")
_TYPE: Final = re.compile(r"[A-Z][A-Za-z]{1,63}")
_ID: Final = re.compile(r"[A-Za-z0-9\-.]{1,64}")
_VERSION_ID: Final = re.compile(r"[1-9][0-9]{0,18}")
_INSTANT: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")
_NUMBER_MAX: Final = 2**63 - 1
_ROW_ID: Final = re.compile(r"log-([1-9][0-9]{0,14})")
_ROW_HASH: Final = re.compile(r"[0-9a-f]{64}")

_MEMBERS: Final[dict[str, tuple[str, ...]]] = {
    "": ("format", "resource", "content", "block", "path", "batch", "anchor"),
    "resource": ("type", "id", "versionId"),
    "content": ("salt", "commitment"),
    "batch": ("root", "manifest", "sizeClass", "priorHead", "head"),
    "anchor": ("chainId", "contract", "custodian", "transaction", "blockNumber", "blockHash", "blockTime",
               "confirmations"),
    "row": ("number", "hash"),
}
_OF_ROWS: Final = ("row", "run")


@dataclass(frozen=True, slots=True, kw_only=True)
class AnchoredRow:
    """Which row of the audit an AuditEvent was made from: its number and hash, and the run that holds it, where who
    asked may see the rows beside it."""

    number: int
    hash: bytes
    run: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """All members as values: hashes 32 bytes, addresses ``0x`` and 40 lower-case digits, ``block_time_s`` epoch UTC."""

    type: str
    id: str
    version_id: int
    content_salt: bytes
    content_commitment: bytes
    block_digest: bytes
    path: tuple[bytes, ...]
    root: bytes
    manifest_digest: bytes
    size_class: int
    prior_head: bytes
    head: bytes
    chain_id: int
    contract: str
    custodian: str
    transaction: bytes
    block_number: int
    block_hash: bytes
    block_time_s: int
    confirmations: int
    row: AnchoredRow | None = None


def document(receipt: Receipt) -> dict[str, Any]:
    """The receipt as JSON values in their canonical order."""
    made: dict[str, Any] = {
        "format": FORMAT,
        "resource": {"type": receipt.type, "id": receipt.id, "versionId": str(receipt.version_id)},
        "content": {"salt": _hex(receipt.content_salt), "commitment": _hex(receipt.content_commitment)},
        "block": cid(receipt.block_digest),
        "path": [_hex(node) for node in receipt.path],
        "batch": {
            "root": _hex(receipt.root), "manifest": cid(receipt.manifest_digest, "dag-cbor"),
            "sizeClass": receipt.size_class, "priorHead": _hex(receipt.prior_head), "head": _hex(receipt.head),
        },
        "anchor": {
            "chainId": receipt.chain_id, "contract": receipt.contract, "custodian": receipt.custodian,
            "transaction": _hex(receipt.transaction), "blockNumber": receipt.block_number,
            "blockHash": _hex(receipt.block_hash),
            "blockTime": datetime.fromtimestamp(receipt.block_time_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "confirmations": receipt.confirmations,
        },
    }
    if receipt.row is not None:
        made["row"] = {"number": receipt.row.number, "hash": receipt.row.hash.hex()}
        if receipt.row.run is not None:
            made["run"] = base64.b64encode(receipt.row.run).decode()
    return made


def to_json(receipt: Receipt) -> bytes:
    """The canonical document, two-space indent, for files and the ``$receipt`` door."""
    return json.dumps(document(receipt), indent=2).encode() + b"\n"


def from_json(data: bytes) -> Receipt:
    """Parse a document, whatever its white space. Raises Malformed naming the member."""
    if len(data) > SIZE_MAX + RUN_MAX:
        raise _too_long()
    try:
        value = jiter.from_json(data, catch_duplicate_keys=True, allow_inf_nan=False)
    except ValueError as error:  # nesting too deep included, which the standard parser would leave to the C stack
        raise Malformed(f"receipt: not JSON: {error}", code="structure") from error
    whole = _object(value, "", optional=_OF_ROWS)
    if len(data) > SIZE_MAX + (len(whole["run"]) if isinstance(whole.get("run"), str) else 0):
        raise _too_long()
    if whole["format"] != FORMAT:
        raise _refused("format", f"must be {FORMAT!r}")
    resource, content = _object(whole["resource"], "resource"), _object(whole["content"], "content")
    batch, anchor = _object(whole["batch"], "batch"), _object(whole["anchor"], "anchor")
    size_class = _number(batch["sizeClass"], "batch.sizeClass", len(DEPTHS) - 1)
    path = whole["path"]
    if not isinstance(path, list) or len(path) != DEPTHS[size_class]:
        raise _refused("path", f"must be a list of {DEPTHS[size_class]} hashes for size class {size_class}")
    type_, id_ = _text(resource["type"], "resource.type", _TYPE), _text(resource["id"], "resource.id", _ID)
    version_id = int(_text(resource["versionId"], "resource.versionId", _VERSION_ID))
    return Receipt(
        type=type_, id=id_, version_id=version_id, row=_row(whole, type_, id_, version_id),
        content_salt=_hash(content["salt"], "content.salt"),
        content_commitment=_hash(content["commitment"], "content.commitment"),
        block_digest=_cid(whole["block"], "block", "raw"),
        path=tuple(_hash(node, f"path[{index}]") for index, node in enumerate(path)),
        root=_hash(batch["root"], "batch.root"),
        manifest_digest=_cid(batch["manifest"], "batch.manifest", "dag-cbor"),
        size_class=size_class,
        prior_head=_hash(batch["priorHead"], "batch.priorHead"),
        head=_hash(batch["head"], "batch.head"),
        chain_id=_number(anchor["chainId"], "anchor.chainId", _NUMBER_MAX),
        contract=_text(anchor["contract"], "anchor.contract", _ADDRESS),
        custodian=_text(anchor["custodian"], "anchor.custodian", _ADDRESS),
        transaction=_hash(anchor["transaction"], "anchor.transaction"),
        block_number=_number(anchor["blockNumber"], "anchor.blockNumber", _NUMBER_MAX),
        block_hash=_hash(anchor["blockHash"], "anchor.blockHash"),
        block_time_s=_instant(anchor["blockTime"], "anchor.blockTime"),
        confirmations=_number(anchor["confirmations"], "anchor.confirmations", _NUMBER_MAX),
    )


def _row(whole: dict[str, Any], type_: str, id_: str, version_id: int) -> AnchoredRow | None:
    named = _ROW_ID.fullmatch(id_) if type_ == "AuditEvent" else None
    if named is None:
        for member in _OF_ROWS:
            if member in whole:
                raise _refused(member, f"is not a member of a receipt of {type_}/{id_}")
        return None
    if "row" not in whole:
        raise _refused("row", "is missing")
    if version_id != 1:
        raise _refused("resource.versionId", "must be 1: a row of the audit has one version")
    row = _object(whole["row"], "row")
    if _number(row["number"], "row.number", _NUMBER_MAX) != int(named[1]):
        raise _refused("row.number", f"is not the one {id_} names")
    return AnchoredRow(number=int(named[1]), hash=bytes.fromhex(_text(row["hash"], "row.hash", _ROW_HASH)),
                       run=_run(whole["run"]) if "run" in whole else None)


def _run(value: Any) -> bytes:
    try:
        found = base64.b64decode(value.encode("ascii"), validate=True) if isinstance(value, str) else b""
    except (binascii.Error, UnicodeEncodeError):
        found = b""
    if not found or base64.b64encode(found).decode() != value:
        raise _refused("run", "must be base64, padded, without line breaks")
    return found


def _too_long() -> Malformed:
    return Malformed(f"receipt: over {SIZE_MAX} bytes, or a run of over {RUN_MAX}", code="too-long")


def _refused(member: str, why: str) -> Malformed:
    return Malformed(f"receipt: {member} {why}", code="value", expression=member)


def _object(value: Any, name: str, optional: tuple[str, ...] = ()) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _refused(name or "the document", "must be an object")
    expected = _MEMBERS[name]
    dot = f"{name}." if name else ""
    for member in expected:
        if member not in value:
            raise _refused(dot + member, "is missing")
    for member in value:
        if member not in expected and member not in optional:
            raise _refused(dot + member, "is not a member of a receipt")
    return value


def _text(value: Any, member: str, pattern: re.Pattern[str]) -> str:
    if not isinstance(value, str) or pattern.fullmatch(value) is None:
        raise _refused(member, f"must be text like {pattern.pattern}")
    return value


def _hash(value: Any, member: str) -> bytes:
    return bytes.fromhex(_text(value, member, _HASH)[2:])


def _number(value: Any, member: str, limit: int) -> int:
    if type(value) is not int or not 0 <= value <= limit:
        raise _refused(member, f"must be a whole number from 0 to {limit}")
    return value


def _cid(value: Any, member: str, codec: str) -> bytes:
    try:
        if not isinstance(value, str):
            raise BlockCorrupt("not text")
        found, digest = parse_cid(value)
    except BlockCorrupt:
        found, digest = None, b""
    if found != codec:
        raise _refused(member, f"must be a base32 CIDv1 of codec {codec} with sha2-256")
    return digest


def _instant(value: Any, member: str) -> int:
    text = _text(value, member, _INSTANT)
    try:
        return int(datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp())
    except ValueError:
        raise _refused(member, "is no date") from None


def _hex(data: bytes) -> str:
    return "0x" + data.hex()
