"""Operations' parameters: from a query string, or from a Parameters resource, by one table for each operation.

Owns reading them with their types; refuses one the operation does not define (strict), one too many, and a value that
is none, each by name. https://hl7.org/fhir/R4/operations.html#request
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from gateway.errors import BadSearch, Unprocessable
from gateway.fhir.resource import Resource
from gateway.fhir.search_dates import Range, date_range
from gateway.records import aside
from gateway.web.ask import Ask
from gateway.web.door import Door

_TEXTS = frozenset({"string", "uri", "code", "id", "canonical", "url", "date", "dateTime", "instant"})
_OBJECTS = frozenset({"Reference", "Identifier", "Coding", "CodeableConcept", "Meta", "Period"})
_NUMBER = re.compile(r"-?\d{1,15}(?:\.\d{1,15})?")
_VALUES_MAX = 100
"""Most values of one repeating parameter."""


@dataclass(frozen=True, slots=True)
class Input:
    """One parameter as its OperationDefinition has it; ``type`` is a datatype, or ``resource``."""

    type: str
    many: bool = False
    required: bool = False


Table = Mapping[str, Input]


@dataclass(frozen=True, slots=True)
class Inputs:
    """The values given, each of the type its table says: texts, numbers as text, flags, or JSON objects."""

    values: Mapping[str, tuple[Any, ...]]  # Any: checked against the table when read
    rest: tuple[tuple[str, str], ...] = ()
    """Parameters beyond the table, where the operation takes a search's."""
    sent: Resource | None = None
    """The body, where there was one: it can be read but once."""

    def text(self, name: str) -> str | None:
        found = self.values.get(name)
        return None if not found else str(found[0])

    def texts(self, name: str) -> list[str]:
        """Every value; commas in a query string separate them too."""
        return [part for one in self.values.get(name, ()) for part in str(one).split(",") if part]

    def flag(self, name: str, *, default: bool = False) -> bool:
        found = self.values.get(name)
        return bool(found[0]) if found else default

    def whole(self, name: str, default: int) -> int:
        """A natural number. Raises BadSearch."""
        text = self.text(name)
        if text is None:
            return default
        if not text.isdecimal() or not text.isascii() or len(text) > 9:
            raise refused(name, "is no natural number")
        return int(text)

    def moment(self, name: str) -> Range | None:
        """A date as its range of epoch milliseconds. Raises BadSearch."""
        text = self.text(name)
        if text is None:
            return None
        try:
            found = date_range(text.replace(" ", "+"))
        except (ValueError, OverflowError):
            found = None
        if found is None:
            raise refused(name, "is no date")
        return found

    def objects(self, name: str) -> list[dict[str, Any]]:
        return list(self.values.get(name, ()))

    def pairs(self) -> list[tuple[str, str]]:
        """The simple values as a query string has them."""
        return [(name, "true" if one is True else "false" if one is False else str(one))
                for name, found in self.values.items() for one in found if not isinstance(one, dict)] + list(self.rest)


def refused(name: str, why: str, *, code: str = "value") -> BadSearch:
    """The refusal of a parameter's value, which it does not repeat."""
    return BadSearch(f"{name[:64]} {why}", code=code, expression=f"http.{name[:64]}")


async def inputs(door: Door, ask: Ask, table: Table, *, operation: str, search: bool = False,
                 only: str | None = None) -> Inputs:
    """The parameters of ``operation``. Raises BadSearch naming what is unknown, repeated, missing or no value.

    ``search``: what the table does not name are search parameters; ``only``: the parameter a bare resource stands for.
    """
    values: dict[str, list[Any]] = {}
    rest: list[tuple[str, str]] = []

    def take(name: str, value: Any, kind: str) -> None:
        known = table.get(name)
        if known is None:
            if search and type(value) is str:
                rest.append((name, value))
            elif ask.strict:
                raise BadSearch(f"${operation} does not take {name[:64]!r}", code="not-supported",
                                expression=f"http.{name[:64]}")
            return
        found = values.setdefault(name, [])
        found.append(_value(name, known, value, kind))
        if len(found) > (_VALUES_MAX if known.many else 1):
            raise refused(name, f"is given more than {_VALUES_MAX if known.many else 1} times", code="invalid")

    for name, text in ask.pairs:
        take(name, text, "query")
    sent = await ask.resource() if ask.method == "POST" and ask.has_body else None
    if sent is not None:
        for name, value, kind in await aside.done(aside.large(sent), partial(_parameters, door, sent, only)):
            take(name, value, kind)
    for name, known in table.items():
        if known.required and name not in values:
            raise refused(name, f"is required by ${operation}", code="required")
    return Inputs({name: tuple(found) for name, found in values.items()}, tuple(rest), sent)


def _parameters(door: Door, body: Resource, only: str | None) -> list[tuple[str, Any, str]]:
    """Name, value and type of each parameter. Raises Invalid, Unprocessable."""
    if body["resourceType"] != "Parameters":
        if only is not None:
            return [(only, body, "resource")]
        raise Unprocessable("an operation takes Parameters", code="invalid", expression="resourceType")
    door.node.validator.require(body, expected_type="Parameters")
    found: list[tuple[str, Any, str]] = []
    for parameter in body.get("parameter", ()):
        name = str(parameter["name"])
        if "resource" in parameter:
            found.append((name, parameter["resource"], "resource"))
            continue
        held = [(key[5:], value) for key, value in parameter.items() if key.startswith("value")]
        if not held:
            raise refused(name, "has no value", code="required")
        kind, value = held[0]
        found.append((name, value, kind[0].lower() + kind[1:] if kind not in _OBJECTS else kind))
    return found


def _value(name: str, known: Input, value: Any, kind: str) -> Any:
    wanted = known.type
    if wanted == "resource" or wanted in _OBJECTS:
        if kind == "query" and wanted == "Reference":
            return {"reference": value}
        if kind != wanted or not isinstance(value, dict):
            raise refused(name, f"is a {wanted}: send it in Parameters")
        return value
    if isinstance(value, dict | list) or kind == "resource":
        raise refused(name, f"is a {wanted}")
    if wanted == "boolean":
        if value in (True, "true"):
            return True
        if value in (False, "false"):
            return False
        raise refused(name, "is true or false")
    text = value if isinstance(value, str) else str(value)
    if not text or len(text) > 4096:
        raise refused(name, "has no value" if not text else "is too long")
    if wanted in ("integer", "positiveInt", "unsignedInt", "decimal") and not _NUMBER.fullmatch(text):
        raise refused(name, "is no number")
    return text
