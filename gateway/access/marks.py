"""Marks: what this hospital itself says of a version, beside the labels clients set.

Owns the bits above every label of ``labels.toml`` and their tags in ``meta.tag``; refuses to be granted: no provision,
no broken glass and no label mask names one. A *withheld* version (waiting to be verified, or rejected) is data for
nobody: its author and those on duty see it. A notice is the gateway's own word: to its patient and to those on duty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

SYSTEM: Final = "urn:fhir-gateway:mark"
AUTHOR: Final = "gateway"
"""The client that versions written by the gateway itself carry; no client is registered under it."""
NOTICE: Final = 1 << 59
UNVERIFIED: Final = 1 << 60
WAITING: Final = 1 << 61
REJECTED: Final = 1 << 62
WITHHELD: Final = WAITING | REJECTED
VERIFYING: Final = UNVERIFIED | WITHHELD
MARKS: Final = NOTICE | VERIFYING
FIRST_BIT: Final = 59
BITS: Final[Mapping[str, int]] = {
    "notice": NOTICE, "unverified": UNVERIFIED, "waiting": WAITING, "rejected": REJECTED, "verified": 0}


def marks_of(resource: Mapping[str, Any]) -> int:
    """The bits of a resource's own tags."""
    mask = 0
    for tag in tags_of(resource):
        mask |= BITS.get(str(tag.get("code")), WAITING)
    return mask


def tags_of(resource: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The tags of ``meta.tag`` that are marks."""
    meta = resource.get("meta")
    tags = meta.get("tag") if isinstance(meta, dict) else None
    return [tag for tag in tags if isinstance(tag, dict) and tag.get("system") == SYSTEM] if isinstance(
        tags, list) else []


def tag(code: str, display: str | None = None) -> dict[str, str]:
    """A mark as ``meta.tag`` holds it."""
    return {"system": SYSTEM, "code": code, **({"display": display} if display else {})}


def tagged(resource: Mapping[str, Any], tags: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """``resource`` with exactly these marks."""
    meta = dict(resource.get("meta") or {})
    kept = [one for one in meta.get("tag") or () if one.get("system") != SYSTEM] + list(tags)
    meta.pop("tag", None)
    if kept:
        meta["tag"] = kept
    rest = {name: value for name, value in resource.items() if name != "meta"}
    return {**rest, "meta": meta} if meta else rest
