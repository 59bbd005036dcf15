"""What an export reads of the journal: versions by their seq, deletions, and whose records they are.

Owns three statements; refuses to decide (``records/export.py``) and to open.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Sequence

import apsw
import orjson

from gateway.store.index import SqlBound
from gateway.store.journal import VERSION_COLUMNS, VersionRow

_AT_ONCE = 500


def packed(seqs: Sequence[int]) -> bytes:
    """Seqs as the body of a part."""
    return struct.pack(f"<{len(seqs)}q", *seqs)


def unpacked(body: bytes) -> list[int]:
    """The seqs of a part."""
    return list(struct.unpack(f"<{len(body) // 8}q", body))


def versions(connection: apsw.Connection, seqs: Sequence[int]) -> list[VersionRow]:
    """The versions of these seqs that are still there, in the order given."""
    found: dict[int, VersionRow] = {}
    for start in range(0, len(seqs), _AT_ONCE):
        some = tuple(seqs[start:start + _AT_ONCE])
        marks = ",".join("?" * len(some))
        for row in connection.execute(f"SELECT {VERSION_COLUMNS} FROM version v WHERE v.seq IN ({marks})", some):  # noqa: S608
            found[row[0]] = VersionRow(*row)
    return [found[seq] for seq in seqs if seq in found]


def deletions(connection: apsw.Connection, type_: str, about: SqlBound, *, since_ms: int, snapshot: int, after: int,
              limit: int) -> list[VersionRow]:
    """Resources of ``type_`` deleted since ``since_ms`` as of the snapshot, by seq."""
    return [VersionRow(*row) for row in connection.execute(
        f"SELECT {VERSION_COLUMNS} FROM version v WHERE v.type=? AND v.seq>? AND v.seq<=? AND v.deleted=1 "  # noqa: S608
        f"AND (v.superseded IS NULL OR v.superseded>?) AND v.updated_ms>=? AND ({about.condition}) "
        "ORDER BY v.seq LIMIT ?", (type_, after, snapshot, snapshot, since_ms, *about.parameters, limit))]


def about_anyone() -> SqlBound:
    """Every version."""
    return SqlBound("1")


def about_a_patient() -> SqlBound:
    """Versions with a home patient."""
    return SqlBound("v.patient IS NOT NULL")


def about(patients: Collection[int]) -> SqlBound:
    """Versions with one of these (``patient.pk``) among their home patients."""
    listed = orjson.dumps(sorted(patients)).decode()
    return SqlBound("v.patient IN (SELECT value FROM json_each(?)) OR (v.others>0 AND EXISTS (SELECT 1 FROM "
                    "version_patient m WHERE m.version=v.seq AND m.patient IN (SELECT value FROM json_each(?))))",
                    (listed, listed))
