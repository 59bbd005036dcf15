"""Facts of a resource: every value its type's search parameters find.

Owns the extraction, compiled per type on first use into a table from the resource's own keys to what must
be made of them; refuses resources without a resourceType. https://hl7.org/fhir/R4/search.html
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from itertools import product

from gateway.errors import FHIRPathError, Invalid
from gateway.fhir import search_emit as emit
from gateway.fhir.definitions import Definitions
from gateway.fhir.fhirpath import Context, Expression, Node, TypeModel, compile_expression
from gateway.fhir.query import Facts
from gateway.fhir.search_contained import PLACES_MAX, facts_within, holder
from gateway.fhir.search_custom import MAKINGS
from gateway.fhir.search_emit import Sheet, Texts
from gateway.fhir.search_encoding import ABSENT, PART, PRESENT
from gateway.fhir.search_paths import Json, Source, walker
from gateway.fhir.search_plan import PHONETIC, Component, Plan, Plans
from gateway.fhir.search_results import LATER
from gateway.fhir.search_words import READERS, kept, word_text

Writer = Callable[[Json, Sheet], None]
"""Puts the facts of one value on the sheet."""

_NOT_A_PART = frozenset(("s", PART))
"""A system alone, a word of a display: nothing a composite is asked by."""
_CODED = frozenset({"CodeableConcept", "Coding", "Identifier"})
_SYSTEM: Mapping[type, str] = {bool: "boolean", int: "integer", str: "string", Decimal: "decimal"}
"""Values that an expression made itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    """What is made of a type's resources. ``mandatory``: (element, parameter's key); ``canonical``: it has a url."""

    plans: Mapping[str, Plan]
    by_key: Mapping[str, Sequence[Writer]]
    whole: Sequence[Writer]
    mandatory: Sequence[tuple[str, str]]
    canonical: bool


class SearchExtractor:
    """Facts of resources. Make one per process; safe to share.

    ``own_bases`` are this server's base URLs, without a slash at the end: references into them become
    relative, here as in ``parse_query``.
    """

    def __init__(self, definitions: Definitions, own_bases: Iterable[str] = (), *,
                 model: TypeModel | None = None, words: Iterable[str] = ()) -> None:
        """``model``: by which the values of custom parameters are typed that are no plain paths; ``words``: for which
        of ``_text`` and ``_content`` words are kept."""
        self.plans = Plans(definitions)
        self.words = frozenset(words)
        self.kinds = self.words | {LATER}
        self._readers = [(code, read) for code, read in READERS.items() if code in self.words]
        self._model = model
        self._own_bases = frozenset(base.rstrip("/") for base in own_bases)
        self._tables: dict[str, _Table] = {}

    def facts(self, resource: Mapping[str, Json]) -> Facts:
        """All facts of one resource, a dict as parsed. Raises Invalid where it has no known type."""
        sheet = self._sheet(resource)
        if "contained" in resource:
            self._contained(resource, sheet)
        self._words(resource, sheet)
        return sheet.facts()

    def _words(self, resource: Mapping[str, Json], sheet: Sheet) -> None:
        for code, read in self._readers:
            plan = self.plans.of(resource["resourceType"]).get(code)
            if plan is not None:
                sheet.hashes.update(dict.fromkeys([(plan.key, word_text(word)) for word in kept(read(resource))]))

    def _sheet(self, resource: Mapping[str, Json]) -> Sheet:
        type_name = resource.get("resourceType")
        table = self._tables.get(type_name) if type(type_name) is str else None
        if table is None or table.plans is not self.plans.of(str(type_name)):
            if type(type_name) is not str or type_name not in self.plans.definitions.resource_types:
                raise Invalid("a resource of no known type has no search facts", expression="resourceType")
            table = self._tables[type_name] = self._compile(type_name)
        sheet = Sheet()
        by_key = table.by_key
        for key, value in resource.items():
            writers = by_key.get(key)
            if writers is not None:
                for write in writers:
                    if type(value) is list:
                        for one in value:
                            write(one, sheet)
                    else:
                        write(value, sheet)
        for write in table.whole:
            write(resource, sheet)
        for element, key in table.mandatory:
            if element not in resource:
                sheet.hashes[key, ABSENT] = None
        sheet.names = _names(resource, canonical=table.canonical)
        return sheet

    def _contained(self, resource: Mapping[str, Json], sheet: Sheet) -> None:
        """What is contained is found through the references that lead to it (R4 3.1.1.5.8), and by itself where that is
        asked for (3.1.1.5.10)."""
        value = resource["contained"]
        inside = (value if type(value) is list else [])[:PLACES_MAX]
        found = {place: (one, self._sheet(one)) for place, one in enumerate(inside, 1)
                 if type(one) is dict and one.get("resourceType") in self.plans.definitions.resource_types}
        known = {one.get("id"): (one["resourceType"], inner) for one, inner in found.values()}
        for key, id_ in sheet.contained:
            if id_ in known:
                sheet.absorb(key, *known[id_])
        for one, inner in found.values():
            self._words(one, inner)
            mark = holder(resource["resourceType"], one["resourceType"])
            sheet.hashes[mark.key, mark.text] = None
        sheet.inside = tuple([(place, facts_within(one["resourceType"], one.get("id"), inner.facts()))
                              for place, (one, inner) in found.items()])

    def _compile(self, type_name: str) -> _Table:
        by_key: dict[str, list[Writer]] = {}
        whole: list[Writer] = []
        plans = self.plans.of(type_name)
        for plan in plans.values():
            if not plan.stored:
                continue
            if plan.sources is None:
                whole.append(self._general(plan))
                continue
            if plan.span:
                whole += [self._spans(plan, source) for source in plan.sources]
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
        url = plans.get("url")
        return _Table(plans=plans, by_key=by_key, whole=whole,
                      canonical=url is not None and url.parameter.type == "uri",
                      mandatory=[(source.steps[0].key, plan.key) for plan in plans.values()
                                 if plan.mandatory and plan.stored for source in (plan.sources or ())[:1]])

    def _texts(self, kind: str, source: Source, *, mixed: bool = False,
               covered: frozenset[str] = frozenset()) -> Texts:
        if kind == "token":
            return emit.token_emitter(source, mixed=mixed)
        if kind == "string":
            return emit.string_emitter(source, covered)
        if kind == "reference":
            return emit.reference_emitter(source.only, self._own_bases)
        return emit.plain_uri

    def _writer(self, plan: Plan, source: Source, *, mixed: bool) -> Writer:
        kind, key = plan.parameter.type, plan.key
        if kind in ("quantity", "number"):
            return _numbers(key)
        if kind == "date" and not plan.ladder:
            return _dates(key)
        if kind == "reference":
            return emit.reference_writer(key, plan.narrowed, self._texts(kind, source))
        texts = emit.ladder if plan.ladder else emit.uri if kind == "uri" else emit.position if kind == "special" else (
            emit.sounds if plan.parameter.code == PHONETIC
            else self._texts(kind, source, mixed=mixed, covered=plan.covered))
        return _hashes(key, texts) if plan.mandatory else _present_hashes(key, texts)

    def _general(self, plan: Plan) -> Writer:
        """A parameter whose expression is no plain path, run as FHIRPath."""
        if plan.custom:
            return self._typed(plan)
        expression = compile_expression(plan.parameter.expression)
        if plan.parameter.type == "reference":
            return partial(_resources, plan.key, expression, frozenset(plan.parameter.targets))
        return partial(_evaluated, plan.key, expression)

    def _typed(self, plan: Plan) -> Writer:
        """A custom parameter run as FHIRPath: each value by its own type, those of other kinds left out."""
        expression = compile_expression(plan.parameter.expression, self._model)
        fitting = MAKINGS[plan.parameter.type]
        writers: dict[str, Writer] = {}

        def write(resource: Json, sheet: Sheet) -> None:
            context = Context(resource=resource, type=resource["resourceType"], model=self._model)
            try:
                found = expression.nodes(resource, context)
            except FHIRPathError:
                return  # a value the expression was not written for has nothing to be found by
            for one in found:
                value, kind = (one.value, one.type) if type(one) is Node else (one, _SYSTEM.get(type(one), ""))
                if kind in fitting and value is not None:
                    known = writers.get(kind)
                    if known is None:
                        known = writers[kind] = self._writer(plan, Source((), kind), mixed=True)
                    known(value, sheet)

        return write

    def _composite(self, plan: Plan) -> Writer:
        hashed = [self._part(one) for one in plan.components if one.type not in ("quantity", "number", "date")]
        last = plan.components[-1]
        if len(hashed) == len(plan.components):
            return partial(_hashed_together, plan.key, hashed)
        values = [walker(source.steps) for source in last.sources]
        return partial(_ranged_together, plan.key, hashed, values, last.type)

    def _spans(self, plan: Plan, source: Source) -> Writer:
        """Two numbers of each focus as one range, its low end the first; it may be above the high one.

        R4 has MolecularSequence's coordinates found whether they count from 0, their ends then left out, or from 1.
        """
        *others, first, last = plan.components
        foci, key = walker(source.steps), plan.key
        parts = [(self._part(one), one.rooted) for one in others]
        lows, highs = ([walker(one.steps) for one in component.sources] for component in (first, last))

        def write(resource: Json, sheet: Sheet) -> None:
            before = 1 if resource.get("coordinateSystem") == 0 else 0
            for focus in foci(resource):
                if type(focus) is not dict:
                    continue
                keys = [PART.join((key, *texts)) for texts in product(
                    *(part(resource if rooted else focus) for part, rooted in parts))]
                ends = [(low + before, high) for walk in lows for low in map(emit.bounded, walk(focus))
                        for way in highs for high in map(emit.bounded, way(focus))
                        if low is not None and high is not None]
                if keys and ends:
                    sheet.hashes[key, PRESENT] = None
                    sheet.numbers.update(dict.fromkeys([(one, *pair, "", "") for one in keys for pair in ends]))

        return write

    def _part(self, component: Component) -> Callable[[Json], list[str]]:
        """The texts of one component; a system alone is not asked for within a composite."""
        ways = [(walker(source.steps), self._texts(component.type, source)) for source in component.sources]
        token = component.type == "token"

        def texts(focus: Json) -> list[str]:
            return [text for walk, make in ways for value in walk(focus) for text in make(value)
                    if not (token and text[0] in _NOT_A_PART)]

        return texts


def _names(resource: Mapping[str, Json], *, canonical: bool) -> tuple[str, ...]:
    """What others may refer to a resource by."""
    id_ = resource.get("id")
    own = (f"{resource['resourceType']}/{id_}",) if type(id_) is str else ()
    url = resource.get("url") if canonical else None
    if type(url) is not str or not url:
        return own
    version = resource.get("version")
    return (*own, url, f"{url}|{version}") if type(version) is str else (*own, url)


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


def _present_hashes(key: str, texts: Texts) -> Writer:
    """``_hashes``, and that there is a value."""
    def write(value: Json, sheet: Sheet) -> None:
        hashes = sheet.hashes
        if value is not None:
            hashes[key, PRESENT] = None
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
            sheet.hashes[key, PRESENT] = None


def _hashed_together(key: str, parts: Sequence[Callable[[Json], list[str]]], focus: Json, sheet: Sheet) -> None:
    if type(focus) is not dict:
        return
    last = parts[-1](focus)
    if last:
        sheet.hashes[key, PRESENT] = None
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
    if keys:
        sheet.hashes[key, PRESENT] = None
    for value in values:
        if kind == "date":
            found = emit.dated(value)
            if found is not None:
                sheet.dates.update(dict.fromkeys([(one, *found) for one in keys]))
        else:
            for amount in emit.quantity(value):
                sheet.numbers.update(dict.fromkeys([(one, *amount) for one in keys]))
