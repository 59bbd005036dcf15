"""Facts of a resource: every value its type's search parameters find.

Owns the extraction, compiled per type on first use into a table from the resource's own keys to what must
be made of them; refuses resources without a resourceType. https://hl7.org/fhir/R4/search.html
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import product

from gateway.errors import FHIRPathError, Invalid
from gateway.fhir import search_emit as emit
from gateway.fhir.definitions import Definitions
from gateway.fhir.fhirpath import Context, Expression, Node, compile_expression
from gateway.fhir.query import Facts
from gateway.fhir.search_emit import Sheet, Texts
from gateway.fhir.search_encoding import PART
from gateway.fhir.search_paths import Json, Source, walker
from gateway.fhir.search_plan import Component, Plan, Plans

Writer = Callable[[Json, Sheet], None]
"""Puts the facts of one value on the sheet."""

_CODED = frozenset({"CodeableConcept", "Coding", "Identifier"})


class SearchExtractor:
    """Facts of resources. Make one per process; safe to share.

    ``own_bases`` are this server's base URLs, without a slash at the end: references into them become
    relative, here as in ``parse_query``.
    """

    def __init__(self, definitions: Definitions, own_bases: Iterable[str] = ()) -> None:
        self.plans = Plans(definitions)
        self._own_bases = frozenset(base.rstrip("/") for base in own_bases)
        self._tables: dict[str, tuple[Mapping[str, Sequence[Writer]], Sequence[Writer]]] = {}

    def facts(self, resource: Mapping[str, Json]) -> Facts:
        """All facts of one resource, a dict as parsed. Raises Invalid where it has no known type."""
        type_name = resource.get("resourceType")
        table = self._tables.get(type_name) if type(type_name) is str else None
        if table is None:
            if type(type_name) is not str or type_name not in self.plans.definitions.resource_types:
                raise Invalid("a resource of no known type has no search facts", expression="resourceType")
            table = self._tables[type_name] = self._compile(type_name)
        sheet = Sheet()
        by_key, whole = table
        for key, value in resource.items():
            writers = by_key.get(key)
            if writers is not None:
                for write in writers:
                    if type(value) is list:
                        for one in value:
                            write(one, sheet)
                    else:
                        write(value, sheet)
        for write in whole:
            write(resource, sheet)
        return sheet.facts()

    def _compile(self, type_name: str) -> tuple[Mapping[str, Sequence[Writer]], Sequence[Writer]]:
        by_key: dict[str, list[Writer]] = {}
        whole: list[Writer] = []
        for plan in self.plans.of(type_name).values():
            if not plan.stored:
                continue
            if plan.sources is None:
                whole.append(self._general(plan))
                continue
            mixed = any(source.type in _CODED for source in plan.sources)
            for source in plan.sources:
                write = self._composite(plan) if plan.components else self._writer(plan, source, mixed=mixed)
                if not source.steps:
                    whole.append(write)
                    continue
                first, rest = source.steps[0], source.steps[1:]
                if rest:
                    write = _below(walker(rest), write)
                if first.match is not None:
                    write = _matching(*first.match, write)
                by_key.setdefault(first.key, []).append(write)
        return by_key, whole

    def _texts(self, kind: str, source: Source, *, mixed: bool = False,
               covered: frozenset[str] = frozenset()) -> Texts:
        if kind == "token":
            return emit.token_emitter(source, mixed=mixed)
        if kind == "string":
            return emit.string_emitter(source, covered)
        if kind == "reference":
            return emit.reference_emitter(source.only, self._own_bases)
        return emit.uri

    def _writer(self, plan: Plan, source: Source, *, mixed: bool) -> Writer:
        kind, key = plan.parameter.type, plan.key
        if plan.ladder:
            return _hashes(key, emit.ladder)
        if kind in ("quantity", "number"):
            return _numbers(key)
        if kind == "date":
            return _dates(key)
        return _hashes(key, self._texts(kind, source, mixed=mixed, covered=plan.covered))

    def _general(self, plan: Plan) -> Writer:
        """A parameter whose expression is no plain path, run as FHIRPath."""
        expression = compile_expression(plan.parameter.expression)
        if plan.parameter.type == "reference":
            return partial(_resources, plan.key, expression, frozenset(plan.parameter.targets))
        return partial(_evaluated, plan.key, expression)

    def _composite(self, plan: Plan) -> Writer:
        hashed = [self._part(one) for one in plan.components if one.type not in ("quantity", "number", "date")]
        last = plan.components[-1]
        if len(hashed) == len(plan.components):
            return partial(_hashed_together, plan.key, hashed)
        values = [walker(source.steps) for source in last.sources]
        return partial(_ranged_together, plan.key, hashed, values, last.type)

    def _part(self, component: Component) -> Callable[[Json], list[str]]:
        """The texts of one component; a system alone is not asked for within a composite."""
        ways = [(walker(source.steps), self._texts(component.type, source)) for source in component.sources]
        token = component.type == "token"

        def texts(focus: Json) -> list[str]:
            return [text for walk, make in ways for value in walk(focus) for text in make(value)
                    if not (token and text[0] == "s")]

        return texts


def _below(walk: Callable[[Json], list[Json]], write: Writer) -> Writer:
    def write_below(value: Json, sheet: Sheet) -> None:
        if type(value) is dict:
            for one in walk(value):
                write(one, sheet)

    return write_below


def _matching(name: str, wanted: str, write: Writer) -> Writer:
    def write_matching(value: Json, sheet: Sheet) -> None:
        if type(value) is dict and value.get(name) == wanted:
            write(value, sheet)

    return write_matching


def _hashes(key: str, texts: Texts) -> Writer:
    def write(value: Json, sheet: Sheet) -> None:
        hashes = sheet.hashes
        if value is not None:
            for text in texts(value):
                hashes[key, text] = None

    return write


def _numbers(key: str) -> Writer:
    def write(value: Json, sheet: Sheet) -> None:
        for amount in emit.quantity(value):
            sheet.numbers[(key, *amount)] = None

    return write


def _dates(key: str) -> Writer:
    def write(value: Json, sheet: Sheet) -> None:
        found = emit.dated(value)
        if found is not None:
            sheet.dates[(key, *found)] = None

    return write


def _evaluated(key: str, expression: Expression, resource: Json, sheet: Sheet) -> None:
    try:
        values = expression.evaluate(resource, Context(resource=resource))
    except FHIRPathError:
        return  # a value the expression was not written for has nothing to be found by
    for value in values:
        for text in emit.primitive_token(value):
            sheet.hashes[key, text] = None


def _resources(key: str, expression: Expression, targets: frozenset[str], resource: Json, sheet: Sheet) -> None:
    """A reference parameter that points at a resource inside this one (Bundle's first entry)."""
    for node in expression.nodes(resource, Context(resource=resource)):
        value = node.value if type(node) is Node else None
        if type(value) is dict and node.type in targets and type(value.get("id")) is str:
            sheet.hashes[key, f"{node.type}/{value['id']}"] = None


def _hashed_together(key: str, parts: Sequence[Callable[[Json], list[str]]], focus: Json, sheet: Sheet) -> None:
    if type(focus) is not dict:
        return
    last = parts[-1](focus)
    if last:
        for texts in product(*(part(focus) for part in parts[:-1]), last):
            sheet.hashes[key, PART.join(texts)] = None


def _ranged_together(key: str, parts: Sequence[Callable[[Json], list[str]]],
                     walks: Sequence[Callable[[Json], list[Json]]], kind: str, focus: Json, sheet: Sheet) -> None:
    if type(focus) is not dict:
        return
    values = [value for walk in walks for value in walk(focus)]
    if not values:
        return
    keys = [PART.join((key, *texts)) for texts in product(*(part(focus) for part in parts))]
    for value in values:
        if kind == "date":
            found = emit.dated(value)
            if found is not None:
                sheet.dates.update(dict.fromkeys([(one, *found) for one in keys]))
        else:
            for amount in emit.quantity(value):
                sheet.numbers.update(dict.fromkeys([(one, *amount) for one in keys]))
