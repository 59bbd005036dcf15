"""Proofing: who a waiting login really is, said by the head or the records office.

Owns the list of those who wait, verifying (a login is bound to a person of this hospital) and rejecting (with a
reason); refuses who may not say it, staff without a second factor, and a person this hospital has no record of. What
was given for matching is forgotten once it is decided. NIST SP 800-63A.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import apsw

from gateway.audit import AuditEntry
from gateway.errors import Conflict, Forbidden, NotFound, Unprocessable
from gateway.smart import logins, sessions
from gateway.smart.accounts import check_user, find_account, put_user
from gateway.smart.issuer import Smart

OPERATOR: Final = "operator"
"""The ``role`` of who decides on the command line."""
_MAY: Final = {"patient": frozenset({"privacy-officer", "records-office", OPERATOR}),
               "clinician": frozenset({"privacy-officer", OPERATOR})}
_TYPES: Final = {"patient": "Patient", "clinician": "Practitioner"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A login that waits. ``factors``: what it can sign in with; ``upstream``: (issuer, subject) where it came so."""

    id: str
    name: str
    shown: str
    wanted: str
    birth_date: str
    identifier: str
    factors: tuple[str, ...]
    upstream: tuple[str, str] | None
    created_ms: int

    @property
    def is_ready(self) -> bool:
        """Whether it has the factors its role needs."""
        return sessions.is_enough(self.wanted, self.factors)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decider:
    """Who decides: ``user`` is a fhirUser, None on the command line, where ``role`` is ``OPERATOR``."""

    user: str | None
    role: str


def may_see(role: str | None) -> bool:
    """Whether a role has anything to do with waiting logins."""
    return any(role in roles for roles in _MAY.values())


def waiting(smart: Smart, decider: Decider, *, limit: int = 500) -> tuple[Waiting, ...]:
    """Whom this decider may decide on, who waited longest first; audited. Raises Forbidden."""
    if not may_see(decider.role):
        raise Forbidden("this is for the privacy officer and the records office")
    wanted = [role for role, roles in _MAY.items() if decider.role in roles]
    marks = ",".join("?" * len(wanted))

    def work(connection: apsw.Connection) -> tuple[Waiting, ...]:
        found = tuple(
            _waiting(connection, smart, str(login_id)) for (login_id,) in connection.execute(
                f"SELECT id FROM login WHERE state='waiting' AND wanted IN ({marks}) "  # noqa: S608
                "ORDER BY created_ms, id LIMIT ?", (*wanted, limit)).fetchall())
        _audit(smart, connection, "proofing-list", "R", decider, tuple(f"login {one.id}" for one in found[:50]))
        return found
    return smart.database.transact(work)


def find_waiting(connection: apsw.Connection, smart: Smart, login_id: str) -> Waiting:
    """One of them. Raises NotFound. The caller has asked who may see it."""
    login = logins.find_login(connection, login_id)
    if login is None or login.state != "waiting":
        raise NotFound("nobody waits under this id")
    return _waiting(connection, smart, login_id)


def verify(smart: Smart, login_id: str, *, fhir_user: str, decider: Decider,
           organizations: Sequence[str] = ()) -> None:
    """Bind a waiting login to ``Patient/ID`` or ``Practitioner/ID``, opening the account where there is none.

    Raises Forbidden, NotFound, Conflict, Unprocessable.
    """
    smart.database.transact(lambda connection: verify_within(
        connection, smart, login_id, fhir_user=fhir_user, decider=decider, organizations=organizations))


def verify_within(connection: apsw.Connection, smart: Smart, login_id: str, *, fhir_user: str, decider: Decider,
                  organizations: Sequence[str] = ()) -> None:
    """``verify`` inside the open transaction."""
    now_ms = smart.now_ms()
    login = _decidable(connection, login_id, decider)
    # 1. Nobody says who they themselves are. 2. The person is of the kind that was asked for, and known here.
    if decider.user is not None and decider.user == fhir_user:
        raise Forbidden("nobody verifies a login of their own")
    if check_user(fhir_user) != _TYPES[login.wanted]:
        raise Unprocessable(f"a {login.wanted} is {_TYPES[login.wanted]}/ID")
    if not _is_known(connection, fhir_user):
        raise Unprocessable(f"this hospital has no record of {fhir_user}: write it first")
    # 3. Staff have a second factor before they stand for anybody.
    if not sessions.is_enough(login.wanted, logins.factors_of(connection, login)):
        raise Conflict("this login has no second factor yet: they sign in and set one up first")
    # 4. An account that is there keeps its standing; a login opens none that was closed, and changes no role.
    account = find_account(connection, fhir_user)
    if account is None:
        put_user(connection, fhir_user=fhir_user, role=login.wanted, name=login.shown, organizations=organizations,
                 now_ms=now_ms)
    elif account.closed_ms is not None:
        raise Conflict("the account of this person is closed: open it first with `gateway user add`")
    elif account.role not in (login.wanted,):
        raise Conflict(f"this person's account has the role {account.role}: only the operator gives it a login")
    # 5. A session from before gains nothing: they sign in anew.
    sessions.end_all(connection, login_id, now_ms)
    connection.execute("UPDATE login SET state='verified', fhir_user=?, matching=NULL, source=NULL, decided_ms=?, "
                       "decided_by=? WHERE id=?", (fhir_user, now_ms, decider.user or "cli", login_id))
    _audit(smart, connection, "proofing-verify", "U", decider, (f"login {login_id}", fhir_user))


def reject(smart: Smart, login_id: str, *, reason: str, decider: Decider) -> None:
    """Refuse a waiting login, which the person is told with the reason. Raises Forbidden, NotFound, Unprocessable."""
    smart.database.transact(lambda connection: reject_within(
        connection, smart, login_id, reason=reason, decider=decider))


def reject_within(connection: apsw.Connection, smart: Smart, login_id: str, *, reason: str,
                  decider: Decider) -> None:
    """``reject`` inside the open transaction."""
    said = " ".join(reason.split())
    if not said or len(said) > 500 or not said.isprintable():
        raise Unprocessable("a rejection needs a reason of at most 500 characters")
    _decidable(connection, login_id, decider)
    connection.execute("UPDATE login SET state='rejected', reason=?, matching=NULL, source=NULL, decided_ms=?, "
                       "decided_by=? WHERE id=?", (said, smart.now_ms(), decider.user or "cli", login_id))
    _audit(smart, connection, "proofing-reject", "U", decider, (f"login {login_id}",), reason=said)


def _decidable(connection: apsw.Connection, login_id: str, decider: Decider) -> logins.Login:
    login = logins.find_login(connection, login_id)
    if not may_see(decider.role):
        raise Forbidden("this is for the privacy officer and the records office")
    if login is None or login.state != "waiting":
        raise NotFound("nobody waits under this id")
    if decider.role not in _MAY.get(login.wanted, frozenset()):
        raise Forbidden(f"a {login.wanted} is verified by the privacy officer")
    return login


def _waiting(connection: apsw.Connection, smart: Smart, login_id: str) -> Waiting:
    login = logins.find_login(connection, login_id)
    if login is None:
        raise NotFound("nobody waits under this id")
    birth_date, identifier = logins.matching_of(connection, smart, login_id)
    upstream = connection.execute("SELECT issuer, subject FROM upstream_identity WHERE login=? LIMIT 1",
                                  (login_id,)).fetchall()
    return Waiting(id=login.id, name=login.name, shown=login.shown, wanted=login.wanted, birth_date=birth_date,
                   identifier=identifier, factors=logins.factors_of(connection, login),
                   upstream=(str(upstream[0][0]), str(upstream[0][1])) if upstream else None,
                   created_ms=login.created_ms)


def _is_known(connection: apsw.Connection, fhir_user: str) -> bool:
    type_, _, id_ = fhir_user.partition("/")
    return bool(connection.execute(
        "SELECT 1 FROM version WHERE type=? AND id=? AND superseded IS NULL AND deleted=0", (type_, id_)).fetchall())


def _audit(smart: Smart, connection: apsw.Connection, interaction: str, action: str, decider: Decider,
           what: tuple[str, ...], *, reason: str | None = None) -> None:
    patient = next((one.removeprefix("Patient/") for one in what if one.startswith("Patient/")), None)
    smart.audit(connection, AuditEntry(
        time_ms=smart.now_ms(), action=action, interaction=interaction, outcome="0", what=what,
        client="cli" if decider.user is None else "portal", user=decider.user, role=decider.role, purpose="HOPERAT",
        reason=reason, operator=decider.user is None), patient)
