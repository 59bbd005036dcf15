"""Subscriptions written and asked about: the rules of the type, and ``$status``.

Owns what a client may do to a Subscription and the row its delivery begins with, in the commit of the version that asks
for it; refuses a state that is the server's to give, and an endpoint that is not allowed. What one tells:
``subscription_events.py``; when: ``deliveries.py``.
https://hl7.org/fhir/R4/subscription.html
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import apsw
import orjson

from gateway.access.decision import Deny
from gateway.access.roles import policy
from gateway.errors import BadSearch, Conflict, Throttled, Unprocessable
from gateway.fhir.query import Query
from gateway.fhir.resource import Resource, parse
from gateway.fhir.subscriptions import State, Topic, Wanted, may_write, status_parameters, told, topics, wanted
from gateway.records import endpoints
from gateway.records.gate import Caller
from gateway.records.gathering import Permitted, audit_rows, disclosed
from gateway.records.node import Hook, Node, TypeRules
from gateway.records.versions import Draft
from gateway.store import journal, subscriptions
from gateway.store.index import Cursor
from gateway.store.journal import VersionRow
from gateway.store.sql import now_ms
from gateway.store.subscriptions import Standing

OWNED_MAX: Final = 100
"""Most Subscriptions of one client and user that are not off."""


@lru_cache(maxsize=4)
def _topics(types: frozenset[str]) -> dict[str, Topic]:
    return dict(topics(types))


def read_wanted(node: Node, resource: Resource) -> Wanted:
    """What a Subscription asks for. Raises Unprocessable."""
    types = frozenset(node.definitions.resource_types)
    return wanted(resource, types, _topics(types))


def query_of(node: Node, asked: Wanted) -> Query | None:
    """What each resource must meet; None: anything. Raises Unprocessable."""
    if not asked.filters:
        return None
    return node.query_alone(asked.type, asked.filters)


def settle(node: Node, caller: Caller, old: Resource | None, new: Resource) -> Resource:
    """What a client asks for carries no error of the server's."""
    if new.get("status") not in ("requested", "off") or "error" not in new:
        return new
    return {name: value for name, value in new.items() if name not in ("error", "_error")}


def check_write(node: Node, caller: Caller, old: Resource | None, new: Resource) -> Hook | None:
    """What a client may ask for, and the row that begins or ends its delivery. Raises Unprocessable with the place."""
    if not may_write(old, new):
        raise Unprocessable("a client asks (requested) or switches off; the other states are the server's to give",
                            code="business-rule", expression="Subscription.status")
    id_ = str(new["id"])
    if new["status"] == "off":
        return lambda tx: subscriptions.switch_off(tx, id_)
    if new["status"] != "requested":
        return None
    grant = caller.grant
    if grant.purpose in policy().break_glass_purposes:
        raise Unprocessable("a broken glass opens for as long as its token lives, no longer", code="business-rule",
                            expression="Subscription")
    asked = read_wanted(node, new)
    try:
        query_of(node, asked)
    except BadSearch as error:
        raise Unprocessable("the criteria cannot be asked of one resource alone", code="not-supported",
                            expression="Subscription.criteria") from error
    endpoints.check(node.settings.subscription_hosts, asked.endpoint)
    node.gate.require_scope(caller, asked.type, "s")

    def hook(tx: apsw.Connection) -> None:
        others = [one for one in subscriptions.of_owner(tx, grant.client_id, grant.user)
                  if one.id != id_ and one.state != "off"]
        if len(others) >= OWNED_MAX:
            raise Throttled(f"{OWNED_MAX} of your subscriptions stand already: switch one off")
        subscriptions.begin(tx, id_=id_, client=grant.client_id, user=grant.user, token=grant.token_id)
    return hook


def check_deletion(node: Node, connection: apsw.Connection, row: VersionRow) -> Hook | None:
    """Deleting it ends its delivery."""
    return lambda tx: subscriptions.forget(tx, row.id)


RULES = TypeRules(check_write=check_write, check_deletion=check_deletion, settle=settle)


def show(node: Node, at: Standing, state: State, error: str | None, *, cursor: int, failures: int,
         next_ms: int, events: Sequence[int] = ()) -> bool:
    """Move the row, and write the version that shows a new state, in one commit; whether it was still so. Blocking."""
    connection = node.database.reader
    row = journal.current(connection, "Subscription", at.id)
    new = None
    if row is not None and not row.deleted:
        resource = parse(node.versions.open(connection, row).stored)
        if (resource.get("status"), resource.get("error")) != (state, error):
            shown = told(resource, state, error)
            made = Draft(resource=shown, access=node.gate.facts(connection, row), search=node.extractor.facts(shown))
            new, _ = node.versions.seal(made, id_=at.id, vid=row.vid + 1, updated_ms=now_ms(), client=row.client,
                                        user=row.user)

    def work(tx: apsw.Connection) -> bool:
        if not subscriptions.move(tx, at, state=state, cursor=cursor, failures=failures, next_ms=next_ms,
                                  events=events):
            return False
        if new is not None:
            journal.append(tx, new)
        return True
    try:
        return node.database.transact(work)
    except Conflict:
        return False


async def status(node: Node, caller: Caller, ids: Sequence[str], states: Sequence[str]) -> bytes:
    """``$status``: the SubscriptionStatus of one's own Subscriptions, of those named or of all. Raises Forbidden."""
    node.gate.require_scope(caller, "Subscription", "r")

    async def attempt(caller: Caller) -> bytes:
        connection, grant = node.database.reader, caller.grant
        entries, found = [], []
        for at in subscriptions.of_owner(connection, grant.client_id, grant.user):
            row = journal.current(connection, "Subscription", at.id)
            if (ids and at.id not in ids) or (states and at.state not in states) or row is None or row.deleted:
                continue
            decision = node.gate.decide_version(connection, caller, "r", row)
            if isinstance(decision, Deny):
                continue
            resource = parse(node.versions.open(connection, row).stored)
            found.append(Permitted(row, decision, Cursor(None, row.seq)))
            parameters = status_parameters(
                "query-status", base=node.settings.base_url, id_=at.id, topic=read_wanted(node, resource).topic,
                state=at.state, count=at.delivered, error=resource.get("error"))
            entries.append({"fullUrl": f"urn:uuid:{parameters['id']}", "resource": parameters,
                            "search": {"mode": "match"}})
        await disclosed(node, caller, audit_rows(node, caller, connection, "subscription-status", found, query="",
                                                 about="Subscription"))
        return orjson.dumps({"resourceType": "Bundle", "type": "searchset", "total": len(entries),
                             "link": [{"relation": "self", "url": f"{node.settings.base_url}/Subscription/$status"}],
                             **({"entry": entries} if entries else {})})
    return await node.decided(caller, attempt)
