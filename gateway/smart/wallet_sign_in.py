"""Sign-In with Ethereum: the message, its strict grammar, and the signature over it.

Owns the text a wallet shows and what must hold of one that comes back; refuses a message of another domain, URI,
version or chain, outside its times, with resources (capabilities nobody here grants), or not exactly in the grammar.
https://eips.ethereum.org/EIPS/eip-4361. Only externally owned accounts sign here: ERC-1271 would ask a contract.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from eth_utils.address import to_checksum_address

from gateway.errors import Unprocessable

MAX_MESSAGE: Final = 2_000
_SKEW_MS: Final = 60_000
LIFE_MS: Final = 10 * 60_000
_TIME: Final = r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(?:\.\d{1,9})?(?:Z|[+-]\d{2}:\d{2})"
_URI: Final = r"[A-Za-z][A-Za-z0-9+.\-]*:[!#$%&'()*+,\-./0-9:;=?@A-Z\[\]_a-z~]+"
_MESSAGE: Final = re.compile(
    r"(?:(?P<scheme>[A-Za-z][A-Za-z0-9+.\-]*)://)?(?P<domain>[A-Za-z0-9.\-\[\]:%_~!$&'()*+,;=]+)"
    r" wants you to sign in with your Ethereum account:\n"
    r"(?P<address>0x[0-9A-Fa-f]{40})\n\n"
    r"(?:(?P<statement>[ !#$%&'()*+,\-./0-9:;=?@A-Z\[\]_a-z~]+)\n)?\n"
    rf"URI: (?P<uri>{_URI})\n"
    r"Version: (?P<version>1)\n"
    r"Chain ID: (?P<chain_id>[0-9]{1,18})\n"
    r"Nonce: (?P<nonce>[A-Za-z0-9]{8,128})\n"
    rf"Issued At: (?P<issued_at>{_TIME})"
    rf"(?:\nExpiration Time: (?P<expires>{_TIME}))?"
    rf"(?:\nNot Before: (?P<not_before>{_TIME}))?"
    r"(?:\nRequest ID: (?P<request_id>[!$%&'()*+,\-.0-9:;=@A-Z_a-z~]*))?"
    rf"(?P<resources>\nResources:(?:\n- {_URI})*)?", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class SignInMessage:
    """A parsed EIP-4361 message; ``address`` in its EIP-55 form, times in epoch milliseconds."""

    scheme: str | None
    domain: str
    address: str
    statement: str | None
    uri: str
    chain_id: int
    nonce: str
    issued_ms: int
    expires_ms: int | None
    not_before_ms: int | None
    request_id: str | None
    resources: bool


def new_nonce() -> str:
    """128 random bits in the letters the grammar allows."""
    return secrets.token_hex(16)


def parse_message(text: str) -> SignInMessage:
    """The message, which must be the grammar's to the last character. Raises Unprocessable."""
    match = _MESSAGE.fullmatch(text) if len(text) <= MAX_MESSAGE else None
    if match is None:
        raise Unprocessable("the message is not one of EIP-4361")
    address = str(to_checksum_address(match["address"]))
    if address != match["address"]:
        raise Unprocessable("the address in the message has not its EIP-55 checksum")
    return SignInMessage(
        scheme=match["scheme"], domain=match["domain"], address=address, statement=match["statement"],
        uri=match["uri"], chain_id=int(match["chain_id"]), nonce=match["nonce"], issued_ms=_ms(match["issued_at"]),
        expires_ms=_ms(match["expires"]) if match["expires"] else None,
        not_before_ms=_ms(match["not_before"]) if match["not_before"] else None, request_id=match["request_id"],
        resources=match["resources"] is not None)


def check_message(message: SignInMessage, *, origin: str, path: str, chain_id: int, now_ms: int) -> None:
    """Whether it is for this page, now. The nonce is the caller's to take back. Raises Unprocessable."""
    scheme, _, domain = origin.partition("://")
    # 1. The domain and URI are ours: a message signed for another site is worth nothing here.
    if message.domain != domain or message.scheme not in (None, scheme) or message.uri != origin + path:
        raise Unprocessable("the message is for another site")
    # 2. The chain the hospital's registry is on. 3. No capabilities ride along.
    if message.chain_id != chain_id:
        raise Unprocessable(f"the message is for chain {message.chain_id}, not {chain_id}")
    if message.resources:
        raise Unprocessable("a sign-in message names no resources here")
    # 4. Its times.
    if not now_ms - LIFE_MS <= message.issued_ms <= now_ms + _SKEW_MS:
        raise Unprocessable("the message was not made just now")
    if message.expires_ms is not None and message.expires_ms <= now_ms:
        raise Unprocessable("the message has expired")
    if message.not_before_ms is not None and message.not_before_ms > now_ms + _SKEW_MS:
        raise Unprocessable("the message is not valid yet")


def message_text(*, origin: str, path: str, address: str, statement: str, chain_id: int, nonce: str,
                 now_ms: int) -> str:
    """A message for a wallet to sign. Raises Unprocessable for an address without its checksum."""
    text = (f"{origin.partition('://')[2]} wants you to sign in with your Ethereum account:\n{address}\n\n"
            f"{statement}\n\nURI: {origin}{path}\nVersion: 1\nChain ID: {chain_id}\nNonce: {nonce}\n"
            f"Issued At: {_instant(now_ms)}\nExpiration Time: {_instant(now_ms + LIFE_MS)}")
    parse_message(text)
    return text


def check_signature(text: str, signature: str, address: str) -> None:
    """EIP-191 personal_sign of ``text`` by ``address``. Raises Unprocessable."""
    from eth_account import Account  # a second of imports, for those who sign in so
    from eth_account.messages import encode_defunct

    if re.fullmatch(r"0x[0-9A-Fa-f]{130}", signature) is None:
        raise Unprocessable("a signature is 0x and 130 hex digits")
    try:
        signer = Account.recover_message(encode_defunct(text=text), signature=signature)
    except Exception as error:  # eth-account and eth-keys have no common root of their errors
        raise Unprocessable("the signature cannot be read") from error
    if str(signer) != address:
        raise Unprocessable("the signature is not by this address")


def _instant(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms // 1_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _ms(text: str) -> int:
    # Python reads at most microseconds.
    shortened = re.sub(r"(\.\d{6})\d+", r"\1", text)
    try:
        return int(datetime.fromisoformat(shortened).timestamp() * 1_000)
    except (ValueError, OverflowError):
        raise Unprocessable("a time in the message is no date and time") from None
