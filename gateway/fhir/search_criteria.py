"""One search parameter of a query to its criterion: names, modifiers, OR.

Owns which modifier a kind of parameter takes and what it means; refuses a parameter that is not there with
``Unsupported``, and every wrong modifier or value with BadSearch. https://hl7.org/fhir/R4/search.html#modifiers
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from gateway.errors import BadSearch
from gateway.fhir.query import (
    AllOf,
    AnyOf,
    Criterion,
    DateIs,
    HashIs,
    IdIs,
    Not,
    NumberIs,
    OpenedIs,
    Predicate,
    Under,
    UpdatedIs,
)
from gateway.fhir.resource import is_id
from gateway.fhir.search_codes import Codes, known
from gateway.fhir.search_encoding import (
    ABSENT,
    PRESENT,
    below_text,
    identifier_key,
    normal,
    of_type_text,
    phonetic_text,
    typed_text,
    uri_ancestors,
    word_texts,
)
from gateway.fhir.search_near import circle
from gateway.fhir.search_plan import NEAR, OPENED, PHONETIC, Plan, Plans, part_of
from gateway.fhir.search_results import LATER, Unsupported
from gateway.fhir.search_terms import Terms, split_escaped, unescape
from gateway.fhir.search_words import asked, word_text

VALUES_MAX = 500
"""Most values after commas in one parameter."""
_CODES_MAX = 2_000
"""Most codes of a value set or below a code that one parameter asks for."""
MODIFIERS: Mapping[str, tuple[str, ...]] = {
    "token": ("missing", "not", "text", "in", "not-in", "above", "below", "of-type"),
    "string": ("missing", "exact", "contains"), "reference": ("missing", "identifier", "text", "above", "below"),
    "uri": ("missing", "above", "below"), "date": ("missing",), "number": ("missing",), "quantity": ("missing",),
    "composite": ("missing",), "special": ("missing",)}
"""What each kind takes; a reference also takes the name of a resource type. ``of-type`` is for Identifiers."""
_BARE = frozenset({"_id", "_lastUpdated", *OPENED})
"""They take no modifier but ``:not`` on ``_id``."""


def modifiers_of(plan: Plan) -> tuple[str, ...]:
    """The modifiers a parameter takes; one of references takes the names of resource types besides."""
    if plan.parameter.code in _BARE:
        return ("not",) if plan.parameter.code == "_id" else ()
    dropped = set()
    if all(source.type != "Identifier" for source in plan.sources or ()):
        dropped.add("of-type")
    if plan.parameter.type == "reference" and not (plan.trees or plan.canonical):
        dropped |= {"above", "below"}
    return tuple(one for one in MODIFIERS[plan.parameter.type] if one not in dropped)


@dataclass(frozen=True, slots=True, kw_only=True)
class Criteria:
    """Reads parameters of any type. ``alone``: what one resource's facts cannot tell is refused."""

    plans: Plans
    terms: Terms
    codes: Codes
    alone: bool = False

    def plan(self, type_name: str, code: str) -> Plan:
        """The parameter of a type. Raises Unsupported."""
        found = self.plans.of(type_name).get(code)
        if found is None:
            raise Unsupported(f"{type_name} has no search parameter {code[:64]!r} here")
        if found.refused:
            raise Unsupported(f"{type_name}: {found.refused}")
        if found.span and not found.custom and LATER in self.plans.lacking:
            raise Unsupported(f"{code[:64]}: the index was made before it held such pairs: ask for $reindex first")
        if found.custom and self.alone:
            raise Unsupported(f"{code[:64]} can change its meaning: only R4's parameters narrow a scope")
        return found

    def criterion(self, type_name: str, name: str, value: str, *, asked: str | None = None) -> Criterion:
        """``name[:modifier]=value``; ``asked`` is the whole name, for errors. Raises Unsupported, BadSearch."""
        asked = asked or name
        code, colon, modifier = name.partition(":")
        plan = self.plan(type_name, code)
        if colon:
            self._check_modifier(plan, modifier, asked)
        if modifier == "missing":
            return self._missing(type_name, plan, value, asked)
        values = split_escaped(value, ",")
        if len(values) > VALUES_MAX:
            raise BadSearch(f"{asked}: more than {VALUES_MAX} values", code="too-costly", expression=f"http.{asked}")
        predicates: dict[Predicate, None] = {}
        for one in values:
            if not one:
                raise BadSearch(f"{asked}: a value is missing", code="value", expression=f"http.{asked}")
            predicates.update(dict.fromkeys(self.predicates(type_name, plan, modifier, one, asked)))
        return Criterion(tuple(predicates), modifier in ("not", "not-in"))

    def _check_modifier(self, plan: Plan, modifier: str, name: str) -> None:
        """R4: a modifier that is not supported is refused, never dropped."""
        kind, bare = plan.parameter.type, plan.parameter.code in _BARE
        typed = kind == "reference" and not bare and modifier in self.plans.definitions.resource_types
        if not typed and modifier not in modifiers_of(plan):
            raise BadSearch(f"{name}: the modifier :{modifier[:64]} is not supported on a {kind} parameter here",
                            code="not-supported", expression=f"http.{name}")

    def _stored(self, type_name: str, plan: Plan) -> Iterator[tuple[Plan, str | None]]:
        """The stored parameters that answer for one, each with the type its references are narrowed to."""
        parameters = self.plans.of(type_name)
        for other, only in plan.aliases or ((plan.parameter.code, None),):
            yield parameters[other], only

    def _missing(self, type_name: str, plan: Plan, value: str, name: str) -> Criterion:
        if value not in ("true", "false"):
            raise BadSearch(f"{name}: true or false is expected", code="value", expression=f"http.{name}")
        return Criterion(self.present(type_name, plan), negated=value == "true")

    def present(self, type_name: str, plan: Plan) -> tuple[Predicate, ...]:
        """Any of these: the parameter has a value."""
        found: list[Predicate] = []
        for stored, only in self._stored(type_name, plan):
            kind = stored.parameter.type
            if stored.parameter.code == "deceased" and stored.sources is None:
                found.append(AllOf(()))  # its expression always has a value
            elif kind == "date" and not stored.ladder:
                found.append(DateIs(stored.key, "ap", -(2**62), 2**62))
            elif kind in ("number", "quantity"):
                found.append(NumberIs(stored.key, "ap", -sys.float_info.max * 2, sys.float_info.max * 2))
            elif stored.mandatory and only is None:
                found.append(Not(HashIs(stored.key, ABSENT)))
            else:
                found.append(HashIs(stored.key, PRESENT + (only or "")))
        return tuple(found)

    def predicates(self, type_name: str, plan: Plan, modifier: str, value: str, name: str) -> list[Predicate]:
        """Any of these answers one value (no comma left in it)."""
        code, kind = plan.parameter.code, plan.parameter.type
        if code == "_id":
            return [IdIs(unescape(value))]
        if code == "_lastUpdated":
            comparator, (low, high) = self.terms.date(value, name)
            return [UpdatedIs(comparator, low, high)]
        if code in OPENED:
            return [self._worded(type_name, plan, unescape(value), name)]
        if kind == "special":
            return [self._near(type_name, plan, unescape(value), name)]
        if modifier == "contains":
            return [self.opened(type_name, plan, "contains", _some(normal(unescape(value)), name), name)]
        found: list[Predicate] = []
        for stored, narrowed in self._stored(type_name, plan):
            found += self._of_stored(type_name, stored, modifier, value, name, narrowed)
        return found

    def _of_stored(self, type_name: str, plan: Plan, modifier: str, value: str, name: str,
                   narrowed: str | None) -> list[Predicate]:
        kind, key = plan.parameter.type, plan.key
        if modifier == "text":
            words = [HashIs(key, text) for text in word_texts(_words(value, name))]
            if narrowed is not None:
                words.append(HashIs(key, PRESENT + narrowed))
            return [AllOf(tuple(words))] if len(words) > 1 else list(words)
        if modifier == "identifier":
            texts = self.terms.identifier(value, name)
            return [HashIs(identifier_key(key), text if narrowed is None else typed_text(narrowed, text))
                    for text in texts]
        if modifier == "of-type":
            return [HashIs(key, _of_type(value, name))]
        if modifier in ("in", "not-in"):
            return self._in_value_set(plan, unescape(value), name)
        if modifier in ("above", "below"):
            if kind == "reference":
                return self._along(plan, unescape(value), name, narrowed, above=modifier == "above")
            if kind == "uri":
                return _on_path(key, unescape(value), above=modifier == "above")
            return self._in_hierarchy(plan, value, name, above=modifier == "above")
        if plan.parameter.code == PHONETIC:
            sounds = [HashIs(key, text) for word in _words(value, name).split(" ") if (text := phonetic_text(word))]
            return [AllOf(tuple(sounds))] if len(sounds) != 1 else list(sounds)
        only = modifier if kind == "reference" and modifier else None
        if only is not None and narrowed is not None and only != narrowed:
            return []
        parameters = self.plans.of(type_name)
        return [one for stored in (plan, *(parameters[part] for part in plan.also)) for one in self.terms.predicates(
            stored, value, name=name, only=narrowed or only, exact=modifier == "exact")]

    def opened(self, type_name: str, plan: Plan, how: str, text: str, name: str) -> OpenedIs:
        """What is asked of opened resources. Raises Unsupported where only facts are at hand."""
        if self.alone:
            raise Unsupported(f"{name}: what must be opened to be searched is not asked here")
        return OpenedIs(type_name, plan.parameter.code, how, text)

    def _worded(self, type_name: str, plan: Plan, value: str, name: str) -> Predicate:
        """Words: from the index where it holds them all, else of opened resources."""
        code = plan.parameter.code
        if self.alone or code not in self.plans.worded:
            return asked(value, name, lambda word: self.opened(type_name, plan, code, word, name))
        return asked(value, name, lambda word: HashIs(plan.key, word_text(word)))

    def _near(self, type_name: str, plan: Plan, value: str, name: str) -> Predicate:
        cells = tuple(HashIs(plan.key, text) for text in circle(value, name).cells())
        return AllOf((AnyOf(cells), self.opened(type_name, plan, NEAR, value, name)))

    def _in_value_set(self, plan: Plan, url: str, name: str) -> list[Predicate]:
        members = known(lambda: self.codes.members(url), name)
        pairs = [(system, code) for system, codes in members.items() for code in codes]
        return self._coded(plan, pairs, name)

    def _in_hierarchy(self, plan: Plan, value: str, name: str, *, above: bool) -> list[Predicate]:
        system, code = self.terms.system_and_code(plan, value, name)
        ask = self.codes.ancestors if above else self.codes.descendants
        codes = known(lambda: ask(system, code), name)
        return self._coded(plan, [(system, one) for one in sorted({code, *codes})], name)

    def _along(self, plan: Plan, value: str, name: str, narrowed: str | None, *, above: bool) -> list[Predicate]:
        """R4 3.1.1.5.9: along what resources of a type are part of, or the versions of a canonical."""
        if plan.canonical and not (plan.trees and is_id(value)):
            if LATER in self.plans.lacking:
                raise BadSearch(f"{name}: the index was made before it held versions of canonicals: ask for $reindex "
                                "first", code="not-supported", expression=f"http.{name}")
            return self.terms.canonical(plan, value, above=above)
        types = tuple(one for one in plan.trees if narrowed in (None, one))
        found: list[Predicate] = []
        for text in self.terms.reference(value, types, name, narrowed):
            type_, _, id_ = text.partition("/")
            by = part_of(self.plans.definitions, type_) if type_ in types else None
            if by is None:
                raise BadSearch(f"{name}: what is above or below is asked of references to {' or '.join(types)}",
                                code="not-supported", expression=f"http.{name}")
            if self.alone:
                raise Unsupported(f"{name}: other resources are not asked about here")
            found.append(Under(plan.key, type_, id_, self.plans.of(type_)[by].key, above,
                               typed=len(types) == 1 or not is_id(value)))
        return found

    def _coded(self, plan: Plan, pairs: list[tuple[str, str]], name: str) -> list[Predicate]:
        if len(pairs) > _CODES_MAX:
            raise BadSearch(f"{name}: more than {_CODES_MAX} codes would be asked for", code="too-costly",
                            expression=f"http.{name}")
        return [HashIs(plan.key, text) for system, code in pairs for text in self.terms.coded(plan, system, code)]


def _some(text: str, name: str) -> str:
    if not text:
        raise BadSearch(f"{name}: a value is missing", code="value", expression=f"http.{name}")
    return text


def _words(value: str, name: str) -> str:
    return _some(normal(unescape(value)), name)


def _of_type(value: str, name: str) -> str:
    parts = [unescape(part) for part in split_escaped(value, "|")]
    if len(parts) != 3 or not all(parts):
        raise BadSearch(f"{name}: system|code|value is expected, the type's system and code first", code="value",
                        expression=f"http.{name}")
    return of_type_text(*parts)


def _on_path(key: str, uri: str, *, above: bool) -> list[Predicate]:
    """R4 3.1.1.5.2: by the segments of a URL's path; a urn is itself alone."""
    if not above:
        return [HashIs(key, below_text(uri))]
    return [HashIs(key, one) for ancestor in uri_ancestors(uri) for one in (ancestor, f"{ancestor}/")]
