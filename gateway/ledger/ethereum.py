"""``Chain`` on any Ethereum node: geth, anvil, Besu, or the embedded one.

Owns putting ``EthereumNode`` and ``ContractCodec`` together: events of a range, views, sending, and why a transaction
reverted. Refuses to retry and to remember; the loops above do. Importable by the composition root alone.
"""

from __future__ import annotations

from typing import Any, Final

from gateway.errors import ChainReverted, ChainUnavailable, TransactionRefused
from gateway.ledger.address import Address
from gateway.ledger.calls import Call
from gateway.ledger.chain import Block, Contracts, Tag
from gateway.ledger.contract_codec import NO_ADDRESS, ContractCodec
from gateway.ledger.ethereum_node import EthereumNode, RawReceipt, account, data, field, number, show
from gateway.ledger.ethereum_rpc import RpcFault
from gateway.ledger.events import Event, Place
from gateway.ledger.transactions import Fees, Receipt, Revert, SignedTransaction, Transaction

LOG_RANGE: Final = 5_000
"""Blocks per eth_getLogs; halved while a node finds it too much."""
REVERTED: Final = 3


class EthereumChain:
    """Safe for many threads; keeps nothing but its connections."""

    def __init__(self, node: EthereumNode, contracts: Contracts) -> None:
        self._node = node
        self._contracts = contracts
        self._codec = ContractCodec(contracts)

    @property
    def chain_id(self) -> int:
        return self._node.chain_id

    @property
    def operator(self) -> Address:
        return self._node.operator

    @property
    def contracts(self) -> Contracts:
        return self._contracts

    def close(self) -> None:
        self._node.close()

    # -- blocks and events --------------------------------------------------------------------------------------------

    def head(self) -> Block:
        return self._node.head()

    def block(self, number: int) -> Block | None:
        return self._node.block(number)

    def block_by_hash(self, block_hash: bytes) -> Block | None:
        return self._node.block_by_hash(block_hash)

    def logs(self, from_block: int, to_block: int) -> tuple[Event, ...]:
        to_block = min(to_block, self._node.head().number)  # nodes differ on ranges beyond their head
        found: list[Event] = []
        first, width = from_block, LOG_RANGE
        while first <= to_block:
            last = min(to_block, first + width - 1)
            try:
                entries = self._node.try_ask("eth_getLogs", {
                    "fromBlock": hex(first), "toBlock": hex(last),
                    "address": [self._contracts.record_anchor, self._contracts.consent_registry,
                                self._contracts.hospital_registry]})
            except RpcFault as fault:
                if width == 1:
                    raise ChainUnavailable(f"eth_getLogs: {fault}") from fault
                width = max(1, width // 2)
                continue
            found += self._events(entries)
            first = last + 1
        return tuple(found)

    def _events(self, entries: object) -> list[Event]:
        if not isinstance(entries, list):
            raise ChainUnavailable("the chain node answered something that is no list of logs")
        if not all(isinstance(entry, dict) for entry in entries):
            raise ChainUnavailable("the chain node answered something that is no log")
        events = [event for entry in entries if not entry.get("removed") and (event := self._event(entry)) is not None]
        return sorted(events, key=lambda event: (event.place.block_number, event.place.log_index))

    def _event(self, entry: dict[str, Any]) -> Event | None:
        place = Place(block_number=number(field(entry, "blockNumber")), block_hash=data(field(entry, "blockHash"), 32),
                      tx_hash=data(field(entry, "transactionHash"), 32), log_index=number(field(entry, "logIndex")))
        return self._codec.event(place, account(field(entry, "address")),
                                 [data(topic, 32) for topic in field(entry, "topics")], data(field(entry, "data")))

    # -- views --------------------------------------------------------------------------------------------------------

    def anchor_head(self, custodian: Address, *, at: int | None = None) -> bytes:
        return bytes(self._view(at, "RecordAnchor", "head", ("bytes32",), custodian))

    def is_granted(self, patient: Address, grantee: bytes, terms_hash: bytes, *, at: int | None = None) -> bool:
        return bool(self._view(at, "ConsentRegistry", "isGranted(address,bytes32,bytes32)", ("bool",),
                               patient, grantee, terms_hash))

    def granted_count(self, patient: Address, *, at: int | None = None) -> int:
        return int(self._view(at, "ConsentRegistry", "grantedCount", ("uint256",), patient))

    def epoch(self, patient: Address, *, at: int | None = None) -> int:
        return int(self._view(at, "ConsentRegistry", "epochOf", ("uint64",), patient))

    def is_nonce_used(self, patient: Address, nonce: int, *, at: int | None = None) -> bool:
        return bool(self._view(at, "ConsentRegistry", "isNonceUsed", ("bool",), patient, nonce))

    def member_of(self, operator: Address | None = None, *, at: int | None = None) -> Address | None:
        member: Address = self._view(at, "HospitalRegistry", "memberOf", ("address",), operator or self.operator)
        return None if member == NO_ADDRESS else member

    def registry_of(self, contract: str) -> Address:
        """The HospitalRegistry that ``RecordAnchor`` or ``ConsentRegistry`` was made with."""
        found: Address = self._view(None, contract, "registry", ("address",))
        return found

    def consent_domain(self) -> bytes:
        """ConsentRegistry's EIP-712 domain separator."""
        return bytes(self._view(None, "ConsentRegistry", "domainSeparator", ("bytes32",)))

    def _view(self, at: int | None, contract: str, function: str, types: tuple[str, ...], *arguments: object,
              ) -> Any:  # Any: the ABI type's value
        to, payload = self._codec.question(contract, function, *arguments)
        output = self._call({"to": to, "data": show(payload)}, "latest" if at is None else hex(at))
        return self._codec.answer(types, output)[0]

    def _call(self, message: dict[str, str], block: str) -> bytes:
        try:
            return data(self._node.try_ask("eth_call", message, block))
        except RpcFault as fault:
            raise self._translated(fault) from fault

    def _translated(self, fault: RpcFault) -> ChainReverted | ChainUnavailable:
        """A revert is known by its data, its code (geth, anvil: 3) or its words (Besu)."""
        if fault.data or fault.code == REVERTED or "revert" in fault.message.lower():
            revert = self._codec.revert(fault.data or b"")
            return ChainReverted(revert.name, revert.arguments)
        return ChainUnavailable(f"the chain node would not run a call: {fault}")

    # -- transactions -------------------------------------------------------------------------------------------------

    def nonce(self, tag: Tag, *, of: Address | None = None) -> int:
        return self._node.nonce(tag, of)

    def balance(self, of: Address | None = None) -> int:
        return self._node.balance(of)

    def fees(self) -> Fees:
        return self._node.fees()

    def estimate(self, call: Call) -> int:
        encoded = self._codec.encode(call)
        try:
            return number(self._node.try_ask("eth_estimateGas", {"from": self.operator, "to": encoded.to,
                                                                 "data": show(encoded.payload)}))
        except RpcFault as fault:
            raise self._translated(fault) from fault

    def sign(self, call: Call, *, nonce: int, fees: Fees, gas: int | None = None) -> SignedTransaction:
        try:
            encoded = self._codec.encode(call)
        except ValueError as error:
            raise TransactionRefused("other", str(error)) from error
        return self._node.sign(to=encoded.to, payload=encoded.payload, nonce=nonce, fees=fees,
                               gas=encoded.gas if gas is None else gas)

    def broadcast(self, signed: SignedTransaction) -> bytes:
        return self._node.broadcast(signed)

    def send(self, call: Call, *, nonce: int, fees: Fees, gas: int | None = None) -> bytes:
        return self.broadcast(self.sign(call, nonce=nonce, fees=fees, gas=gas))

    def transaction(self, tx_hash: bytes) -> Transaction | None:
        return self._node.transaction(tx_hash)

    def receipt(self, tx_hash: bytes) -> Receipt | None:
        raw = self._node.receipt(tx_hash)
        if raw is None:
            return None
        return Receipt(tx_hash=tx_hash, block_number=raw.block_number, block_hash=raw.block_hash,
                       gas_used=raw.gas_used, revert=None if raw.succeeded else self._why(tx_hash, raw),
                       events=tuple(self._events(list(raw.logs))))

    def _why(self, tx_hash: bytes, raw: RawReceipt) -> Revert:
        """Run it again on the state before its block, then after: what went ahead of it in the block counts too."""
        if raw.revert_data:
            return self._codec.revert(raw.revert_data)
        sent = self._node.ask("eth_getTransactionByHash", show(tx_hash))
        if sent is None or field(sent, "to") is None:
            return Revert(name="Reverted")
        message = {"from": field(sent, "from"), "to": field(sent, "to"), "data": field(sent, "input"),
                   "gas": field(sent, "gas"), "value": field(sent, "value")}
        for block in (raw.block_number - 1, raw.block_number):
            try:
                self._call(message, hex(block))
            except ChainReverted as reverted:
                return Revert(name=reverted.name, arguments=reverted.arguments)
            except ChainUnavailable:
                continue  # that state is gone, or the machine itself failed: the reason is not to be had there
        return Revert(name="OutOfGas" if raw.gas_used == number(field(sent, "gas")) else "Reverted")
