"""Instance and type interactions: create, read, vread, update, patch, delete, history and search.

Owns their headers and conditions. https://hl7.org/fhir/R4/http.html
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from urllib.parse import urlencode

from gateway.errors import Forbidden, Malformed, NotFound
from gateway.fhir.resource import parse_json
from gateway.records import aside, audit_events, conditional, patching, read, write
from gateway.records.answer import Answer, version_answer
from gateway.records.patching import JSON_PATCH, Patch
from gateway.web import subsets
from gateway.web.ask import Ask
from gateway.web.door import Door, Route

_NO_SUCH_VERSION = 0
"""Version ids begin at 1: what no id can be is answered as what is not there."""


async def create(door: Door, ask: Ask) -> Answer:
    """POST to a type; with If-None-Exist only where nothing matches."""
    _no_query(ask)
    resource = await ask.resource()
    condition = ask.headers.get("if-none-exist")
    if not condition:
        return door.written(await write.create(door.node, ask.caller, ask.type, resource))
    written = await conditional.create(door.node, ask.caller, ask.type, resource, condition.lstrip("?"))
    if not written.changed:
        try:
            found = await read.read(door.node, ask.caller.again(), ask.type, written.id, written.vid)
            written = replace(written, stored=found.stored)
        except (Forbidden, NotFound):
            pass  # found by a search, which says nothing about reading: the place alone is the answer
    return door.written(written)


async def update(door: Door, ask: Ask) -> Answer:
    """PUT to an id, or to a type with a condition."""
    resource = await ask.resource()
    if_match, if_none_match = ask.headers.get("if-match"), ask.headers.get("if-none-match")
    if if_none_match not in (None, "*"):
        raise Malformed("If-None-Match on an update is *", code="value", expression="http.If-None-Match")
    if len(ask.parts) > 1:
        _no_query(ask)
        return door.written(await write.update(door.node, ask.caller, ask.type, ask.id, resource, if_match=if_match,
                                               if_none_match=if_none_match))
    return door.written(await conditional.update(door.node, ask.caller, ask.type, resource, _condition(ask),
                                                 if_match=if_match, if_none_match=if_none_match))


def _no_query(ask: Ask) -> None:
    """A write of one place takes no condition in its URL: leaving one out would write what was not meant."""
    if ask.pairs:
        name = ask.pairs[0][0][:64]
        raise Malformed(f"{ask.method} here takes no parameter {name!r}; a create's condition stands in If-None-Exist",
                        code="not-supported", expression=f"http.{name}")


def _condition(ask: Ask) -> str:
    """The search a write at a type rests on."""
    return urlencode(ask.pairs)


async def patch(door: Door, ask: Ask) -> Answer:
    """PATCH of an id, or of the one match of a condition."""
    change = Patch(await _patch_document(ask))
    if_match = ask.headers.get("if-match")
    if len(ask.parts) > 1:
        _no_query(ask)
        return door.written(await patching.patch(door.node, ask.caller, ask.type, ask.id, change, if_match=if_match))
    return door.written(await conditional.patch(door.node, ask.caller, ask.type, change, _condition(ask),
                                                if_match=if_match))


async def _patch_document(ask: Ask) -> Any:  # a JSON value: a list is a JSON Patch, an object a Parameters
    if ask.given is not None:
        return patching.entry_patch(ask.given, "Bundle.entry")
    if ask.headers.get("content-type", "").partition(";")[0].strip().lower() != JSON_PATCH:
        return await ask.resource()
    body = await ask.read_body()
    document = await aside.done(len(body) > aside.BYTES, lambda: parse_json(body))
    if type(document) is not list:
        raise Malformed("a JSON Patch is a list of operations", code="structure", expression="patch")
    return document


async def delete(door: Door, ask: Ask) -> Answer:
    """DELETE of an id, or of what meets a condition."""
    if_match = ask.headers.get("if-match")
    if len(ask.parts) > 1:
        written = await write.delete(door.node, ask.caller, ask.type, ask.id, if_match=if_match)
        return Answer(204, headers={"ETag": f'W/"{written.vid}"'} if written else {})
    gone = await conditional.delete(door.node, ask.caller, ask.type, _condition(ask), if_match=if_match)
    return Answer(204, headers={"ETag": f'W/"{gone[0].vid}"'} if len(gone) == 1 else {})


async def read_version(door: Door, ask: Ask) -> Answer:
    """GET of an id, or of one version of it."""
    vid = version_id(ask) if len(ask.parts) > 2 else None
    results = subsets.asked(door, ask)
    if ask.type == "AuditEvent" and audit_events.is_ours(ask.id):
        event = await audit_events.read(door.node, ask.caller, ask.id, vid)
        return subsets.cut(door, ask, results, Answer(200, event, {"ETag": 'W/"1"'}))
    reading = await read.read(door.node, ask.caller, ask.type, ask.id, vid)
    answer = version_answer(200, reading.stored, reading.row.vid, reading.row.updated_ms)
    return subsets.cut(door, ask, results, answer)


def version_id(ask: Ask) -> int:
    """The version id of a path ``T/I/_history/V...``."""
    text = ask.parts[3]
    return int(text) if text.isdecimal() and len(text) < 16 else _NO_SUCH_VERSION


ROUTES = (
    Route(method="POST", shape="T", name="create", handler=create, kind="write"),
    Route(method="GET", shape="T/I", name="read", handler=read_version),
    Route(method="PUT", shape="T/I", name="update", handler=update, kind="write"),
    Route(method="PATCH", shape="T/I", name="patch", handler=patch, kind="write"),
    Route(method="DELETE", shape="T/I", name="delete", handler=delete, kind="write"),
    Route(method="PUT", shape="T", name="update", handler=update, kind="write"),
    Route(method="PATCH", shape="T", name="patch", handler=patch, kind="write"),
    Route(method="DELETE", shape="T", name="delete", handler=delete, kind="write"),
    Route(method="GET", shape="T/I/_history/V", name="vread", handler=read_version),
)
