"""AuditEvent as FHIR, made from audit rows when asked for.

Owns who may see one (its shape is in ``audit_shape.py``) and the receipt of its row; refuses to store one a second
time: the row is the truth. Ids are ``log-<row>``. https://hl7.org/fhir/R4/auditevent.html
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any
from urllib.parse import urlencode

import apsw
import orjson

from gateway import audit
from gateway.access.bound import AuthoredBy
from gateway.access.decision import Decision, Deny
from gateway.access.facts import ResourceFacts
from gateway.audit import Disclosure, StoredRow
from gateway.errors import BadSearch, Gone, KeyDestroyed, NotFound, TooCostly
from gateway.fhir.query import HashIs, Query
from gateway.fhir.resource import parse, serialise
from gateway.fhir.search import matches
from gateway.fhir.subset import Subset
from gateway.ledger.receipt import document
from gateway.ledger.receipts import build_audit_receipt
from gateway.records import audit_shape as shape
from gateway.records import search as resources
from gateway.records.gate import Caller, refusal
from gateway.records.node import Node
from gateway.records.read import append_alike
from gateway.store import journal

_ID = re.compile(r"log-([1-9][0-9]{0,14})")
_SCAN_LIMIT = 20_000
"""Most rows opened for one page: it may then hold fewer than asked, and links on."""
_AT_ONCE = 200


def is_ours(id_: str) -> bool:
    """Whether an AuditEvent id names an audit row."""
    return _ID.fullmatch(id_) is not None


def _modelled(made: dict[str, Any]) -> dict[str, Any]:
    """What this server composes itself passes the typed R4 model before it leaves; a failure is our defect."""
    from fhir.resources.R4B.auditevent import AuditEvent  # 30 MB, for the workers that show the audit

    AuditEvent.model_validate(made)
    return made


def _facts(row: StoredRow, patient: str | None) -> ResourceFacts:
    return ResourceFacts(type="AuditEvent", id=f"log-{row.seq}", author_client="", author_user=None,
                         period=(row.time_ms, row.time_ms + 1),
                         home_patients=(f"Patient/{patient}",) if patient else ())


def _opened(node: Node, where: shape.Setting, connection: apsw.Connection, row: StoredRow) -> dict[str, Any] | None:
    """The event, not checked against its model yet; None when an erasure destroyed its key."""
    try:
        return shape.event(row.seq, row.time_ms, node.gate.audit.open(row), _patient_id(connection, row), where)
    except KeyDestroyed:
        return None


def _where(node: Node, caller: Caller, connection: apsw.Connection) -> shape.Setting:
    """The hospital's own names: of accounts it proofed and of clients it registered, each looked up once."""
    @cache
    def name(key: str) -> str | None:
        if key == node.settings.hospital_reference:
            return node.settings.hospital_name
        table = ("SELECT name FROM account WHERE fhir_user=?" if "/" in key else "SELECT name FROM client WHERE id=?")
        for (found,) in connection.execute(table, (key,)):
            return str(found)
        return None

    settings = node.settings
    return shape.Setting(hospital=settings.hospital_name, reference=settings.hospital_reference,
                         base_url=settings.base_url, name=name,
                         on_duty=caller.grant.role == "privacy-officer")


def _patient_id(connection: apsw.Connection, row: StoredRow) -> str | None:
    return journal.patient_id(connection, row.patient) if row.patient is not None else None


def find(node: Node, caller: Caller, connection: apsw.Connection, id_: str) -> StoredRow:
    """The row behind an AuditEvent id, if the caller may see it. Raises NotFound, Forbidden."""
    row, decision = _decided(node, caller, connection, id_)
    if row is None or isinstance(decision, Deny):
        raise _refusal(decision, id_)
    return row


def _decided(node: Node, caller: Caller, connection: apsw.Connection, id_: str) -> tuple[StoredRow | None, Decision]:
    """The row behind an id, and the decision to read it: of what is not there, that of a row of nobody's."""
    match = _ID.fullmatch(id_)
    row = audit.row(connection, int(match[1])) if match else None
    if row is None:
        return None, node.gate.decide_absent(connection, caller, "r", "AuditEvent", id_)
    return row, node.gate.decide(connection, caller, "r", stored=_facts(row, _patient_id(connection, row)))


def _refusal(decision: Decision, id_: str) -> Exception:
    what = f"AuditEvent/{id_}"
    return refusal(decision, what) if isinstance(decision, Deny) else NotFound(f"{what} is not known")


async def _permitted(node: Node, caller: Caller, connection: apsw.Connection, id_: str, vid: int | None) -> StoredRow:
    """The row, if the caller may read it; a refusal is audited first, once, with whom the row is about."""
    row, decision = _decided(node, caller, connection, id_)
    if row is not None and vid not in (None, 1):
        row, decision = None, node.gate.decide_absent(connection, caller, "r", "AuditEvent", id_)
    if row is not None and not isinstance(decision, Deny):
        return row
    patient = None if row is None else _patient_id(connection, row)
    rows = node.gate.entries(caller, "r", "read" if vid is None else "vread", decision if row is not None else None,
                             what=(f"AuditEvent/{id_}",), patients=(f"Patient/{patient}",) if patient else (),
                             outcome="4")
    await node.commits.commit(
        lambda tx: append_alike(tx, rows) if patient is None else audit.append(tx, rows))
    raise _refusal(decision, id_)


async def read(node: Node, caller: Caller, id_: str, vid: int | None = None) -> bytes:
    """One AuditEvent, which has one version. Raises NotFound, Forbidden, Gone."""
    async def attempt(caller: Caller) -> bytes:
        await asyncio.to_thread(node.disclosures.settle)
        connection = node.database.reader
        row = await _permitted(node, caller, connection, id_, vid)
        made = _opened(node, _where(node, caller, connection), connection, row)
        await _told(node, caller, [f"AuditEvent/{id_}"], None)
        if made is None:
            raise Gone(f"AuditEvent/{id_} was erased", version_id=1)
        return serialise(_modelled(made))
    return await node.decided(caller, attempt)


async def search(node: Node, caller: Caller, pairs: Sequence[tuple[str, str]], *, strict: bool) -> bytes:
    """AuditEvents that may be seen, newest first. Raises BadSearch, Forbidden, TooCostly."""
    if any(name == resources.PAGE for name, _ in pairs):
        return await resources.search(node, caller, "AuditEvent", pairs, strict=strict)
    below = 2**62
    kept = []
    for name, value in pairs:
        if name == "_below" and value.isdecimal() and len(value) < 16:
            below = int(value)
        elif name != "_sort" or value not in ("-date", "-_lastUpdated"):
            kept.append((name, value))
    query = node.query("AuditEvent", kept, strict=strict)
    if query.sort:
        raise BadSearch("AuditEvents come newest first: _sort=-date", code="not-supported", expression="http._sort")
    if query.results.includes:
        raise BadSearch("AuditEvents are shown without what they name", code="not-supported",
                        expression="http._revinclude" if query.results.includes[0].reverse else "http._include")
    if query.results.total not in (None, "none"):
        raise BadSearch("AuditEvents are counted by _summary=count", code="not-supported", expression="http._total")
    bundle = await node.decided(caller, lambda now: _page(node, now, query, below))
    if not any(link["relation"] == "next" for link in bundle["link"]) and _any_stored(node):
        _append(bundle, parse(await resources.search(node, caller.again(), "AuditEvent", kept, strict=strict)))
    return serialise(bundle)


def _any_stored(node: Node) -> bool:
    """Whether a client ever wrote an AuditEvent of its own here."""
    return node.database.reader.execute("SELECT 1 FROM version WHERE type='AuditEvent' LIMIT 1").get is not None


def _append(bundle: dict[str, Any], stored: dict[str, Any]) -> None:
    """After this server's own events come those clients wrote, with their own page link."""
    if stored.get("entry"):
        bundle["entry"] = bundle.get("entry", []) + stored["entry"]
    bundle["link"] += [link for link in stored["link"] if link["relation"] == "next"]
    own, others = bundle.pop("total", None), stored.get("total")
    if own is not None and others is not None:
        bundle["total"] = own + others


async def _page(node: Node, caller: Caller, query: Query, below: int) -> dict[str, Any]:
    # Many rows may be opened: not on the event loop's thread.
    found, following = await asyncio.to_thread(_found, node, caller, query, below)
    found.sort(key=lambda made: str(made["recorded"]), reverse=True)  # a row may enter the chain a moment late
    await _told(node, caller, [f"AuditEvent/{made['id']}" for made in found[:1]], urlencode(query.used))
    base = f"{node.settings.base_url}/AuditEvent"
    bundle: dict[str, Any] = {"resourceType": "Bundle", "type": "searchset",
                              "link": [{"relation": "self", "url": f"{base}?{urlencode(query.used)}".rstrip("?")}]}
    if query.summary_count:
        return {**bundle, "total": len(found)}
    found = [_modelled(made) for made in found]
    if following is not None:
        pairs = [*query.used, ("_below", str(following))]
        bundle["link"].append({"relation": "next", "url": f"{base}?{urlencode(pairs)}"})
    elif below == 2**62 and query.results.total is None:
        bundle["total"] = len(found)
    if query.results.subset:
        subset = Subset(node.definitions, query.results, (query.type,))
        found = [subset.of(made) for made in found]
    if found:
        bundle["entry"] = [{"fullUrl": f"{base}/{made['id']}", "resource": made, "search": {"mode": "match"}}
                           for made in found]
    return bundle


def _found(node: Node, caller: Caller, query: Query, below: int) -> tuple[list[dict[str, Any]], int | None]:
    node.disclosures.settle()
    with node.database.snapshot() as connection:
        node.gate.bound(connection, caller, "AuditEvent")
        # No client wrote these rows, so a feed's way to what it wrote itself leads to none.
        ways = [way for way in node.gate.viewing(connection, caller, "AuditEvent").ways
                if not isinstance(way, AuthoredBy)]
        return _scan(node, caller, connection, query, below) if ways else ([], None)


def _scan(node: Node, caller: Caller, connection: apsw.Connection, query: Query,
          below: int) -> tuple[list[dict[str, Any]], int | None]:
    """Matches newest first, and where to go on. Raises TooCostly for a count past the scan limit."""
    patient, where = _patient_of(connection, caller, query), _where(node, caller, connection)
    wanted = None if query.summary_count else query.count
    found: list[dict[str, Any]] = []
    scanned = 0
    while True:
        rows = (audit.rows_of_all(connection, below=below, limit=_AT_ONCE) if patient is None
                else audit.rows_of_patient(connection, patient, below=below, limit=_AT_ONCE))
        for row in rows:
            below = row.seq
            if isinstance(node.gate.decide(connection, caller, "s", stored=_facts(row, _patient_id(connection, row))),
                          Deny):
                continue
            made = _opened(node, where, connection, row)
            if made is None or not matches(query.criteria, node.extractor.facts(made), made["id"], row.time_ms):
                continue
            if len(found) == wanted:
                return found, int(found[-1]["id"].removeprefix("log-"))
            found.append(made)
        scanned += len(rows)
        if len(rows) < _AT_ONCE:
            return found, None
        if scanned >= _SCAN_LIMIT:
            if wanted is not None:
                return found, below
            raise TooCostly(f"more than {_SCAN_LIMIT} audit rows would be opened to be counted; name a patient",
                            code="too-costly")


def _patient_of(connection: apsw.Connection, caller: Caller, query: Query) -> int | None:
    """The one patient whose rows can match, or None for everyone's (an officer's search)."""
    own = caller.grant.self_patient
    named = [predicate.text for criterion in query.criteria if not criterion.negated and len(criterion.any_of) == 1
             for predicate in criterion.any_of
             if isinstance(predicate, HashIs) and predicate.key.split(".")[1] in ("patient", "entity")]
    for text in [own or "", *named]:
        match = re.search(r"Patient/([A-Za-z0-9\-.]{1,64})", text)
        if match:
            return journal.patient_pk(connection, match[1]) or -1
    return None


async def _told(node: Node, caller: Caller, what: list[str], query: str | None) -> None:
    """Reading the audit is audited in the custodian's own rows, not again in the patient's."""
    rows = node.gate.entries(caller, "s" if query is not None else "r", "search-type" if query is not None else "read",
                             None, what=what or ["AuditEvent"], patients=(), outcome="0", query=query)
    await node.disclosures.join(Disclosure(caller.seq, rows))


async def history_of(node: Node, caller: Caller, patient: str, pairs: Sequence[tuple[str, str]], *,
                     strict: bool) -> bytes:
    """``$access-history``: the AuditEvents about one patient, newest first, each with a sentence to read.

    Raises as a search does.
    """
    found = parse(await search(node, caller, [("patient", f"Patient/{patient}"), *pairs], strict=strict))
    connection = node.database.reader
    where = _where(node, caller, connection)
    for entry in found.get("entry", ()):
        match = _ID.fullmatch(entry["resource"]["id"])
        row = audit.row(connection, int(match[1])) if match else None
        if row is not None:
            said = shape.sentence(row.time_ms, node.gate.audit.open(row), patient, where)
            entry["resource"] = {**entry["resource"], "text": shape.narrative(said)}
    return serialise(found)


async def receipt(node: Node, caller: Caller, id_: str) -> bytes | None:
    """The receipt of an audit row; None while the run of rows that holds it is not anchored yet.

    The run itself, which holds others' rows beside it, is given to those on duty alone: to a patient, the place and the
    hash of their row in it. Raises as ``read`` does.
    """
    await read(node, caller, id_)

    def work() -> bytes | None:
        with node.database.snapshot() as connection:
            row = find(node, caller, connection, id_)
            made = build_audit_receipt(node.proofs, connection, id_, row.seq, row.hash)
            if made is None:
                return None
            if made.row is not None and caller.grant.role != "privacy-officer":
                made = replace(made, row=replace(made.row, run=None))
            return orjson.dumps(document(made))
    return await asyncio.to_thread(work)
