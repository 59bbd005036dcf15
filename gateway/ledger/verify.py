"""Checking a Receipt, step by step, by anybody: offline, and against a chain node the checker trusts.

Owns the order of the steps and the verdict; refuses to take the receipt's word for the chain. Pure but for the
``ReceiptChain`` handed in. ``FORMATS.md``, Receipt.

    1 document    the receipt is well-formed
    2 content     the resource's exact bytes give the content commitment, and are the Version the receipt names; of an
                  audit row: the receipt's run gives it, its rows hang together, and the row is the one it names
    3 leaf        block digest and content commitment make the leaf
    4 path        leaf and path lead to the root
    5 head        prior head, root, manifest and size class make the head
    6 anchored    the transaction on the chain holds RecordAnchor's event with exactly these values
    7 final       its block is the canonical one of its number, deep enough

Verdict: 1 where a step failed (the first one says which); 2 where steps 6 and 7 could not be decided, because no chain
was given or it does not know the block yet; 0 otherwise. A receipt without a resource proves that *a* Version with this
commitment was anchored; step 2 is then unknown and says so, without changing the code: whoever has the resource can
give it. The receipt of an audit row that holds no run leaves the code at 2, for nothing but the gateway's word puts the
row there.

The contract and custodian addresses are the receipt's own. Who checks for the first time compares them with what the
hospital published, or gives them as ``contract`` and ``custodian``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

from gateway.crypto.envelope import content_commitment
from gateway.errors import BlockCorrupt, ChainUnavailable, Malformed
from gateway.fhir import resource as fhir
from gateway.ledger import audit_run, merkle
from gateway.ledger.batch import rolling_head
from gateway.ledger.keccak import keccak
from gateway.ledger.receipt import AnchoredRow, Receipt, from_json

Status = Literal["ok", "failed", "unknown"]

STEPS: Final = ("document", "content", "leaf", "path", "head", "anchored", "final")
_CHAIN_STEPS: Final = 5
ANCHORED: Final = keccak(b"Anchored(address,bytes32,bytes32,uint8,bytes32)")
"""Topic 0 of RecordAnchor's event; topic 1 is the custodian, the rest are data."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainLog:
    """One log of a transaction: address as ``0x`` and 40 lower-case digits, topics and data as bytes."""

    address: str
    topics: tuple[bytes, ...]
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainTransaction:
    """A mined transaction's outcome."""

    succeeded: bool
    block_number: int
    block_hash: bytes
    logs: tuple[ChainLog, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainBlock:
    """A canonical block: hash, timestamp (epoch seconds UTC), hashes of its transactions."""

    hash: bytes
    time_s: int
    transactions: tuple[bytes, ...]


class ReceiptChain(Protocol):
    """What a verifier asks a node. Every method raises ChainUnavailable when it does not answer in time."""

    def chain_id(self) -> int:
        """EIP-155 chain id."""
        ...

    def head_number(self) -> int:
        """The number of the newest block."""
        ...

    def transaction(self, transaction_hash: bytes) -> ChainTransaction | None:
        """The mined transaction, None when the node knows none."""
        ...

    def block(self, number: int) -> ChainBlock | None:
        """The canonical block of this number, None above the head."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step's outcome; ``detail`` is a sentence for people."""

    number: int
    name: str
    status: Status
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """``code``: 0 verified, 1 false, 2 consistent but the block is not trusted yet; ``subject``: of what."""

    code: Literal[0, 1, 2]
    steps: tuple[Step, ...]
    subject: Literal["version", "audit row"]

    @property
    def first_failed(self) -> Step | None:
        """The step that makes it false."""
        return next((step for step in self.steps if step.status == "failed"), None)


def verify(
    receipt: Receipt | bytes, *, resource: bytes | None, chain: ReceiptChain | None, confirmations: int,
    contract: str | None = None, custodian: str | None = None,
) -> Verdict:
    """Check a receipt (its document's bytes, or parsed). Never raises for what a receipt, file or node may hold.

    ``resource``: the exact bytes a vread returned. ``confirmations``: blocks on top of the anchor's, itself counted as
    the first, that make it final to the checker. ``contract`` and ``custodian``: addresses the checker trusts.
    """
    notes = _Notes()
    parsed = _document(receipt, notes)
    if parsed is not None and parsed.row is not None:
        notes.subject = "audit row"
    if parsed is not None and _content(parsed, resource, notes) and _proof(parsed, notes):
        if chain is None:
            notes.rest("no chain asked: give --rpc with a node you trust")
        elif _trusted(parsed, contract, custodian, notes):
            try:
                _anchored(parsed, chain, confirmations, notes)
            except ChainUnavailable as error:
                notes.rest(f"the node does not answer: {error}")
    return notes.verdict()


class _Notes:
    """The steps noted so far, in their order."""

    def __init__(self) -> None:
        self._steps: list[Step] = []
        self.subject: Literal["version", "audit row"] = "version"

    def ok(self, detail: str) -> bool:
        return self._note("ok", detail)

    def unknown(self, detail: str) -> bool:
        return self._note("unknown", detail)

    def failed(self, detail: str) -> bool:
        return self._note("failed", detail)

    def rest(self, detail: str) -> None:
        while len(self._steps) < len(STEPS):
            self._note("unknown", detail)

    def verdict(self) -> Verdict:
        statuses = [step.status for step in self._steps]
        code: Literal[0, 1, 2] = 0
        if "failed" in statuses:
            code = 1
        elif "unknown" in statuses[0 if self.subject == "audit row" else _CHAIN_STEPS:]:
            code = 2
        return Verdict(code=code, steps=tuple(self._steps), subject=self.subject)

    def _note(self, status: Status, detail: str) -> bool:
        number = len(self._steps) + 1
        self._steps.append(Step(number=number, name=STEPS[number - 1], status=status, detail=detail))
        return status != "failed"


def _document(receipt: Receipt | bytes, notes: _Notes) -> Receipt | None:
    if isinstance(receipt, bytes):
        try:
            receipt = from_json(receipt)
        except Malformed as error:
            notes.failed(str(error))
            return None
    notes.ok(f"a receipt for {receipt.type}/{receipt.id}/_history/{receipt.version_id}")
    return receipt


def _content(receipt: Receipt, resource: bytes | None, notes: _Notes) -> bool:
    if receipt.row is not None:
        return _row(receipt, receipt.row, resource, notes)
    if resource is None:
        return notes.unknown("no resource given: only its commitment is checked")
    if content_commitment(receipt.content_salt, resource) != receipt.content_commitment:
        return notes.failed("the file is not the version that was anchored: it must hold the exact bytes the vread "
                            "returned (not indented, no newline added, no other version)")
    if resource and not _is_version(receipt, resource):
        return notes.failed("the file holds another version than the receipt names")
    return notes.ok(f"the file's {len(resource)} bytes give the commitment")


def _row(receipt: Receipt, row: AnchoredRow, resource: bytes | None, notes: _Notes) -> bool:
    """An AuditEvent is made anew each time it is asked for: what was anchored is the run its row stands in."""
    if resource is not None:
        return notes.failed("the file is not what was anchored: the content of an audit row's receipt is the run in "
                            "it, so give no --resource")
    if row.run is None:
        return notes.unknown(f"no run in the receipt: that row {row.number} stands in what was anchored is the "
                             "gateway's word alone; the privacy officer's receipt holds the run")
    if content_commitment(receipt.content_salt, row.run) != receipt.content_commitment:
        return notes.failed("the run is not the one that was anchored")
    try:
        run = audit_run.parse(row.run)
    except BlockCorrupt as error:
        return notes.failed(f"what was anchored is no run of audit rows: {error}")
    unchained = audit_run.first_unchained(run)
    if unchained is not None:
        return notes.failed(f"row {unchained} of the run is not what its hash, or that of the row before, says")
    if not run.first <= row.number <= run.last:
        return notes.failed(f"the run holds rows {run.first} to {run.last}, not row {row.number}")
    if run.rows[row.number - run.first].hash != row.hash:
        return notes.failed(f"row {row.number} of the run has another hash than the receipt names")
    return notes.ok(f"row {row.number} stands in the run of rows {run.first} to {run.last}, which gives the commitment")


def _is_version(receipt: Receipt, resource: bytes) -> bool:
    try:
        value: dict[str, Any] = fhir.parse(resource)
    except Malformed:
        return False
    meta = value.get("meta")
    version_id = meta.get("versionId") if isinstance(meta, dict) else None
    return (value["resourceType"], value.get("id"), version_id) == (receipt.type, receipt.id, str(receipt.version_id))


def _proof(receipt: Receipt, notes: _Notes) -> bool:
    leaf = merkle.leaf(receipt.block_digest, receipt.content_commitment)
    notes.ok(f"leaf 0x{leaf.hex()}")
    if not merkle.verify(leaf, receipt.path, receipt.root, receipt.size_class):
        return notes.failed("the path does not lead from the leaf to the root")
    notes.ok(f"{len(receipt.path)} hashes lead to the root 0x{receipt.root.hex()}")
    head = rolling_head(receipt.prior_head, receipt.root, receipt.manifest_digest, receipt.size_class)
    if head != receipt.head:
        return notes.failed("prior head, root, manifest and size class do not make the head")
    return notes.ok(f"the custodian's head is 0x{head.hex()}")


def _trusted(receipt: Receipt, contract: str | None, custodian: str | None, notes: _Notes) -> bool:
    for name, expected, found in (
        ("contract", contract, receipt.contract), ("custodian", custodian, receipt.custodian)
    ):
        if expected is not None and expected.lower() != found:
            return notes.failed(f"the receipt's {name} {found} is not the {expected.lower()} you trust")
    return True


def _anchored(receipt: Receipt, chain: ReceiptChain, confirmations: int, notes: _Notes) -> None:
    chain_id = chain.chain_id()
    if chain_id != receipt.chain_id:
        notes.failed(f"the node is on chain {chain_id}, the receipt on chain {receipt.chain_id}")
        return
    transaction = chain.transaction(receipt.transaction)
    if transaction is None:
        _missing(receipt, chain, confirmations, notes)
    elif not transaction.succeeded:
        notes.failed("the transaction was reverted")
    elif not any(_is_event(log, receipt) for log in transaction.logs):
        notes.failed(f"the transaction holds no event of {receipt.contract} with these values")
    else:
        notes.ok(f"{receipt.contract} anchored it for {receipt.custodian}")
        _final(receipt, chain, transaction, confirmations, notes)


def _missing(receipt: Receipt, chain: ReceiptChain, confirmations: int, notes: _Notes) -> None:
    """The node knows no such transaction: behind, pruned, not settled, or the receipt is false."""
    head, block = chain.head_number(), chain.block(receipt.block_number)
    if block is None or head < receipt.block_number:
        notes.rest(f"the node is at block {head}, the anchor in block {receipt.block_number}")
    elif block.hash == receipt.block_hash and receipt.transaction not in block.transactions:
        notes.failed(f"block {receipt.block_number} does not hold the transaction")
    elif block.hash == receipt.block_hash:
        notes.rest("the node does not keep this transaction's events: ask an archive node")
    elif head - receipt.block_number + 1 >= confirmations:
        notes.failed(f"block {receipt.block_number} is another one on this chain, and the transaction is not on it")
    else:
        notes.rest(f"block {receipt.block_number} is another one for now: the chain has not settled")


def _final(
    receipt: Receipt, chain: ReceiptChain, transaction: ChainTransaction, confirmations: int, notes: _Notes
) -> None:
    number, block = transaction.block_number, chain.block(transaction.block_number)
    if block is None or block.hash != transaction.block_hash:
        notes.unknown("the node is changing its mind about the block: ask again")
        return
    depth = chain.head_number() - number + 1
    if (number, block.hash, block.time_s) != (receipt.block_number, receipt.block_hash, receipt.block_time_s):
        notes.failed(f"the anchor is in block {number} 0x{block.hash.hex()} of time {block.time_s}, not as the receipt "
                     "says: after a reorganisation the gateway gives a new receipt")
    elif depth < confirmations:
        notes.unknown(f"{depth} of {confirmations} confirmations")
    else:
        notes.ok(f"block {number} is canonical with {depth} confirmations")


def _is_event(log: ChainLog, receipt: Receipt) -> bool:
    topics = (ANCHORED, bytes(12) + bytes.fromhex(receipt.custodian[2:]))
    data = b"".join(
        (receipt.root, receipt.manifest_digest, receipt.size_class.to_bytes(32, "big"), receipt.prior_head))
    return log.address == receipt.contract and log.topics == topics and log.data == data
