"""Any Ethereum node behind JSON-RPC, with one operator's key: blocks, nonces, fees, signing, sending, calling.

Owns the words in which geth, anvil, Besu and the embedded chain refuse, and the check that the node is on the expected
chain (at connect and with every head). Refuses to know any contract (``ethereum.py`` does). Every error of httpx, web3
and eth_account leaves as ``ChainUnavailable``, ``ChainReverted``, ``TransactionRefused`` or ``Misconfigured``.
Spec: https://ethereum.github.io/execution-apis/, https://eips.ethereum.org/EIPS/eip-1559, eip-155
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import httpx
from eth_account import Account
from eth_account.signers.local import LocalAccount
from web3 import Web3

from gateway.errors import ChainUnavailable, Misconfigured, TransactionRefused
from gateway.ledger.address import Address, address
from gateway.ledger.chain import Block, Tag
from gateway.ledger.ethereum_rpc import JsonRpc, RpcFault
from gateway.ledger.transactions import Fees, SignedTransaction, Transaction

FALLBACK_PRIORITY: Final = 1_000_000_000
METHOD_MISSING: Final = -32601
_KNOWN = ("already known", "known transaction", "already imported", "already_exists", "already in mempool")
_REFUSALS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("nonce-too-low", ("nonce too low", "nonce_too_low", "nonce below", "invalid nonce")),
    ("underpriced", ("underpriced", "less than block base fee", "fee too low", "gas price below", "gas_price_too_low",
                     "below current base fee", "fee cap less than", "max fee per gas less")),
    ("insufficient-funds", ("insufficient funds", "insufficient balance", "upfront cost exceeds", "upfront_cost")),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RawReceipt:
    """A mined transaction before any contract is known. ``gas_used`` and ``logs`` as JSON-RPC has them, decoded no
    further; ``contract`` is set for a creation."""

    block_number: int
    block_hash: bytes
    gas_used: int
    succeeded: bool
    contract: Address | None
    revert_data: bytes | None
    logs: tuple[dict[str, Any], ...]


class EthereumNode:
    """Connects at once. ``Misconfigured``: the node is on another chain than ``chain_id``."""

    def __init__(self, url: str, *, chain_id: int, private_key: bytes, timeout_s: float = 10.0,
                 transport: httpx.BaseTransport | None = None) -> None:
        try:
            self._account: LocalAccount = Account.from_key(private_key)
        except Exception as error:  # eth_keys has errors of its own, none of which may show the key
            raise Misconfigured("the operator's key is not a secp256k1 private key") from error
        self._rpc = JsonRpc(url, timeout_s=timeout_s, transport=transport)
        self.chain_id = chain_id
        self.operator = address(self._account.address)
        self._check_chain(self.ask("eth_chainId"))

    def close(self) -> None:
        self._rpc.close()

    def _check_chain(self, answered: object) -> None:
        found = number(answered)
        if found != self.chain_id:
            raise Misconfigured(f"the chain node is on chain {found}, and chain {self.chain_id} is expected: "
                                "set GATEWAY_CHAIN_RPC to a node of that chain, or GATEWAY_CHAIN_ID to this one")

    def ask(self, method: str, *params: Any) -> Any:  # Any: JSON
        """One JSON-RPC call whose errors all mean ``ChainUnavailable``."""
        try:
            return self._rpc.call(method, *params)
        except RpcFault as fault:
            raise ChainUnavailable(f"{method}: {fault}") from fault

    def try_ask(self, method: str, *params: Any) -> Any:  # Any: JSON
        """One JSON-RPC call whose errors are the caller's to understand (``RpcFault``)."""
        return self._rpc.call(method, *params)

    # -- blocks -------------------------------------------------------------------------------------------------------

    def head(self) -> Block:
        try:
            chain_id, found = self._rpc.batch([("eth_chainId", ()), ("eth_getBlockByNumber", ("latest", False))])
        except (RpcFault, ValueError):  # a node that takes no batches
            chain_id, found = self.ask("eth_chainId"), self.ask("eth_getBlockByNumber", "latest", False)
        self._check_chain(chain_id)
        head = _block(found)
        if head is None:
            raise ChainUnavailable("the chain node has no block")
        return head

    def block(self, at: int) -> Block | None:
        return _block(self.ask("eth_getBlockByNumber", hex(at), False))

    def block_by_hash(self, block_hash: bytes) -> Block | None:
        found = _block(self.ask("eth_getBlockByHash", show(block_hash), False))
        if found is None:
            return None
        canonical = self.block(found.number)
        return found if canonical == found else None

    # -- accounts -----------------------------------------------------------------------------------------------------

    def nonce(self, tag: Tag, of: Address | None = None) -> int:
        return number(self.ask("eth_getTransactionCount", of or self.operator, tag))

    def balance(self, of: Address | None = None) -> int:
        return number(self.ask("eth_getBalance", of or self.operator, "latest"))

    def code(self, of: Address) -> bytes:
        return data(self.ask("eth_getCode", of, "latest"))

    def fees(self) -> Fees:
        """EIP-1559 where blocks have a base fee (room for it to double), else the node's gas price."""
        found = self.ask("eth_getBlockByNumber", "latest", False)
        base = found.get("baseFeePerGas") if isinstance(found, dict) else None
        if base is None:
            return Fees(max_fee=number(self.ask("eth_gasPrice")), priority=None)
        try:
            priority = number(self._rpc.call("eth_maxPriorityFeePerGas"))
        except RpcFault as fault:
            if fault.code != METHOD_MISSING:
                raise ChainUnavailable(f"eth_maxPriorityFeePerGas: {fault}") from fault
            priority = FALLBACK_PRIORITY
        return Fees(max_fee=2 * number(base) + priority, priority=priority)

    # -- transactions -------------------------------------------------------------------------------------------------

    def sign(self, *, to: Address | None, payload: bytes, nonce: int, fees: Fees, gas: int,
             value: int = 0) -> SignedTransaction:
        """By the operator; ``to`` None creates a contract."""
        fields: dict[str, Any] = {"chainId": self.chain_id, "nonce": nonce, "gas": gas, "value": value,
                                  "data": payload}
        if to is not None:
            fields["to"] = Web3.to_checksum_address(to)
        if fees.priority is None:
            fields["gasPrice"] = fees.max_fee
        else:
            fields.update(type=2, maxFeePerGas=fees.max_fee, maxPriorityFeePerGas=fees.priority)
        try:
            signed = self._account.sign_transaction(fields)
        except Exception as error:  # eth_account: TypeError, ValueError and web3's own, all about our own fields
            raise TransactionRefused("other", f"cannot be signed: {type(error).__name__}") from error
        return SignedTransaction(hash=bytes(signed.hash), raw=bytes(signed.raw_transaction), nonce=nonce, fees=fees)

    def broadcast(self, signed: SignedTransaction) -> bytes:
        try:
            answered = data(self._rpc.call("eth_sendRawTransaction", show(signed.raw)))
        except RpcFault as fault:
            words = fault.message.lower()
            if any(known in words for known in _KNOWN):
                return signed.hash
            reason = next((reason for reason, said in _REFUSALS if any(word in words for word in said)), "other")
            if reason == "nonce-too-low" and self.transaction(signed.hash) is not None:
                return signed.hash  # this very transaction took the nonce
            raise TransactionRefused(reason, fault.message) from fault
        if answered != signed.hash:
            raise ChainUnavailable("the chain node answered for another transaction")
        return signed.hash

    def transaction(self, tx_hash: bytes) -> Transaction | None:
        found = self.ask("eth_getTransactionByHash", show(tx_hash))
        if found is None:
            return None
        block_hash = field(found, "blockHash")
        mined = block_hash is not None
        return Transaction(hash=data(field(found, "hash"), 32), nonce=number(field(found, "nonce")),
                           sender=account(field(found, "from")), block_hash=data(block_hash, 32) if mined else None,
                           block_number=number(field(found, "blockNumber")) if mined else None)

    def receipt(self, tx_hash: bytes) -> RawReceipt | None:
        found = self.ask("eth_getTransactionReceipt", show(tx_hash))
        if found is None or field(found, "blockHash") is None:
            return None
        contract, reason = found.get("contractAddress"), found.get("revertReason")
        return RawReceipt(
            block_number=number(field(found, "blockNumber")), block_hash=data(field(found, "blockHash"), 32),
            gas_used=number(field(found, "gasUsed")), succeeded=number(field(found, "status")) == 1,
            contract=None if contract is None else account(contract),
            revert_data=None if reason is None else data(reason), logs=tuple(field(found, "logs")))


# -- JSON values ------------------------------------------------------------------------------------------------------


def show(value: bytes) -> str:
    return "0x" + value.hex()


def number(value: object) -> int:
    """A JSON-RPC quantity. ``ChainUnavailable`` for anything else."""
    if isinstance(value, str) and value.startswith("0x"):
        try:
            return int(value, 16)
        except ValueError:
            pass
    raise ChainUnavailable("the chain node answered something that is no number")


def data(value: object, size: int | None = None) -> bytes:
    """JSON-RPC data, of ``size`` bytes where given. ``ChainUnavailable`` for anything else."""
    if isinstance(value, str) and value.startswith("0x"):
        try:
            found = bytes.fromhex(value[2:])
        except ValueError:
            found = None
        if found is not None and size in (None, len(found)):
            return found
    raise ChainUnavailable("the chain node answered something that is no data")


def account(value: object) -> Address:
    return address(data(value, 20))


def field(value: object, name: str) -> Any:  # Any: JSON
    """A member of a JSON object. ``ChainUnavailable`` where it is missing."""
    if isinstance(value, dict) and name in value:
        return value[name]
    raise ChainUnavailable(f"the chain node's answer has no {name}")


def _block(found: object) -> Block | None:
    if found is None:
        return None
    return Block(number=number(field(found, "number")), hash=data(field(found, "hash"), 32),
                 parent_hash=data(field(found, "parentHash"), 32), time_s=number(field(found, "timestamp")))
