"""create, update and delete: drafted, prepared, and committed in one durable step.

Owns carrying a write out, again where something moved meanwhile; refuses to acknowledge before the commit.
https://hl7.org/fhir/R4/http.html#create
"""

from __future__ import annotations

import uuid
from collections.abc import Callable

import apsw

from gateway.errors import Malformed
from gateway.fhir.resource import Resource
from gateway.records import aside, preparing
from gateway.records.drafting import draft, validated
from gateway.records.gate import Caller
from gateway.records.node import Hook, Node, still
from gateway.records.preconditions import expected_versions
from gateway.records.preparing import Prepared, Written
from gateway.records.refusals import Refused, audited_refusal
from gateway.records.versions import Draft
from gateway.store import journal


async def create(node: Node, caller: Caller, type_: str, resource: Resource, *, hook: Hook | None = None) -> Written:
    """Store a new resource under an id of ours."""
    id_, apart = str(uuid.uuid4()), aside.large(resource)
    made = await aside.done(apart, lambda: _checked(node, caller, resource, type_, id_))
    return _stored(await _carried_out(node, caller, "c", "create", hook,
                                      lambda now: preparing.prepare_create(node, now, node.database.reader, made, id_),
                                      apart=apart))


def _checked(node: Node, caller: Caller, resource: Resource, type_: str, id_: str) -> Draft:
    validated(node, resource, type_)
    return draft(node, caller, resource, id_)


async def update(node: Node, caller: Caller, type_: str, id_: str, resource: Resource, *, if_match: str | None,
                 if_none_match: str | None = None, hook: Hook | None = None) -> Written:
    """Store the next version under ``id_``. Raises PreconditionFailed, MethodNotAllowed, Invalid."""
    if resource.get("id") != id_:
        raise Malformed(f"the resource's id must be {id_!r}, as in the URL", code="invalid",
                        expression=f"{type_}.id")
    expected = expected_versions(if_match)
    apart = aside.large(resource) or journal.envelope_bytes(node.database.reader, type_, id_) > aside.BYTES
    made = await aside.done(apart, lambda: _checked(node, caller, resource, type_, id_))

    def prepare(now: Caller) -> Prepared:
        row = journal.current(node.database.reader, type_, id_)
        return preparing.prepare_update(node, now, node.database.reader, made, id_, row, expected,
                                        only_new=if_none_match is not None)

    return _stored(await _carried_out(node, caller, "u", "update", hook, prepare, apart=apart))


def _stored(written: Written | None) -> Written:
    assert written is not None  # noqa: S101  # only a deletion may find nothing to do
    return written


async def delete(node: Node, caller: Caller, type_: str, id_: str, *, if_match: str | None,
                 hook: Hook | None = None) -> Written | None:
    """Delete; None when there was nothing. Idempotent."""
    expected = expected_versions(if_match)
    return await _carried_out(
        node, caller, "d", "delete", hook,
        lambda now: preparing.prepare_delete(node, now, node.database.reader, type_, id_,
                                             journal.current(node.database.reader, type_, id_), expected))


async def _carried_out(node: Node, caller: Caller, interaction: str, name: str, hook: Hook | None,
                       prepare: Callable[[Caller], Prepared], *, apart: bool = False) -> Written | None:
    async def attempt(caller: Caller) -> Written | None:
        try:
            prepared = await aside.done(apart, lambda: prepare(caller))
        except Refused as refused:
            raise await audited_refusal(node, caller, refused, interaction, name) from None

        def work(connection: apsw.Connection) -> None:
            still(connection, caller)
            preparing.commit_prepared(connection, prepared, hook)

        try:
            await aside.committed(node, aside.large_version(prepared.new), work)
        except Refused as refused:
            raise await audited_refusal(node, caller, refused, interaction, name) from None
        return prepared.written
    return await node.decided(caller, attempt)
