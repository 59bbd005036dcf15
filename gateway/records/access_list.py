"""Who has access, both ways: to whom a patient opened what, and which patients opened something to the one who asks.

Owns what each side is told: the patient (their delegate, the records office, the head) everything that was signed, how
and where the chain holds it; a grantee no more than what counts for them now, so that who ended or refused access looks
like somebody who was never here. Invariants 4, 5, 6 and 8.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import apsw
import orjson

from gateway.access.bound import scope_clauses
from gateway.access.decision import Permit
from gateway.access.period import MAX_MS, MIN_MS
from gateway.access.roles import policy
from gateway.access.terms import Terms, terms_of
from gateway.audit import SealedRow
from gateway.errors import Forbidden, InputRefused, NotFound
from gateway.fhir.resource import Resource, format_instant, parse, serialise
from gateway.records import gathering
from gateway.records.consent_standing import may, rules_of
from gateway.records.gate import Caller
from gateway.records.gathering import Permitted, disclosed
from gateway.records.node import Node
from gateway.records.paging import PageLink
from gateway.records.signing import names_of
from gateway.store import journal, outbox
from gateway.store.index import Cursor
from gateway.store.outbox import Intent
from gateway.store.sql import now_ms

_ENDED = frozenset({"inactive", "rejected", "entered-in-error"})
_SALT = bytes(32)
_GRANTS = """
SELECT p.pk, p.id, h.id, p.grantee, p.types, p.categories OR p.data, p.purposes, p.writes, p.valid_from_ms,
  p.valid_until_ms
FROM provision p JOIN patient h ON h.pk=p.patient
WHERE p.grantee IN (SELECT value FROM json_each(:mine)) AND p.state='final' AND p.permit=1 AND p.pk>:after
  AND p.valid_from_ms<=:now AND p.valid_until_ms>:now
  AND (:only IS NULL OR h.id IN (SELECT value FROM json_each(:only)))
  AND NOT EXISTS (SELECT 1 FROM provision d WHERE d.patient=p.patient AND d.permit=0 AND d.state<>'revoked'
    AND d.valid_from_ms<=:now AND d.valid_until_ms>:now
    AND (d.grantee IS NULL OR d.grantee IN (SELECT value FROM json_each(:everyone)))
    AND d.types IS NULL AND d.categories=0 AND d.data=0 AND d.low_ms IS NULL AND d.confidentiality=0
    AND (d.purposes IS NULL OR d.purposes LIKE :purpose) AND NOT (p.exception=1 AND p.consent=d.consent))
ORDER BY p.pk LIMIT :limit"""
Part = dict[str, Any]  # Any: one Parameters.parameter


async def of_patient(node: Node, caller: Caller, patient: str, *, count: int, page: str | None) -> bytes:
    """Parameters: ``granted``, ``inForce`` and ``pending`` count grants; one ``access`` for each Consent, newest first,
    and for whoever has access without one (delegates, apps in use); ``next`` where there are more.

    Raises NotFound, Forbidden, BadSearch (a page link that is none).
    """
    place = f"Patient/{patient}/$access-list"
    after = None if page is None else _opened(node, caller, place, page).cursor

    async def attempt(caller: Caller) -> bytes:
        await may(node, caller, patient, "s", "access-list")
        parameters, rows = await asyncio.to_thread(_of_patient, node, caller, patient, count, after)
        await disclosed(node, caller, rows)
        return serialise({"resourceType": "Parameters", "parameter": parameters})
    return await node.decided(caller, attempt)


def _of_patient(node: Node, caller: Caller, patient: str, count: int, after: Cursor | None) -> tuple[
        list[Part], tuple[SealedRow, ...]]:
    query = node.query("Consent", [("patient", f"Patient/{patient}"), ("_sort", "-_lastUpdated")], strict=True)
    with node.database.snapshot() as connection:
        found = list(islice(gathering.walk(node, caller, connection, query, snapshot=journal.head_seq(connection),
                                           after=after), count + 1))
        shown = found[:count]
        parameters = _counts(connection, patient)
        parameters += [_access(node, connection, one.found, parse(one.stored))
                       for one in gathering.open_all(node, connection, shown)]
        if after is None:
            parameters += _without_consent(connection, patient)
        rows = gathering.audit_rows(node, caller, connection, "access-list", shown, query="",
                                    about=f"Patient/{patient}")
    if len(found) > count:
        parameters.append(_next(node, caller, f"Patient/{patient}/$access-list", shown[-1].cursor))
    return parameters, rows


def _counts(connection: apsw.Connection, patient: str) -> list[Part]:
    now = now_ms()
    rows = connection.execute(
        "SELECT p.state, max(p.valid_from_ms<=? AND p.valid_until_ms>?) FROM patient h JOIN provision p "
        "ON p.patient=h.pk WHERE h.id=? AND p.permit=1 AND p.grant_id IS NOT NULL AND p.state<>'revoked' "
        "GROUP BY p.grant_id, p.state", (now, now, patient)).fetchall()
    return [{"name": "granted", "valueInteger": sum(state == "final" for state, _ in rows)},
            {"name": "inForce", "valueInteger": sum(state == "final" and bool(counts) for state, counts in rows)},
            {"name": "pending", "valueInteger": sum(state == "pending" for state, _ in rows)}]


def _access(node: Node, connection: apsw.Connection, found: Permitted, consent: Resource) -> Part:
    id_, now = found.row.id, now_ms()
    parts: list[Part] = [{"name": "consent", "valueReference": {
        "reference": f"Consent/{id_}/_history/{found.row.vid}"}}]
    try:
        rules = rules_of(node, consent)
    except InputRefused:  # a draft may be anything yet
        rules = ()
    signed = connection.execute("SELECT signer, address, user, signed_ms FROM consent_signature WHERE consent=?",
                                (id_,)).fetchone()
    parts.append({"name": "state", "valueCode": _state(connection, id_, consent, over=bool(rules) and all(
        rule.valid_until_ms <= now for rule in rules))})
    if rules:
        names = names_of(node, connection, rules)
        words: Terms = terms_of(rules, hospital=node.settings.hospital_name, names=names, salt=_SALT)
        parts.append({"name": "type", "valueCode": "permit" if rules[0].permit else "deny"})
        parts += [{"name": "grantee", "valueReference": _named(one.grantee, names)} for one in rules
                  if not one.exception and one.grantee is not None]
        parts += [{"name": name, "valueString": getattr(words, name)}
                  for name in ("statement", "purposes", "records", "period")]
        parts += _period(rules[0].valid_from_ms if rules[0].valid_from_ms > MIN_MS or signed is None
                         else int(signed[3]), rules[0].valid_until_ms)
    parts.append({"name": "basis", "valueCode": "grant"})
    if signed is not None:
        signer, account, user, signed_ms = signed
        parts += [{"name": "signer", "valueCode": signer}, {"name": "address", "valueString": account},
                  {"name": "signed", "valueInstant": format_instant(int(signed_ms))}]
        if user is not None:
            parts.append({"name": "signedBy", "valueReference": {"reference": user}})
    for name, kind in (("grant", "grant"), ("revocation", "revoke")):
        act = outbox.act_of_consent(connection, id_, kind)  # type: ignore[arg-type]  # one of its kinds
        if act is not None:
            parts.append({"name": name, "part": list(_chain(act))})
    if str(consent.get("status")) in _ENDED:
        parts.append({"name": "ended", "valueInstant": format_instant(found.row.updated_ms)})
    return {"name": "access", "part": parts}


def _state(connection: apsw.Connection, id_: str, consent: Resource, *, over: bool) -> str:
    """``draft``, ``proposed``, ``pending`` (signed, not final), ``active`` or ``ended``: what counts, whatever the
    Consent's own status already says."""
    states = {str(state) for (state,) in connection.execute("SELECT DISTINCT state FROM provision WHERE consent=?",
                                                            (id_,))}
    status = str(consent.get("status"))
    if status in _ENDED or over or (states == {"revoked"} and outbox.refusal_of_consent(connection, id_) is None):
        return "ended"
    if "pending" in states and outbox.grant_of_consent(connection, id_) is not None:
        return "pending"
    return "active" if "final" in states else status


def _chain(act: Intent) -> Iterator[Part]:
    yield {"name": "state", "valueCode": act.state}
    if act.tx_hash is not None:
        yield {"name": "transaction", "valueString": "0x" + act.tx_hash.hex()}
    if act.block_number is not None:
        yield {"name": "block", "valueInteger": act.block_number}
    if act.error is not None:
        yield {"name": "error", "valueCode": act.error}


def _without_consent(connection: apsw.Connection, patient: str) -> Iterator[Part]:
    """Whoever acts for the patient, and the apps they use."""
    now, own = now_ms(), f"Patient/{patient}"
    people = [own]
    for user, name, until_ms in connection.execute(
            "SELECT fhir_user, name, mandate_until_ms FROM account WHERE represents=? AND role='delegate' "
            "AND closed_ms IS NULL AND mandate_until_ms>?", (own, now)).fetchall():
        people.append(str(user))
        yield {"name": "access", "part": [
            {"name": "state", "valueCode": "active"}, {"name": "basis", "valueCode": "self"},
            {"name": "grantee", "valueReference": {"reference": user, "display": name}},
            *_period(MIN_MS, int(str(until_ms)))]}
    for user in people:
        for client, name, scope, consent, created_ms, expires_ms in connection.execute(
                "SELECT a.client, c.name, a.scope, a.consent, a.created_ms, a.expires_ms FROM authorization a "
                "LEFT JOIN client c ON c.id=a.client WHERE a.user=? AND a.revoked_ms IS NULL AND a.expires_ms>? "
                "ORDER BY a.created_ms DESC", (user, now)).fetchall():
            rests = [] if consent is None else [{"name": "consent", "valueReference": {
                "reference": f"Consent/{consent}"}}]
            yield {"name": "access", "part": [
                *rests, {"name": "state", "valueCode": "active"}, {"name": "basis", "valueCode": "app"},
                {"name": "grantee", "valueReference": {"reference": f"Device/{client}", **(
                    {"display": name} if name else {})}},
                {"name": "user", "valueReference": {"reference": user}},
                {"name": "records", "valueString": scope}, *_period(int(str(created_ms)), int(str(expires_ms)))]}


def _named(reference: str | None, names: Mapping[str, str]) -> dict[str, str]:
    name = names.get(reference or "")
    return {"reference": str(reference), **({"display": name} if name else {})}


def _period(from_ms: int, until_ms: int) -> list[Part]:
    return [*([{"name": "since", "valueDateTime": format_instant(from_ms)}] if from_ms > MIN_MS else []),
            *([{"name": "until", "valueDateTime": format_instant(until_ms)}] if until_ms < MAX_MS else [])]


async def of_holder(node: Node, caller: Caller, place: str, *, only: str | None, count: int,
                    page: str | None) -> bytes:
    """Parameters: one ``access`` for each grant that lets the caller in now, by the reference it names (``via``): the
    caller, their organisations, this hospital; of a system, its own client. ``only``: by this one.

    Raises Forbidden (outside the scopes, or a role no grant admits), NotFound (``only`` is not the caller's).
    """
    after = None if page is None else _opened(node, caller, place, page).cursor

    async def attempt(caller: Caller) -> bytes:
        role = policy().roles.get(caller.grant.role)
        node.gate.require_scope(caller, "Consent", "s")
        if role is None or not role.grant:
            raise Forbidden("no patient's grant admits this role")
        mine = [one for one in caller.grant.permitted_as if only in (None, one)]
        if not mine:
            raise NotFound(f"{only} is not known")
        parameters, rows = await asyncio.to_thread(_of_holder, node, caller, place, mine, count, after)
        await disclosed(node, caller, rows)
        return serialise({"resourceType": "Parameters", **({"parameter": parameters} if parameters else {})})
    return await node.decided(caller, attempt)


def _of_holder(node: Node, caller: Caller, place: str, mine: Sequence[str], count: int, after: Cursor | None) -> tuple[
        list[Part], tuple[SealedRow, ...]]:
    names = {node.index.grantee(one): one for one in mine}
    everyone = [node.index.grantee(one) for one in caller.grant.grantees]
    now, parameters = now_ms(), []
    told: dict[str, list[str]] = {}
    with node.database.snapshot() as connection:
        found = _grants(connection, caller, list(names), everyone, now, count + 1,
                        0 if after is None else after.seq) if node.gate.chain_fresh(connection) else []
        for _, id_, patient, grantee, types, categories, purposes, writes, from_ms, until_ms in found[:count]:
            told.setdefault(f"Patient/{patient}", []).append(str(id_))
            parts: list[Part] = [
                {"name": "patient", "valueReference": {"reference": f"Patient/{patient}"}},
                {"name": "via", "valueReference": {"reference": names[grantee]}},
                {"name": "basis", "valueCode": "grant"}, {"name": "writes", "valueBoolean": bool(writes)}]
            parts += [{"name": "type", "valueCode": one} for one in _split(types)]
            parts += [{"name": "purpose", "valueCode": one} for one in _split(purposes)]
            if categories:
                parts.append({"name": "someKinds", "valueBoolean": True})
            parameters.append({"name": "access", "part": parts + _period(int(from_ms), int(until_ms))})
        if len(found) > count:
            parameters.append(_next(node, caller, place, Cursor(None, int(found[count - 1][0]))))
    rows = tuple(row for patient, ids in told.items() for row in node.gate.entries(
        caller, "s", "access-list", Permit("grant", tuple(ids)), what=(patient,), patients=(patient,)))
    return parameters, rows or node.gate.entries(caller, "s", "access-list", None, what=("$access-list",), patients=(),
                                                 outcome="0")


def _grants(connection: apsw.Connection, caller: Caller, mine: Sequence[int], everyone: Sequence[int],
            now: int, limit: int, after: int) -> list[Any]:
    """Permits that count now, but of patients who deny the caller everything: they are not here."""
    role = policy().roles[caller.grant.role]
    clauses = [one for one in scope_clauses(caller.grant, role, "Consent", "s") if not one.criteria]
    if not clauses:
        return []
    only = None if any(one.patient is None for one in clauses) else [
        str(one.patient).removeprefix("Patient/") for one in clauses]
    found: list[Any] = connection.execute(
        _GRANTS, {"mine": _array(mine), "everyone": _array(everyone), "now": now, "after": after, "limit": limit,
                  "purpose": f"%|{caller.grant.purpose}|%", "only": None if only is None else _array(only)}).fetchall()
    return found


def _array(values: Sequence[int | str]) -> str:
    return orjson.dumps(values).decode()


def _split(text: object) -> list[str]:
    return [] if text is None else [part for part in str(text).split("|") if part]


def _next(node: Node, caller: Caller, place: str, cursor: Cursor) -> Part:
    link = PageLink(type=place, pairs=(), strict=True, snapshot=0, cursor=cursor,
                    expires_ms=now_ms() + node.settings.page_link_ttl_s * 1000)
    token = node.pages.seal(link, caller.holder)
    return {"name": "next", "valueUri": f"{node.settings.base_url}/{place}?_page={token}"}


def _opened(node: Node, caller: Caller, place: str, page: str) -> PageLink:
    link = node.pages.open(page, caller.holder, now_ms())
    if link.type != place:
        raise NotFound("the page link is of another list")
    return link
