"""patch: the stored version with a change applied, validated and decided as any update.

Owns reading a patch from a request or an entry, and what no patch may change; refuses who may not read the resource,
since a failing test says what is stored. https://hl7.org/fhir/R4/http.html#patch
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import apsw

from gateway.access.decision import Deny
from gateway.access.facts import ResourceFacts
from gateway.errors import Forbidden, Gone, InputRefused, Malformed, TooLarge, Unprocessable
from gateway.fhir import fhirpath_patch, json_patch
from gateway.fhir.resource import Resource, copy, parse, parse_json, serialise
from gateway.records import aside, drafting, preconditions, preparing, refusals
from gateway.records.gate import Caller
from gateway.records.node import Node, still
from gateway.records.preparing import Prepared, Written
from gateway.records.references import Links
from gateway.records.refusals import Answered, Refused
from gateway.store import journal

JSON_PATCH: Final = "application/json-patch+json"
_IMMUTABLE: Final = (("id",), ("meta", "versionId"), ("meta", "lastUpdated"))


@dataclass(frozen=True, slots=True)
class Patch:
    """A JSON Patch (a list) or a FHIRPath Patch (a Parameters resource); ``linked`` rewrites what came out of it."""

    document: Any  # a JSON value: its form is checked where it is applied
    linked: Callable[[Resource], None] | None = None

    def apply(self, node: Node, resource: Resource) -> Resource:
        """The patched resource. Raises Malformed, Unprocessable, TooCostly, TooLarge."""
        if type(self.document) is dict:
            patched = fhirpath_patch.apply(resource, self.document, node.definitions, node.validator.model)
        else:
            patched = json_patch.apply(resource, self.document)
        _require_same(resource, patched)
        patched = _as_sent(patched, node.settings.max_body_bytes)
        if self.linked is not None:
            self.linked(patched)
        return patched


def entry_patch(resource: Any, expression: str) -> Any:  # Any: whatever the entry holds, looked into here
    """The patch document of a bundle's entry: a Parameters, or a Binary that holds a JSON Patch. Raises Malformed.

    https://hl7.org/fhir/R4/http.html#patch, "Patch in batch/transaction"
    """
    kind = resource.get("resourceType") if type(resource) is dict else None
    if kind == "Parameters":
        return copy(resource)
    if kind != "Binary" or resource.get("contentType") != JSON_PATCH:
        raise Malformed(f"a PATCH entry holds Parameters, or a Binary of {JSON_PATCH}", code="invalid",
                        expression=f"{expression}.resource")
    try:
        return parse_json(base64.b64decode("".join(str(resource.get("data", "")).split()), validate=True))
    except (binascii.Error, Malformed) as error:
        raise Malformed("the Binary's data is no JSON Patch", code="structure",
                        expression=f"{expression}.resource.data") from error


def _as_sent(patched: Resource, limit: int) -> Resource:
    """A patch's outcome as if it had been sent whole: no longer and no deeper. Raises TooLarge, Unprocessable."""
    try:
        body = serialise(patched)
        if len(body) > limit:
            raise TooLarge(f"the patched resource may hold {limit} bytes", code="too-long")
        return parse(body)
    except (TypeError, Malformed) as error:  # the writer has a limit of nesting too
        raise Unprocessable("the patched resource is nested too deep", code="structure") from error


def _require_same(before: Resource, after: Any) -> None:
    if type(after) is not dict or after.get("resourceType") != before["resourceType"]:
        raise Unprocessable("a patch may not change what type of resource it is", code="business-rule",
                            expression="resourceType")
    for path in _IMMUTABLE:
        if _at(before, path) != _at(after, path):
            raise Unprocessable("a patch may not change what the server gave", code="business-rule",
                                expression=".".join((before["resourceType"], *path)))


def _at(value: Any, path: tuple[str, ...]) -> Any:
    for step in path:
        value = value.get(step) if type(value) is dict else None
    return value


def prepare(node: Node, caller: Caller, connection: apsw.Connection, type_: str, id_: str, change: Patch,
            expected: tuple[int, ...] | None, *, links: Links | None = None) -> Prepared:
    """Decide, patch and seal the next version. Raises Refused, PreconditionFailed, and what the change raises."""
    place = f"{type_}/{id_}"
    row = journal.current(connection, type_, id_)
    facts = (ResourceFacts(type=type_, id=id_, home_patients=(), author_client="", author_user=None) if row is None
             else node.gate.facts(connection, row))
    try:
        node.gate.require_scope(caller, type_, "u")
        node.gate.require_scope(caller, type_, "r")
    except Forbidden as error:
        raise Refused(Deny("scope", str(error)), facts, type_, placed=place) from error
    if row is None:
        raise Refused(Deny("permission", "there is nothing to patch"), facts, type_, placed=place)
    decision = node.gate.decide_version(connection, caller, "r", row)
    if isinstance(decision, Deny):
        raise Refused(decision, facts, type_, placed=place)
    if row.deleted:
        raise Answered("it is deleted", facts, Gone(f"{place} was deleted", version_id=row.vid))
    preconditions.require_match(row, expected)
    try:
        patched = change.apply(node, parse(node.versions.open(connection, row).stored))
        drafting.validated(node, patched, type_)
    except InputRefused as error:
        raise Answered("the patch cannot be applied", facts, error) from error
    made = drafting.draft(node, caller, patched, id_)
    return preparing.prepare_update(node, caller, connection, made, id_, row, None, links=links)


async def patch(node: Node, caller: Caller, type_: str, id_: str, change: Patch, *, if_match: str | None) -> Written:
    """Store the next version of ``id_``, changed. Raises NotFound, Gone, PreconditionFailed, Unprocessable."""
    expected = preconditions.expected_versions(if_match)

    async def attempt(caller: Caller) -> Written:
        try:
            prepared = await asyncio.to_thread(
                lambda: prepare(node, caller, node.database.reader, type_, id_, change, expected))
        except Refused as refused:
            raise await refusals.audited_refusal(node, caller, refused, "u", "patch") from None

        def work(connection: apsw.Connection) -> None:
            still(connection, caller)
            preparing.commit_prepared(connection, prepared)

        try:
            await aside.committed(node, aside.large_version(prepared.new), work)
        except Refused as refused:
            raise await refusals.audited_refusal(node, caller, refused, "u", "patch") from None
        assert prepared.written is not None  # noqa: S101  # an update always has an outcome
        return prepared.written
    return await node.decided(caller, attempt)
