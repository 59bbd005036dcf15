"""Acting: a person's portal session as the Caller of the gateway's own interactions.

Owns the Grant a page of the hospital asks with while it shows somebody a record; refuses a session that stands for
nobody. What such a Grant may see is decided like any other's: a page knows no more than the person may.
"""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request

from gateway.access.grant import Grant
from gateway.access.roles import policy
from gateway.access.scopes import ScopeSet, parse
from gateway.access.words import OF_A_PATIENT, YOURS, Voice, represented
from gateway.errors import Unauthenticated
from gateway.records.gate import Caller
from gateway.smart.authorization import standing_of
from gateway.smart.clients import Client
from gateway.smart.minting import grantees
from gateway.smart.sessions import Session
from gateway.store import journal
from gateway.web.portal.session import signed_in, smart_of

PORTAL = "portal"
"""The client that stands for the hospital's own pages; it has no registration and no secret."""
_LIFE_MS = 60_000
_PURPOSES = {"patient": "PATRQT", "delegate": "FAMRQT", "clinician": "TREAT"}
SHOWN = parse("user/Patient.rs user/Encounter.rs")
"""What choosing a patient and an encounter looks at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Emergency:
    """A broken glass: whose (None while that is looked up), and the reason given."""

    patient: str | None
    reason: str


def person(request: Request) -> Session:
    """The session of somebody known here. Raises Unauthenticated."""
    session = signed_in(request)
    if session is None or session.user is None or session.role is None:
        raise Unauthenticated("sign in with an account whose identity was proofed")
    return session


def voice_of(session: Session) -> Voice:
    """How a person is told whose records are meant."""
    if session.role == "patient":
        return YOURS
    return represented("the person you represent") if session.role == "delegate" else OF_A_PATIENT


def purposes_of(role: str, client: Client | None) -> tuple[str, ...]:
    """The purposes of use a person may let an app act for, the usual one first; an emergency's are not among them."""
    if role != "clinician" or client is None:
        return (_PURPOSES.get(role, "HOPERAT"),)
    table = policy()
    found = tuple(code for code in client.purposes if code in table.purposes and code not in table.break_glass_purposes)
    return found or (_PURPOSES[role],)


def caller_of(request: Request, client: Client | None, *, scopes: ScopeSet = SHOWN,
              emergency: Emergency | None = None) -> Caller:
    """The signed-in person as who asks, through the app they are about to let in, or for themselves.

    Raises Unauthenticated, Forbidden.
    """
    smart, session = smart_of(request), person(request)
    connection, now_ms = smart.database.reader, smart.now_ms()
    seq = journal.decision_seq(connection)  # before the standing: what moves in between is seen at the commit
    standing = standing_of(connection, str(session.user), now_ms)
    role, account = standing.role, standing.account
    grant = Grant(
        token_id=f"session-{session.id}", client_id=client.id if client else PORTAL, client_kind="app",
        user=session.user, role=role.name, scopes=scopes,
        patient=emergency.patient if emergency else account.represents,
        purpose="BTG" if emergency else purposes_of(role.name, client)[0],
        grantees=(str(session.user),) if client is None else grantees(
            client, session.user, role, account, smart.settings.hospital_reference),
        expires_ms=now_ms + _LIFE_MS, break_glass_reason=emergency.reason if emergency else None)
    return Caller(grant=grant, seq=seq,
                  again=lambda: caller_of(request, client, scopes=scopes, emergency=emergency))
