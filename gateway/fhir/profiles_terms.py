"""Whether a code is in a value set: of the loaded packages, or of R4's own tables.

Owns membership by composition, without expanding: include and exclude by concept, whole system, value set and the
``is-a`` family of filters. Refuses to guess: where a system's codes are not known the answer is None.
https://hl7.org/fhir/R4/valueset.html#compositions
"""

from __future__ import annotations

from typing import Any, Protocol

from gateway.fhir.bindings import code_check, coding_check
from gateway.fhir.definitions import Definitions, ValueSet
from gateway.fhir.expand_value_sets import OPEN_SYSTEMS
from gateway.fhir.packages import Packages
from gateway.fhir.unknowns import all_of, any_of

Json = dict[str, Any]
_DEPTH = 12
"""Value sets within value sets; deeper ones are not known."""


class Terms(Protocol):
    """Answers for a value set's canonical URL: True, False, or None where it cannot be known here."""

    def member(self, value_set: str, system: str | None, code: str) -> bool | None:
        """Whether ``code`` of ``system`` (None: of any, as a ``code`` element has it) is in the value set."""


class System(Protocol):
    """A code system that is carried."""

    @property
    def content(self) -> str:
        """``complete``, ``fragment`` ..."""

    def find(self, code: str) -> object | None:
        """The concept; None where there is none."""

    def ancestors(self, code: str) -> frozenset[str]:
        """The codes above one that is there."""


class Library(Protocol):
    """Value sets and code systems beside the packages'; ``version`` None: whichever it prefers."""

    def value_set(self, url: str, version: str | None) -> Json | None:
        """The ValueSet of a url."""

    def code_system(self, url: str, version: str | None) -> System | None:
        """The code system of a url."""


class PackageTerms:
    """Terms over packages, R4's tables, and a library where one is given."""

    def __init__(self, definitions: Definitions, packages: Packages, library: Library | None = None) -> None:
        self._definitions = definitions
        self._packages = packages
        self._library = library
        self._value_sets: dict[str, Json | None] = {}
        self._systems: dict[str, System | None] = {}

    def member(self, value_set: str, system: str | None, code: str) -> bool | None:
        """See Terms."""
        return self._member(value_set, system, code, _DEPTH)

    def _member(self, canonical: str, system: str | None, code: str, depth: int) -> bool | None:
        if depth == 0:
            return None
        held = self._value_set(canonical)
        if held is None:
            table = self._definitions.value_set(canonical)
            return None if table is None else _in_table(table, system, code)
        compose = held.get("compose")
        if compose is None:
            return _expanded(held, system, code)
        found = any_of(self._component(one, system, code, depth) for one in compose.get("include", ()))
        if found is False or not compose.get("exclude"):
            return found
        left_out = any_of(self._component(one, system, code, depth) for one in compose["exclude"])
        if left_out is True:
            return False
        return found if left_out is False else None

    def _value_set(self, canonical: str) -> Json | None:
        """The definition, unless R4's tables have its codes."""
        if canonical not in self._value_sets:
            held = self._packages.get("ValueSet", canonical)
            url, _, version = canonical.partition("|")
            if held is None and self._library is not None:
                table = self._definitions.value_set(url)
                if table is None or table.rule is not None:
                    held = self._library.value_set(url, None if version.startswith("4.0") else version or None)
            self._value_sets[canonical] = held
        return self._value_sets[canonical]

    def _component(self, component: Json, system: str | None, code: str, depth: int) -> bool | None:
        parts = [self._member(url, system, code, depth - 1) for url in component.get("valueSet", ())]
        wanted = component.get("system")
        if wanted is not None:
            if system is not None and system != wanted:
                return False
            parts.append(self._in_system(component, wanted, code))
        if False in parts or not parts:
            return False
        return None if None in parts else True

    def _in_system(self, component: Json, url: str, code: str) -> bool | None:
        concepts = component.get("concept")
        if concepts is not None:
            return any(one.get("code") == code for one in concepts)
        grammar = OPEN_SYSTEMS.get(url)
        if grammar is not None:
            return code_check(ValueSet(url=url, codes={}, rule=grammar))[1](code)
        system = self._system(url)
        if system is None:
            return None
        if system.find(code) is None:
            return False if system.content == "complete" else None
        return all_of(_passes(code, system, rule) for rule in component.get("filter", ()))

    def _system(self, url: str) -> System | None:
        if url not in self._systems:
            held = self._packages.get("CodeSystem", url)
            if held is not None and held.get("content") in ("complete", "fragment"):
                self._systems[url] = _Held(held)
            else:
                found = None if self._library is None else self._library.code_system(url, None)
                self._systems[url] = None if found is None or found.content == "not-present" else found
        return self._systems[url]


class _Held:
    """A package's code system."""

    def __init__(self, resource: Json) -> None:
        self.content = str(resource["content"])
        self._above: dict[str, frozenset[str]] = {}
        waiting: list[tuple[Json, frozenset[str]]] = [(one, frozenset()) for one in resource.get("concept", ())]
        while waiting:
            concept, above = waiting.pop()
            code = concept["code"]
            self._above[code] = above
            waiting += [(one, above | {code}) for one in concept.get("concept", ())]

    def find(self, code: str) -> object | None:
        return self._above.get(code)

    def ancestors(self, code: str) -> frozenset[str]:
        return self._above[code]


def _in_table(table: ValueSet, system: str | None, code: str) -> bool | None:
    if table.rule == "any":
        return None
    if table.rule is not None and table.rule.startswith("system:"):
        # The rule stands for one system of perhaps several: what is of another is not known.
        return True if system == table.rule.removeprefix("system:") else None
    if system is None and table.rule is None:
        return code in table.all_codes()
    return coding_check(table)({"system": system, "code": code}) is None


def _passes(code: str, system: System, rule: Json) -> bool | None:
    value, operator = rule.get("value"), rule.get("op")
    if rule.get("property") not in ("concept", "code"):
        return None
    if operator == "=":
        return bool(code == value)
    above = system.ancestors(code)
    if operator == "is-a":
        return code == value or value in above
    if operator == "descendent-of":
        return value in above
    if operator == "is-not-a":
        return code != value and value not in above
    return None


def _expanded(held: Json, system: str | None, code: str) -> bool | None:
    expansion = held.get("expansion")
    if expansion is None:
        return None
    waiting = list(expansion.get("contains", ()))
    while waiting:
        one = waiting.pop()
        if one.get("code") == code and (system is None or one.get("system") == system) and not one.get("abstract"):
            return True
        waiting += one.get("contains", ())
    return False
