"""Security labels of a resource as a rank and a bit mask.

Owns the reading of ``meta.security`` by the high-water mark; refuses to overlook a label: one that is not in
``mappings/access/labels.toml`` sets the unknown bit. https://hl7.org/fhir/R4/security-labels.html
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gateway.access.marks import marks_of
from gateway.access.roles import NORMAL, UNKNOWN_LABEL, Labels, policy


def labels_of(resource: Mapping[str, Any]) -> tuple[int, int]:
    """``(confidentiality 0..5, label mask)``; several levels count as the highest, none as N.

    A Bundle's or Parameters' labels are those of everything inside it. The mask holds the resource's own marks too.
    """
    labels = policy().labels
    rank: int | None = None
    mask = marks_of(resource)
    for coding in _codings(resource):
        code_rank, bits = label_of(coding, labels)
        if code_rank is not None:
            rank = code_rank if rank is None else max(rank, code_rank)
        mask |= bits
    return (NORMAL if rank is None else rank), mask


def label_of(coding: Any, labels: Labels) -> tuple[int | None, int]:
    """``(rank or None, bits)`` of one Coding."""
    if not isinstance(coding, dict):
        return None, UNKNOWN_LABEL
    system, code = coding.get("system"), coding.get("code")
    if not isinstance(system, str) or not isinstance(code, str):
        return None, UNKNOWN_LABEL
    if system in labels.harmless_systems:
        return None, 0
    if system in labels.confidentiality_systems and code in labels.ranks:
        return labels.ranks[code], 0
    if system in labels.sensitivity_systems and code in labels.bits:
        return None, labels.bits[code]
    return None, UNKNOWN_LABEL


def _codings(resource: Any) -> Iterator[Any]:
    if not isinstance(resource, dict):
        return
    meta = resource.get("meta")
    security = meta.get("security") if isinstance(meta, dict) else None
    if isinstance(security, list):
        yield from security
    elif security is not None:
        yield security
    kind = resource.get("resourceType")
    if kind in ("Bundle", "Parameters"):
        parts = resource.get("entry" if kind == "Bundle" else "parameter")
        for part in parts if isinstance(parts, list) else ():
            if isinstance(part, dict):
                yield from _codings(part.get("resource"))
