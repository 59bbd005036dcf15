"""The Envelope: how one Version, or another block of the gateway, becomes sealed bytes, and opens again.

Owns the byte layout, the derivation of the DEK, the padding ladder and the placement check; refuses bytes that do not
hash to the digest asked for, that another key or custodian sealed, or that belong elsewhere. ``FORMATS.md``, Envelope.

    offset  size
    0       4     magic ``FHGW``
    4       1     format, 1
    5       32    salt            (HKDF salt of the DEK)
    37      12    nonce
    49      32    key commitment  = HKDF-Expand(DEK, "gateway key commitment 1")
    81      n     AES-256-GCM(padded plaintext), tag in the last 16; AAD = bytes 0..80 + custodian id (UTF-8)

    DEK = HKDF-SHA256(ikm = category keys of all owners sorted and joined, salt, info "gateway dek 1")

    plaintext, big-endian: kind u8 (1 version, 2 manifest part, 3 audit run) | flags u8 (bit 0 deleted) |
      version id u64 | time ms i64 | content salt 32 | lengths of type, id, client, user u16 x 4 |
      length of stored u32 | type | id | client | user | stored | zeros up to a rung of the ladder

For kinds 2 and 3 ``type`` is the block's name and the other texts are empty.

Ladder: 512 bytes, then Padmé (https://petsymposium.org/popets/2019/popets-2019-0056.php): at most 12 % above, and a
size tells O(log log n) bits. AES-GCM does not commit to its key, hence the commitment, compared in constant time
before opening.

Stability: format 1 is frozen by tests/vectors/envelope.json. A change takes a new format byte; format 1 stays readable.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import struct
from dataclasses import dataclass
from typing import Final, Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from gateway.crypto.hkdf import expand, hkdf
from gateway.errors import BlockCorrupt, WrongPlacement

BlockKind = Literal["manifest", "audit"]

MAGIC: Final = b"FHGW\x01"
_SALT: Final = slice(5, 37)
_NONCE: Final = slice(37, 49)
_COMMITMENT: Final = slice(49, 81)
HEAD_SIZE: Final = 81
_TAG_SIZE: Final = 16
_DEK_INFO: Final = b"gateway dek 1"
_COMMITMENT_INFO: Final = b"gateway key commitment 1"
_INNER: Final = struct.Struct(">BBQq32sHHHHI")
_INNER_SIZE: Final = _INNER.size
_VERSION: Final = 1
_KINDS: Final[dict[BlockKind, int]] = {"manifest": 2, "audit": 3}
_SMALLEST: Final = 512
STORED_MAX: Final = 2**32 - 1
ENTROPY_SIZE: Final = 76

_sha256 = hashlib.sha256
_compare = hmac.compare_digest
_urandom = os.urandom


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionHeader:
    """What an envelope says of its Version. ``client`` and ``user`` name the author; empty where there is none."""

    type: str
    id: str
    version_id: int
    time_ms: int
    client: str
    user: str
    deleted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where a Version belongs."""

    type: str
    id: str
    version_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealed:
    """A sealed block: its bytes, their sha2-256, and the Entry's salted commitment to the stored bytes."""

    envelope: bytes
    digest: bytes
    content_commitment: bytes
    content_salt: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """An opened Version: header, the exact stored bytes, and the content salt a Receipt needs."""

    header: VersionHeader
    stored: bytes
    content_salt: bytes


def padded_size(size: int) -> int:
    """The rung for ``size`` bytes of plaintext: 512, or Padmé above it."""
    if size <= _SMALLEST:
        return _SMALLEST
    exponent = size.bit_length() - 1
    last_bits = exponent - exponent.bit_length()
    mask = (1 << last_bits) - 1
    return (size + mask) & ~mask


def content_commitment(content_salt: bytes, stored: bytes) -> bytes:
    """sha256(content salt, stored bytes): what a Merkle leaf holds of the plaintext."""
    return _sha256(content_salt + stored).digest()


def derive_dek(envelope: bytes, material: bytes) -> bytes:
    """The DEK of ``envelope`` from its owners' category keys, sorted and joined. This is what another hospital gets."""
    return hkdf(ikm=material, salt=envelope[_SALT], info=_DEK_INFO)


def seal(material: bytes, custodian: str, header: VersionHeader, stored: bytes) -> Sealed:
    """Seal one Version under ``material`` (``KeySet.material``) for ``custodian``.

    Raises ValueError when a text is longer than 65,535 bytes or ``stored`` longer than 4 GiB.
    """
    return _seal(material, custodian, _VERSION, header, stored, _urandom(ENTROPY_SIZE))


def seal_block(kind: BlockKind, name: str, material: bytes, custodian: str, body: bytes) -> Sealed:
    """Seal a block that is no Version: a manifest's part or a run of the audit, placed by ``name``."""
    header = VersionHeader(type=name, id="", version_id=0, time_ms=0, client="", user="", deleted=False)
    return _seal(material, custodian, _KINDS[kind], header, body, _urandom(ENTROPY_SIZE))


def unsafe_seal_with_entropy(
    material: bytes, custodian: str, header: VersionHeader, stored: bytes, entropy: bytes
) -> Sealed:
    """``seal`` with its 76 random bytes given (salt, nonce, content salt): for committed vectors alone."""
    return _seal(material, custodian, _VERSION, header, stored, entropy)


def open_envelope(
    envelope: bytes, digest: bytes, material: bytes, custodian: str, placement: Placement | None
) -> Opened:
    """Open a Version. ``placement`` is None only where the envelope is what tells it (rebuild).

    Raises BlockCorrupt when the bytes are not those of ``digest`` or do not open; WrongPlacement when they are another
    Version's, or no Version.
    """
    _check_digest(envelope, digest)
    return _opened(envelope, derive_dek(envelope, material), custodian, placement)


def open_with_dek(
    envelope: bytes, digest: bytes, dek: bytes, custodian: str, placement: Placement | None
) -> Opened:
    """``open_envelope`` for who was given the DEK of this one block. Raises as it does."""
    _check_digest(envelope, digest)
    return _opened(envelope, dek, custodian, placement)


def open_block(
    kind: BlockKind, name: str, envelope: bytes, digest: bytes, material: bytes, custodian: str
) -> tuple[bytes, bytes]:
    """Open a manifest part or audit run: its body and content salt. Raises as ``open_envelope`` does."""
    _check_digest(envelope, digest)
    fields, texts, body = _plaintext(envelope, derive_dek(envelope, material), custodian)
    if fields[0] != _KINDS[kind] or texts != (name, "", "", ""):
        raise WrongPlacement("the sealed block belongs elsewhere")
    return body, fields[4]


def _seal(
    material: bytes, custodian: str, kind: int, header: VersionHeader, stored: bytes, entropy: bytes
) -> Sealed:
    if len(entropy) != ENTROPY_SIZE:
        raise ValueError(f"sealing takes {ENTROPY_SIZE} random bytes")
    if len(material) < 32 or len(material) % 32:
        raise ValueError("key material is one or more keys of 32 bytes")
    salt = entropy[:32]
    nonce = entropy[32:44]
    content_salt = entropy[44:]
    dek = hkdf(ikm=material, salt=salt, info=_DEK_INFO)
    type_, id_ = header.type.encode(), header.id.encode()
    client, user = header.client.encode(), header.user.encode()
    try:
        inner = _INNER.pack(
            kind, 1 if header.deleted else 0, header.version_id, header.time_ms, content_salt,
            len(type_), len(id_), len(client), len(user), len(stored),
        )
    except struct.error as error:
        raise ValueError(f"a field does not fit the envelope: {error}") from error
    plain = b"".join((inner, type_, id_, client, user, stored))
    head = b"".join((MAGIC, salt, nonce, expand(dek, _COMMITMENT_INFO)))
    sealed = AESGCM(dek).encrypt(nonce, plain.ljust(padded_size(len(plain)), b"\0"), head + custodian.encode())
    envelope = head + sealed
    return Sealed(
        envelope=envelope,
        digest=_sha256(envelope).digest(),
        content_commitment=_sha256(content_salt + stored).digest(),
        content_salt=content_salt,
    )


def _check_digest(envelope: bytes, digest: bytes) -> None:
    if not _compare(_sha256(envelope).digest(), digest):
        raise BlockCorrupt("a block does not hash to its Cid")


def _opened(envelope: bytes, dek: bytes, custodian: str, placement: Placement | None) -> Opened:
    fields, (type_, id_, client, user), stored = _plaintext(envelope, dek, custodian)
    kind, flags, version_id, time_ms, content_salt = fields
    if kind != _VERSION:
        raise WrongPlacement("the block holds no Version")
    if placement is not None and (
        version_id != placement.version_id or id_ != placement.id or type_ != placement.type
    ):
        raise WrongPlacement("the block holds another Version than the one asked for")
    header = VersionHeader(
        type=type_, id=id_, version_id=version_id, time_ms=time_ms, client=client, user=user, deleted=bool(flags & 1)
    )
    return Opened(header=header, stored=stored, content_salt=content_salt)


def _plaintext(
    envelope: bytes, dek: bytes, custodian: str
) -> tuple[tuple[int, int, int, int, bytes], tuple[str, str, str, str], bytes]:
    if envelope[:5] != MAGIC:
        raise BlockCorrupt("not an envelope of format 1")
    head = envelope[:HEAD_SIZE]
    if not _compare(expand(dek, _COMMITMENT_INFO), head[_COMMITMENT]):
        raise BlockCorrupt("the key is not the one the block was sealed under")
    try:
        plain = AESGCM(dek).decrypt(head[_NONCE], envelope[HEAD_SIZE:], head + custodian.encode())
    except InvalidTag:
        raise BlockCorrupt("the block does not open: altered, or another custodian's") from None
    try:
        kind, flags, version_id, time_ms, content_salt, a, b, c, d, size = _INNER.unpack_from(plain)
        end = _INNER_SIZE + a
        type_ = plain[_INNER_SIZE:end].decode()
        id_ = plain[end:(end := end + b)].decode()
        client = plain[end:(end := end + c)].decode()
        user = plain[end:(end := end + d)].decode()
    except (struct.error, UnicodeDecodeError) as error:
        raise BlockCorrupt("the block's inner header is malformed") from error
    if end + size > len(plain) or flags > 1:
        raise BlockCorrupt("the block's inner header is malformed")
    return (kind, flags, version_id, time_ms, content_salt), (type_, id_, client, user), plain[end:end + size]
