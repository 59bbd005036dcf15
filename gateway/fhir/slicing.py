"""Slicing: which items of an element belong to which slice of a profile.

Owns discriminators (value, pattern, exists, type, profile), their restricted paths, and the places those lead to.
Refuses to guess: a slice whose discriminators say nothing is not judged. https://hl7.org/fhir/R4/profiling.html#slicing
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from gateway.fhir.fhirpath import TypeModel
from gateway.fhir.fhirpath.node import choice_key
from gateway.fhir.primitives import PRIMITIVES
from gateway.fhir.profiles import CORE, ElementRule, Profiles, ProfileUnusableError, Slicing, TypeRule
from gateway.fhir.resource import DECIMAL
from gateway.fhir.unknowns import all_of, any_of

_STEP = re.compile(r"\$this|resolve\(\)|extension\('([^']+)'\)|ofType\((\w+)\)|(\w+)(?:\[x\])?")


@dataclass(frozen=True, slots=True)
class Place:
    """One element: its value (None when only extensions are there), ``_name`` side, type or backbone, and path."""

    value: Any
    side: Any
    type: str
    path: str


class Resolver(Protocol):
    """What discriminators ask beyond the element: references, profiles and value sets."""

    def resolve(self, reference: str) -> Place | None:
        """The resource behind a reference, within the resource or bundle at hand."""

    def conforms(self, place: Place, profile: str) -> bool | None:
        """Whether the element conforms; None where that is not known."""

    def bound(self, place: Place, value_set: str) -> bool | None:
        """Whether the element's code is in the value set; None where that is not known."""


def children(place: Place, name: str, model: TypeModel, *, choice: bool) -> list[Place]:
    """The elements called ``name`` in a place, in order."""
    owner = place.value if type(place.value) is dict else place.side if type(place.side) is dict else None
    if owner is None:
        return []
    key, shown = name, f"{place.path}.{name}"
    type_ = "" if choice else model.child_type(place.type, name)
    if choice:
        found = choice_key(owner, name, model)
        if found is None:
            return []
        key, type_ = found
        shown += f".ofType({type_})"
    value, side = owner.get(key), owner.get(f"_{key}")
    if type(value) is list or type(side) is list:
        values = value if type(value) is list else []
        sides = side if type(side) is list else []
        return [_place(values[at] if at < len(values) else None, sides[at] if at < len(sides) else None, type_,
                       f"{shown}[{at}]") for at in range(max(len(values), len(sides)))]
    return [] if value is None and side is None else [_place(value, side, type_, shown)]


def _place(value: Any, side: Any, type_: str, path: str) -> Place:
    if type(value) is dict and type(value.get("resourceType")) is str:
        type_ = value["resourceType"]
    return Place(value, side, type_, path)


def steps_of(path: str) -> tuple[str, ...] | None:
    """The steps of a discriminator's path; None where it is none of the allowed kind."""
    steps, at = [], 0
    while at < len(path):
        match = _STEP.match(path, at)
        if match is None:
            return None
        steps.append(match[0].removesuffix("[x]"))
        at = match.end()
        if at < len(path):
            if path[at] != ".":
                return None
            at += 1
    return tuple(step for step in steps if step != "$this")


def select(place: Place, steps: Sequence[str], resolver: Resolver, model: TypeModel) -> list[Place]:
    """The elements a discriminator's path leads to."""
    found = [place]
    for step in steps:
        found = [inner for one in found for inner in _step(one, step, resolver, model)]
    return found


def _step(place: Place, step: str, resolver: Resolver, model: TypeModel) -> list[Place]:
    if step == "resolve()":
        text = place.value.get("reference") if type(place.value) is dict else place.value
        target = resolver.resolve(text) if type(text) is str else None
        return [] if target is None else [target]
    if step.startswith("extension("):
        return [one for one in children(place, "extension", model, choice=False)
                if type(one.value) is dict and one.value.get("url") == step[11:-2]]
    if step.startswith("ofType("):
        return [place] if place.type == step[7:-1] else []
    named = children(place, step, model, choice=False)
    return named or children(place, step, model, choice=True)


def expected(rule: ElementRule, steps: Sequence[str], profiles: Profiles) -> list[ElementRule]:
    """What a slice says of the elements a path leads to; a pattern above them counts for its part."""
    rules = [rule]
    for step in steps:
        rules = [inner for one in rules for inner in _expected_step(one, step, profiles)]
    return rules


def _expected_step(rule: ElementRule, step: str, profiles: Profiles) -> Iterator[ElementRule]:
    if step == "resolve()":
        yield ElementRule(rule.id, rule.name, minimum=rule.minimum, maximum=rule.maximum, types=tuple(
            _target_type(target, profiles) for one in rule.types for target in one.targets))
        return
    if step.startswith("ofType("):
        yield rule
        return
    name = "extension" if step.startswith("extension(") else step
    for held in (rule, *_by_profile(rule, profiles)):
        child = held.children.get(name)
        if child is not None:
            if name == step:
                yield child
            for one in child.slices.values():
                if name == step or step[11:-2] in extension_urls(one, profiles):
                    yield one
    for values, exact in ((rule.fixed, True), (rule.pattern, False)):
        if values and type(values[0]) is dict and step in values[0]:
            inner = values[0][step]
            for value in inner if type(inner) is list else (inner,):
                yield ElementRule(f"{rule.id}.{step}", step, fixed=(value,) if exact else (),
                                  pattern=() if exact else (value,))


def _target_type(target: str, profiles: Profiles) -> TypeRule:
    type_ = profiles.type_of(target)
    name = target.removeprefix(CORE)
    return TypeRule(type_ or "", () if name == type_ else (target,))


def _by_profile(rule: ElementRule, profiles: Profiles) -> Iterator[ElementRule]:
    for one in rule.types:
        for url in one.profiles:
            try:
                profile = profiles.get(url)
            except ProfileUnusableError:
                continue
            if profile is not None:
                yield profile.root


def extension_urls(rule: ElementRule, profiles: Profiles) -> set[str]:
    """The urls an extension slice is for."""
    found = {url for one in expected(rule, ("url",), profiles) for url in (*one.fixed, *one.pattern)}
    if not found:
        # The definition is in no package: its canonical URL is the url all the same (extensibility.html).
        found = {url.partition("|")[0] for one in rule.types for url in one.profiles}
    return found


Matcher = Callable[[Place, Resolver], bool | None]


def matcher(rule: ElementRule, slicing: Slicing, profiles: Profiles, model: TypeModel) -> Matcher | None:
    """Whether an item is of the slice ``rule``; None where its discriminators say nothing of it."""
    tests: list[Matcher] = []
    for kind, path in slicing.discriminators:
        steps = steps_of(path)
        test = None if steps is None else _test(kind, rule, steps, profiles, model)
        if test is not None:
            tests.append(test)
    if not tests:
        return None

    return lambda place, resolver: all_of(test(place, resolver) for test in tests)


def _test(kind: str, rule: ElementRule, steps: Sequence[str], profiles: Profiles, model: TypeModel) -> Matcher | None:
    rules = expected(rule, steps, profiles)
    if kind == "type":
        codes = frozenset(type_.code for one in rules for type_ in one.types if type_.code)
        if not codes:
            return None
        return lambda place, resolver: any(
            any(model.is_a(one.type, code) for code in codes) for one in select(place, steps, resolver, model))
    if kind == "profile":
        urls = tuple(url for one in rules for type_ in one.types for url in type_.profiles)
        if not urls:
            return None
        return lambda place, resolver: any_of(
            resolver.conforms(one, url) for one in select(place, steps, resolver, model) for url in urls)
    if kind == "exists":
        if any(one.maximum == 0 for one in rules):
            return lambda place, resolver: not select(place, steps, resolver, model)
        if any(one.minimum for one in rules):
            return lambda place, resolver: bool(select(place, steps, resolver, model))
        return None
    if steps and steps[-1] == "url" and not any(one.fixed or one.pattern for one in rules):
        urls_of = tuple(extension_urls(rule, profiles))
        rules = [ElementRule(rule.id, "url", fixed=(url,)) for url in urls_of]
    telling = [one for one in rules if one.fixed or one.pattern or (
        one.binding is not None and one.binding.strength == "required")]
    if not telling:
        return None
    return lambda place, resolver: any_of(
        _has_value(one, held, resolver) for one in select(place, steps, resolver, model) for held in telling)


def _has_value(place: Place, rule: ElementRule, resolver: Resolver) -> bool | None:
    if rule.fixed:
        return equal(place.value, rule.fixed[0])
    if rule.pattern:
        return fits(place.value, rule.pattern[0])
    return None if rule.binding is None else resolver.bound(place, rule.binding.value_set)


def equal(value: Any, wanted: Any) -> bool:
    """Whether two JSON values are the same; numbers by value."""
    if type(value) is dict and type(wanted) is dict:
        return value.keys() == wanted.keys() and all(equal(value[key], wanted[key]) for key in wanted)
    if type(value) is list and type(wanted) is list:
        return len(value) == len(wanted) and all(map(equal, value, wanted))
    return _same(value, wanted)


def fits(value: Any, pattern: Any) -> bool:
    """Whether a value has everything its pattern has."""
    if type(pattern) is dict:
        return type(value) is dict and all(key in value and fits(value[key], pattern[key]) for key in pattern)
    if type(pattern) is list:
        return type(value) is list and all(any(fits(one, wanted) for one in value) for wanted in pattern)
    return _same(value, pattern)


def _same(value: Any, wanted: Any) -> bool:
    if type(value) is DECIMAL or type(wanted) is DECIMAL:
        return not isinstance(value, bool | str | dict | list | None) and not isinstance(
            wanted, bool | str | dict | list | None) and _number(value) == _number(wanted)
    return type(value) is type(wanted) and bool(value == wanted)


def _number(value: Any) -> Any:
    return value if type(value) is int else value.as_decimal()


def is_primitive(type_: str) -> bool:
    """Whether values of the type are bare JSON values."""
    return type_ in PRIMITIVES
