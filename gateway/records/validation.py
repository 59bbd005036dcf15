"""``$validate``: what the validator says of a resource, and whether a write of it would be refused.

Owns asking everything a create, update or deletion asks, up to the sealing; refuses to seal, store or make a key. A
refusal is audited and looks as the write's own. https://hl7.org/fhir/R4/resource-operation-validate.html
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, NoReturn

from gateway import audit
from gateway.access.facts import ResourceFacts
from gateway.errors import Issue, Malformed
from gateway.fhir.resource import Resource
from gateway.records import drafting, preparing, refusals
from gateway.records.gate import Caller
from gateway.records.node import Node
from gateway.records.preparing import Prepared
from gateway.records.refusals import Refused
from gateway.records.versions import Draft, Versions
from gateway.store import journal

Mode = Literal["create", "update", "delete", "profile"]
MODES: tuple[Mode, ...] = ("create", "update", "delete", "profile")
_LETTERS = {"create": "c", "update": "u", "delete": "d"}


async def issues_of(node: Node, resource: Resource, type_: str, profiles: Sequence[str], *,
                    thorough: bool) -> list[Issue]:
    """Everything the validator finds, off the event loop. ``thorough``: beyond what refuses a write."""
    return await asyncio.to_thread(lambda: node.validator.validate(
        resource, expected_type=type_, profiles=profiles, thorough=thorough))


async def would_write(node: Node, caller: Caller, mode: Mode, type_: str, id_: str | None,
                      resource: Resource | None) -> None:
    """Raise what a write of ``mode`` now would raise; ``id_`` is the id of an update or deletion."""
    if mode == "profile":
        return
    if mode != "create" and id_ is None:
        raise Malformed(f"which {type_} to {mode} needs an id", code="required", expression=f"{type_}.id")
    prepare = _preparation(_unsealed(node), mode, type_, id_ or str(uuid.uuid4()), resource)

    async def attempt(caller: Caller) -> None:
        try:
            prepared = prepare(caller)
        except _Permitted as permitted:
            # As in a refusal, a patient nobody here knows gets no keys for being named.
            known = [reference for reference in permitted.patients
                     if journal.patient_pk(node.database.reader, reference.removeprefix("Patient/")) is not None]
            rows = node.gate.entries(caller, _LETTERS[mode], "validate", None, patients=known, what=(
                type_ if id_ is None else f"{type_}/{id_}",))
        except Refused as refused:
            raise await refusals.audited_refusal(node, caller, refused, _LETTERS[mode], "validate") from None
        else:
            rows = prepared.rows  # nothing to store: as the write would have it in its audit
        await node.commits.commit(lambda tx: audit.append(tx, rows))

    await node.decided(caller, attempt)


def _preparation(node: Node, mode: Mode, type_: str, id_: str,
                 resource: Resource | None) -> Callable[[Caller], Prepared]:
    """The write's own preparation. Raises what is refused whoever asks."""
    reader = node.database.reader
    if mode == "delete":
        return lambda caller: preparing.prepare_delete(node, caller, reader, type_, id_,
                                                       journal.current(reader, type_, id_), None)
    if resource is None:
        raise Malformed(f"$validate for {mode} takes a resource", code="required", expression="Parameters.parameter")
    sent: Resource = resource
    if mode == "update" and sent.get("id") != id_:
        raise Malformed(f"the resource's id must be {id_!r}, as in the URL", code="invalid", expression=f"{type_}.id")
    drafting.validated(node, sent, type_)

    def prepare(caller: Caller) -> Prepared:
        made = drafting.draft(node, caller, sent, id_)
        if mode == "create":
            return preparing.prepare_create(node, caller, reader, made, id_)
        return preparing.prepare_update(node, caller, reader, made, id_, journal.current(reader, type_, id_), None)
    return prepare


class _Permitted(Exception):  # control flow: the write asked everything, and was about to seal
    def __init__(self, patients: tuple[str, ...]) -> None:
        self.patients = patients


class _Unsealed(Versions):
    """Opens what is stored; the first thing to seal ends the preparation."""

    def seal(self, draft: Draft, **_: Any) -> NoReturn:  # Any: what would be sealed with it
        raise _Permitted(draft.access.home_patients)

    def seal_deletion(self, last: ResourceFacts, **_: Any) -> NoReturn:  # Any: as above
        raise _Permitted(last.home_patients)


def _unsealed(node: Node) -> Node:
    versions = object.__new__(_Unsealed)
    vars(versions).update(vars(node.versions))
    return replace(node, versions=versions)
