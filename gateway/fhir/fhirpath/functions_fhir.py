"""The functions FHIR adds to FHIRPath. https://hl7.org/fhir/R4/fhirpath.html#functions

resolve() never fetches: it gives what the Context can resolve, else the type the reference's text names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from gateway.errors import FHIRPathError
from gateway.fhir.fhirpath import node as tree
from gateway.fhir.fhirpath.evaluation import Env, Evaluator, Function, text_argument
from gateway.fhir.fhirpath.node import Item, Node, node_of, system_type
from gateway.fhir.fhirpath.operators import singleton, system

_REFERENCE = re.compile(r"(?:.*/)?([A-Z][A-Za-z]+)/[A-Za-z0-9\-.]{1,64}(?:/_history/[A-Za-z0-9\-.]{1,64})?\Z")


def reference_type(text: str) -> str:
    """The resource type a literal reference names, or ''."""
    match = _REFERENCE.match(text)
    return match.group(1) if match else ""


def _resolve_one(item: Item, env: Env) -> Node | None:
    value = item.value if type(item) is Node else item
    declared = ""
    if type(value) is dict:
        declared = value.get("type") or ""
        value = value.get("reference")
    if type(value) is str:
        if value.startswith("#"):
            holder = env.root.value if type(env.root.value) is dict else {}
            if value == "#":
                return env.root
            for contained in holder.get("contained", ()):
                if type(contained) is dict and contained.get("id") == value[1:]:
                    return node_of(contained, "")
            return None
        found = env.context.resolve(value) if env.context.resolve is not None else None
        if found is not None:
            return node_of(found, "")
        declared = reference_type(value) or declared
    return Node({"resourceType": declared}, declared) if declared and type(declared) is str else None


def _resolve(items: list[Item], args: Sequence[Evaluator], this: Item, env: Env) -> list[Item]:
    return [found for item in items if (found := _resolve_one(item, env)) is not None]


def _extension(items: list[Item], args: Sequence[Evaluator], this: Item, env: Env) -> list[Item]:
    url = text_argument(args, 0, this, env)
    return [
        one
        for item in items
        if type(item) is Node
        for one in tree.child(item, "extension", env.model)
        if type(one.value) is dict and one.value.get("url") == url
    ]


def has_value(items: list[Item]) -> bool:
    """Exactly one item, and it is a primitive with a value."""
    if len(items) != 1:
        return False
    item = items[0]
    return type(item) is not Node or (item.value is not None and type(item.value) is not dict)


def _get_value(items: list[Item], args: Sequence[Evaluator], this: Item, env: Env) -> list[Item]:
    return [system(items[0])] if has_value(items) else []


def _member_of(items: list[Item], args: Sequence[Evaluator], this: Item, env: Env) -> list[Item]:
    item, url = singleton(items), text_argument(args, 0, this, env)
    if item is None or url is None or env.context.member_of is None:
        return []
    answer = env.context.member_of(item.value if type(item) is Node else item, url)
    return [] if answer is None else [answer]


_CORE = "http://hl7.org/fhir/StructureDefinition/"


def _conforms_to(items: list[Item], args: Sequence[Evaluator], this: Item, env: Env) -> list[Item]:
    item, url = singleton(items), text_argument(args, 0, this, env)
    if item is None or url is None or type(item) is not Node:
        return []
    if env.context.conforms_to is not None:
        answer = env.context.conforms_to(item.value, url)
        return [] if answer is None else [answer]
    name = url.removeprefix(_CORE)
    if url.startswith(_CORE) and (env.model is None or env.model.is_type(name)):
        return [tree.has_type(item, name, env.model)]
    raise FHIRPathError(f"FHIRPath: the profile {url} is not known")


def _html_checks(items: list[Item], args: Sequence[Evaluator], this: Item, env: Env) -> list[Item]:
    check = env.context.html_checks
    item = singleton(items)
    if check is None or type(item) is not Node or type(item.value) is not str:
        return [True]
    return [check(item.value)]


def _type(items: list[Item], args: Sequence[Evaluator], this: Item, env: Env) -> list[Item]:
    return [Node(_type_info(item), "ClassInfo") for item in items]


def _type_info(item: Item) -> dict[str, str]:
    if type(item) is not Node:
        return {"namespace": "System", "name": system_type(item)}
    name = item.type.partition(".")[0] if item.type[:1].islower() else item.type
    return {"namespace": "FHIR", "name": "BackboneElement" if "." in name else name}


FHIR_FUNCTIONS: Mapping[str, tuple[int, int, Function]] = {
    "resolve": (0, 0, _resolve),
    "extension": (1, 1, _extension),
    "hasValue": (0, 0, lambda items, args, this, env: [has_value(items)]),
    "getValue": (0, 0, _get_value),
    "memberOf": (1, 1, _member_of),
    "conformsTo": (1, 1, _conforms_to),
    "htmlChecks": (0, 0, _html_checks),
    "type": (0, 0, _type),
}
