"""``$graphql`` of the server and of a resource. https://hl7.org/fhir/R4/graphql.html, https://graphql.org/learn/serving-over-http/

Owns where the query stands: in the URL, in a JSON body, or as a body of its own; refuses what holds none.
"""

from __future__ import annotations

from typing import Any, Final

from gateway.errors import BadSearch, Malformed, UnsupportedMedia
from gateway.fhir.graphql_query import PLACE
from gateway.fhir.resource import parse_json
from gateway.records import graphql as records
from gateway.records.answer import Answer
from gateway.web.ask import Ask
from gateway.web.door import Door, Route

_KNOWN: Final = frozenset({"query", "operationName", "variables"})
_JSON: Final = "application/json; charset=utf-8"
_LENGTH_MAX: Final = 65_536


async def graphql(door: Door, ask: Ask) -> Answer:
    """What the query asks for, as GraphQL's own JSON."""
    ask.only_known(_KNOWN, "$graphql")
    given: dict[str, Any] = {name: ask.one(name) for name in _KNOWN}
    if ask.method == "POST":
        given = {**given, **await _body(ask)}
    variables = given["variables"] or {}
    if type(variables) is str:
        variables = _object(variables.encode(), "http.variables")
    query, operation = given["query"], given["operationName"]
    if type(query) is not str or type(variables) is not dict or type(operation) not in (str, type(None)):
        raise BadSearch("$graphql takes a query, and may take operationName and variables", code="required",
                        expression=PLACE)
    if len(query) > _LENGTH_MAX:
        raise BadSearch(f"$graphql: a query has {_LENGTH_MAX} letters at most", code="too-long", expression=PLACE)
    root = (ask.type, ask.id) if len(ask.parts) > 1 else None
    return Answer(200, await records.answer(door.node, ask.caller, ask.shapes, query, operation or None, variables,
                                            root=root), media_type=_JSON)


async def _body(ask: Ask) -> dict[str, Any]:
    """The members of a POST. Raises Malformed, UnsupportedMedia."""
    kind = ask.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ("application/json", "application/graphql", "application/fhir+json"):
        raise UnsupportedMedia("$graphql takes application/json or application/graphql", code="not-supported",
                               expression="http.Content-Type")
    body = await ask.read_body()
    if kind != "application/graphql":
        return {name: value for name, value in _object(body, PLACE).items() if name in _KNOWN}
    try:
        return {"query": body.decode()}
    except UnicodeDecodeError as error:
        raise Malformed("the query is not UTF-8", code="structure", expression=PLACE) from error


def _object(body: bytes, place: str) -> dict[str, Any]:
    found = parse_json(body)
    if type(found) is not dict:
        raise Malformed("a JSON object is expected", code="structure", expression=place)
    return found


# Not an operation to the table: its answer is no resource, so that no job keeps it.
ROUTES = tuple(Route(method=method, shape=shape, name="graphql", handler=graphql,
                     definition="http://hl7.org/fhir/OperationDefinition/Resource-graphql")
               for shape in ("$graphql", "T/I/$graphql") for method in ("GET", "POST"))
