"""HL7's definitions as the TypeModel FHIRPath asks. Owns the lookup tables; refuses to change with use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from gateway.fhir.definitions import SYSTEM_TYPE, Definitions, Element


@dataclass(frozen=True, slots=True)
class DefinitionsModel:
    """TypeModel over Definitions. Make one per process with ``load``; about 0.2 s for all R4 types."""

    definitions: Definitions
    children: Mapping[str, Mapping[str, str]]
    choices: Mapping[str, tuple[tuple[str, str], ...]]

    @classmethod
    @cache
    def load(cls, definitions: Definitions) -> DefinitionsModel:
        """Tables of every type's JSON properties and of every choice."""
        children: dict[str, dict[str, str]] = {}
        choices: dict[str, dict[str, str]] = {}
        for name in definitions.type_names:
            for path, node in definitions.type(name).nodes.items():
                keys = children[path] = {}
                for element in node.elements.values():
                    for key, type_ in element.json_names:
                        keys[key] = _type_name(type_.code, element)
                        if element.choice:
                            choices.setdefault(element.name, {})[key] = keys[key]
        return cls(definitions, children, {name: tuple(keys.items()) for name, keys in choices.items()})

    def child_type(self, parent: str, key: str) -> str:
        """See TypeModel."""
        keys = self.children.get(parent)
        return keys.get(key, "") if keys is not None else ""

    def choice_keys(self, name: str) -> tuple[tuple[str, str], ...]:
        """See TypeModel."""
        return self.choices.get(name, ())

    def declared(self, parent: str, name: str) -> frozenset[str] | None:
        """See TypeModel."""
        type_ = parent.partition(".")[0]
        if not self.definitions.has_type(type_) or self.definitions.type(type_).abstract:
            return None
        node = self.definitions.type(type_).nodes.get(parent)
        if node is None:
            return None
        element = node.elements.get(name)
        return frozenset() if element is None else frozenset(_type_name(one.code, element) for one in element.types)

    def is_a(self, name: str, base: str) -> bool:
        """See TypeModel. A backbone (a path such as ``Patient.contact``) is a BackboneElement or Element."""
        if "." in name:
            return base == name or base in ("BackboneElement", "Element")
        return self.definitions.is_a(name, base)

    def is_type(self, name: str) -> bool:
        """See TypeModel."""
        return self.definitions.has_type(name)


def _type_name(code: str, element: Element) -> str:
    if element.node is not None:
        return element.node
    return code.removeprefix(SYSTEM_TYPE).lower() if code.startswith(SYSTEM_TYPE) else code
