"""Reference target types: what a Reference shows of its target must be what the element allows.

Owns the check where the type is evident: from the literal reference, from ``Reference.type``, or from the contained
resource; refuses to fetch anything, so a urn without ``type`` passes. https://hl7.org/fhir/R4/references.html#type
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from gateway.fhir.resource import reference_target
from gateway.fhir.run import Run

_ID = re.compile(r"[A-Za-z0-9\-.]{1,64}")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*:")
_CANONICAL = "http://hl7.org/fhir/StructureDefinition/"

ReferenceCheck = Callable[[dict[str, Any], str, Run], None]


def reference_rule(targets: tuple[str, ...], resource_types: frozenset[str]) -> ReferenceCheck:
    """The check of one well-formed Reference against the ``targets`` of its element (empty = any)."""
    allowed = frozenset(targets) or resource_types
    named = " or ".join(targets) if len(targets) < 8 else f"one of {len(targets)} types"
    is_id = _ID.fullmatch

    def check(value: dict[str, Any], path: str, run: Run) -> None:
        text = value.get("reference")
        said = value.get("type")
        if type(text) is str:
            head, _, tail = text.partition("/")
            if said is None and head in allowed and is_id(tail):
                return
            evident = _evident(text, resource_types, path, run)
        else:
            evident = None
        if type(said) is str:
            said = said.removeprefix(_CANONICAL)
            if evident is not None and said != evident:
                run.error("invalid", f"Reference.type says {said[:64]}, the reference itself {evident}", path)
                return
            evident = said if said in resource_types else evident
        if evident is not None and evident not in allowed:
            run.error("invalid", f"a reference to {evident} is not allowed here, only to {named}", path)
    return check


def _evident(text: str, resource_types: frozenset[str], path: str, run: Run) -> str | None:
    target = reference_target(text)
    if target.kind == "fragment":
        return run.contained.get(target.id or "")
    if target.kind == "other":
        if not _SCHEME.match(text):
            run.error("value", "a relative reference must be Type/id", f"{path}.reference")
        return None
    if target.type in resource_types:
        return target.type
    if target.kind in ("relative", "query"):
        run.error("value", f"there is no resource type {(target.type or '')[:64]} in R4", f"{path}.reference")
    return None
