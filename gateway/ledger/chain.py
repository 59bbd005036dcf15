"""The chain as the gateway sees it: one protocol, its calls, its events, its answers.

Owns the ``Chain`` protocol and every value that crosses it; refuses JSON-RPC, ABI bytes and web3 objects, which stay
in ``ethereum.py``. Two implementations pass ``tests/behaviours/test_chain.py``: ``gateway/ledger/ethereum.py`` (any
JSON-RPC node, the embedded one included) and ``tests/simulators/chain.py``.

Shapes: hashes, roots and digests are 32 raw bytes; an ``Address`` is ``0x`` and 40 lower-case hex digits; amounts are
wei; times on chain are whole seconds. Methods are synchronous, bounded in time, and may be called from several threads.

Spec: https://ethereum.github.io/execution-apis/ (JSON-RPC), https://eips.ethereum.org/EIPS/eip-712 (signed intents).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal, NewType, Protocol

from gateway.errors import Misconfigured
from gateway.ledger.keccak import keccak

Address = NewType("Address", str)
Wei = int

_ADDRESS = re.compile(r"(?:0x|0X)?([0-9a-fA-F]{40})")

ZERO_HASH = bytes(32)
"""The rolling head of a custodian who never anchored, and the parent of block 0."""

SIGNER_KINDS: tuple[str, ...] = ("wallet", "custodial", "passkey", "attested")
"""ConsentRegistry.SignerKind in its own order; the top byte of every consent nonce is a position here."""

WITHOUT_END_S = 2**40 - 1
"""A ``valid_until_s`` of this or more never ends (the contract stores 40 bits)."""


def address(value: str | bytes) -> Address:
    """20 bytes, or hex of any case, as an ``Address``; anything else is ``Misconfigured``."""
    text = value.hex() if isinstance(value, bytes | bytearray) else value
    match = _ADDRESS.fullmatch(text)
    if match is None:
        raise Misconfigured(f"not an Ethereum address: {text!r}")
    return Address("0x" + match.group(1).lower())


def grant_id(patient: Address, grantee: bytes, terms_hash: bytes) -> bytes:
    """``keccak256(abi.encode(patient, grantee, termsHash))``, ConsentRegistry's name of a grant."""
    return keccak(bytes(12) + bytes.fromhex(patient[2:]) + grantee + terms_hash)


def rolling_head(head: bytes, root: bytes, manifest_digest: bytes, size_class: int) -> bytes:
    """RecordAnchor's head after one more batch; from ``ZERO_HASH``."""
    return keccak(head + root + manifest_digest + size_class.to_bytes(32, "big"))


def consent_nonce(kind: int, unique: int) -> int:
    """The signer kind in the top byte over 248 bits that the patient never used before."""
    if not 0 <= kind < len(SIGNER_KINDS) or not 0 <= unique < 1 << 248:
        raise ValueError("a nonce is a signer kind over 248 bits")
    return kind << 248 | unique


# -- where things are -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A block's place in the chain; ``time_s`` is the header's timestamp (epoch seconds UTC)."""

    number: int
    hash: bytes
    parent_hash: bytes
    time_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a log stands; ``(block_hash, log_index)`` names it through every reorg."""

    block_number: int
    block_hash: bytes
    tx_hash: bytes
    log_index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Contracts:
    """The addresses of one deployment; ``from_block``: no event of theirs is older."""

    record_anchor: Address
    consent_registry: Address
    hospital_registry: Address
    from_block: int = 0


# -- events -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchored:
    """RecordAnchor: ``head`` is the custodian's ``rolling_head`` after this batch, ``previous_head`` before it."""

    place: Place
    custodian: Address
    previous_head: bytes
    root: bytes
    manifest_digest: bytes
    size_class: int
    head: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Granted:
    """ConsentRegistry: in force in ``[valid_from_s, valid_until_s)`` while the patient's epoch is ``epoch``.

    ``kind`` is a ``SIGNER_KINDS`` position; ``custodian`` the member who relayed it, None where nobody's operator did.
    """

    place: Place
    patient: Address
    grant_id: bytes
    custodian: Address | None
    grantee: bytes
    terms_hash: bytes
    valid_from_s: int
    valid_until_s: int
    kind: int
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Revoked:
    """ConsentRegistry: this id is over for good, also when it was never granted."""

    place: Place
    patient: Address
    grant_id: bytes
    grantee: bytes
    terms_hash: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RevokedAll:
    """ConsentRegistry: the patient's epoch is ``epoch`` now; every grant of an earlier one is over."""

    place: Place
    patient: Address
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NoncesCancelled:
    """ConsentRegistry: nonces ``word << 8 | bit`` for every bit of ``mask`` can no longer be used."""

    place: Place
    patient: Address
    word: int
    mask: int


MemberChange = Literal["admitted", "removed", "endpoint", "operator-added", "operator-removed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberChanged:
    """HospitalRegistry: ``operator`` is set by operator changes, ``endpoint_digest`` (sha-256 of the endpoint
    document) by ``admitted`` and ``endpoint``."""

    place: Place
    change: MemberChange
    member: Address
    operator: Address | None
    endpoint_digest: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SuccessorNamed:
    """HospitalRegistry: the contract of this name is replaced by the one at ``successor``."""

    place: Place
    name: str
    successor: Address


Event = Anchored | Granted | Revoked | RevokedAll | NoncesCancelled | MemberChanged | SuccessorNamed

# -- calls (state-changing) -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class AnchorCall:
    """RecordAnchor.anchor: ``HeadMismatch`` unless ``expected_head`` is the custodian's head, ``NotMember``,
    ``SizeClassUnknown`` (0: up to 16 entries, 1: 64, 2: 256, 3: 1,024, 4: 4,096)."""

    expected_head: bytes
    root: bytes
    manifest_digest: bytes
    size_class: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantCall:
    """ConsentRegistry.grantBySig. ``nonce`` carries the signer kind (``consent_nonce``); ``deadline_s`` is the last
    second the signature counts. ``InvalidSignature``, ``NonceUsed``, ``SignatureExpired``, ``InvalidPeriod``,
    ``GrantExists`` (an id lives once: the same terms again need a new salt), ``NotMember``, ``SignerKindUnknown``,
    ``EpochMismatch`` (``epoch`` is not the patient's present one: a revoke-all came between)."""

    patient: Address
    grantee: bytes
    terms_hash: bytes
    valid_from_s: int
    valid_until_s: int
    epoch: int
    nonce: int
    deadline_s: int
    signature: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RevokeCall:
    """ConsentRegistry.revokeBySig: as ``GrantCall``, and ``AlreadyRevoked``."""

    patient: Address
    grantee: bytes
    terms_hash: bytes
    nonce: int
    deadline_s: int
    signature: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RevokeAllCall:
    """ConsentRegistry.revokeAllBySig: ends ``epoch``, which must be the patient's present one (``EpochMismatch``)."""

    patient: Address
    epoch: int
    nonce: int
    deadline_s: int
    signature: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantBatchCall:
    """ConsentRegistry.grantBatchBySig: all or none."""

    grants: tuple[GrantCall, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RevokeBatchCall:
    """ConsentRegistry.revokeBatchBySig: all or none."""

    revocations: tuple[RevokeCall, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AddOperatorCall:
    """HospitalRegistry.addOperator, by a member: ``NotMember``, ``OperatorTaken``, ``TooManyOperators``."""

    operator: Address


@dataclass(frozen=True, slots=True, kw_only=True)
class SetEndpointCall:
    """HospitalRegistry.setEndpoint, by a member: ``NotMember``."""

    endpoint_digest: bytes


Call = (AnchorCall | GrantCall | RevokeCall | RevokeAllCall | GrantBatchCall | RevokeBatchCall | AddOperatorCall
        | SetEndpointCall)

# -- transactions -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Fees:
    """What a transaction offers per gas. ``priority`` None: a legacy gas price, for chains without EIP-1559."""

    max_fee: Wei
    priority: Wei | None

    def bumped(self, percent: int = 25) -> Fees:
        """At least ``percent`` more of both, as a node demands of a replacement (geth: 10)."""
        priority = None if self.priority is None else _raised(self.priority, percent)
        return replace(self, max_fee=_raised(self.max_fee, percent), priority=priority)


def _raised(amount: Wei, percent: int) -> Wei:
    return amount + max(1, -(-amount * percent // 100))


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedTransaction:
    """Signed and not yet sent: store it first, then broadcast, and a crash between loses nothing."""

    hash: bytes
    raw: bytes
    nonce: int
    fees: Fees


@dataclass(frozen=True, slots=True, kw_only=True)
class Transaction:
    """A transaction the node knows; ``block_number`` None while it waits."""

    hash: bytes
    nonce: int
    sender: Address
    block_number: int | None
    block_hash: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Revert:
    """Why a contract refused: the error's name and arguments as the ABI has them (``HeadMismatch``, ...)."""

    name: str
    arguments: tuple[object, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """A mined transaction. ``revert`` is None when it took effect; ``events`` are those of our contracts."""

    tx_hash: bytes
    block_number: int
    block_hash: bytes
    gas_used: int
    revert: Revert | None
    events: tuple[Event, ...]

    @property
    def succeeded(self) -> bool:
        return self.revert is None


Tag = Literal["latest", "pending"]


class Chain(Protocol):
    """One chain, one deployment of the contracts, one operator who signs and pays.

    Every method may raise ``ChainUnavailable`` (no answer, not in time, not understood, another chain).
    ``at`` is a block number; None is the latest block.
    """

    @property
    def chain_id(self) -> int: ...

    @property
    def operator(self) -> Address: ...

    @property
    def contracts(self) -> Contracts: ...

    def head(self) -> Block:
        """The newest block."""

    def block(self, number: int) -> Block | None:
        """The canonical block of that height; None above the head."""

    def block_by_hash(self, block_hash: bytes) -> Block | None:
        """The block of that hash if it is known *and canonical now*; a block reorged away answers None."""

    def logs(self, from_block: int, to_block: int) -> tuple[Event, ...]:
        """Events of the three contracts in both blocks and between, in chain order; none above the head.

        A reorg may happen between two calls: compare each event's ``block_hash`` with ``block(number)``.
        """

    def anchor_head(self, custodian: Address, *, at: int | None = None) -> bytes:
        """RecordAnchor's rolling head of a custodian; ``ZERO_HASH`` before the first anchor."""

    def is_granted(self, patient: Address, grantee: bytes, terms_hash: bytes, *, at: int | None = None) -> bool:
        """Whether the grant lives and is in time at that block."""

    def granted_count(self, patient: Address, *, at: int | None = None) -> int:
        """How many grants of the patient's present epoch are not revoked, expired ones included."""

    def epoch(self, patient: Address, *, at: int | None = None) -> int:
        """The patient's present epoch: what a ``RevokeAllCall`` names."""

    def is_nonce_used(self, patient: Address, nonce: int, *, at: int | None = None) -> bool:
        """Whether a consent nonce was used or cancelled."""

    def member_of(self, operator: Address | None = None, *, at: int | None = None) -> Address | None:
        """The member (custodian) an account acts for, default: the operator; None: for nobody."""

    def nonce(self, tag: Tag, *, of: Address | None = None) -> int:
        """The next nonce of ``of`` (default: the operator), counting waiting transactions if ``pending``."""

    def balance(self, of: Address | None = None) -> Wei:
        """What ``of`` (default: the operator) holds."""

    def fees(self) -> Fees:
        """What a transaction should offer now."""

    def estimate(self, call: Call) -> int:
        """Gas the call would use now; ``ChainReverted`` when a contract would refuse it."""

    def sign(self, call: Call, *, nonce: int, fees: Fees, gas: int | None = None) -> SignedTransaction:
        """Signed by the operator, not sent. ``gas`` None: the adapter's fixed limit for that call, so that signing
        never needs the chain to accept the call at this moment."""

    def broadcast(self, signed: SignedTransaction) -> bytes:
        """Sent; answers its hash, also when the node knew it already.

        ``TransactionRefused`` with a reason: ``nonce-too-low``, ``underpriced`` (replacement), ``insufficient-funds``,
        ``other``. After ``ChainUnavailable`` it may have been sent or not: ask ``transaction`` or send it again.
        """

    def send(self, call: Call, *, nonce: int, fees: Fees, gas: int | None = None) -> bytes:
        """``sign`` and ``broadcast``."""

    def transaction(self, tx_hash: bytes) -> Transaction | None:
        """None: the node does not know it (never came, dropped, or replaced)."""

    def receipt(self, tx_hash: bytes) -> Receipt | None:
        """None while it is not in a canonical block."""
