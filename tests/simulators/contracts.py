"""The three contracts, modelled: the same errors, events and order of checks as contracts/src, over a frozen state.

Owns what a call does to the state; refuses signature mathematics (a predicate decides) and everything about blocks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from gateway.ledger.address import Address
from gateway.ledger.calls import (
    SIGNER_KINDS,
    AddOperatorCall,
    AnchorCall,
    Call,
    GrantBatchCall,
    GrantCall,
    RevokeAllCall,
    RevokeBatchCall,
    RevokeCall,
    SetEndpointCall,
    grant_id,
)
from gateway.ledger.events import (
    ZERO_HASH,
    Anchored,
    Event,
    Granted,
    MemberChange,
    MemberChanged,
    Place,
    Revoked,
    RevokedAll,
    rolling_head,
)
from gateway.ledger.transactions import Revert

GAS: Mapping[type, int] = {AnchorCall: 36_000, GrantCall: 80_000, RevokeCall: 45_000, RevokeAllCall: 60_000,
                           GrantBatchCall: 400_000, RevokeBatchCall: 400_000, AddOperatorCall: 90_000,
                           SetEndpointCall: 30_000}
Emit = Callable[[Place], Event]


def _hash(*parts: object) -> bytes:
    return hashlib.sha256(repr(parts).encode()).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    patient: Address
    valid_from_s: int
    valid_until_s: int
    epoch: int
    revoked: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What the contracts and accounts hold after a block; mappings are never changed in place."""

    heads: Mapping[Address, bytes] = field(default_factory=dict)
    grants: Mapping[bytes, Grant] = field(default_factory=dict)
    epochs: Mapping[Address, int] = field(default_factory=dict)
    used: frozenset[tuple[Address, int]] = frozenset()
    operators: Mapping[Address, Address] = field(default_factory=dict)
    nonces: Mapping[Address, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """Done by ``change_member``, not by a signed call."""

    change: MemberChange
    member: Address
    operator: Address | None
    endpoint_digest: bytes | None


Outcome = tuple[State, list[Emit], Revert | None]


def run(call: Call | Membership, sender: Address, state: State, now_s: int,
        accepts_signature: Callable[[Call], bool]) -> Outcome:
    """The contracts: the state after, what is emitted, or why not (and then the state is as before)."""
    match call:
        case AnchorCall():
            return _anchor(call, sender, state)
        case Membership():
            return _membership(call, state)
        case AddOperatorCall() | SetEndpointCall():
            return _own_membership(call, sender, state)
        case GrantBatchCall() | RevokeBatchCall():
            after, emits = state, []
            parts = call.grants if isinstance(call, GrantBatchCall) else call.revocations
            for part in parts:
                after, emitted, revert = _consent(part, sender, after, now_s, accepts_signature)
                if revert is not None:
                    return state, [], revert
                emits += emitted
            return after, emits, None
        case GrantCall() | RevokeCall() | RevokeAllCall():
            return _consent(call, sender, state, now_s, accepts_signature)



def _consent(call: GrantCall | RevokeCall | RevokeAllCall, sender: Address, state: State, now_s: int,
             accepts_signature: Callable[[Call], bool]) -> Outcome:
    patient, kind = call.patient, call.nonce >> 248
    if now_s > call.deadline_s:
        return _refused(state, "SignatureExpired", call.deadline_s, now_s)
    if kind >= len(SIGNER_KINDS):
        return _refused(state, "SignerKindUnknown", kind)
    if (patient, call.nonce) in state.used:
        return _refused(state, "NonceUsed", patient, call.nonce)
    spent = replace(state, used=state.used | {(patient, call.nonce)})
    epoch = state.epochs.get(patient, 0)
    custodian = state.operators.get(sender)
    if isinstance(call, GrantCall) and SIGNER_KINDS[kind] in ("custodial", "attested") and custodian is None:
        return _refused(state, "NotMember", sender)
    if not isinstance(call, RevokeCall) and call.epoch != epoch:
        return _refused(state, "EpochMismatch", patient, call.epoch, epoch)
    if not accepts_signature(call):
        return _refused(state, "InvalidSignature", patient, kind, _hash("digest", call))
    if isinstance(call, RevokeAllCall):
        return (replace(spent, epochs={**state.epochs, patient: epoch + 1}),
                [lambda place: RevokedAll(place=place, patient=patient, epoch=epoch + 1)], None)
    name = grant_id(patient, call.grantee, call.terms_hash)
    present = state.grants.get(name)
    if isinstance(call, RevokeCall):
        if present is not None and present.revoked:
            return _refused(state, "AlreadyRevoked", name)
        over = replace(present, revoked=True) if present else Grant(
            patient=patient, valid_from_s=0, valid_until_s=0, epoch=0, revoked=True)
        return (replace(spent, grants={**state.grants, name: over}),
                [lambda place: Revoked(place=place, patient=patient, grant_id=name,
                                       grantee=call.grantee, terms_hash=call.terms_hash)], None)
    if call.valid_until_s <= max(call.valid_from_s, now_s) or call.valid_from_s >= 1 << 32:
        return _refused(state, "InvalidPeriod", call.valid_from_s, call.valid_until_s, now_s)
    if present is not None:
        return _refused(state, "GrantExists", name, 2 if present.revoked else 1)
    grant = Grant(patient=patient, valid_from_s=call.valid_from_s, valid_until_s=call.valid_until_s,
                   epoch=epoch, revoked=False)
    return (replace(spent, grants={**state.grants, name: grant}),
            [lambda place: Granted(place=place, patient=patient, grant_id=name, custodian=custodian,
                                   grantee=call.grantee, terms_hash=call.terms_hash,
                                   valid_from_s=call.valid_from_s, valid_until_s=call.valid_until_s, kind=kind,
                                   epoch=epoch)], None)


def _refused(state: State, name: str, *arguments: object) -> Outcome:
    return state, [], Revert(name=name, arguments=arguments)


def _anchor(call: AnchorCall, sender: Address, state: State) -> Outcome:
    if call.size_class > 4:
        return _refused(state, "SizeClassUnknown", call.size_class)
    custodian = state.operators.get(sender)
    if custodian is None:
        return _refused(state, "NotMember", sender)
    head = state.heads.get(custodian, ZERO_HASH)
    if call.expected_head != head:
        return _refused(state, "HeadMismatch", call.expected_head, head)
    after = rolling_head(head, call.root, call.manifest_digest, call.size_class)
    return (replace(state, heads={**state.heads, custodian: after}),
            [lambda place: Anchored(place=place, custodian=custodian, previous_head=head, root=call.root,
                                    manifest_digest=call.manifest_digest, size_class=call.size_class, head=after)],
            None)


def _membership(call: Membership, state: State) -> Outcome:
    operators = dict(state.operators)
    match call.change:
        case "admitted":
            operators[call.member] = call.member
        case "removed":
            operators = {who: member for who, member in operators.items() if member != call.member}
        case "operator-added" if call.operator is not None:
            operators[call.operator] = call.member
        case "operator-removed" if call.operator is not None:
            operators.pop(call.operator, None)
    return (replace(state, operators=operators),
            [lambda place: MemberChanged(place=place, change=call.change, member=call.member,
                                         operator=call.operator, endpoint_digest=call.endpoint_digest)], None)


def _own_membership(call: AddOperatorCall | SetEndpointCall, sender: Address, state: State) -> Outcome:
    if state.operators.get(sender) != sender:
        return _refused(state, "NotMember", sender)
    if isinstance(call, SetEndpointCall):
        return _membership(Membership(change="endpoint", member=sender, operator=None,
                                       endpoint_digest=call.endpoint_digest), state)
    if call.operator in state.operators:
        return _refused(state, "OperatorTaken", call.operator, state.operators[call.operator])
    return _membership(Membership(change="operator-added", member=sender, operator=call.operator,
                                   endpoint_digest=None), state)
