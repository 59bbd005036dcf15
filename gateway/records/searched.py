"""What a search is asked of: a type, several, all, or a compartment; and the queries that makes, one a type.

Owns ``_type`` and ``_list``, the criteria of compartments, and which types count; refuses parameters that not all the
types have. https://hl7.org/fhir/R4/search.html#xpattern, https://hl7.org/fhir/R4/compartmentdefinition.html
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import apsw

from gateway.access.decision import Deny
from gateway.errors import BadSearch, Forbidden, Issue, TooCostly
from gateway.fhir import search_contained
from gateway.fhir.query import Criterion, IdIs, Predicate, Query
from gateway.fhir.resource import is_id, parse, reference_target
from gateway.fhir.search_links import Links
from gateway.records.gate import Caller
from gateway.records.including import stored_types
from gateway.records.node import Node
from gateway.store.journal import VERSION_COLUMNS, VersionRow

LISTED_MAX: Final = 5_000
"""Most entries of a List that is searched by."""
_OWN: Final = "AuditEvent"
_SAMPLE: Final = "Basic"
"""Parameters of a search over all types are read for this one first: no answer tells which types are stored."""
_ELSEWHERE: Final = Issue("information", "informational", "AuditEvents are searched on their own: AuditEvent?...")

Pairs = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Place:
    """``type`` None: several types. ``compartment`` is (name, logical id)."""

    type: str | None = None
    compartment: tuple[str, str] | None = None

    @property
    def path(self) -> str:
        """The URL below the base."""
        if self.compartment is None:
            return self.type or ""
        return "/".join((*self.compartment, self.type or "*"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """A search as asked. ``head`` is the query of the first type, or of a sample: its order, count and results hold
    for all. ``types`` None: every type within the token's scopes.
    """

    place: Place
    pairs: tuple[tuple[str, str], ...]
    strict: bool
    head: Query
    types: tuple[str, ...] | None
    lists: tuple[str, ...]

    @property
    def used(self) -> tuple[tuple[str, str], ...]:
        """The parameters really used, in the order they were given."""
        known = {*self.head.used, *((name, value) for name, value in self.pairs if name in ("_type", "_list"))}
        return tuple(pair for pair in self.pairs if pair in known)

    @property
    def issues(self) -> tuple[Issue, ...]:
        """What the answer must say besides its matches."""
        found = tuple(Issue("warning", "not-supported", text) for text in self.head.ignored)
        return found if self.types is not None else (*found, _ELSEWHERE)


def read_search(node: Node, place: Place, pairs: Pairs, *, strict: bool) -> Search:
    """Read the parameters of a search. Raises BadSearch."""
    several = place.type is None
    lists = tuple(_list_id(value) for name, value in pairs if name == "_list")
    types = _named_types(node, pairs) if several else (str(place.type),)
    head = node.query(types[0] if types else _SAMPLE, _criteria(pairs, several), strict=strict, inside=True)
    if head.results.contained != "false":
        if types is None or len(types) > 1 or types == (_OWN,):
            raise BadSearch("_contained: what is contained is searched one type at a time", code="not-supported",
                            expression="http._contained")
        search_contained.check(head)
    if types is None:
        _check_common(pairs)
    return Search(place=place, pairs=tuple(pairs), strict=strict, head=head, types=types, lists=lists)


def named_types(place: Place, pairs: Pairs) -> list[str]:
    """The types whose parameters are asked, as far as the search names them; else the sample all types stand for."""
    if place.type is not None:
        return [place.type]
    named = [type_ for name, value in pairs if name == "_type" for type_ in value.split(",")]
    return named or [_SAMPLE]


def _criteria(pairs: Pairs, several: bool) -> list[tuple[str, str]]:
    return [(name, value) for name, value in pairs if name != "_list" and not (several and name == "_type")]


def _list_id(value: str) -> str:
    if value.startswith("$"):
        raise BadSearch(f"_list={value[:40]}: the functional lists are not kept; name a List by its id",
                        code="not-supported", expression="http._list")
    id_ = value.removeprefix("List/")
    if not is_id(id_):
        raise BadSearch("_list: the id of a List is expected", code="value", expression="http._list")
    return id_


def _named_types(node: Node, pairs: Pairs) -> tuple[str, ...] | None:
    named = [type_ for name, value in pairs if name == "_type" for type_ in value.split(",")]
    if not named:
        return None
    for type_ in named:
        if type_ not in node.definitions.resource_types:
            raise BadSearch(f"_type: {type_[:64]!r} is no R4 resource type", code="value", expression="http._type")
        if type_ == _OWN:
            raise BadSearch("_type: AuditEvents are searched on their own", code="not-supported",
                            expression="http._type")
    return tuple(dict.fromkeys(named))


def _check_common(pairs: Pairs) -> None:
    """A search over all types takes what all types have, and says so alike whatever is stored."""
    for name, value in pairs:
        if not name.startswith("_"):
            raise BadSearch(f"{name[:64]}: a search over all types takes their common parameters; name some by _type",
                            code="not-supported", expression=f"http.{name[:64]}")
        if name == "_sort" and any(not key.lstrip("-").startswith("_") for key in value.split(",")):
            raise BadSearch("_sort: all types can be sorted by _id and _lastUpdated; name some by _type",
                            code="not-supported", expression="http._sort")


def queries(node: Node, caller: Caller, connection: apsw.Connection, search: Search, snapshot: int) -> list[Query]:
    """One query for each type that counts. Raises Forbidden outside the token's scopes, BadSearch, TooCostly."""
    types = search.types if search.types is not None else _scoped(node, caller, connection)
    listed = [_listed(node, caller, connection, id_, snapshot) for id_ in search.lists]
    found = []
    for type_ in types:
        node.gate.require_scope(caller, type_, "s")
    for query in _by_type(node, caller, connection, search, types):
        type_ = query.type
        more = [Criterion(tuple(IdIs(id_) for id_ in ids.get(type_, ()))) for ids in listed]
        if search.place.compartment is not None:
            more.append(_members(node, type_, *search.place.compartment))
        if all(criterion.any_of for criterion in more):
            found.append(replace(query, criteria=(*query.criteria, *more)))
    return found


def _by_type(node: Node, caller: Caller, connection: apsw.Connection, search: Search,
             types: Sequence[str]) -> Iterator[Query]:
    """The query of each type; of what is contained, of each type of containers within the token's scopes."""
    contained = search.head.results.contained
    if contained != "true":
        yield from (query for type_ in types if (query := _of_type(node, search, type_)) is not None
                    and not (contained == "both" and _holds(node, connection, type_, type_)))
    if contained != "false":
        [type_] = types
        for container in _scoped(node, caller, connection):
            if _holds(node, connection, container, type_):
                yield search_contained.of_container(search.head, container)


def _holds(node: Node, connection: apsw.Connection, container: str, type_: str) -> bool:
    """Whether any stored ``container`` contains a ``type_``, whoever may see it: a search finds nothing in others."""
    return node.index.holds(connection, search_contained.holder(container, type_))


def _of_type(node: Node, search: Search, type_: str) -> Query | None:
    """The query of one type; None for one without a parameter that all types were asked by (``_text`` of Binary)."""
    if search.types is not None and type_ == search.head.type:
        return search.head
    try:
        return node.query(type_, _criteria(search.pairs, several=True), strict=search.strict)
    except BadSearch:
        if search.types is not None:
            raise
        return None


def _scoped(node: Node, caller: Caller, connection: apsw.Connection) -> list[str]:
    """The stored types within the token's scopes. Raises Forbidden where no type is."""
    found, refused = [], None
    for type_ in stored_types(node, connection):
        try:
            node.gate.require_scope(caller, type_, "s")
        except Forbidden as error:
            refused = error
        else:
            found.append(type_)
    if not found and refused is not None and not _any_scope(node, caller):
        raise refused
    return [type_ for type_ in found if type_ != _OWN]


def _any_scope(node: Node, caller: Caller) -> bool:
    for type_ in node.definitions.resource_types:
        try:
            node.gate.require_scope(caller, type_, "s")
        except Forbidden:
            continue
        return True
    return False


def _members(node: Node, type_: str, name: str, id_: str) -> Criterion:
    """What puts a ``type_`` into a compartment; without a predicate where R4 puts none there."""
    links = Links(node.extractor.plans, node.settings.base_url)
    plans = node.extractor.plans.of(type_)
    found: list[Predicate] = [IdIs(id_)] if type_ == name else []
    for code in node.definitions.compartment(name, type_):
        if code in plans:
            found += links.pointing(type_, code, [f"{name}/{id_}"])
    return Criterion(tuple(dict.fromkeys(found)))


def _listed(node: Node, caller: Caller, connection: apsw.Connection, id_: str,
            snapshot: int) -> Mapping[str, Sequence[str]]:
    """Ids by type that a List held at the snapshot; nothing where it may not be seen, or is not there."""
    [*rows] = connection.execute(
        f"SELECT {VERSION_COLUMNS} FROM version v INDEXED BY version_place "  # noqa: S608
        "WHERE v.type='List' AND v.id=? AND v.seq<=? AND (v.superseded IS NULL OR v.superseded>?) AND v.deleted=0",
        (id_, snapshot, snapshot))
    row = VersionRow(*rows[0]) if rows else None
    if row is None or isinstance(node.gate.decide_version(connection, caller, "s", row), Deny):
        return {}
    return _entries(node, parse(node.versions.open(connection, row).stored).get("entry"))


def _entries(node: Node, entries: object) -> Mapping[str, Sequence[str]]:
    found: dict[str, list[str]] = {}
    listed = entries if type(entries) is list else []
    if len(listed) > LISTED_MAX:
        raise TooCostly(f"_list: a List of at most {LISTED_MAX} entries is searched by", code="too-costly",
                        expression="http._list")
    for entry in listed:
        item = entry.get("item") if type(entry) is dict and entry.get("deleted") is not True else None
        text = item.get("reference") if type(item) is dict else None
        target = reference_target(text) if type(text) is str else None
        base = node.settings.base_url.rstrip("/")
        if target is not None and target.type and target.id and (target.base or base).rstrip("/") == base:
            found.setdefault(target.type, []).append(target.id)
    return found
