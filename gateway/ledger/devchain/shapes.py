"""Values <-> JSON, as the Ethereum JSON-RPC has them.

Owns quantities (``0x`` without leading zeros), data (``0x`` and even digits), blocks, transactions, receipts and logs;
refuses everything that is not exactly of that shape with ``BadParams``. Field values: eth-tester's serializers.
Spec: https://ethereum.github.io/execution-apis/
"""

from __future__ import annotations

import re
from typing import Any

from eth.abc import BlockAPI, ReceiptAPI, SignedTransactionAPI
from eth_tester.backends.pyevm.serializers import (  # type: ignore[import-untyped]  # ships no types
    serialize_block,
    serialize_transaction,
    serialize_transaction_receipt,
)

from gateway.ledger.devchain.store import LogRow

Json = dict[str, Any]  # a JSON-RPC object: field names and hex text

_QUANTITY = re.compile(r"0x(0|[1-9a-fA-F][0-9a-fA-F]{0,63})")
_DATA = re.compile(r"0x(?:[0-9a-fA-F]{2})*")
_NAMES = {"data": "input", "coinbase": "miner", "sha3_uncles": "sha3Uncles"}


class BadParams(Exception):
    """JSON-RPC -32602; the message names the parameter."""


def quantity(value: object, name: str) -> int:
    """A number from ``0x...``; leading zeros are let pass, as web3.js and some wallets send them."""
    if isinstance(value, str):
        text = "0x" + (value[2:].lstrip("0") or "0") if value[:2] == "0x" and len(value) > 2 else value
        if _QUANTITY.fullmatch(text):
            return int(text, 16)
    raise BadParams(f"{name} must be a hex quantity")


def data(value: object, name: str, size: int | None = None) -> bytes:
    """Bytes from ``0x...``, of ``size`` where given."""
    if isinstance(value, str) and _DATA.fullmatch(value) and (size is None or len(value) == 2 + 2 * size):
        return bytes.fromhex(value[2:])
    raise BadParams(f"{name} must be hex data" + (f" of {size} bytes" if size else ""))


def show(value: bytes) -> str:
    return "0x" + value.hex()


def _camel(name: str) -> str:
    head, *rest = _NAMES.get(name, name).split("_")
    return head + "".join(part.capitalize() for part in rest)


def _json(value: object) -> object:
    match value:
        case bool() | None | str():
            return value
        case int():
            return hex(value)
        case bytes():
            return show(value)
        case dict():
            return {_camel(str(key)): _json(entry) for key, entry in value.items()}
        case list() | tuple():
            return [_json(entry) for entry in value]
    raise TypeError(f"no JSON-RPC form for {type(value)}")


def transaction(block: BlockAPI, signed: SignedTransactionAPI, index: int, *, waiting: bool = False) -> Json:
    fields: dict[str, Any] = dict(serialize_transaction(block, signed, index, waiting))
    access_list = fields.pop("access_list", None)
    fields["to"] = fields["to"] or None
    shown = _json(fields)
    assert isinstance(shown, dict)  # noqa: S101  # _json keeps a dict a dict
    if access_list is not None:
        shown["accessList"] = [{"address": show(account), "storageKeys": [show(slot.to_bytes(32, "big"))
                                                                          for slot in slots]}
                               for account, slots in access_list]
    elif fields["type"] == 0 and signed.chain_id is not None:
        shown["chainId"] = hex(signed.chain_id)
    return shown


def block(value: BlockAPI, *, full: bool, pending: bool = False) -> Json:
    fields: dict[str, Any] = dict(serialize_block(value, False, pending))
    fields["logs_bloom"] = int(fields["logs_bloom"]).to_bytes(256, "big")
    fields["extra_data"] = bytes(value.header.extra_data)  # eth-tester pads it, which is not what was hashed
    shown = _json(fields)
    assert isinstance(shown, dict)  # noqa: S101
    if full:
        shown["transactions"] = [transaction(value, signed, index, waiting=pending)
                                 for index, signed in enumerate(value.transactions)]
    if pending:
        shown.update(hash=None, nonce=None, miner=None, logsBloom=None)
    return shown


def receipt(value: BlockAPI, receipts: tuple[ReceiptAPI, ...], signed: SignedTransactionAPI, index: int) -> Json:
    fields: dict[str, Any] = dict(serialize_transaction_receipt(value, receipts, signed, index, False, None))
    fields.pop("state_root")
    fields.pop("logs")
    fields["to"] = fields["to"] or None
    shown = _json(fields)
    assert isinstance(shown, dict)  # noqa: S101
    # eth-tester counts log indices per transaction; the RPC counts them per block.
    first = sum(len(before.logs) for before in receipts[:index])
    shown["logs"] = [log(LogRow(block_number=value.number, log_index=first + at, tx_index=index, tx_hash=signed.hash,
                                address=entry.address, data=entry.data,
                                topics=tuple(topic.to_bytes(32, "big") for topic in entry.topics)), value.hash)
                     for at, entry in enumerate(receipts[index].logs)]
    shown["logsBloom"] = show(int(receipts[index].bloom).to_bytes(256, "big"))
    return shown


def log(row: LogRow, block_hash: bytes) -> Json:
    return {"address": show(row.address), "topics": [show(topic) for topic in row.topics], "data": show(row.data),
            "blockNumber": hex(row.block_number), "blockHash": show(block_hash), "transactionHash": show(row.tx_hash),
            "transactionIndex": hex(row.tx_index), "logIndex": hex(row.log_index), "removed": False}


