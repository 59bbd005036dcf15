"""The category keys of one Version as one value, and whose they are.

Owns the order of owners, of references and of joined keys, so that every process derives the same material; refuses
references that are cut or empty.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from gateway.errors import IntegrityBroken

CUSTODIAN: Final = "*custodian"
"""Owner of the records about no patient: no legal FHIR id, so that no client can make a patient of that name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySet:
    """The category keys of one Version: ``refs`` to store beside it (8 bytes a key), ``material`` to seal with."""

    refs: bytes
    material: bytes = field(repr=False)

    @classmethod
    def of(cls, keys: Iterable[tuple[int, bytes]]) -> KeySet:
        """The set of ``keys``, each its id and its 32 bytes, in whatever order they come."""
        ids, values = zip(*keys, strict=True)
        return cls(refs=b"".join(key_id.to_bytes(8, "big") for key_id in sorted(ids)), material=joined(values))


def joined(keys: Iterable[bytes]) -> bytes:
    """The material of a set's keys, which does not depend on their order."""
    return b"".join(sorted(keys))


def key_ids(refs: bytes) -> tuple[int, ...]:
    """The ids in ``KeySet.refs``. Raises IntegrityBroken when they are cut or empty."""
    if not refs or len(refs) % 8:
        raise IntegrityBroken("key references are malformed")
    return tuple(int.from_bytes(refs[at:at + 8], "big") for at in range(0, len(refs), 8))


def in_order(owners: Sequence[str]) -> tuple[str, ...]:
    """Each owner once, in the order that names their set; the custodian where there are none."""
    if len(owners) == 1:
        return (owners[0],)
    return tuple(sorted(set(owners))) or (CUSTODIAN,)
