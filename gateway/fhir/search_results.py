"""Parameters about a search's answer rather than its matches: ``_include``, ``_summary``, ``_total`` ...

Owns reading them and what they mean as values; refuses what no answer here can be, by name. The order (``_sort``) is
read where the parameters of a type are known. https://hl7.org/fhir/R4/search.html#return
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, cast

from gateway.errors import BadSearch

if TYPE_CHECKING:
    from gateway.fhir.search_plan import Plan, Plans

Summary = Literal["true", "text", "data", "count", "false"]
Total = Literal["none", "estimate", "accurate"]
Contained = Literal["false", "true", "both"]

LATER = "rows-2"
"""Rows that an index made long ago lacks: of what is contained, of versions of canonicals, of pairs of numbers."""
CONTROLS: Mapping[str, tuple[str, str]] = {
    "_count": ("number", "Resources on a page; 0 asks for the count alone"),
    "_sort": ("string", "Comma-separated parameters, - before one turns its order; resources without a value last"),
    "_include": ("string", "Type:param[:target], Type:* or *; :iterate also from what was included"),
    "_revinclude": ("string", "Type:param[:target], Type:* or *; :iterate also of what was included"),
    "_total": ("token", "none, estimate or accurate; only what may be seen is counted"),
    "_summary": ("token", "true, text, data, count or false"),
    "_elements": ("string", "Comma-separated top-level elements, also as Type.element; mandatory ones are kept"),
    "_contained": ("token", "false, true or both, of one type: whether resources within others are matches"),
    "_containedType": ("token", "container or contained: which of the two is given for a match within another"),
    "_list": ("string", "The logical id of a List that may be seen: what it holds")}
"""Name to (search parameter type, what it takes): what a type-level search understands besides its parameters."""

_INCLUDES_MAX = 50
_ELEMENTS_MAX = 100
_DEFAULT_COUNT = 20
_NAMED = {"_query": "_query: this server has no named queries"}


@dataclass(frozen=True, slots=True)
class Include:
    """``type`` and ``code`` None: any. ``target`` None: any. ``reverse``: ``_revinclude``."""

    type: str | None
    code: str | None
    target: str | None
    iterate: bool = False
    reverse: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """What the answer shall be. ``elements``: (type or None, top-level element)."""

    includes: tuple[Include, ...] = ()
    summary: Summary = "false"
    elements: tuple[tuple[str | None, str], ...] = ()
    total: Total | None = None
    contained: Contained = "false"
    inner: bool = False
    """What is contained is given alone, not within its container."""

    @property
    def subset(self) -> bool:
        """Whether resources leave with less than is stored."""
        return bool(self.elements) or self.summary in ("true", "text", "data")


class Unsupported(Exception):  # control flow: the parser says whether it is an error
    """A parameter that is not run: an error when strict, a sentence when lenient."""


@dataclass(slots=True)
class ResultsDraft:
    """Result parameters being read, one after another."""

    plans: Plans
    type_name: str
    max_count: int
    inside: bool = False
    """Whether it can be answered here by what other resources contain."""
    count: int = -1
    summary: Summary | None = None
    total: Total | None = None
    contained: Contained = "false"
    inner: bool = False
    includes: list[Include] = field(default_factory=list)
    elements: list[tuple[str | None, str]] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)

    def take(self, name: str, value: str) -> bool:
        """Whether it was one of these. Raises Unsupported, BadSearch."""
        code, _, modifier = name.partition(":")
        read = _READERS.get(code)
        if read is None:
            if name in _NAMED:
                raise BadSearch(_NAMED[name], code="not-supported", expression=f"http.{name}")
            return False
        if not value:
            raise BadSearch(f"{name}: a value is missing", code="value", expression=f"http.{name}")
        if modifier and not (code in ("_include", "_revinclude") and modifier == "iterate"):
            raise BadSearch(f"{name}: {code} takes no modifier :{modifier}", code="not-supported",
                            expression=f"http.{name}")
        if code in _ONCE and code in self.seen:
            raise BadSearch(f"{code} is given twice", code="invalid", expression=f"http.{code}")
        self.seen.add(code)
        read(self, name, value)
        return True

    def results(self) -> Results:
        """All of it. Raises BadSearch for what cannot go together."""
        if self.summary not in (None, "false", "count") and self.elements:
            raise BadSearch("_summary and _elements both say what to leave out: give one", code="invalid",
                            expression="http._elements")
        if self.summary == "text" and self.includes:
            raise BadSearch("_summary=text goes with no _include", code="invalid", expression="http._summary")
        return Results(includes=tuple(dict.fromkeys(self.includes)), summary=self.summary or "false",
                       elements=tuple(dict.fromkeys(self.elements)), total=self.total, contained=self.contained,
                       inner=self.inner and self.contained != "false")

    @property
    def page_size(self) -> int:
        """Matches on a page."""
        return min(_DEFAULT_COUNT if self.count < 0 else self.count, self.max_count)

    @property
    def counts_only(self) -> bool:
        """Whether the count alone is asked."""
        return self.count == 0 or self.summary == "count"

    def read_count(self, name: str, value: str) -> None:
        if not (value.isascii() and value.isdigit()):
            raise BadSearch(f"_count: {value[:64]!r} is no whole number", code="value", expression="http._count")
        self.count = int(value.lstrip("0")[:9] or "0")

    def read_summary(self, name: str, value: str) -> None:
        self.summary = cast(Summary, _one_of(name, value, ("true", "text", "data", "count", "false")))

    def read_total(self, name: str, value: str) -> None:
        self.total = cast(Total, _one_of(name, value, ("none", "estimate", "accurate")))

    def read_contained(self, name: str, value: str) -> None:
        self.contained = cast(Contained, _one_of(name, value, ("false", "true", "both")))
        if self.contained != "false" and not self.inside:
            raise BadSearch(f"_contained={value}: resources within others are not searched here", code="not-supported",
                            expression="http._contained")
        if self.contained != "false" and LATER in self.plans.lacking:
            raise BadSearch(f"_contained={value}: the index was made before it held what resources contain: ask for "
                            "$reindex first", code="not-supported", expression="http._contained")

    def read_contained_type(self, name: str, value: str) -> None:
        self.inner = _one_of(name, value, ("container", "contained")) == "contained"

    def read_elements(self, name: str, value: str) -> None:
        self.elements += element_names(self.plans, self.type_name, value)
        if len(self.elements) > _ELEMENTS_MAX:
            raise BadSearch(f"_elements: more than {_ELEMENTS_MAX} names", code="too-costly",
                            expression="http._elements")

    def read_include(self, name: str, value: str) -> None:
        reverse, iterate = name.startswith("_revinclude"), name.endswith(":iterate")
        self.includes.append(read_include(self.plans, self.type_name, name, value, reverse=reverse, iterate=iterate))
        if len(self.includes) > _INCLUDES_MAX:
            raise BadSearch(f"{name}: more than {_INCLUDES_MAX} of them", code="too-costly", expression=f"http.{name}")


_READERS: Mapping[str, Callable[[ResultsDraft, str, str], None]] = {
    "_count": ResultsDraft.read_count, "_summary": ResultsDraft.read_summary, "_total": ResultsDraft.read_total,
    "_contained": ResultsDraft.read_contained, "_containedType": ResultsDraft.read_contained_type,
    "_elements": ResultsDraft.read_elements, "_include": ResultsDraft.read_include,
    "_revinclude": ResultsDraft.read_include}
_ONCE = frozenset({"_count", "_summary", "_total", "_contained", "_containedType"})


def _one_of(name: str, value: str, known: tuple[str, ...]) -> str:
    if value not in known:
        raise BadSearch(f"{name}: {value[:64]!r} is none of {', '.join(known)}", code="value",
                        expression=f"http.{name}")
    return value


def element_names(plans: Plans, type_name: str, value: str) -> list[tuple[str | None, str]]:
    """``_elements``: base elements of ``type_name``, or ``Type.element`` of any. Raises Unsupported, BadSearch."""
    definitions, found = plans.definitions, []
    for text in value.split(","):
        head, dot, tail = text.strip().partition(".")
        named = bool(dot) and head in definitions.resource_types
        type_, name = (head, tail) if named else (type_name, text.strip())
        if not name:
            raise BadSearch("_elements: a name is missing", code="value", expression="http._elements")
        if "." in name:
            raise Unsupported("_elements: names of base elements are taken, not paths below them")
        if not _has_element(plans, type_, name):
            raise Unsupported(f"_elements: {type_} has no element {name[:64]!r}")
        found.append((type_ if named else None, name.removesuffix("[x]")))
    return found


def _has_element(plans: Plans, type_name: str, name: str) -> bool:
    return name.removesuffix("[x]") in plans.definitions.type(type_name).root.elements


def read_include(plans: Plans, type_name: str, name: str, value: str, *, reverse: bool, iterate: bool) -> Include:
    """``Type:param[:target]``, ``Type:*`` or ``*``. Raises Unsupported for what is not there, BadSearch for no form."""
    types = plans.definitions.resource_types
    parts = value.split(":")
    if value == "*":
        return Include(None, None, None, iterate, reverse)
    if len(parts) not in (2, 3) or not all(parts):
        raise BadSearch(f"{name}: Type:parameter, Type:parameter:Target, Type:* or * is expected", code="value",
                        expression=f"http.{name}")
    source, code, target = parts[0], parts[1], parts[2] if len(parts) == 3 else None
    for one in (source, target):
        if one is not None and one not in types:
            raise Unsupported(f"{name}: {one[:64]!r} is no R4 resource type")
    if code == "*":
        return Include(source, None, target, iterate, reverse)
    plan = plans.of(source).get(code)
    if plan is None or not refers(plan):
        raise Unsupported(f"{name}: {source} has no reference parameter {code[:64]!r}")
    if target is not None and not may_target(plan, target):
        raise Unsupported(f"{name}: {source}:{code} refers to no {target}")
    return Include(source, code, target, iterate, reverse)


def refers(plan: Plan) -> bool:
    """Whether a parameter's values are references to follow; those of Bundle point at its own first entry."""
    return plan.parameter.type == "reference" and not plan.refused and bool(plan.sources)


def may_target(plan: Plan, type_name: str) -> bool:
    """Whether R4 lets the parameter refer to a ``type_name``."""
    return not plan.parameter.targets or type_name in plan.parameter.targets
