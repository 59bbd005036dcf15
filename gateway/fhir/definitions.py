"""HL7's R4 definitions as tables: types, value sets, search parameters, compartments.

Owns reading the compact tables of ``mappings/fhir`` (made by ``compile_definitions.py``) and handing them out
as frozen values, each type built on first use. Refuses to know any type by name.
https://hl7.org/fhir/R4/structuredefinition.html
"""

from __future__ import annotations

import gzip
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import orjson

from gateway.errors import Misconfigured

Kind = Literal["resource", "complex-type", "primitive-type"]
Strength = Literal["required", "extensible", "preferred", "example"]
SearchType = Literal["number", "date", "string", "token", "reference", "composite", "quantity", "uri", "special"]

SYSTEM_TYPE = "http://hl7.org/fhirpath/System."
"""Prefix of the type codes FHIR gives to ``Element.id`` and ``Extension.url``."""


def mappings_folder() -> Path:
    """The ``mappings`` folder: beside the package in a checkout, inside it in a wheel.

    Raises Misconfigured when neither is there.
    """
    package = Path(__file__).resolve().parents[1]
    for candidate in (package.parent / "mappings", package / "_mappings"):
        if (candidate / "fhir" / "types.json.gz").is_file():
            return candidate
    raise Misconfigured("the mappings folder is neither beside nor inside the gateway package: reinstall it")


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """One invariant: ``expression`` is FHIRPath, evaluated on the element that carries it."""

    key: str
    severity: Literal["error", "warning"]
    human: str
    expression: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """``maximum`` is the value set no code may leave, whatever the strength (``maxValueSet``)."""

    strength: Strength
    value_set: str
    maximum: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ElementType:
    """A type an element may have; ``targets`` are resource types of a Reference or canonical, empty = any.

    ``profile`` names a datatype profile that adds a constraint (``SimpleQuantity``).
    """

    code: str
    targets: tuple[str, ...] = ()
    profile: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Element:
    """One child of a node. ``maximum`` None is ``*``; ``name`` lacks the ``[x]`` of a choice.

    ``node`` is the path of the node that holds the children of a backbone element or content reference;
    None where the children are those of the datatype. An ``attribute`` (``Element.id``, ``Extension.url``) is a bare
    value: it takes no ``_name`` sibling.
    """

    name: str
    minimum: int
    maximum: int | None
    types: tuple[ElementType, ...]
    choice: bool = False
    node: str | None = None
    binding: Binding | None = None
    constraints: tuple[Constraint, ...] = ()
    attribute: bool = False
    modifier: bool = False
    summary: bool = False

    @property
    def json_names(self) -> tuple[tuple[str, ElementType], ...]:
        """JSON property names with their types: ``valueQuantity`` ... for a choice, else the name itself."""
        if not self.choice:
            return tuple((self.name, type_) for type_ in self.types[:1])
        return tuple((self.name + type_.code[0].upper() + type_.code[1:], type_) for type_ in self.types)


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A place with children: the root of a type (path ``Observation``) or a backbone (``Observation.component``)."""

    path: str
    elements: Mapping[str, Element]
    constraints: tuple[Constraint, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TypeDefinition:
    """A resource or datatype; ``nodes`` maps a path to its Node, the root first."""

    name: str
    kind: Kind
    abstract: bool
    base: str | None
    nodes: Mapping[str, Node]

    @property
    def root(self) -> Node:
        return self.nodes[self.name]


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueSet:
    """Either an expansion (``codes``: system -> codes) or, where HL7 gives none, an open ``rule``.

    Rules: ``bcp47`` language tags, ``mimetype``, ``currency`` ISO 4217, ``system:URL`` any code of that system,
    ``any``.
    """

    url: str
    codes: Mapping[str, frozenset[str]]
    rule: str | None = None

    def all_codes(self) -> frozenset[str]:
        """The codes whatever their system, as a ``code`` element is checked."""
        return frozenset().union(*self.codes.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchParameter:
    """One search parameter as it applies to one type; ``expression`` holds only this type's part.

    ``components`` of a composite: (code of the component's parameter, its expression on the focus).
    """

    code: str
    type: SearchType
    expression: str
    url: str
    targets: tuple[str, ...] = ()
    components: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Definitions:
    """Everything the gateway knows of R4, made by ``load``; safe to share."""

    resource_types: frozenset[str]
    home_paths: Mapping[str, tuple[tuple[str, ...], ...]]
    _raw_types: Mapping[str, Any]
    _raw_value_sets: Mapping[str, Any]
    _raw_parameters: Mapping[str, Any]
    _compartments: Mapping[str, Mapping[str, tuple[str, ...]]]
    _types: dict[str, TypeDefinition] = field(default_factory=dict, compare=False)
    _value_sets: dict[str, ValueSet] = field(default_factory=dict, compare=False)
    _parameters: dict[str, Mapping[str, SearchParameter]] = field(default_factory=dict, compare=False)
    _members: dict[str, tuple[str, ...]] = field(default_factory=dict, compare=False)

    @classmethod
    @cache
    def load(cls, folder: Path | None = None) -> Definitions:
        """The tables of ``folder`` (default: the packaged ``mappings/fhir``), read once. Raises Misconfigured."""
        folder = folder or mappings_folder() / "fhir"
        try:
            types = read_table(folder / "types.json.gz")
            value_sets = read_table(folder / "value_sets.json.gz")
            parameters = read_table(folder / "search_parameters.json.gz")
            compartments = read_table(folder / "compartments.json.gz")
            homes = tomllib.loads((folder / "home_patients.toml").read_text("utf-8"))["home"]
        except (OSError, ValueError, KeyError) as error:
            raise Misconfigured(f"the FHIR tables in {folder} cannot be read: {error}") from error
        return cls(
            resource_types=frozenset(name for name, row in types.items()
                                     if row["kind"] == "resource" and not row.get("abstract")),
            home_paths=MappingProxyType({name: tuple(tuple(path.split(".")) for path in paths)
                                         for name, paths in homes.items()}),
            _raw_types=types, _raw_value_sets=value_sets, _raw_parameters=parameters,
            _compartments={compartment: {name: tuple(codes) for name, codes in members.items()}
                           for compartment, members in compartments.items()},
        )

    @property
    def type_names(self) -> frozenset[str]:
        """Resources, datatypes and primitives, abstract ones included."""
        return frozenset(self._raw_types)

    def has_type(self, name: str) -> bool:
        return name in self._raw_types

    def type(self, name: str) -> TypeDefinition:
        """The definition of a resource, datatype or primitive. Raises KeyError for an unknown name."""
        found = self._types.get(name)
        if found is None:
            found = self._types[name] = _type(name, self._raw_types[name])
        return found

    def is_a(self, name: str, ancestor: str) -> bool:
        """Whether type ``name`` is ``ancestor`` or derives from it."""
        current: str | None = name
        while current is not None:
            if current == ancestor:
                return True
            row = self._raw_types.get(current)
            current = row.get("base") if row else None
        return False

    def value_set(self, url: str) -> ValueSet | None:
        """The value set of a required binding (url without version); None where the tables have none."""
        url = url.partition("|")[0]
        found = self._value_sets.get(url)
        if found is None:
            row = self._raw_value_sets.get(url)
            if row is None:
                return None
            codes = MappingProxyType({system: frozenset(c) for system, c in row.get("codes", {}).items()})
            found = self._value_sets[url] = ValueSet(url=url, codes=codes, rule=row.get("rule"))
        return found

    def search_parameters(self, type_name: str) -> Mapping[str, SearchParameter]:
        """Every search parameter of a resource type by code, those of Resource and DomainResource included."""
        found = self._parameters.get(type_name)
        if found is None:
            rows: dict[str, SearchParameter] = {}
            for owner in ("Resource", "DomainResource", type_name):
                if owner == type_name or self.is_a(type_name, owner):
                    for row in self._raw_parameters.get(owner, ()):
                        rows[row["code"]] = _parameter(row)
            found = self._parameters[type_name] = MappingProxyType(rows)
        return found

    def compartment(self, name: str, type_name: str) -> tuple[str, ...]:
        """Search parameters that put a ``type_name`` into compartment ``name`` (``Patient``, ``Encounter`` ...)."""
        return self._compartments[name].get(type_name, ())

    def compartment_types(self, name: str) -> tuple[str, ...]:
        """The resource types that may belong to compartment ``name``, its own first, the others by name."""
        found = self._members.get(name)
        if found is None:
            others = sorted(one for one in self._compartments[name] if one in self.resource_types and one != name
                            and self.compartment(name, one))
            found = self._members[name] = (name, *others)
        return found

    def patient_compartment(self, type_name: str) -> tuple[str, ...]:
        return self.compartment("Patient", type_name)

    @property
    def compartments(self) -> tuple[str, ...]:
        return tuple(self._compartments)


def read_table(path: Path) -> dict[str, Any]:
    """One gzipped JSON table of ``mappings/fhir``. Raises OSError, ValueError."""
    table: dict[str, Any] = orjson.loads(gzip.decompress(path.read_bytes()))
    return table


def _constraints(rows: list[list[Any]]) -> tuple[Constraint, ...]:
    return tuple(Constraint(key=key, severity=severity, human=human, expression=expression)
                 for key, severity, human, expression in rows)


def _element(row: dict[str, Any]) -> Element:
    binding = row.get("binding")
    maximum = row.get("max", 1)
    return Element(
        name=row["name"], minimum=row.get("min", 0), maximum=None if maximum == "*" else maximum,
        types=tuple(ElementType(code=t["code"], targets=tuple(t.get("targets", ())), profile=t.get("profile"))
                    for t in row["types"]),
        choice=row.get("choice", False), node=row.get("node"),
        binding=Binding(strength=binding["strength"], value_set=binding["value_set"],
                        maximum=binding.get("maximum")) if binding else None,
        constraints=_constraints(row.get("constraints", [])),
        attribute=row.get("attribute", False), modifier=row.get("modifier", False), summary=row.get("summary", False),
    )


def _type(name: str, row: dict[str, Any]) -> TypeDefinition:
    nodes = {
        path: Node(path=path, constraints=_constraints(node.get("constraints", [])),
                   elements=MappingProxyType({e["name"]: _element(e) for e in node["elements"]}))
        for path, node in row["nodes"].items()
    }
    return TypeDefinition(name=name, kind=row["kind"], abstract=row.get("abstract", False), base=row.get("base"),
                          nodes=MappingProxyType(nodes))


def _parameter(row: dict[str, Any]) -> SearchParameter:
    return SearchParameter(
        code=row["code"], type=row["type"], expression=row.get("expression", ""), url=row["url"],
        targets=tuple(row.get("targets", ())),
        components=tuple((code, expression) for code, expression in row.get("components", ())),
    )
