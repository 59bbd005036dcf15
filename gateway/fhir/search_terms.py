"""One value of a query to predicates, by search parameter type.

Owns prefixes, escapes and the forms a token, quantity, date ... is asked in; refuses a value that is not one
with BadSearch naming its parameter. https://hl7.org/fhir/R4/search.html#prefix
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import product
from typing import cast

from gateway.errors import BadSearch
from gateway.fhir.definitions import Definitions
from gateway.fhir.query import Comparator, DateIs, HashIs, NumberIs, Predicate, SpanIs
from gateway.fhir.resource import is_id
from gateway.fhir.search_dates import Range, around, date_range, ladder_cover
from gateway.fhir.search_encoding import (
    PART,
    PREFIX_MAX,
    exact_text,
    finer_text,
    normal,
    prefix_text,
    reference_text,
    reference_type,
    token_bare,
    token_code,
    token_full,
    token_system,
    unversioned_text,
    version_ancestors,
)
from gateway.fhir.search_plan import Component, Plan

_PREFIXED = re.compile(r"([a-z]{2})?(.+)\Z", re.DOTALL)
_NUMBER = re.compile(r"[+-]?\d{1,60}(?:\.\d{1,60})?(?:[eE][+-]?\d{1,4})?\Z")
_COMPARATORS = frozenset({"eq", "ne", "gt", "lt", "ge", "le", "sa", "eb", "ap"})
_CODED = frozenset({"CodeableConcept", "Coding", "Identifier"})
_MANY_CODES = 200


def split_escaped(text: str, at: str) -> list[str]:
    """Split where ``at`` stands without a backslash before it; backslashes stay."""
    if "\\" not in text:
        return text.split(at)
    parts, current, escaped = [], "", False
    for one in text:
        if one == at and not escaped:
            parts.append(current)
            current = ""
            continue
        escaped = one == "\\" and not escaped
        current += one
    return [*parts, current]


def unescape(text: str) -> str:
    r"""``\,``, ``\$``, ``\|`` and ``\\`` to what they stand for."""
    return re.sub(r"\\([,$|\\])", r"\1", text) if "\\" in text else text


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What the reading of values needs besides them: R4's tables, own base URLs, the moment of ``ap``."""

    definitions: Definitions
    own_bases: frozenset[str]
    now_ms: int

    def predicates(self, plan: Plan, value: str, *, name: str, only: str | None = None,
                   exact: bool = False) -> list[Predicate]:
        """Any of these answers one value (no comma left in it) of the stored parameter ``plan``.

        ``name`` is the parameter as asked, for errors; ``only`` narrows references to a type.
        """
        kind = plan.parameter.type
        if plan.components:
            return self._composite(plan, value, name)
        if kind == "token":
            return [HashIs(plan.key, text) for text in self.token(plan, value, name)]
        if kind == "string":
            return [HashIs(plan.key, _string(value, name, exact=exact))]
        if kind == "reference":
            targets = plan.parameter.targets if only is None else (only,)
            return [HashIs(plan.key, text) for text in self.reference(unescape(value), targets, name, only)]
        if kind == "uri":
            return [HashIs(plan.key, unescape(value))]
        if kind == "date":
            comparator, (low, high) = self.date(value, name)
            if plan.ladder:
                return [HashIs(plan.key, rung) for rung in ladder_cover(comparator, low, high)]
            return [DateIs(plan.key, comparator, low, high)]
        return [number_is(plan.key, value, name, quantity=kind == "quantity")]

    def token(self, plan: Plan | Component, value: str, name: str, *, alone: bool = True) -> list[str]:
        """Texts of ``code``, ``system|code``, ``|code``, ``system|`` (the last only where ``alone``)."""
        parts = split_escaped(value, "|")
        if len(parts) == 1:
            return [token_code(_some(unescape(value), name))]
        system, code = unescape(parts[0]), unescape("|".join(parts[1:]))
        plain = [source for source in plan.sources or () if source.type not in _CODED]
        sets = [source.value_set for source in plain if source.type == "code" and source.value_set]
        if not system:
            bare = [token_bare(_some(code, name))]
            return [*bare, token_code(code)] if plain else bare
        if not code:
            if not alone:
                raise BadSearch(f"{name}: a code is needed after the system", expression=f"http.{name}")
            return [token_system(system), *(token_code(one) for one in self._codes(sets, system))]
        implied = any(self._has(value_set, system, code) for value_set in sets)
        return [token_full(system, code), token_code(code)] if implied else [token_full(system, code)]

    def coded(self, plan: Plan, system: str, code: str) -> list[str]:
        """Texts of one code, also where a plain ``code`` implies its system."""
        sets = [source.value_set for source in plan.sources or () if source.type == "code" and source.value_set]
        implied = any(self._has(value_set, system, code) for value_set in sets)
        return [token_full(system, code), token_code(code)] if implied else [token_full(system, code)]

    def system_and_code(self, plan: Plan, value: str, name: str) -> tuple[str, str]:
        """``system|code``; of a plain ``code`` the system may be left out where its binding tells it."""
        parts = [unescape(part) for part in split_escaped(value, "|")]
        if len(parts) == 2 and all(parts):
            return parts[0], parts[1]
        systems = {system for source in plan.sources or () if source.type == "code" and source.value_set
                   and (found := self.definitions.value_set(source.value_set)) is not None
                   for system, codes in found.codes.items() if value in codes}
        if len(parts) == 1 and len(systems) == 1:
            return systems.pop(), parts[0]
        raise BadSearch(f"{name}: system|code is expected", code="value", expression=f"http.{name}")

    @staticmethod
    def identifier(value: str, name: str) -> list[str]:
        """Texts of an Identifier: ``value``, ``system|value``, ``|value``, ``system|``."""
        parts = split_escaped(value, "|")
        if len(parts) == 1:
            return [token_code(_some(unescape(value), name))]
        system, code = unescape(parts[0]), unescape("|".join(parts[1:]))
        if not system:
            return [token_bare(_some(code, name))]
        return [token_full(system, code)] if code else [token_system(system)]

    def _has(self, value_set: str, system: str, code: str) -> bool:
        found = self.definitions.value_set(value_set)
        return found is not None and code in found.codes.get(system, ())

    def _codes(self, value_sets: Iterable[str], system: str) -> list[str]:
        """The codes of a system a plain ``code`` may have: its system is implied by the binding."""
        codes: set[str] = set()
        for url in value_sets:
            found = self.definitions.value_set(url)
            codes |= found.codes.get(system, frozenset()) if found is not None else set()
        return sorted(codes) if len(codes) <= _MANY_CODES else []

    def reference(self, value: str, targets: Sequence[str], name: str, only: str | None) -> list[str]:
        """Texts of ``id``, ``Type/id``, a URL or a canonical. ``only``: other types match nothing."""
        if is_id(value):
            types = targets or sorted(self.definitions.resource_types)
            return [f"{target}/{value}" for target in types]
        text = value if "|" in value else reference_text(value, self.own_bases)
        if text is None:
            raise BadSearch(f"{name}: {value!r} is no reference a search can follow", expression=f"http.{name}")
        return [text] if only is None or reference_type(text) == only else []

    def canonical(self, plan: Plan, value: str, *, above: bool) -> list[Predicate]:
        """``:below``: a url, or of it a version and what is finer; ``:above``: what names it less finely."""
        texts = [value]
        if not above:
            texts += [finer_text(value)] if "|" in value else []
        else:
            texts = [*texts, *version_ancestors(value)] if "|" in value else []
            texts.append(unversioned_text(value.partition("|")[0]))
        return [HashIs(plan.key, text) for text in texts]

    def date(self, value: str, name: str) -> tuple[Comparator, Range]:
        """Prefix and half-open range of a date."""
        comparator, rest = _prefix(value, name)
        found = date_range(rest)
        if found is None:
            raise BadSearch(f"{name}: {rest!r} is no date (YYYY, YYYY-MM, YYYY-MM-DD or with a time hh:mm)",
                            code="value", expression=f"http.{name}")
        return comparator, around(*found, self.now_ms) if comparator == "ap" else found

    def _composite(self, plan: Plan, value: str, name: str) -> list[Predicate]:
        parts = split_escaped(value, "$")
        if len(parts) != len(plan.components):
            raise BadSearch(f"{name}: {len(plan.components)} parts with $ between them are expected",
                            code="value", expression=f"http.{name}")
        last = plan.components[-1]
        if plan.span:
            texts = [self._part(component, part, name)
                     for component, part in zip(plan.components[:-2], parts[:-2], strict=True)]
            ends = [number_is(plan.key, part, name, quantity=False) for part in parts[-2:]]
            return [SpanIs(PART.join((plan.key, *one)), ends[0], ends[1]) for one in product(*texts)]
        ranged = last.type in ("number", "quantity", "date")
        hashed = list(zip(plan.components, parts, strict=True))[: -1 if ranged else None]
        texts = [self._part(component, part, name) for component, part in hashed]
        if not ranged:
            return [HashIs(plan.key, PART.join(one)) for one in product(*texts)]
        keys = [PART.join((plan.key, *one)) for one in product(*texts)]
        if last.type == "date":
            comparator, (low, high) = self.date(parts[-1], name)
            return [DateIs(key, comparator, low, high) for key in keys]
        return [number_is(key, parts[-1], name, quantity=last.type == "quantity") for key in keys]

    def _part(self, component: Component, value: str, name: str) -> list[str]:
        if component.type == "token":
            return self.token(component, value, name, alone=False)
        if component.type == "string":
            return [_string(value, name, exact=False)]
        if component.type == "reference":
            return self.reference(unescape(value), component.targets, name, None)
        return [_some(unescape(value), name)]


def _some(text: str, name: str) -> str:
    if not text:
        raise BadSearch(f"{name}: a value is missing", code="value", expression=f"http.{name}")
    return text


def _string(value: str, name: str, *, exact: bool) -> str:
    text = unescape(value)
    if exact:
        return exact_text(text)
    normalised = normal(text)
    if len(normalised) > PREFIX_MAX:
        raise BadSearch(f"{name}: at most {PREFIX_MAX} letters are searched for; use :exact for the whole text",
                        code="too-long", expression=f"http.{name}")
    return prefix_text(_some(normalised, name))


def _prefix(value: str, name: str) -> tuple[Comparator, str]:
    match = _PREFIXED.match(value)
    prefix, rest = match.groups() if match is not None else (None, "")
    if prefix is None:
        return "eq", _some(rest, name)
    if prefix not in _COMPARATORS:
        raise BadSearch(f"{name}: {prefix!r} is no prefix; R4 has {', '.join(sorted(_COMPARATORS))}",
                        code="value", expression=f"http.{name}")
    return cast(Comparator, prefix), rest


def number_is(key: str, value: str, name: str, *, quantity: bool) -> NumberIs:
    """``[prefix]number`` or, for a quantity, ``[prefix]number[|system|code]``."""
    parts = [unescape(part) for part in split_escaped(value, "|")]
    if len(parts) not in ((1, 3) if quantity else (1,)):
        raise BadSearch(f"{name}: expected {'number, number||code or number|system|code' if quantity else 'a number'}",
                        code="value", expression=f"http.{name}")
    comparator, text = _prefix(parts[0], name)
    if _NUMBER.match(text) is None:
        raise BadSearch(f"{name}: {text!r} is no number", code="value", expression=f"http.{name}")
    low, high = number_range(comparator, Decimal(text), name)
    system, code = (parts[1], parts[2]) if len(parts) == 3 else ("", "")
    if system and not code:
        raise BadSearch(f"{name}: a unit's code is needed after its system", code="value", expression=f"http.{name}")
    return NumberIs(key, comparator, low, high, f"{system}|{code}" if system else "", "" if system else code)


def number_range(comparator: Comparator, number: Decimal, name: str) -> tuple[float, float]:
    """The closed range asked for: half a unit of the last digit for eq and ne, a tenth for ap, else exact.

    R4 has eq over [low, high): the high end is the float before. sa and eb leave out the number itself.
    """
    exact = float(number)
    if abs(exact) > sys.float_info.max:
        raise BadSearch(f"{name}: the number is too large", code="value", expression=f"http.{name}")
    if comparator in ("eq", "ne"):
        exponent = number.as_tuple().exponent
        half = Decimal((0, (5,), (exponent if isinstance(exponent, int) else 0) - 1))
        low, high = float(number - half), math.nextafter(float(number + half), -math.inf)
        return min(low, exact), max(high, exact)
    if comparator == "ap":
        slack = abs(exact) / 10
        return math.nextafter(exact - slack, -math.inf), math.nextafter(exact + slack, math.inf)
    if comparator == "sa":
        return exact, math.nextafter(exact, math.inf)
    if comparator == "eb":
        return math.nextafter(exact, -math.inf), exact
    return exact, exact
