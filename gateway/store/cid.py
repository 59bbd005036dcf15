"""Cid <-> digest: CIDv1 with sha2-256, codec ``raw`` for sealed blocks and ``dag-cbor`` for manifests, base32 text.

Owns both directions; refuses every other version, codec, hash and multibase, and non-canonical text (upper case,
padding, stray bits), so that one block has one name. https://github.com/multiformats/cid
"""

from __future__ import annotations

import hashlib
from base64 import b32decode, b32encode
from binascii import Error as Base32Error
from typing import Final, Literal, NewType

from gateway.errors import BlockCorrupt

Cid = NewType("Cid", str)
Codec = Literal["raw", "dag-cbor"]

_RAW: Final = b"\x01\x55\x12\x20"
_DAG_CBOR: Final = b"\x01\x71\x12\x20"
_PREFIX: Final[dict[Codec, bytes]] = {"raw": _RAW, "dag-cbor": _DAG_CBOR}
_CODEC: Final[dict[bytes, Codec]] = {_RAW: "raw", _DAG_CBOR: "dag-cbor"}
BINARY_SIZE: Final = 36
_TEXT_SIZE: Final = 59


def digest_block(block: bytes) -> bytes:
    """sha2-256 of a block's bytes."""
    return hashlib.sha256(block).digest()


def cid_bytes(digest: bytes, codec: Codec) -> bytes:
    """The 36 binary bytes of the Cid of a 32-byte ``digest``."""
    if len(digest) != 32:
        raise BlockCorrupt(f"a block digest has 32 bytes, not {len(digest)}")
    return _PREFIX[codec] + digest


def cid(digest: bytes, codec: Codec = "raw") -> Cid:
    """The text of the Cid of a 32-byte ``digest``: ``bafkrei...`` (raw) or ``bafyrei...`` (dag-cbor)."""
    return Cid("b" + b32encode(cid_bytes(digest, codec)).decode().rstrip("=").lower())


def parse_cid(text: str) -> tuple[Codec, bytes]:
    """Codec and digest of a Cid's text. Raises BlockCorrupt."""
    if len(text) != _TEXT_SIZE or text[0] != "b" or text != text.lower() or not text.isascii():
        raise BlockCorrupt("not a base32 CIDv1 with sha2-256")
    try:
        binary = b32decode(text[1:].upper() + "======")
    except Base32Error as error:
        raise BlockCorrupt("not a base32 CIDv1 with sha2-256") from error
    codec, digest = parse_cid_bytes(binary)
    if cid(digest, codec) != text:
        raise BlockCorrupt("a Cid's text is not canonical")
    return codec, digest


def parse_cid_bytes(binary: bytes) -> tuple[Codec, bytes]:
    """Codec and digest of a binary Cid. Raises BlockCorrupt."""
    codec = _CODEC.get(bytes(binary[:4]))
    if codec is None or len(binary) != BINARY_SIZE:
        raise BlockCorrupt("not a CIDv1 of codec raw or dag-cbor with sha2-256")
    return codec, bytes(binary[4:])


def raw_digest(text: str) -> bytes:
    """The digest a raw Cid names. Raises BlockCorrupt."""
    codec, digest = parse_cid(text)
    if codec != "raw":
        raise BlockCorrupt("a sealed block has codec raw")
    return digest
