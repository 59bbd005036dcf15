"""``$meta``, ``$meta-add`` and ``$meta-delete``: profiles, tags and security labels by themselves.

Owns the union and difference of Meta, and writing it as a new version of the same content; refuses to tell of labels on
what may not be seen. https://hl7.org/fhir/R4/resource-operation-meta.html
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from itertools import chain
from typing import Any, Literal

import apsw

from gateway.errors import BadSearch, Forbidden, PreconditionFailed, StoreBusy
from gateway.fhir.query import Query
from gateway.fhir.resource import Resource, parse, serialise
from gateway.records import read, write
from gateway.records.gate import Caller
from gateway.records.gathering import Permitted, at_most, audit_rows, disclosed, open_all, walk
from gateway.records.node import Node
from gateway.store import journal

MOST = 2_000
"""Most resources opened to join their Meta."""
_CODED = ("security", "tag")
_ATTEMPTS = 8
Change = Literal["meta-add", "meta-delete"]


def _key(coding: Any) -> tuple[Any, Any]:
    """What R4 calls the same tag: its system and code, whatever its display."""
    return (coding.get("system"), coding.get("code")) if isinstance(coding, dict) else (None, None)


def united(metas: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Every profile, label and tag of ``metas``, each once."""
    profiles: dict[str, None] = {}
    coded: dict[str, dict[tuple[Any, Any], Any]] = {name: {} for name in _CODED}
    for meta in metas:
        profiles |= dict.fromkeys(meta.get("profile", ()))
        for name in _CODED:
            for coding in meta.get(name, ()):
                coded[name].setdefault(_key(coding), coding)
    return {**({"profile": list(profiles)} if profiles else {}),
            **{name: list(found.values()) for name, found in coded.items() if found}}


def changed(meta: dict[str, Any], change: Change, given: dict[str, Any]) -> dict[str, Any]:
    """``meta`` with the profiles, labels and tags of ``given`` added or taken away; what else it holds stays."""
    if change == "meta-add":
        found = united([meta, given])
    else:
        gone = {name: {_key(coding) for coding in given.get(name, ())} for name in _CODED}
        found = {"profile": [url for url in meta.get("profile", ()) if url not in given.get("profile", ())],
                 **{name: [coding for coding in meta.get(name, ()) if _key(coding) not in gone[name]]
                    for name in _CODED}}
    kept = {name: value for name, value in meta.items() if name not in ("profile", *_CODED)}
    return {**kept, **{name: value for name, value in found.items() if value}}


def answer(meta: dict[str, Any]) -> bytes:
    """The Meta as an operation returns it."""
    return serialise({"resourceType": "Parameters", "parameter": [{"name": "return", "valueMeta": meta}]})


async def of_version(node: Node, caller: Caller, type_: str, id_: str, vid: int | None) -> bytes:
    """The Meta of one version. Raises as a read of it does."""
    reading = await read.read(node, caller, type_, id_, vid)
    return answer(parse(reading.stored)["meta"])


async def of_all(node: Node, caller: Caller, type_: str | None) -> bytes:
    """The profiles, labels and tags on what may be seen of a type, or of all. Raises TooCostly, Forbidden."""
    async def attempt(caller: Caller) -> bytes:
        meta, rows = await asyncio.to_thread(work, caller)
        await disclosed(node, caller, rows)
        return answer(meta)

    def work(caller: Caller) -> tuple[dict[str, Any], Any]:
        with node.database.snapshot() as connection:
            snapshot = journal.head_seq(connection)
            types = [type_] if type_ else _in_scope(node, caller)
            found = at_most(chain.from_iterable(_all(node, caller, connection, one, snapshot) for one in types), MOST,
                            "$meta")
            rows = audit_rows(node, caller, connection, "meta", found, query="", about=type_ or "$meta")
            opened = open_all(node, connection, found)
            return united(one.resource["meta"] for one in opened), rows

    return await node.decided(caller, attempt)


def _all(node: Node, caller: Caller, connection: apsw.Connection, type_: str, snapshot: int) -> Iterable[Permitted]:
    return walk(node, caller, connection, Query(type=type_), snapshot=snapshot)


def _in_scope(node: Node, caller: Caller) -> list[str]:
    found = []
    for name in sorted(node.definitions.resource_types):
        try:
            node.gate.require_scope(caller, name, "s")
        except Forbidden:
            continue
        found.append(name)
    return found


async def change(node: Node, caller: Caller, type_: str, id_: str, how: Change, given: dict[str, Any]) -> bytes:
    """Store a version with more or less Meta, where that changes anything; its Meta.

    Everything an update is decided by counts here: who may lower a label, above all. Raises as a read and an update do.
    """
    if extra := set(given) - {"profile", *_CODED}:
        raise BadSearch(f"meta: ${how} is about profile, security and tag, not {min(extra)[:64]}",
                        code="not-supported", expression="http.meta")
    for _ in range(_ATTEMPTS):
        reading = await read.read(node, caller, type_, id_)
        caller = caller.again()
        resource: Resource = parse(reading.stored)
        resource["meta"] = changed(resource["meta"], how, given)
        try:
            written = await write.update(node, caller, type_, id_, resource, if_match=f'W/"{reading.row.vid}"')
        except PreconditionFailed:
            caller = caller.again()
            continue
        return answer(parse(written.stored)["meta"])
    raise StoreBusy("the record keeps changing; try again")
