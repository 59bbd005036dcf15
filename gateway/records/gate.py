"""The gate every interaction passes: facts and provisions gathered, ``decide`` asked, the answer audited.

Owns the way from stored rows to a Decision, the cache of provisions, and the audit rows of an outcome; refuses
to answer from a cache older than the caller's ``decision_seq`` (invariants 4, 5, 6, 8).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import apsw

from gateway.access.bound import Way, bound, scope_clauses
from gateway.access.decision import Decision, Deny, Permit, Request, decide, tells
from gateway.access.facts import Matcher, ResourceFacts
from gateway.access.grant import Grant
from gateway.access.provision import Provision
from gateway.access.roles import policy
from gateway.audit import CLIENT_ADDRESS, Audit, AuditEntry, SealedRow
from gateway.errors import Forbidden, KeyDestroyed, NotFound
from gateway.fhir.query import Facts, Query
from gateway.fhir.search import Plans, SearchMatcher, parse_query
from gateway.fhir.told_query import told_to
from gateway.records.versions import home_patients, stored_facts
from gateway.store import journal, provisions
from gateway.store.bound_sql import BoundCompiler, Compiled
from gateway.store.index import Index, SqlBound
from gateway.store.journal import PatientNames, VersionRow
from gateway.store.sql import now_ms

_CACHE_MAX = 50_000
_RECORDS_MAX = 1_000
_BOUNDS_MAX = 2_000
_QUERY_MAX = 4_096
"""Letters of a query an audit row holds: there is a row for each patient of a page."""
_HARMLESS = frozenset({"date", "number", "quantity", "token"})
_NAMING = frozenset({"_id", "identifier", "email", "phone", "telecom", "birthdate", "death-date"})
"""Parameters of those kinds that name a person all the same."""
NOBODY = "*nobody"
"""In place of a patient's logical id: no id can be this."""
_NO_SEQ = 0
_ACTIONS = {"c": "C", "r": "R", "u": "U", "d": "D", "s": "E"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who asks: the Grant as read at ``seq``, and how to read it again when revocations moved on."""

    grant: Grant
    seq: int
    again: Callable[[], Caller]

    @property
    def holder(self) -> str:
        """What a page link is bound to: who asks, for whom and with which scopes."""
        grant = self.grant
        return "|".join((grant.client_id, grant.user or "", grant.patient or "", grant.purpose, str(grant.scopes)))


class Viewing:
    """One caller's view of one type at one moment: ``decide`` for interaction ``s``, its bound worked out once.

    ``access/decision.py`` reads through the same bound, so that this is the same decision; a denial is asked of it
    again, for its reason.
    """

    def __init__(self, gate: Gate, connection: apsw.Connection, caller: Caller, type_: str) -> None:
        self._gate = gate
        self._connection = connection
        self._caller = caller
        self._bound = bound(caller.grant, type_, "s", now_ms(), chain_fresh=gate.chain_fresh(connection))

    @property
    def ways(self) -> tuple[Way, ...]:
        """The ways that may let a version of the type through; none: nothing is visible."""
        return () if self._bound.nothing else self._bound.ways

    def decide(self, facts: ResourceFacts, seq: int) -> Decision:
        """Whether this version may be seen."""
        provisions = self._gate.provisions(self._connection, self._caller, facts)
        matcher = self._gate.stored_matcher(self._connection, seq)
        admitted = self._bound.admit(facts, provisions, matcher)
        if admitted is None:
            return self._gate.decide(self._connection, self._caller, "s", stored=facts, stored_matcher=matcher)
        return Permit(admitted.basis, admitted.provision_ids,
                      tells(admitted.basis, self._caller.grant, bool(facts.home_patients), "s"))


@dataclass(frozen=True, slots=True)
class _Held:
    """What one patient permits and denies one holder; ``records``: more for single records, where there is any, kept as
    it was looked up."""

    names: Mapping[int, str]
    provisions: tuple[Provision, ...]
    records: dict[tuple[str, str], tuple[Provision, ...]] | None


@dataclass(frozen=True, slots=True)
class _Bound:
    """A bound's SQL, and what it was compiled from: the grant's very object, the caller's ``seq``, the chain."""

    grant: Grant
    seq: int
    fresh: bool
    sql: Compiled


class Gate:
    """Decides for one process; safe to share within its event loop and threads."""

    def __init__(self, *, index: Index, audit: Audit, plans: Plans, base_url: str) -> None:
        self._index = index
        self.audit = audit
        self._plans = plans
        self._base_url = base_url
        self._cache: dict[tuple[str, tuple[str, ...]], tuple[int, _Held]] = {}
        self._bounds: dict[tuple[str, str], _Bound] = {}
        self._criteria: dict[tuple[str, str, str], Query] = {}
        self._names = PatientNames()
        self._kinds: dict[str, bool] = {}
        self._fresh_until_ms = 0
        self._fresh_read_ms = 0

    def facts(self, reader: apsw.Connection, row: VersionRow) -> ResourceFacts:
        """What the decision needs of a stored version."""
        return stored_facts(reader, row, self._names)

    def patients(self, reader: apsw.Connection, row: VersionRow) -> tuple[str, ...]:
        """The home patients of a stored version: whose audit an access to it belongs to."""
        return home_patients(reader, row, self._names)

    def viewing(self, connection: apsw.Connection, caller: Caller, type_: str) -> Viewing:
        """The decision of a search, prepared once for all its matches."""
        return Viewing(self, connection, caller, type_)

    def provisions(self, connection: apsw.Connection, caller: Caller, *sides: ResourceFacts) -> list[Provision]:
        """What the home patients of these versions permit and deny this caller, as far as it may concern them."""
        found: list[Provision] = []
        grantees = caller.grant.grantees
        for reference in dict.fromkeys(home for side in sides for home in side.home_patients):
            known = self._cache.get((reference, grantees))
            if known is None or known[0] != caller.seq:
                if len(self._cache) >= _CACHE_MAX:
                    self._cache.clear()
                known = caller.seq, self._held(connection, reference, grantees)
                self._cache[reference, grantees] = known
            held = known[1]
            found += held.provisions
            if held.records is None:
                continue
            for name in dict.fromkeys((side.type, side.id) for side in sides):
                for_it = held.records.get(name)
                if for_it is None:
                    rows = provisions.of_record(connection, *name, reference.removeprefix("Patient/"), list(held.names))
                    for_it = tuple(row.for_holder(held.names) for row in rows)
                    if len(held.records) < _RECORDS_MAX:
                        held.records[name] = for_it
                found += for_it
        return found

    def _held(self, connection: apsw.Connection, reference: str, grantees: tuple[str, ...]) -> _Held:
        names = {self._index.grantee(grantee): grantee for grantee in grantees}
        patient, hashes, time = reference.removeprefix("Patient/"), list(names), now_ms()
        rows = provisions.for_holder(connection, patient, hashes, time)
        return _Held(names, tuple(row.for_holder(names) for row in rows),
                     {} if provisions.names_records(connection, patient, hashes, time) else None)

    def chain_fresh(self, connection: apsw.Connection) -> bool:
        """Whether the follower saw the chain's head recently enough for grants to count."""
        now = now_ms()
        if now - self._fresh_read_ms > 1000 or now > self._fresh_until_ms:
            value = connection.execute("SELECT value FROM setting WHERE name='chain_fresh_until_ms'").get
            self._fresh_until_ms = int(str(value)) if value is not None else 0
            self._fresh_read_ms = now
        return now < self._fresh_until_ms

    def decide(self, connection: apsw.Connection, caller: Caller, interaction: str, *,
               stored: ResourceFacts | None = None, proposed: ResourceFacts | None = None,
               stored_matcher: Matcher | None = None, proposed_matcher: Matcher | None = None,
               only_labels: bool = False, only_move: bool = False) -> Decision:
        """One decision at the caller's ``seq``."""
        grant = caller.grant
        sides = [side for side in (stored, proposed) if side is not None]
        return decide(
            Request(interaction=interaction,  # type: ignore[arg-type]  # one of its letters, chosen by our own code
                    stored=stored, proposed=proposed, chain_fresh=self.chain_fresh(connection),
                    stored_matcher=stored_matcher, proposed_matcher=proposed_matcher, only_labels=only_labels,
                    only_move=only_move),
            grant, self.provisions(connection, caller, *sides), now_ms())

    def decide_version(self, connection: apsw.Connection, caller: Caller, interaction: str,
                       row: VersionRow) -> Decision:
        """Whether a stored version may be read or found: an earlier one only by who may see the present one too, since
        a label or a home patient put right later counts for what was written before. Its author reads it back anyway.
        """
        decision = self._decide_row(connection, caller, interaction, row)
        if row.superseded is None or isinstance(decision, Deny) or decision.basis == "feed":
            return decision
        present = journal.current(connection, row.type, row.id)
        if present is None or present.seq == row.seq:
            return decision
        later = self._decide_row(connection, caller, interaction, present)
        return later if isinstance(later, Deny) else decision

    def decide_absent(self, connection: apsw.Connection, caller: Caller, interaction: str, type_: str,
                      id_: str) -> Decision:
        """What a record of a patient who granted nobody anything would be refused with: the same steps, so that their
        time does not tell that there is none. A Permit, of those whose role sees all, means nothing."""
        return self.decide(connection, caller, interaction, stored_matcher=self.stored_matcher(connection, _NO_SEQ),
                           stored=ResourceFacts(type=type_, id=id_, home_patients=(f"Patient/{NOBODY}",),
                                                author_client="", author_user=None))

    def _decide_row(self, connection: apsw.Connection, caller: Caller, interaction: str, row: VersionRow) -> Decision:
        return self.decide(connection, caller, interaction, stored=self.facts(connection, row),
                           stored_matcher=self.stored_matcher(connection, row.seq))

    def require_scope(self, caller: Caller, type_: str, letter: str) -> None:
        """Refuse as ``decide`` would whatever is there or not. Raises Forbidden outside the token's scopes."""
        role = policy().roles.get(caller.grant.role)
        if role is None or not scope_clauses(caller.grant, role, type_, letter):
            raise Forbidden(f"{type_}.{letter} is outside the token's scopes")

    def bound(self, connection: apsw.Connection, caller: Caller, type_: str) -> SqlBound:
        """What the caller may find of ``type_``. Raises Forbidden outside the token's scopes."""
        grant, time, fresh = caller.grant, now_ms(), self.chain_fresh(connection)
        # What a transaction has written itself may yet be taken back, and its row ids given to others.
        keeps = connection.txn_state() != apsw.SQLITE_TXN_WRITE
        known = self._bounds.get((grant.token_id, type_)) if keeps else None
        if (known is not None and known.grant is grant and known.seq == caller.seq and known.fresh == fresh
                and time < grant.expires_ms):
            return known.sql.at(time)
        found = bound(grant, type_, "s", time, chain_fresh=fresh)
        if found.outside_scopes:
            raise Forbidden(f"searching {type_} is outside the token's scopes")
        sql = BoundCompiler(connection, self._index.grantee, self._criterion_sql).compile(found)
        if keeps and sql.lasting:
            if len(self._bounds) >= _BOUNDS_MAX:
                self._bounds.clear()
            self._bounds[grant.token_id, type_] = _Bound(grant, caller.seq, fresh, sql)
        return sql.at(time)

    def scope_query(self, type_: str, name: str, value: str) -> Query:
        """A granular scope's criterion as a query."""
        key = (type_, name, value)
        known = self._criteria.get(key)
        if known is None:
            known = parse_query(self._plans, type_, [(name, value)], strict=True, own_bases=(self._base_url,),
                                max_count=1, now_ms=now_ms(), alone=True)
            if len(self._criteria) < _CACHE_MAX:
                self._criteria[key] = known
        return known

    def _criterion_sql(self, type_: str, name: str, value: str) -> SqlBound:
        return self._index.condition(self.scope_query(type_, name, value))

    def stored_matcher(self, connection: apsw.Connection, seq: int) -> Matcher:
        """Granular scopes against a stored version, through its index rows."""
        return lambda type_, name, value: self._index.matches(connection, self.scope_query(type_, name, value), seq)

    def proposed_matcher(self, facts: Facts, id_: str, updated_ms: int) -> Matcher:
        """Granular scopes against a resource that is not stored yet."""
        matcher = SearchMatcher(facts, logical_id=id_, last_updated_ms=updated_ms)
        return lambda type_, name, value: matcher.matches(self.scope_query(type_, name, value).criteria)

    def entries(self, caller: Caller, interaction: str, name: str, decision: Decision | None, *,
                what: Sequence[str], patients: Sequence[str], outcome: str | None = None,
                query: str | None = None) -> tuple[SealedRow, ...]:
        """The audit rows of one outcome: one for each patient concerned, or the custodian's own."""
        grant = caller.grant
        entry = AuditEntry(
            time_ms=now_ms(), action=_ACTIONS.get(interaction, "E"), interaction=name,
            outcome=outcome or ("4" if isinstance(decision, Deny) else "0"), what=tuple(what),
            client=grant.client_id, user=grant.user, role=grant.role, purpose=grant.purpose,
            basis=decision.basis if isinstance(decision, Permit) else None,
            reason=decision.reason if isinstance(decision, Deny) else grant.break_glass_reason,
            provisions=decision.provision_ids if isinstance(decision, Permit) else (), query=_told(query),
            operator=grant.minted_by_operator, token=grant.token_id,
            organizations=tuple([one for one in grant.grantees if one.startswith("Organization/")]),
            address=CLIENT_ADDRESS.get(), notify=decision is not None and decision.notify)
        if not patients:
            return (self.audit.seal(entry, None),)
        ids = [reference.removeprefix("Patient/") for reference in patients]
        if query is None:
            return tuple(self._of_patient(entry, id_) for id_ in ids)
        told = [told_to(query, id_, self._harmless) for id_ in ids]
        rows = tuple(self._of_patient(entry if one == query else replace(entry, query=_told(one)), id_)
                     for one, id_ in zip(told, ids, strict=True))
        # What no patient may be shown of it is kept, for those on duty.
        return rows if all(one == query for one in told) else (*rows, self.audit.seal(replace(entry, what=()), None))

    def _harmless(self, name: str) -> bool:
        """Whether values of a search parameter, on every type that has one of the name, can name nobody."""
        if not self._kinds:
            definitions = self._plans.definitions
            for type_ in definitions.resource_types:
                for code, parameter in definitions.search_parameters(type_).items():
                    harmless = parameter.type in _HARMLESS and code not in _NAMING
                    self._kinds[code] = harmless and self._kinds.get(code, True)
        return self._kinds.get(name, False)

    def _of_patient(self, entry: AuditEntry, patient: str) -> SealedRow:
        """A row of the patient's audit; once their keys are gone, of the custodian's own."""
        try:
            return self.audit.seal(entry, patient)
        except KeyDestroyed:
            return self.audit.seal(entry, None)


def _told(query: str | None) -> str | None:
    """The query as the audit holds it: of a longer one the beginning, and the hash that knows the whole again."""
    if query is None or len(query) <= _QUERY_MAX:
        return query
    return f"{query[:_QUERY_MAX]}... ({len(query)} letters, sha256 {hashlib.sha256(query.encode()).hexdigest()})"


def refusal(decision: Deny, what: str) -> Exception:
    """What the requester sees of a denial: 403 says nothing of existence, the rest looks like absent."""
    if decision.kind in ("scope", "authority"):
        return Forbidden(decision.reason)
    return NotFound(f"{what} is not known")

