"""Structure: the closures that check a JSON object against the elements R4 gives its type.

Owns element names, JSON shapes, cardinality, choices, the ``_name`` siblings of primitives, and the calls to
primitives, bindings, references and invariants in their places. Each node of a type is compiled on first use, each of
its elements when it is first met. Refuses what R4 has no place for. https://hl7.org/fhir/R4/json.html
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gateway.fhir.bindings import code_check, coding_check, concept_check, value_sets
from gateway.fhir.definitions import Constraint, Definitions, Element, ElementType, Node
from gateway.fhir.fhirpath import TypeModel
from gateway.fhir.invariants import OMITTED, SIMPLE_QUANTITY, Holds, compile_constraint
from gateway.fhir.primitives import PRIMITIVES
from gateway.fhir.prose_rules import PROSE_RULES
from gateway.fhir.reference_rules import reference_rule
from gateway.fhir.run import Run

ItemCheck = Callable[[Any, str, Run], None]
"""(JSON value, its place, the run): checks one item of an element."""

Rule = Callable[[Any, dict[str, Any], str, Run], None]
"""(JSON value of a property, the object that has it, that object's place, the run)."""

ResourceCheck = Callable[[Any, str, Run], None]

_Invariant = tuple[Constraint, Holds]


class Structure:
    """Compiles and keeps the checks of nodes. ``resource_check`` is called for contained and inner resources."""

    def __init__(self, definitions: Definitions, model: TypeModel, resource_check: ResourceCheck,
                 contained_check: ResourceCheck) -> None:
        self.definitions = definitions
        self.model = model
        self._resource_check = resource_check
        self._contained_check = contained_check
        self._nodes: dict[str, ItemCheck] = {}

    def node(self, path: str) -> ItemCheck:
        """The check of a node: a type's root (``Quantity``) or a backbone (``Observation.component``)."""
        found = self._nodes.get(path)
        if found is None:
            definition = self.definitions.type(path.partition(".")[0])
            node = definition.nodes[path]
            is_resource = definition.kind == "resource" and path == definition.name
            found = self._nodes[path] = self._compile_node(node, is_resource=is_resource)
        return found

    def _compile_node(self, node: Node, *, is_resource: bool) -> ItemCheck:
        rules = _Rules(self, node, is_resource=is_resource)
        required = tuple(_required(element) for element in node.elements.values() if element.minimum)
        invariants = self._invariants(node.constraints, node.path)
        prose = PROSE_RULES.get(node.path)

        def check(value: Any, path: str, run: Run) -> None:
            if type(value) is not dict:
                run.error("structure", f"must be a JSON object, not {_shape(value)}", path)
                return
            if len(value) < 2 and not is_resource and (not value or "id" in value):
                run.error("structure", "an element must have a value or children (ele-1)", path)
                return
            errors = run.errors
            for key, item in value.items():
                try:
                    rule = rules[key]
                except KeyError:
                    run.error("structure", f"unknown element {key[:64]!r}", f"{path}.{key[:64]}")
                    continue
                rule(item, value, path, run)
            for keys, name, minimum in required:
                if keys.isdisjoint(value):
                    run.error("required", f"{name} is required (minimum {minimum})", f"{path}.{name}")
            # An invariant presumes the structure it speaks of.
            if run.errors == errors:
                for constraint, holds in invariants:
                    if not holds(value, run):
                        run.report(constraint.severity, "invariant", f"{constraint.key}: {constraint.human}", path)
                if prose is not None:
                    prose(value, path, run)
        return check

    def _invariants(self, constraints: tuple[Constraint, ...], type_name: str) -> tuple[_Invariant, ...]:
        return tuple((constraint, compile_constraint(constraint, type_name, self.model))
                     for constraint in constraints if constraint.key not in OMITTED)

    def rule(self, element: Element, key: str, type_: ElementType, owner: Node) -> Rule:
        """The rule of JSON property ``key``, a name of ``element`` in ``owner``."""
        place = element.name + (f".ofType({type_.code})" if element.choice else "")
        if type_.code in PRIMITIVES:
            item = self._primitive(element, type_)
            rule = _many_primitives(item, place, key, element) if element.maximum != 1 else _one(item, place)
        else:
            item = self._complex(element, type_, owner)
            rule = _many(item, place, element) if element.maximum != 1 else _one(item, place)
        return _alone(rule, element, key) if element.choice else rule

    def sibling_rule(self, element: Element, key: str, type_: ElementType) -> Rule:
        """The rule of ``_key``: id and extensions of a primitive."""
        place = element.name + (f".ofType({type_.code})" if element.choice else "")
        check = self.node("Element")
        if element.maximum != 1:
            return _many_siblings(check, place, key)
        rule = _one_sibling(check, place, key)
        return _alone(rule, element, key) if element.choice else rule

    def _primitive(self, element: Element, type_: ElementType) -> ItemCheck:
        problem = PRIMITIVES[type_.code]
        invariants = self._invariants(element.constraints, type_.code)

        def check(value: Any, path: str, run: Run) -> None:
            found = problem(value)
            if found is not None:
                run.error("value", "null is only allowed beside an extension, in an array" if value is None
                          else f"{type_.code}: {found}", path)

        result: ItemCheck = check
        if type_.code == "code":
            for value_set, _ in value_sets(self.definitions, element.binding):
                result = _bound_code(result, *code_check(value_set), value_set.url)
        return _with_invariants(result, invariants) if invariants else result

    def _complex(self, element: Element, type_: ElementType, owner: Node) -> ItemCheck:
        code = type_.code
        if code in ("Resource", "DomainResource"):
            inside = owner.path.count(".") == 0 and element.name == "contained"
            return self._contained_check if inside else self._resource_check
        check = self.node(element.node or code)
        if code == "Reference":
            check = _both(check, reference_rule(type_.targets, self.definitions.resource_types))
        for value_set, needed in value_sets(self.definitions, element.binding):
            if code == "CodeableConcept":
                check = _bound_concept(check, concept_check(value_set, needed=needed))
            elif code in ("Coding", "Quantity"):
                check = _bound_concept(check, coding_check(value_set))
        constraints = element.constraints
        if type_.profile == "SimpleQuantity":
            constraints = (*constraints, SIMPLE_QUANTITY)
        invariants = self._invariants(constraints, element.node or code)
        return _with_invariants(check, invariants) if invariants else check


class _Rules(dict[str, Rule]):
    """JSON property -> rule, filled as properties are met; KeyError for a property the node has not."""

    def __init__(self, structure: Structure, node: Node, *, is_resource: bool) -> None:
        super().__init__()
        self._structure = structure
        self._node = node
        self._names = {key: (element, type_) for element in node.elements.values()
                       for key, type_ in element.json_names}
        if is_resource:
            self["resourceType"] = _nothing

    def __missing__(self, key: str) -> Rule:
        found = self._names.get(key)
        if found is not None:
            rule = self._structure.rule(found[0], key, found[1], self._node)
        else:
            element, type_ = self._names[key[1:] if key[:1] == "_" else key]
            if type_.code not in PRIMITIVES or element.attribute:
                raise KeyError(key)
            rule = self._structure.sibling_rule(element, key[1:], type_)
        self[key] = rule
        return rule


def _nothing(value: Any, owner: dict[str, Any], path: str, run: Run) -> None:
    return None


def _shape(value: Any) -> str:
    if value is None:
        return "null"
    return {dict: "an object", list: "an array", str: "a string", bool: "true or false"}.get(type(value), "a number")


def _required(element: Element) -> tuple[frozenset[str], str, int]:
    keys = {key for key, _ in element.json_names}
    keys |= {f"_{key}" for key, type_ in element.json_names if type_.code in PRIMITIVES and not element.attribute}
    return frozenset(keys), element.name, element.minimum


def _one(check: ItemCheck, place: str) -> Rule:
    suffix = f".{place}"

    def rule(value: Any, owner: dict[str, Any], path: str, run: Run) -> None:
        if type(value) is list:
            run.error("structure", "must be a single value, not an array", path + suffix)
            return
        check(value, path + suffix, run)
    return rule


def _many(check: ItemCheck, place: str, element: Element) -> Rule:
    minimum, maximum = element.minimum, element.maximum

    def rule(value: Any, owner: dict[str, Any], path: str, run: Run) -> None:
        at = f"{path}.{place}"
        if type(value) is not list:
            run.error("structure", f"must be an array, not {_shape(value)}", at)
        elif not value:
            run.error("structure", "an array must not be empty", at)
        else:
            if len(value) < minimum or (maximum is not None and len(value) > maximum):
                run.error("structure", f"{len(value)} items, {minimum} to {maximum or 'any'} allowed", at)
            for index, item in enumerate(value):
                check(item, f"{at}[{index}]", run)
    return rule


def _many_primitives(check: ItemCheck, place: str, key: str, element: Element) -> Rule:
    array = _many(check, place, element)
    beside = f"_{key}"

    def rule(value: Any, owner: dict[str, Any], path: str, run: Run) -> None:
        siblings = owner.get(beside)
        if type(siblings) is not list or type(value) is not list or not value:
            array(value, owner, path, run)
            return
        for index, item in enumerate(value):
            # null keeps the place of an item that has only extensions.
            if item is not None or index >= len(siblings) or siblings[index] is None:
                check(item, f"{path}.{place}[{index}]", run)
    return rule


def _one_sibling(check: ItemCheck, place: str, key: str) -> Rule:
    suffix = f".{place}"

    def rule(value: Any, owner: dict[str, Any], path: str, run: Run) -> None:
        if type(value) is dict and set(value) == {"id"}:
            if key not in owner:
                run.error("structure", "an element must have a value or children (ele-1)", path + suffix)
            elif type(value["id"]) is not str or not value["id"]:
                run.error("value", "the id of an element must be a string", f"{path}{suffix}.id")
            return
        check(value, path + suffix, run)
    return rule


def _many_siblings(check: ItemCheck, place: str, key: str) -> Rule:
    one = _one_sibling(check, place, key)

    def rule(value: Any, owner: dict[str, Any], path: str, run: Run) -> None:
        at = f"{path}.{place}"
        values = owner.get(key, ())
        if type(value) is not list:
            run.error("structure", f"must be an array, not {_shape(value)}", at)
        elif not value:
            run.error("structure", "an array must not be empty", at)
        elif type(values) is list or type(values) is tuple:
            for index, item in enumerate(value):
                has_value = index < len(values) and values[index] is not None
                if item is None:
                    if not has_value and index >= len(values):
                        run.error("structure", "null without a value beside it", f"{at}[{index}]")
                    continue
                if type(item) is dict and set(item) == {"id"}:
                    one(item, {key: True} if has_value else {}, path, run)
                else:
                    check(item, f"{at}[{index}]", run)
    return rule


def _alone(rule: Rule, element: Element, key: str) -> Rule:
    """At most one of a choice: the second of its properties, in the order written, is refused."""
    bases = {name: name for name, _ in element.json_names} | {f"_{name}": name for name, _ in element.json_names}
    place = f".{element.name}"

    def choice(value: Any, owner: dict[str, Any], path: str, run: Run) -> None:
        for other in owner:
            base = bases.get(other)
            if base is not None:
                if base != key:
                    run.error("structure", f"only one type of {element.name}[x] is allowed", path + place)
                break
        rule(value, owner, path, run)
    return choice


def _both(first: ItemCheck, second: ItemCheck) -> ItemCheck:
    def check(value: Any, path: str, run: Run) -> None:
        first(value, path, run)
        if type(value) is dict:
            second(value, path, run)
    return check


def _bound_code(check: ItemCheck, codes: frozenset[str], passes: Callable[[str], bool], url: str) -> ItemCheck:
    problem = f"the code is not in the required value set {url}"

    def bound(value: Any, path: str, run: Run) -> None:
        if type(value) is str and value in codes:
            return
        errors = run.errors
        check(value, path, run)
        if run.errors == errors and not passes(value):
            run.error("code-invalid", problem, path)
    return bound


def _bound_concept(check: ItemCheck, inside: Callable[[dict[str, Any]], str | None]) -> ItemCheck:
    def bound(value: Any, path: str, run: Run) -> None:
        errors = run.errors
        check(value, path, run)
        if run.errors == errors:
            problem = inside(value)
            if problem is not None:
                run.error("code-invalid", problem, path)
    return bound


def _with_invariants(check: ItemCheck, invariants: tuple[_Invariant, ...]) -> ItemCheck:
    def tested(value: Any, path: str, run: Run) -> None:
        errors = run.errors
        check(value, path, run)
        if run.errors == errors:
            for constraint, holds in invariants:
                if not holds(value, run):
                    run.report(constraint.severity, "invariant", f"{constraint.key}: {constraint.human}", path)
    return tested
