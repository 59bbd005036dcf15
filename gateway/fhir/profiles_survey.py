"""What a resource's elements carry that R4's structure leaves open: extensions, and codes beyond required bindings.

Owns where a known extension may stand, what it may hold, modifier extensions nobody here knows, and the warnings of
R4's extensible and preferred bindings. Refuses to look into resources within the resource: each is surveyed by itself.
https://hl7.org/fhir/R4/extensibility.html
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from gateway.errors import Issue
from gateway.fhir.definitions import SYSTEM_TYPE, Definitions, Element
from gateway.fhir.fhirpath import TypeModel
from gateway.fhir.profiles import Profile, Profiles, ProfileUnusableError
from gateway.fhir.profiles_check import Conformance, codes_of
from gateway.fhir.profiles_terms import Terms
from gateway.fhir.slicing import Place

_ADVISED = ("extensible", "preferred")
_RESOURCES = frozenset({"Resource", "DomainResource"})


class Survey:
    """Looks at every element of a resource once. Make one per process."""

    def __init__(self, definitions: Definitions, model: TypeModel, profiles: Profiles, terms: Terms) -> None:
        self._definitions = definitions
        self._model = model
        self._profiles = profiles
        self._terms = terms
        self._properties: dict[str, dict[str, tuple[Element, str]]] = {}

    def look(self, resource: dict[str, Any], path: str, conformance: Conformance, report: Callable[[Issue], None], *,
             modifiers_known: bool, thorough: bool) -> None:
        """Report every issue. ``modifiers_known``: a modifier extension without a definition is an error."""
        name = resource["resourceType"]
        waiting = [(Place(resource, None, name, path), frozenset({name}))]
        while waiting:
            place, names = waiting.pop()
            for held in (place.value, place.side):
                if type(held) is dict:
                    for key in ("extension", "modifierExtension"):
                        for at, one in enumerate(held.get(key, ())):
                            inside = Place(one, None, "Extension", f"{place.path}.{key}[{at}]")
                            self._extension(inside, place, names, conformance, report, modifier=key[0] == "m",
                                            known=modifiers_known, thorough=thorough)
                            waiting.append((inside, frozenset({"Extension", str(one.get("url"))})))
            for element, inner in self._inside(place):
                if thorough:
                    self._advise(element, inner, report)
                waiting.append((inner, _names(names, element, inner)))

    def _inside(self, place: Place) -> Iterator[tuple[Element, Place]]:
        """Elements with children or codes, but extensions and resources."""
        if type(place.value) is not dict:
            return
        known = self._known(place.type)
        for key, value in place.value.items():
            found = known.get(key.removeprefix("_"))
            if found is None:
                continue
            element, type_ = found
            path = f"{place.path}.{element.name}" + (f".ofType({type_})" if element.choice else "")
            side = key[:1] == "_"
            items = value if type(value) is list else [value]
            for at, item in enumerate(items):
                if item is not None:
                    yield element, Place(None if side else item, item if side else None, type_,
                                         f"{path}[{at}]" if type(value) is list else path)

    def _known(self, node: str) -> dict[str, tuple[Element, str]]:
        known = self._properties.get(node)
        if known is None:
            known = self._properties[node] = {}
            head = node.partition(".")[0]
            definition = self._definitions.type(head).nodes.get(node) if self._definitions.has_type(head) else None
            for element in definition.elements.values() if definition is not None else ():
                for key, type_ in element.json_names:
                    if type_.code not in _RESOURCES and type_.code != "Extension" and not element.attribute:
                        known[key] = element, element.node or type_.code.removeprefix(SYSTEM_TYPE)
        return known

    def _advise(self, element: Element, place: Place, report: Callable[[Issue], None]) -> None:
        binding = element.binding
        if binding is None or binding.strength not in _ADVISED:
            return
        answers = [self._terms.member(binding.value_set, system, code) for system, code in codes_of(place)]
        if answers and all(answer is False for answer in answers):
            report(Issue("warning", "code-invalid", f"no code is in the {binding.strength} value set "
                         f"{binding.value_set}", place.path))

    def _extension(self, place: Place, owner: Place, names: frozenset[str], conformance: Conformance,
                   report: Callable[[Issue], None], *, modifier: bool, known: bool, thorough: bool) -> None:
        url = place.value.get("url")
        if type(url) is not str or ":" not in url:
            return
        try:
            profile = self._profiles.get(url)
        except ProfileUnusableError:
            return
        if profile is None or profile.type != "Extension":
            if modifier:
                report(Issue("error" if known else "warning", "extension",
                             "a modifier extension that is not known here: what it says cannot be kept to", place.path))
            return
        # Of contexts a write is not refused for: those R4 published leave out places its own resources use.
        if thorough and profile.contexts and not any(self._allowed(kind, expression, names)
                                        for kind, expression in profile.contexts):
            report(Issue("error", "extension", f"the extension {url} is not for use here, but on "
                         f"{_contexts(profile)}", place.path))
        conformance.judge(place, url)

    def _allowed(self, kind: str, expression: str, names: frozenset[str]) -> bool:
        if kind == "fhirpath":
            return True
        if expression in names:
            return True
        return kind == "element" and (expression == "Element" or any(
            self._model.is_a(name, expression) for name in names if ":" not in name and "/" not in name))


def _names(outer: frozenset[str], element: Element, place: Place) -> frozenset[str]:
    """What contexts may call an element: its type, and its path from every type it stands in."""
    return frozenset((place.type, *(f"{name}.{element.name}" for name in outer if ":" not in name)))


def _contexts(profile: Profile) -> str:
    return ", ".join(expression for _, expression in profile.contexts[:8])
