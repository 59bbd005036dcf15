"""The contracts' ABI: calls to bytes, logs to events, revert data to names. web3's codec does the encoding.

Owns reading ``contracts/artifacts`` and the one-to-one mapping between contract functions, events and the values of
``events.py`` and ``calls.py``; refuses logs and answers that do not fit the ABI (``ChainUnavailable``: the node or the
address is wrong).
Spec: https://docs.soliditylang.org/en/latest/abi-spec.html
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

from eth_abi.exceptions import DecodingError
from hexbytes import HexBytes
from web3 import Web3
from web3.exceptions import Web3Exception
from web3.providers.base import BaseProvider

from gateway.errors import ChainUnavailable, Misconfigured
from gateway.ledger.address import Address, address
from gateway.ledger.calls import (
    AddOperatorCall,
    AnchorCall,
    Call,
    GrantBatchCall,
    GrantCall,
    RevokeAllCall,
    RevokeBatchCall,
    RevokeCall,
    SetEndpointCall,
)
from gateway.ledger.chain import Contracts
from gateway.ledger.events import (
    Anchored,
    Event,
    Granted,
    MemberChanged,
    NoncesCancelled,
    Place,
    Revoked,
    RevokedAll,
    SuccessorNamed,
    rolling_head,
)
from gateway.ledger.keccak import keccak
from gateway.ledger.transactions import Revert

NAMES: Final = ("HospitalRegistry", "RecordAnchor", "ConsentRegistry")
NO_ADDRESS: Final = address(bytes(20))
GAS_ANCHOR: Final = 120_000
GAS_CONSENT: Final = 1_000_000
"""A passkey's P-256 check in Solidity, or a contract wallet's own: what is not used is not paid."""
GAS_BATCH_MOST: Final = 25_000_000
GAS_MEMBER: Final = 250_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """One compiled contract: its ABI (JSON) and creation bytecode."""

    name: str
    abi: list[dict[str, Any]]
    bytecode: bytes


def artifacts_folder() -> Path:
    """``contracts/artifacts`` beside the package in a checkout, inside it in a wheel."""
    package = Path(__file__).resolve().parents[1]
    for candidate in (package.parent / "contracts" / "artifacts", package / "_contracts"):
        if (candidate / "RecordAnchor.json").is_file():
            return candidate
    raise Misconfigured("the contract artifacts are neither beside nor inside the gateway package: reinstall it")


def load_artifact(name: str) -> Artifact:
    try:
        loaded = json.loads((artifacts_folder() / f"{name}.json").read_bytes())
        return Artifact(name=name, abi=loaded["abi"],
                        bytecode=bytes.fromhex(str(loaded["bytecode"]).removeprefix("0x")))
    except (OSError, ValueError, KeyError) as error:
        raise Misconfigured(f"the artifact of {name} cannot be read: reinstall the gateway") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """A call as a transaction carries it; ``gas`` is a limit that is always enough."""

    to: Address
    payload: bytes
    gas: int


class ContractCodec:
    """Pure once made; asks no node."""

    def __init__(self, contracts: Contracts) -> None:
        self._web3 = Web3(BaseProvider())  # only its codec is used: it has nothing to ask
        self._addresses = {"HospitalRegistry": contracts.hospital_registry, "RecordAnchor": contracts.record_anchor,
                           "ConsentRegistry": contracts.consent_registry}
        self._contracts: dict[str, Any] = {}  # web3's contract classes are made at run time
        self._events: dict[tuple[Address, bytes], Any] = {}
        self._errors = {keccak(b"Error(string)")[:4]: ("Error", ["string"]),
                        keccak(b"Panic(uint256)")[:4]: ("Panic", ["uint256"])}
        for name in NAMES:
            artifact = load_artifact(name)
            contract: Any = self._web3.eth.contract(abi=artifact.abi)
            self._contracts[name] = contract
            for entry in artifact.abi:
                if entry["type"] == "event":
                    topic = keccak(_signature(entry))
                    self._events[self._addresses[name], topic] = contract.events[entry["name"]]()
                elif entry["type"] == "error":
                    types = [part["type"] for part in entry["inputs"]]
                    self._errors[keccak(_signature(entry))[:4]] = (entry["name"], types)

    # -- calls --------------------------------------------------------------------------------------------------------

    def encode(self, call: Call) -> Encoded:
        """The transaction's target, input and gas limit. ``ValueError``: a value outside its ABI type."""
        match call:
            case AnchorCall():
                return self._encoded("RecordAnchor", "anchor", [call.expected_head, call.root, call.manifest_digest,
                                                                call.size_class], GAS_ANCHOR)
            case GrantCall():
                return self._encoded("ConsentRegistry", "grantBySig", [_grant(call), call.signature], GAS_CONSENT)
            case RevokeCall():
                return self._encoded("ConsentRegistry", "revokeBySig", [_revoke(call), call.signature], GAS_CONSENT)
            case GrantBatchCall():
                return self._encoded("ConsentRegistry", "grantBatchBySig",
                                     [[_grant(one) for one in call.grants], [one.signature for one in call.grants]],
                                     min(GAS_BATCH_MOST, GAS_CONSENT * len(call.grants)))
            case RevokeBatchCall():
                return self._encoded("ConsentRegistry", "revokeBatchBySig",
                                     [[_revoke(one) for one in call.revocations],
                                      [one.signature for one in call.revocations]],
                                     min(GAS_BATCH_MOST, GAS_CONSENT * len(call.revocations)))
            case RevokeAllCall():
                request = (_checksummed(call.patient), call.epoch, call.nonce, call.deadline_s)
                return self._encoded("ConsentRegistry", "revokeAllBySig", [request, call.signature], GAS_CONSENT)
            case AddOperatorCall():
                return self._encoded("HospitalRegistry", "addOperator", [_checksummed(call.operator)], GAS_MEMBER)
            case SetEndpointCall():
                return self._encoded("HospitalRegistry", "setEndpoint", [call.endpoint_digest], GAS_MEMBER)

    def _encoded(self, contract: str, function: str, arguments: Sequence[object], gas: int) -> Encoded:
        return Encoded(to=self._addresses[contract], payload=self._payload(contract, function, arguments), gas=gas)

    def question(self, contract: str, function: str, *arguments: object) -> tuple[Address, bytes]:
        """A view's target and input; ``function`` with its types where it is overloaded."""
        shown = [_checksummed(a) if isinstance(a, str) else a for a in arguments]
        return self._addresses[contract], self._payload(contract, function, shown)

    def _payload(self, contract: str, function: str, arguments: Sequence[object]) -> bytes:
        try:
            return bytes(HexBytes(self._contracts[contract].encode_abi(function, list(arguments))))
        except (Web3Exception, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"{contract}.{function} does not take these arguments") from error

    def answer(self, types: Sequence[str], output: bytes) -> tuple[Any, ...]:
        """A view's values. ``ChainUnavailable``: not these types (no contract there, or another one)."""
        try:
            return tuple(_plain(value, kind) for value, kind
                         in zip(self._web3.codec.decode(list(types), output), types, strict=True))
        except (DecodingError, ValueError, OverflowError) as error:
            raise ChainUnavailable("a contract answered something its ABI does not have") from error

    def revert(self, output: bytes) -> Revert:
        """What revert data says: a contract's own error, ``Error(string)``, ``Panic(uint256)``, or ``Unknown``."""
        if not output:
            return Revert(name="Reverted")
        known = self._errors.get(output[:4])
        if known is None:
            return Revert(name="Unknown", arguments=(output,))
        name, types = known
        try:
            return Revert(name=name, arguments=self.answer(types, output[4:]))
        except ChainUnavailable:
            return Revert(name="Unknown", arguments=(output,))

    # -- events -------------------------------------------------------------------------------------------------------

    def event(self, place: Place, emitter: Address, topics: Sequence[bytes], payload: bytes) -> Event | None:
        """None: not an event the gateway follows. ``ChainUnavailable``: it is one, and does not fit."""
        decoder = self._events.get((emitter, topics[0])) if topics else None
        if decoder is None:
            return None
        try:
            decoded = decoder.process_log({
                "address": _checksummed(emitter), "topics": [HexBytes(topic) for topic in topics],
                "data": HexBytes(payload), "blockNumber": place.block_number, "blockHash": HexBytes(place.block_hash),
                "transactionHash": HexBytes(place.tx_hash), "transactionIndex": 0, "logIndex": place.log_index})
        except (Web3Exception, DecodingError, ValueError, TypeError) as error:
            raise ChainUnavailable("a contract emitted something its ABI does not have") from error
        return _event(place, str(decoded["event"]), SimpleNamespace(**decoded["args"]))


def _signature(entry: dict[str, Any]) -> bytes:
    return f"{entry['name']}({','.join(part['type'] for part in entry['inputs'])})".encode()


def _checksummed(value: str) -> str:
    return Web3.to_checksum_address(value)


def _plain(value: Any, kind: str) -> object:  # Any: whatever the ABI type decodes to
    return address(value) if kind == "address" else value


def _grant(call: GrantCall) -> tuple[object, ...]:
    return (_checksummed(call.patient), call.grantee, call.terms_hash, call.valid_from_s, call.valid_until_s,
            call.epoch, call.nonce, call.deadline_s)


def _revoke(call: RevokeCall) -> tuple[object, ...]:
    return _checksummed(call.patient), call.grantee, call.terms_hash, call.nonce, call.deadline_s


def _event(place: Place, name: str, args: SimpleNamespace) -> Event | None:
    match name:
        case "Anchored":
            previous, root, manifest = bytes(args.previousHead), bytes(args.root), bytes(args.manifestDigest)
            return Anchored(place=place, custodian=address(args.custodian), previous_head=previous, root=root,
                            manifest_digest=manifest, size_class=args.sizeClass,
                            head=rolling_head(previous, root, manifest, args.sizeClass))
        case "Granted":
            custodian = address(args.custodian)
            return Granted(place=place, patient=address(args.patient), grant_id=bytes(args.grantId),
                           custodian=None if custodian == NO_ADDRESS else custodian, grantee=bytes(args.grantee),
                           terms_hash=bytes(args.termsHash), valid_from_s=args.validFrom,
                           valid_until_s=args.validUntil, kind=args.kind, epoch=args.epoch)
        case "Revoked":
            return Revoked(place=place, patient=address(args.patient), grant_id=bytes(args.grantId),
                           grantee=bytes(args.grantee), terms_hash=bytes(args.termsHash))
        case "RevokedAll":
            return RevokedAll(place=place, patient=address(args.patient), epoch=args.epoch)
        case "NoncesCancelled":
            return NoncesCancelled(place=place, patient=address(args.patient), word=args.word, mask=args.mask)
        case "MemberAdmitted" | "EndpointChanged":
            return MemberChanged(place=place, change="admitted" if name == "MemberAdmitted" else "endpoint",
                                 member=address(args.member), operator=None,
                                 endpoint_digest=bytes(args.endpointDigest))
        case "MemberRemoved":
            return MemberChanged(place=place, change="removed", member=address(args.member), operator=None,
                                 endpoint_digest=None)
        case "OperatorAdded" | "OperatorRemoved":
            return MemberChanged(place=place, change="operator-added" if name == "OperatorAdded" else
                                 "operator-removed", member=address(args.member), operator=address(args.operator),
                                 endpoint_digest=None)
        case "SuccessorNamed":
            return SuccessorNamed(place=place, name=bytes(args.name).rstrip(b"\0").decode("ascii", "replace"),
                                  successor=address(args.successor))
    return None
