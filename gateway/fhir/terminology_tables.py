"""CodeSystems as tables: concepts by code, their hierarchy, properties and designations.

Owns reading a CodeSystem resource, HL7's or a posted one, into what the operations ask of it; refuses to read a
hierarchy that does not mean is-a as subsumption. https://hl7.org/fhir/R4/codesystem.html
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from gateway.fhir.resource import DECIMAL, Resource

_CONCEPT_PROPERTIES = "http://hl7.org/fhir/concept-properties#"
_ABOVE = frozenset({"parent", "subsumedBy"})
_NOT_IS_A = frozenset({"grouped-by", "part-of", "classified-with"})
_UNSELECTABLE = frozenset({"notSelectable", "abstract"})
_RETIRED = frozenset({"retired", "inactive"})
STANDARD = frozenset({"concept", "code", "display", "definition", "parent", "child", "inactive", "status",
                      "notSelectable", "deprecated"})
"""Properties every system has, declared or not. https://hl7.org/fhir/R4/codesystem.html#defined-props"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Concept:
    """``properties``: (code, JSON value) as declared; ``parents`` and ``children``: direct ones, however written.

    ``abstract``: not to be selected by a user; ``inactive``: no longer to be used.
    """

    code: str
    display: str | None
    definition: str | None
    designations: tuple[dict[str, Any], ...]
    properties: tuple[tuple[str, str, Any], ...]
    parents: tuple[str, ...]
    children: tuple[str, ...]
    abstract: bool
    inactive: bool

    def values(self, name: str) -> list[str]:
        """The texts of a property, the standard ones included."""
        if name in ("concept", "code"):
            return [self.code]
        if name == "display":
            return [] if self.display is None else [self.display]
        if name == "definition":
            return [] if self.definition is None else [self.definition]
        if name == "parent":
            return list(self.parents)
        if name == "child":
            return list(self.children)
        found = [text(value) for code, _, value in self.properties if code == name]
        if not found and name == "inactive":
            return ["true" if self.inactive else "false"]
        if not found and name == "notSelectable":
            return ["true" if self.abstract else "false"]
        return found


@dataclass(frozen=True, kw_only=True)
class CodeSystem:
    """``concepts`` in the order of the resource. ``complete``: a code that is not here does not exist."""

    url: str
    version: str | None
    name: str
    title: str | None
    content: str
    case_sensitive: bool
    is_a: bool
    declared: Mapping[str, dict[str, Any]]
    concepts: Mapping[str, Concept] = field(repr=False)

    @classmethod
    def of(cls, resource: Resource) -> CodeSystem:
        """The table of a valid CodeSystem resource."""
        declared = {one["code"]: one for one in resource.get("property", ()) if "code" in one}
        return cls(url=resource.get("url", ""), version=resource.get("version"), name=resource.get("name", ""),
                   title=resource.get("title"), content=resource.get("content", "not-present"),
                   case_sensitive=resource.get("caseSensitive") is not False,
                   is_a=resource.get("hierarchyMeaning") not in _NOT_IS_A, declared=declared,
                   concepts=_concepts(resource, declared))

    @property
    def complete(self) -> bool:
        return self.content == "complete"

    @property
    def canonical(self) -> str:
        return self.url if self.version is None else f"{self.url}|{self.version}"

    @cached_property
    def _folded(self) -> Mapping[str, str]:
        return {} if self.case_sensitive else {code.casefold(): code for code in self.concepts}

    def find(self, code: str) -> Concept | None:
        """The concept of ``code``; whatever its case where the system says that case does not matter."""
        found = self.concepts.get(code)
        if found is None and not self.case_sensitive:
            found = self.concepts.get(self._folded.get(code.casefold(), ""))
        return found

    def has_property(self, name: str) -> bool:
        return name in STANDARD or name in self.declared

    def ancestors(self, code: str) -> frozenset[str]:
        """Every code that subsumes ``code``, itself not among them."""
        return self._reached(code, upward=True)

    def descendants(self, code: str) -> frozenset[str]:
        """Every code that ``code`` subsumes, itself not among them."""
        return self._reached(code, upward=False)

    def subsumes(self, above: str, below: str) -> bool:
        """Whether ``above`` is ``below`` or one of its ancestors."""
        return above == below or above in self.ancestors(below)

    def _reached(self, code: str, *, upward: bool) -> frozenset[str]:
        if not self.is_a:
            return frozenset()
        found: set[str] = set()
        waiting = [code]
        while waiting:
            concept = self.concepts.get(waiting.pop())
            if concept is not None:
                fresh = [one for one in (concept.parents if upward else concept.children) if one not in found]
                found.update(fresh)
                waiting += fresh
        return frozenset(found - {code})


def text(value: Any) -> str:  # Any: the value of a property, by its datatype
    """A property's value as filters compare it: a Coding by its code, a decimal as it was written."""
    if value is True or value is False:
        return "true" if value else "false"
    if type(value) is dict:
        return str(value.get("code", ""))
    if type(value) is DECIMAL:
        return bytes(value).decode()
    return str(value)


def _walk(concepts: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], str | None]]:
    waiting: list[tuple[dict[str, Any], str | None]] = [(one, None) for one in reversed(concepts)]
    while waiting:
        concept, above = waiting.pop()
        yield concept, above
        waiting += [(one, concept.get("code")) for one in reversed(concept.get("concept", ()))]


def _value(row: dict[str, Any]) -> tuple[str, Any]:
    return next(((key, value) for key, value in row.items() if key.startswith("value")), ("valueString", ""))


def _concepts(resource: Resource, declared: Mapping[str, dict[str, Any]]) -> dict[str, Concept]:
    meanings = {code: one.get("uri", "").removeprefix(_CONCEPT_PROPERTIES) for code, one in declared.items()}
    parents: dict[str, dict[str, None]] = defaultdict(dict)
    children: dict[str, dict[str, None]] = defaultdict(dict)
    rows: dict[str, tuple[dict[str, Any], tuple[tuple[str, str, Any], ...]]] = {}

    def join(above: str, below: str) -> None:
        parents[below][above] = None
        children[above][below] = None

    for concept, above in _walk(resource.get("concept", [])):
        code = concept.get("code")
        if code is None:  # its value is an extension
            continue
        properties = tuple((row["code"], *_value(row)) for row in concept.get("property", ()) if "code" in row)
        rows.setdefault(code, (concept, properties))
        if above is not None:
            join(above, code)
        for name, _, value in properties:
            if name in _ABOVE or meanings.get(name) == "parent":
                join(text(value), code)
            elif name == "child" or meanings.get(name) == "child":
                join(code, text(value))
    return {code: _concept(code, concept, properties, tuple(one for one in parents.get(code, ()) if one in rows),
                           tuple(one for one in children.get(code, ()) if one in rows))
            for code, (concept, properties) in rows.items()}


def _concept(code: str, concept: dict[str, Any], properties: tuple[tuple[str, str, Any], ...],
             parents: tuple[str, ...], children: tuple[str, ...]) -> Concept:
    return Concept(
        code=code, display=concept.get("display"), definition=concept.get("definition"),
        designations=tuple(concept.get("designation", ())), properties=properties, parents=parents, children=children,
        abstract=any(name in _UNSELECTABLE and value is True for name, _, value in properties),
        inactive=any((name == "inactive" and value is True) or (name == "status" and value in _RETIRED)
                     for name, _, value in properties))
