"""Versions as records writes and opens them: facts extracted, keys chosen, bytes sealed, blocks opened.

Owns the way from a validated resource to a NewVersion and from a stored row back to the exact bytes;
refuses to decide (``gate.py``) and to commit. ``FORMATS.md``, Keys and Envelope.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import apsw

from gateway.access.facts import ResourceFacts
from gateway.access.roles import NORMAL
from gateway.crypto.envelope import Opened, Placement, VersionHeader, open_envelope, seal
from gateway.crypto.keys import KeyRing
from gateway.errors import BlobUnavailable, KeyDestroyed
from gateway.fhir.query import Facts
from gateway.fhir.resource import Resource, serialise, stamp
from gateway.store import journal
from gateway.store.blobs import BlobBackend
from gateway.store.index import Index
from gateway.store.journal import IndexRows, NewVersion, PatientNames, VersionRow


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A resource that passed validation, with what deciding and indexing need of it; not sealed yet.

    ``access.categories`` are keyed hashes in decimal, as in ``stored_facts``. ``generation``: of the search parameters
    that ``search`` was extracted by.
    """

    resource: Resource
    access: ResourceFacts
    search: Facts
    generation: int = 0


def key_group(access: ResourceFacts) -> str:
    """The label group whose category key seals a record: its confidentiality and sensitivity together."""
    if access.confidentiality <= NORMAL and not access.labels:
        return "general"
    return f"c{access.confidentiality}.{access.labels:x}"


def stored_facts(reader: apsw.Connection, row: VersionRow, names: PatientNames) -> ResourceFacts:
    """What the decision needs of a stored version, without opening it; categories are keyed hashes in decimal."""
    return ResourceFacts(
        type=row.type, id=row.id, home_patients=home_patients(reader, row, names),
        author_client=row.client, author_user=row.user, confidentiality=row.confidentiality, labels=row.labels,
        period=None if row.low_ms is None or row.high_ms is None else (row.low_ms, row.high_ms),
        categories=_categories(row.categories))


def home_patients(reader: apsw.Connection, row: VersionRow, names: PatientNames) -> tuple[str, ...]:
    """The home patients of a stored version, as references."""
    return tuple([f"Patient/{id_}" for id_ in names.of(reader, row)])


@lru_cache(maxsize=4096)
def _categories(packed: bytes) -> frozenset[str]:
    return frozenset(map(str, struct.unpack(f"<{len(packed) // 8}q", packed)))


class Versions:
    """Seals drafts and opens rows for one custodian."""

    def __init__(self, *, ring: KeyRing, custodian: str, index: Index, blobs: BlobBackend,
                 blob_timeout_s: float) -> None:
        self._ring = ring
        self._custodian = custodian
        self._index = index
        self._blobs = blobs
        self._blob_timeout_s = blob_timeout_s

    def prepare_keys(self, drafts: Iterable[Draft]) -> None:
        """Make the keys of many drafts with one fsync. Raises KeyDestroyed for an erased patient."""
        self._ring.prepare([(_owners(draft.access), key_group(draft.access)) for draft in drafts])

    def seal(self, draft: Draft, *, id_: str, vid: int, updated_ms: int, client: str, user: str | None) -> tuple[
            NewVersion, bytes]:
        """The version to append and the exact bytes a vread will return."""
        stored = serialise(stamp(draft.resource, id_, vid, updated_ms))
        rows = self._index.rows(draft.search, categories=[int(hash_) for hash_ in draft.access.categories])
        return self._sealed(draft.access, id_, vid, updated_ms, client, user, stored, rows, deleted=False), stored

    def seal_deletion(self, last: ResourceFacts, *, vid: int, updated_ms: int, client: str,
                      user: str | None) -> NewVersion:
        """A version that says the resource is deleted; it keeps the last one's home and label."""
        return self._sealed(last, last.id, vid, updated_ms, client, user, b"", IndexRows(), deleted=True)

    def _sealed(self, access: ResourceFacts, id_: str, vid: int, updated_ms: int, client: str, user: str | None,
                stored: bytes, rows: IndexRows, *, deleted: bool) -> NewVersion:
        owners = _owners(access)
        keys = self._ring.category_keys(owners, key_group(access))
        header = VersionHeader(type=access.type, id=id_, version_id=vid, time_ms=updated_ms, client=client,
                               user=user or "", deleted=deleted)
        sealed = seal(keys.material, self._custodian, header, stored)
        low_ms, high_ms = access.period if access.period else (None, None)
        return NewVersion(
            type=access.type, id=id_, vid=vid, deleted=deleted, updated_ms=updated_ms, patients=owners, client=client,
            user=user, confidentiality=access.confidentiality, labels=access.labels, low_ms=low_ms, high_ms=high_ms,
            categories=struct.pack(f"<{len(access.categories)}q", *map(int, access.categories)), keys=keys.refs,
            digest=sealed.digest, commitment=sealed.content_commitment, envelope=sealed.envelope, rows=rows)

    def open(self, connection: apsw.Connection, row: VersionRow) -> Opened:
        """The version of ``row``: hash, key and placement checked. Raises BlockCorrupt, WrongPlacement,
        KeyDestroyed, BlobUnavailable."""
        envelope = journal.envelope(connection, row.seq)
        if envelope is None:
            envelope = self._blobs.get(row.digest, timeout_s=self._blob_timeout_s)
        return self._opened(row, envelope, self._ring.open_keys(row.keys))

    def open_local(self, connection: apsw.Connection, row: VersionRow) -> Opened | None:
        """``open`` where the block is in the local table; None means it must be fetched (off the event loop)."""
        envelope = journal.envelope(connection, row.seq)
        return None if envelope is None else self._opened(row, envelope, self._ring.open_keys(row.keys))

    def open_many(self, connection: apsw.Connection, rows: Sequence[VersionRow]) -> list[Opened]:
        """Several versions, blocks fetched in one statement. Raises as ``open`` does."""
        local = journal.envelopes(connection, [row.seq for row in rows])
        missing = [row.digest for row in rows if row.seq not in local]
        fetched = dict(self._blobs.get_many(missing, timeout_s=self._blob_timeout_s)) if missing else {}
        return self._all_opened(rows, [local.get(row.seq) or fetched.get(row.digest) for row in rows])

    def open_few(self, connection: apsw.Connection, rows: Sequence[VersionRow], *, most: int) -> list[Opened] | None:
        """``open_many`` where every block is in the local table, and all together at most ``most`` bytes; else None."""
        if not rows:
            return []
        local = journal.few_envelopes(connection, [row.seq for row in rows], most=most)
        return None if local is None else self._all_opened(rows, [local[row.seq] for row in rows])

    def open_kept(self, connection: apsw.Connection, rows: Sequence[VersionRow], *, most: int | None = None) -> dict[
            int, Opened] | None:
        """``open_many`` by ``seq``, without those whose patient's key was erased since they were found.

        ``most``: as ``open_few``.
        """
        try:
            opened = self.open_many(connection, rows) if most is None else self.open_few(connection, rows, most=most)
        except KeyDestroyed:
            if len(rows) == 1:
                return {}
        else:
            return None if opened is None else {row.seq: one for row, one in zip(rows, opened, strict=True)}
        middle = len(rows) // 2
        halves = [self.open_kept(connection, half, most=most) for half in (rows[:middle], rows[middle:])]
        return None if halves[0] is None or halves[1] is None else halves[0] | halves[1]

    def _all_opened(self, rows: Sequence[VersionRow], envelopes: Sequence[bytes | None]) -> list[Opened]:
        found = []
        materials = self._ring.open_many([row.keys for row in rows])
        for row, envelope, material in zip(rows, envelopes, materials, strict=True):
            if envelope is None:
                raise BlobUnavailable("a block is neither here nor with the block store")
            found.append(self._opened(row, envelope, material))
        return found

    def _opened(self, row: VersionRow, envelope: bytes, material: bytes) -> Opened:
        return open_envelope(envelope, row.digest, material, self._custodian,
                             Placement(type=row.type, id=row.id, version_id=row.vid))


def _owners(access: ResourceFacts) -> tuple[str, ...]:
    return tuple(reference.removeprefix("Patient/") for reference in access.home_patients)
