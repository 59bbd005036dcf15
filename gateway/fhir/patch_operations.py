"""The operations of a FHIRPath Patch, read from its Parameters.

Owns what each of the five needs; refuses what is no FHIRPath Patch with the place in the Parameters, before anything is
looked for in a resource. https://hl7.org/fhir/R4/fhirpatch.html
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from gateway.errors import Malformed, TooCostly
from gateway.fhir.resource import Resource

Json = Any  # a JSON value as parsed

OPERATIONS_MAX: Final = 1_000
_NEEDS: Final[Mapping[str, tuple[str, ...]]] = {
    "add": ("path", "name", "value"), "insert": ("path", "index", "value"), "delete": ("path",),
    "replace": ("path", "value"), "move": ("path", "source", "destination")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One ``operation`` parameter; ``at`` is its place in the Parameters."""

    at: str
    type: str
    path: str
    name: str
    value: Mapping[str, Json]
    numbers: Mapping[str, int]


class OperationRefused(Exception):  # control flow: apply says which operation it was
    """An operation that cannot be done on this resource."""


def operations(parameters: Resource) -> list[Operation]:
    """Every operation in order. Raises Malformed, TooCostly."""
    if parameters.get("resourceType") != "Parameters":
        raise Malformed("a FHIRPath Patch is a Parameters resource", code="invalid", expression="resourceType")
    raw = parameters.get("parameter", [])
    if type(raw) is not list:
        raise Malformed("parameter is a list", code="structure", expression="Parameters.parameter")
    if len(raw) > OPERATIONS_MAX:
        raise TooCostly(f"a patch holds at most {OPERATIONS_MAX} operations", code="too-costly",
                        expression="Parameters.parameter")
    return [_operation(one, f"Parameters.parameter[{place}]") for place, one in enumerate(raw)]


def _operation(raw: Json, at: str) -> Operation:
    if type(raw) is not dict or raw.get("name") != "operation":
        raise Malformed("a FHIRPath Patch has parameters called operation alone", code="value", expression=f"{at}.name")
    parts: dict[str, dict[str, Json]] = {}
    for place, part in enumerate(_parts(raw, at)):
        name = part.get("name")
        if type(name) is not str or name in parts:
            raise Malformed("each part of an operation has a name of its own", code="duplicate",
                            expression=f"{at}.part[{place}].name")
        parts[name] = part
    kind = _text(parts, "type", at)
    if kind not in _NEEDS:
        raise Malformed(f"type is one of {', '.join(_NEEDS)}", code="value", expression=f"{at}.part.where(name='type')")
    for name in _NEEDS[kind]:
        if name not in parts:
            raise Malformed(f"{kind} needs {name}", code="required", expression=f"{at}.part.where(name='{name}')")
    numbers: dict[str, int] = {}
    for name in ("index", "source", "destination"):
        if name in _NEEDS[kind]:
            number = next((value for key, value in parts[name].items() if key.startswith("value")), None)
            if type(number) is not int or number < 0:
                raise Malformed(f"{name} is a number from 0", code="value",
                                expression=f"{at}.part.where(name='{name}')")
            numbers[name] = number
    return Operation(at=at, type=kind, path=_text(parts, "path", at), numbers=numbers,
                      name=_text(parts, "name", at) if kind == "add" else "", value=parts.get("value", {}))


def _parts(raw: Mapping[str, Json], at: str) -> list[dict[str, Json]]:
    parts = raw.get("part")
    if type(parts) is not list or not all(type(part) is dict for part in parts):
        raise Malformed("an operation has parts", code="structure", expression=f"{at}.part")
    return parts


def _text(parts: Mapping[str, Mapping[str, Json]], name: str, at: str) -> str:
    found = next((value for key, value in parts.get(name, {}).items() if key.startswith("value")), None)
    if type(found) is not str:
        raise Malformed(f"{name} is a text", code="required" if found is None else "value",
                        expression=f"{at}.part.where(name='{name}')")
    return found
