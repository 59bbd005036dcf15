"""Profiles: constraint StructureDefinitions as trees of rules, compiled on first use.

Owns finding a profile by its canonical URL (R4's own, then the packages'), its snapshot or its differential merged
into its base, and which elements it says more of than R4 does. Refuses to judge a resource: ``profiles_check.py``
does. https://hl7.org/fhir/R4/profiling.html
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from gateway.errors import Misconfigured
from gateway.fhir.definitions import Binding, Constraint, Definitions, Element, mappings_folder, read_table
from gateway.fhir.packages import Packages

CORE = "http://hl7.org/fhir/StructureDefinition/"
_DEPTH = 12
_KEYS_ALREADY = frozenset({"ele-1", "ext-1"})
_DEFAULTS = {"Extension": ("value", "url"), "choice": ("type", "$this")}

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class TypeRule:
    """A type an element may have, by profile: ``profiles`` any of which its value must conform to, and ``targets``
    (canonical URLs) any of which a reference must be to; empty = no more than R4 says."""

    code: str
    profiles: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Slicing:
    """How the items of an element are told apart; ``discriminators`` are (type, path)."""

    discriminators: tuple[tuple[str, str], ...]
    rules: Literal["open", "closed", "openAtEnd"] = "open"
    ordered: bool = False


@dataclass(slots=True)
class ElementRule:
    """What a profile says of one element, or of one slice of it. Complete once its Profile is handed out.

    ``fixed`` and ``pattern`` hold the value in a tuple of one. ``slices`` are in the profile's order.
    """

    id: str
    name: str
    choice: bool = False
    minimum: int = 0
    maximum: int | None = None
    types: tuple[TypeRule, ...] = ()
    fixed: tuple[Any, ...] = ()
    pattern: tuple[Any, ...] = ()
    binding: Binding | None = None
    constraints: tuple[Constraint, ...] = ()
    slicing: Slicing | None = None
    slices: dict[str, ElementRule] = field(default_factory=dict)
    children: dict[str, ElementRule] = field(default_factory=dict)

    def copy(self) -> ElementRule:
        """The same rules, all the way down, for another profile to add to."""
        return replace(self, slices={name: one.copy() for name, one in self.slices.items()},
                       children={name: one.copy() for name, one in self.children.items()})

    @property
    def says_nothing(self) -> bool:
        """Whether every element R4 lets pass would pass this."""
        return not (self.minimum or self.maximum is not None or self.types or self.fixed or self.pattern
                    or self.binding or self.constraints or self.slices or self.children)


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """``type`` is the resource type or datatype; ``contexts`` of an extension are its (kind, expression) pairs."""

    url: str
    type: str
    root: ElementRule
    contexts: tuple[tuple[str, str], ...] = ()


class ProfileUnusableError(Exception):  # control flow: validate.py makes an issue of it
    """A profile that is held, yet cannot be judged by: its base is not, or its elements make no tree."""


class Profiles:
    """Every profile known; make one per process."""

    def __init__(self, definitions: Definitions, packages: Packages, folder: Path | None = None) -> None:
        self._definitions = definitions
        self._packages = packages
        self._folder = folder
        self._core: Mapping[str, Json] | None = None
        self._known: dict[str, Profile | ProfileUnusableError | None] = {}
        self._keys: frozenset[str] | None = None

    def get(self, canonical: str) -> Profile | None:
        """The profile; None where it is not known. Raises ProfileUnusableError."""
        if canonical not in self._known:
            try:
                self._known[canonical] = self._compile(canonical)
            except ProfileUnusableError as error:
                self._known[canonical] = error
        found = self._known[canonical]
        if isinstance(found, ProfileUnusableError):
            raise found
        return found

    def type_of(self, canonical: str) -> str | None:
        """The type a profile, or R4's definition of a type, is of; None where it is not known."""
        name = canonical.partition("|")[0].removeprefix(CORE)
        if self._definitions.has_type(name):
            return name
        definition = self._definition(canonical)
        return None if definition is None else str(definition.get("type"))

    def require(self, canonical: str, type_: str) -> None:
        """Refuse a setting that names what cannot be judged by. Raises Misconfigured."""
        try:
            found = self.get(canonical)
        except ProfileUnusableError as error:
            raise Misconfigured(f"the profile {canonical} required of {type_} cannot be used: {error}") from error
        if found is None:
            raise Misconfigured(f"the profile {canonical} required of {type_} is in no package")
        if found.type != type_:
            raise Misconfigured(f"the profile {canonical} required of {type_} is one of {found.type}")

    def _definition(self, canonical: str) -> Json | None:
        if self._core is None:
            self._core = read_table((self._folder or mappings_folder() / "fhir") / "profiles.json.gz")
        url, _, version = canonical.partition("|")
        held = self._core.get(url)
        if held is not None and version in ("", held.get("version"), "4.0"):
            return held
        return self._packages.get("StructureDefinition", canonical)

    def _compile(self, canonical: str) -> Profile | None:
        definition = self._definition(canonical)
        if definition is None or definition.get("derivation") != "constraint":
            return None
        type_ = definition.get("type")
        if type(type_) is not str or not self._definitions.has_type(type_):
            raise ProfileUnusableError(f"it is of {str(type_)[:64]}, which R4 has not")
        try:
            root = self._merged(definition, _DEPTH)
            if type_ == "Extension":
                _place(root, f"{root.id}.url", None).fixed = (definition["url"],)
            self._prune(root, type_, type_)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ProfileUnusableError(f"its elements make no tree ({type(error).__name__})") from error
        contexts = tuple((one.get("type", "element"), one["expression"].replace("[x]", ""))
                         for one in definition.get("context", ()))
        return Profile(url=definition["url"], type=type_, root=root, contexts=contexts)

    def _merged(self, definition: Json, depth: int) -> ElementRule:
        """Snapshot, or the base's rules with the differential's on top of them."""
        type_ = definition["type"]
        if "snapshot" in definition:
            root = ElementRule(type_, type_)
            rows = definition["snapshot"]["element"]
        else:
            rows = definition["differential"]["element"]
            base = str(definition.get("baseDefinition", "")).partition("|")[0]
            if self._definitions.has_type(base.removeprefix(CORE)):
                root = ElementRule(type_, type_)
            else:
                held = self._definition(base)
                if held is None or depth == 0:
                    raise ProfileUnusableError(f"its base {base[:200]} is in no package")
                root = self._merged(held, depth - 1).copy()
        ids: dict[str, str] = {}
        for row in rows:
            path = row["path"]
            id_ = row.get("id") or _id(row, ids)
            ids[path] = id_
            self._apply(root, row, id_, type_)
        return root

    def _apply(self, root: ElementRule, row: Json, id_: str, type_: str) -> None:
        rule = _place(root, id_, self._choices(type_))
        rule.minimum = max(rule.minimum, row.get("min", 0))
        limit = row.get("max", "*")
        if limit != "*":
            rule.maximum = int(limit) if rule.maximum is None else min(rule.maximum, int(limit))
        if row.get("type"):
            rule.types = tuple(TypeRule(one["code"], tuple(one.get("profile", ())), tuple(one.get("targetProfile", ())))
                               for one in row["type"] if "code" in one)
        for key, value in row.items():
            if key.startswith("fixed"):
                rule.fixed = (value,)
            elif key.startswith("pattern"):
                rule.pattern = (value,)
        if "slicing" in row:
            slicing = row["slicing"]
            found = tuple((one["type"], one["path"]) for one in slicing.get("discriminator", ()))
            if found or rule.slicing is None:
                rule.slicing = Slicing(found, slicing.get("rules", "open"), slicing.get("ordered", False))
        binding = row.get("binding")
        if binding is not None and "valueSet" in binding:
            rule.binding = Binding(strength=binding["strength"], value_set=binding["valueSet"])
        known = {one.key for one in rule.constraints}
        rule.constraints += tuple(
            Constraint(key=one["key"], severity=one["severity"], human=one["human"], expression=one["expression"])
            for one in row.get("constraint", ())
            if "expression" in one and one["key"] not in known and not self._of_r4(one))

    def _of_r4(self, constraint: Json) -> bool:
        """Whether the base validator holds this invariant already: snapshots repeat R4's."""
        source = str(constraint.get("source", CORE)).partition("|")[0]
        name = source.removeprefix(CORE)
        if constraint["key"] in _KEYS_ALREADY:
            return True
        return constraint["key"] in self._all_keys() and (source == CORE or self._definitions.has_type(name))

    def _all_keys(self) -> frozenset[str]:
        if self._keys is None:
            keys = set()
            for name in self._definitions.type_names:
                for node in self._definitions.type(name).nodes.values():
                    keys |= {one.key for one in node.constraints}
                    for element in node.elements.values():
                        keys |= {one.key for one in element.constraints}
            self._keys = frozenset(keys)
        return self._keys

    def _choices(self, type_: str) -> Mapping[str, Element]:
        return {key: element for node in self._definitions.type(type_).nodes.values()
                for element in node.elements.values() if element.choice for key, _ in element.json_names}

    def element(self, node: str, name: str) -> Element | None:
        """R4's element ``name`` of a type or backbone."""
        head = node.partition(".")[0]
        if not self._definitions.has_type(head):
            return None
        found = self._definitions.type(head).nodes.get(node)
        return None if found is None else found.elements.get(name)

    def _prune(self, rule: ElementRule, node: str | None, type_: str) -> None:
        """Take away what R4 says by itself, so that checking looks at nothing twice."""
        for name, child in list(rule.children.items()):
            element = self.element(node, name) if node is not None else None
            if element is not None:
                _without(child, element)
            inside = _node_of(child, element)
            for one in child.slices.values():
                self._prune(one, _node_of(one, element) or inside, type_)
            self._prune(child, inside, type_)
            if child.says_nothing:
                del rule.children[name]


def _without(rule: ElementRule, element: Element) -> None:
    rule.choice = element.choice
    if rule.minimum <= element.minimum:
        rule.minimum = 0
    if rule.maximum is not None and element.maximum is not None and rule.maximum >= element.maximum:
        rule.maximum = None
    said = {(one.code, one.targets) for one in rule.types}
    own = {(one.code, tuple(CORE + target for target in one.targets)) for one in element.types}
    anything = {(code, targets or (CORE + "Resource",)) for code, targets in own}
    if rule.types and not any(one.profiles for one in rule.types) and said in (own, anything):
        rule.types = ()
    if rule.binding is not None and element.binding is not None and (
            rule.binding.strength == element.binding.strength
            and rule.binding.value_set.partition("|")[0] == element.binding.value_set.partition("|")[0]):
        rule.binding = None
    if rule.binding is not None and rule.binding.strength == "example":
        rule.binding = None


def _node_of(rule: ElementRule, element: Element | None) -> str | None:
    """The type or backbone whose children the rule's children are, where there is but one."""
    if element is not None and element.node is not None:
        return element.node
    codes = {one.code for one in rule.types} or {one.code for one in element.types} if element else (
        {one.code for one in rule.types})
    return next(iter(codes)) if len(codes) == 1 else None


def _id(row: Json, ids: Mapping[str, str]) -> str:
    """The id an element without one would have: its parent's, its name, its slice."""
    above, _, name = row["path"].rpartition(".")
    id_ = f"{ids.get(above, above)}.{name}" if above else name
    return f"{id_}:{row['sliceName']}" if row.get("sliceName") else id_


def _place(root: ElementRule, id_: str, choices: Mapping[str, Element] | None) -> ElementRule:
    """The rule of an element id such as ``Observation.component:SystolicBP.value[x]``, made where missing."""
    rule = root
    for part in id_.split(".")[1:]:
        name, _, slice_ = part.partition(":")
        choice = name.endswith("[x]")
        name = name.removesuffix("[x]")
        typed = None if choice or choices is None else choices.get(name)
        if typed is not None and name not in rule.children:
            # `valueQuantity` is short for the slice of value[x] that is a Quantity.
            name, slice_, choice = typed.name, name, True
        child = rule.children.get(name)
        if child is None:
            child = rule.children[name] = ElementRule(f"{rule.id}.{name}" + ("[x]" if choice else ""), name, choice)
        rule = child
        for one in slice_.split("/") if slice_ else ():
            inner = rule.slices.get(one)
            if inner is None:
                inner = rule.slices[one] = ElementRule(f"{rule.id}:{one}", rule.name, rule.choice)
                if typed is not None:
                    inner.types = tuple(TypeRule(type_.code) for key, type_ in typed.json_names if key == one)
            rule = inner
    return rule


def default_slicing(rule: ElementRule) -> Slicing | None:
    """What tells slices apart where a profile need not say: extensions by url, choices by type."""
    if rule.name in ("extension", "modifierExtension"):
        return Slicing((_DEFAULTS["Extension"],))
    return Slicing((_DEFAULTS["choice"],)) if rule.choice else None
