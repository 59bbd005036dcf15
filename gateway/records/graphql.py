"""``$graphql``: resources read and searched as a query names them, and of each the fields it asks for.

Owns following a query through records and the shape of the answer; every resource comes through ``graphql_fetches.py``,
decided and audited, and the whole is done again when a revocation came before its end. Refuses fields R4 does not have,
and more values than the limit says; tells what may not be seen from what is not there by nothing.
https://hl7.org/fhir/R4/graphql.html

Divergence: an element is filtered by its own children (``name(use: official)``), not by ``fhirpath``; the directives of
lists (``@flatten``, ``@first``, ``@singleton``, ``@slice``) are refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from gateway.errors import TooCostly
from gateway.fhir.definitions import Definitions
from gateway.fhir.graphql_query import PLACE, Asked, OnType, Selections, merged, read_query, refused
from gateway.fhir.resource import Resource, reference_target, serialise
from gateway.fhir.xml_shapes import Field, Shapes
from gateway.records import search
from gateway.records.gate import Caller
from gateway.records.graphql_arguments import LEAF, keeps, search_pairs, sliced
from gateway.records.graphql_fetches import OWN, Fetches
from gateway.records.node import Node, still

VALUES_MAX: Final = 20_000
"""Most values of one answer."""
_AT_ONCE: Final = 500
_PAGING: Final = frozenset({"count", "offset", "pagesize", "first", "previous", "next", "last", "edges", "__typename"})


async def answer(node: Node, caller: Caller, shapes: Shapes, query: str, operation: str | None,
                 variables: Mapping[str, Any], *, root: tuple[str, str] | None) -> bytes:
    """The JSON of a GraphQL answer; ``root``: the type and id of the resource that is asked.

    Raises Malformed, BadSearch, TooCostly; NotFound, Gone and Forbidden of the root.
    """
    selections = await asyncio.to_thread(read_query, query, operation, variables)

    async def attempt(caller: Caller) -> bytes:
        run = _Run(node, caller, shapes)
        if root is None:
            data = await run.system(selections)
        else:
            data = await run.resource(await run.fetches.read(*root), selections)
        still(node.database.reader, caller)
        told: dict[str, Any] = {"data": data}
        if run.errors:
            told["errors"] = run.errors
        return await asyncio.to_thread(serialise, told)

    return await node.decided(caller, attempt)


class _Run:
    """One answer in the making."""

    def __init__(self, node: Node, caller: Caller, shapes: Shapes) -> None:
        self._node = node
        self._shapes = shapes
        self._definitions: Definitions = node.definitions
        self.fetches = Fetches(node, caller)
        self._values = VALUES_MAX
        self._pause_at = VALUES_MAX - _AT_ONCE
        self._path: list[str | int] = []
        self.errors: list[dict[str, Any]] = []

    # What is asked of the whole server, and of records that refer to one

    async def system(self, selections: Selections) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for asked in self._collected(selections, "Query", ()):
            if asked.name == "__typename":
                found[asked.key] = "Query"
                continue
            self._path.append(asked.key)
            if asked.name in self._definitions.resource_types:
                found[asked.key] = await self._one(asked)
            elif (many := self._many(asked.name)) is not None:
                found[asked.key] = await self._list(asked, *many, about=None)
            else:
                raise refused(f"there is no field {asked.name[:64]!r} of a server", code="not-supported")
            self._path.pop()
        return found

    async def _one(self, asked: Asked) -> Any:
        ids = asked.arguments.get("id", ())
        if set(asked.arguments) != {"id"} or len(ids) != 1:
            raise refused(f"{asked.name} takes an id; {asked.name}List searches", code="required")
        resource = await self.fetches.known(asked.name, ids[0].removeprefix(f"{asked.name}/"))
        if resource is None:
            return self._missing()
        return await self.resource(resource, asked.below)

    def _missing(self) -> None:
        self.errors.append({"message": "nothing is known here", "path": list(self._path)})

    def _many(self, name: str) -> tuple[str, bool] | None:
        """The type a field searches, and whether by pages."""
        for suffix in ("List", "Connection"):
            type_ = name.removesuffix(suffix)
            if type_ != name and type_ in self._definitions.resource_types:
                return type_, suffix == "Connection"
        return None

    async def _list(self, asked: Asked, type_: str, paged: bool, *, about: str | None) -> Any:
        pairs = search_pairs(self._definitions, asked, type_, paged, about)
        if not asked.below:
            raise refused(f"{asked.name} has fields: name those wanted")
        if not paged:
            bundle = await self.fetches.searched(type_, pairs)
            matches = [entry["resource"] for entry in _matches(bundle)]
            return [await self._indexed(place, one, asked.below) for place, one in enumerate(matches)]
        fields = self._collected(asked.below, f"{type_}Connection", ())
        unknown = sorted({one.name for one in fields} - _PAGING)
        if unknown:
            raise refused(f"there is no field {unknown[0][:64]!r} of {asked.name}", code="not-supported")
        if type_ != OWN and any(one.name == "count" for one in fields) and not (pairs and pairs[0][0] == search.PAGE):
            pairs.append(("_total", "accurate"))
        bundle = await self.fetches.searched(type_, pairs)
        links = {link["relation"]: _cursor(link["url"]) for link in bundle.get("link", ())}
        matches = _matches(bundle)
        found: dict[str, Any] = {}
        for one in fields:
            if one.name == "edges":
                self._path.append(one.key)
                found[one.key] = [await self._edge(place, entry, one, type_) for place, entry in enumerate(matches)]
                self._path.pop()
            else:
                found[one.key] = {"count": bundle.get("total"), "offset": None, "pagesize": len(matches),
                                  "__typename": f"{type_}Connection"}.get(one.name, links.get(one.name))
        return found

    async def _indexed(self, place: int, resource: Resource, selections: Selections) -> dict[str, Any]:
        self._path.append(place)
        found = await self.resource(resource, selections)
        self._path.pop()
        return found

    async def _edge(self, place: int, entry: Mapping[str, Any], asked: Asked, type_: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        self._path.append(place)
        for one in self._collected(asked.below, f"{type_}Edge", ()):
            if one.name == "resource":
                self._path.append(one.key)
                found[one.key] = await self.resource(entry["resource"], one.below)
                self._path.pop()
            elif one.name in ("mode", "score"):
                found[one.key] = entry.get("search", {}).get(one.name)
            else:
                raise refused(f"there is no field {one.name[:64]!r} of an edge", code="not-supported")
        self._path.pop()
        return found

    # What is asked of a resource

    async def resource(self, resource: Resource, selections: Selections) -> dict[str, Any]:
        """The fields of a resource that the caller may see."""
        return await self._object(resource, str(resource["resourceType"]), selections, resource)

    async def _object(self, value: Mapping[str, Any], type_: str, selections: Selections,
                      within: Resource) -> dict[str, Any]:
        """``type_`` is a type or a backbone's path; ``within`` the resource whose contained ones are meant."""
        if not selections:
            raise refused(f"{type_} has fields: name those wanted")
        if self._values < self._pause_at:
            self._pause_at = self._values - _AT_ONCE
            await asyncio.sleep(0)
        found: dict[str, Any] = {}
        fields = self._shapes.of(type_)
        for asked in self._collected(selections, type_, value):
            self._path.append(asked.key)
            found[asked.key] = await self._field(value, type_, fields, asked, within)
            self._path.pop()
        return found

    async def _field(self, value: Mapping[str, Any], type_: str, fields: Mapping[str, Field], asked: Asked,
                     within: Resource) -> Any:
        name = asked.name
        if name == "__typename" or (name == "resourceType" and "resourceType" in value):
            return type_
        field = fields.get(name)
        if field is not None:
            if field.kind in LEAF:
                return self._leaf(value.get(name), asked, type_)
            return await self._elements(value.get(name), field.node, asked, within)
        if name[0] == "_" and (field := fields.get(name[1:])) is not None and field.kind == "primitive":
            return await self._elements(value.get(name), "Element", asked, within)
        if name == "resource" and type_ == "Reference":
            return await self._referred(value, asked, within)
        if "resourceType" in value and (many := self._many(name)) is not None:
            if value is not within or "id" not in value:
                raise refused(f"{name} is asked of a resource that is stored", code="not-supported")
            return await self._list(asked, *many, about=f"{type_}/{value['id']}")
        return await self._choice(value, type_, fields, asked, within)

    def _leaf(self, value: Any, asked: Asked, type_: str) -> Any:
        if asked.below:
            raise refused(f"{type_}.{asked.name} is a value, and has no fields")
        if set(asked.arguments) - {"_count", "_offset"}:
            raise refused(f"{type_}.{asked.name} takes _count and _offset alone", code="not-supported")
        if type(value) is not list:
            return value
        kept = sliced(value, asked)
        self._count(len(kept))
        return kept

    async def _choice(self, value: Mapping[str, Any], type_: str, fields: Mapping[str, Field], asked: Asked,
                      within: Resource) -> Any:
        """An element of several types by the name they share, ``value { ... on Quantity { unit } }``."""
        root = self._definitions.type(type_.partition(".")[0])
        element = root.nodes[type_].elements.get(asked.name)
        if element is None or not element.choice:
            raise refused(f"{type_} has no element {asked.name[:64]!r}", code="not-supported")
        for key, _ in element.json_names:
            if key in value:
                if fields[key].kind in LEAF:
                    return value[key]
                return await self._elements(value[key], fields[key].node, asked, within)
        return None

    async def _elements(self, value: Any, type_: str, asked: Asked, within: Resource) -> Any:
        if not asked.below:
            raise refused(f"{asked.name} has fields: name those wanted")
        if value is None:
            return None
        if type(value) is not list:
            kept = keeps(self._shapes, value, type_, asked)
            return await self._element(value, type_, asked, within) if kept else None
        self._count(len(value))
        found = []
        for place, one in enumerate(sliced([one for one in value if keeps(self._shapes, one, type_, asked)], asked)):
            self._path.append(place)
            found.append(None if one is None else await self._element(one, type_, asked, within))
            self._path.pop()
        return found

    async def _element(self, value: Any, type_: str, asked: Asked, within: Resource) -> Any:
        own = value.get("resourceType")
        if type(own) is str:  # contained, or within a Bundle or Parameters
            return await self._object(value, own, asked.below, within)
        return await self._object(value, type_, asked.below, within)

    async def _referred(self, value: Mapping[str, Any], asked: Asked, within: Resource) -> Any:
        """What a reference leads to, where it may be seen; ``type`` passes others over, ``optional`` says no error."""
        if set(asked.arguments) - {"optional", "type"}:
            raise refused("resource takes optional and type", code="not-supported")
        text = value.get("reference")
        target = reference_target(text) if type(text) is str else None
        types = asked.arguments.get("type", ())
        found: Resource | None = None
        if target is not None and target.kind == "fragment":
            held = (within if not target.id else one for one in (within, *within.get("contained", ()))
                    if not target.id or (one is not within and one.get("id") == target.id))
            found = next(held, None)
        elif target is not None and target.type in self._definitions.resource_types and target.id is not None and (
                target.base is None or target.base.rstrip("/") == self._node.settings.base_url.rstrip("/")):
            if types and target.type not in types:
                return None
            version = target.version
            if version is None or (version.isascii() and version.isdecimal() and len(version) < 16):
                found = await self.fetches.known(str(target.type), target.id, None if version is None else int(version))
        if found is None:
            return None if asked.arguments.get("optional") == ("true",) else self._missing()
        if types and found["resourceType"] not in types:
            return None
        inside = within if target is not None and target.kind == "fragment" else found
        return await self._object(found, str(found["resourceType"]), asked.below, inside)

    # What is selected

    def _count(self, values: int) -> None:
        self._values -= values
        if self._values < 0:
            raise TooCostly(f"$graphql: an answer has {VALUES_MAX} values at most; ask for less", code="too-costly",
                            expression=PLACE)

    def _collected(self, selections: Selections, type_: str, value: object) -> list[Asked]:
        """The fields that count for a ``type_``, in the order they are first named, each name in the answer once."""
        found: dict[str, list[Asked]] = {}

        def collect(selections: Selections) -> None:
            for one in selections:
                if isinstance(one, OnType):
                    if one.condition is None or self._is_a(type_, one.condition):
                        collect(one.below)
                else:
                    found.setdefault(one.key, []).append(one)

        collect(selections)
        self._count(len(found))
        return [merged(fields) for fields in found.values()]

    def _is_a(self, type_: str, condition: str) -> bool:
        if type_ == condition or "".join(part[:1].upper() + part[1:] for part in type_.split(".")) == condition:
            return True
        return "." not in type_ and self._definitions.has_type(condition) and self._definitions.is_a(type_, condition)


def _matches(bundle: Resource) -> list[dict[str, Any]]:
    return [entry for entry in bundle.get("entry", ()) if entry.get("search", {}).get("mode") == "match"]


def _cursor(url: str) -> str | None:
    found = parse_qs(urlsplit(url).query).get(search.PAGE)
    return found[0] if found else None
