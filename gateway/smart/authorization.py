"""Authorizations: what a person let an app do, and everything that hangs on it.

Owns approving and refusing a pending authorization, the list a person sees of theirs, and the end of one, which ends
its codes, refresh tokens and access tokens at once on every worker; refuses more than was asked, than the role may, or
for another patient than the person's own or the launch's. https://www.rfc-editor.org/rfc/rfc6749#section-4.1.2,
https://www.rfc-editor.org/rfc/rfc9207
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import apsw

from gateway.access.roles import Role, policy
from gateway.access.scopes import ScopeSet, parse
from gateway.audit import AuditEntry
from gateway.errors import Conflict, Forbidden, OAuthError, Unauthenticated, Unprocessable
from gateway.smart.accounts import REFERENCE, Account, find_account
from gateway.smart.issuer import Smart
from gateway.smart.pending import PendingAuthorization, find, pending, use_up
from gateway.smart.redirects import is_native, redirect
from gateway.smart.sessions import LIFE_MS as SESSION_LIFE_MS
from gateway.smart.sessions import Session, require_open
from gateway.smart.tokens import Secret, revoke_of_authorization
from gateway.store import provisions

__all__ = ["Access", "Authorization", "PendingAuthorization", "answer_silently", "approve", "authorizations_about",
           "authorizations_of", "authorizations_on", "find_authorization", "pending", "refuse", "revoke_authorization",
           "revoke_session"]

Access = Literal["online", "offline"]
CODE_PREFIX: Final = "gwc_"
CODE_LIFE_MS: Final = 120_000
TOKEN_LIFE_MS: Final = 3_600_000
OFFLINE_LIFE_MS: Final = 100 * 24 * 3_600_000
"""How long an unused refresh token of offline access lives; each use starts it anew."""
ERRORS: Final = frozenset({"access_denied", "login_required", "consent_required", "interaction_required",
                           "account_selection_required", "invalid_scope", "invalid_request", "server_error",
                           "temporarily_unavailable"})
_COLUMNS: Final = ("id, client, user, session, scope, v1, patient, encounter, purpose, reason, access, consent, "
                   "launch, nonce, auth_time_ms, created_ms, used_ms, expires_ms, revoked_ms")


@dataclass(frozen=True, slots=True, kw_only=True)
class Authorization:
    """What a person let an app do. ``launch``: ``fhirContext``, ``need_patient_banner`` and ``intent``.

    ``access``: how its refresh tokens live, None where there are none; ``v1``: its scope is told in v1 words.
    """

    id: str
    client: str
    user: str
    session: str
    scopes: ScopeSet
    v1: bool
    patient: str | None
    encounter: str | None
    purpose: str
    reason: str | None
    access: Access | None
    consent: str | None
    launch: Mapping[str, Any]
    nonce: str | None = field(repr=False)
    auth_time_ms: int
    created_ms: int
    used_ms: int
    expires_ms: int
    revoked_ms: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Who a person is here at this moment."""

    account: Account
    role: Role


def standing_of(connection: apsw.Connection, user: str, now_ms: int) -> Standing:
    """The account and role behind a ``fhirUser``. Raises Forbidden where nobody stands behind it now."""
    account = find_account(connection, user)
    if account is None or account.closed_ms is not None:
        raise Forbidden("there is no account to act for")
    if account.mandate_until_ms is not None and account.mandate_until_ms <= now_ms:
        raise Forbidden("the mandate has ended")
    return Standing(account=account, role=policy().roles[account.role])


def approve(smart: Smart, handle: str, *, session: Session, scopes: ScopeSet, patient: str | None,
            encounter: str | None, purpose: str, reason: str | None, offline: Access | None,
            consent: str | None = None) -> str:
    """Let the app have ``scopes``; the URL that takes its code to it.

    ``patient`` and ``encounter``: ID or Type/ID; ``offline``: which refresh tokens it gets; ``consent``: the Consent
    such access rests on. What the role may not is left out of ``scopes``. Raises NotFound for a handle that is not
    pending, Unauthenticated where the person must sign in (anew), Forbidden, Unprocessable, Conflict (the Consent has
    ended), or OAuthError ``invalid_scope``.
    """
    now_ms, code = smart.now_ms(), Secret(CODE_PREFIX + secrets.token_urlsafe(32))

    def work(connection: apsw.Connection) -> str:
        asked = find(connection, smart, handle)
        user = _person(connection, asked, session, now_ms)
        standing = standing_of(connection, user, now_ms)
        whose = _patient(asked, standing, patient, scopes)
        made = Authorization(
            id=secrets.token_hex(16), client=asked.client.id, user=user, session=session.id,
            scopes=_scopes(asked, standing.role, scopes, offline), v1=asked.v1, patient=whose,
            encounter=_encounter(asked, whose, encounter), purpose=purpose,
            reason=_reason(standing.role, purpose, whose, reason, offline), access=offline, consent=consent,
            launch=_launch(asked), nonce=asked.nonce, auth_time_ms=session.auth_time_ms, created_ms=now_ms,
            used_ms=now_ms, expires_ms=_expires_ms(offline, standing, now_ms), revoked_ms=None)
        if consent is not None and not provisions.stands(connection, consent):
            raise Conflict("the permission this access rests on has ended: start again from the app")
        use_up(connection, smart, handle, now_ms)
        _store(connection, made)
        connection.execute(
            "INSERT INTO authorization_code (hash,authorization,redirect_uri,challenge,expires_ms) VALUES (?,?,?,?,?)",
            (smart.tokens.hash(code), made.id, asked.redirect_uri, asked.challenge, now_ms + CODE_LIFE_MS))
        audit(smart, connection, "authorization", "C", made, standing.role.name, now_ms)
        return redirect(asked.redirect_uri, {"code": code, "state": asked.state, "iss": smart.issuer})
    return smart.database.transact(work)


def refuse(smart: Smart, handle: str, error: str) -> str:
    """Tell the app no; the URL that does. ``error``: one of ``ERRORS``. Raises NotFound."""
    if error not in ERRORS:
        raise ValueError(error)
    now_ms = smart.now_ms()

    def work(connection: apsw.Connection) -> str:
        asked = find(connection, smart, handle)
        use_up(connection, smart, handle, now_ms)
        return redirect(asked.redirect_uri, {"error": error, "state": asked.state, "iss": smart.issuer})
    return smart.database.transact(work)


def answer_silently(smart: Smart, asked: PendingAuthorization, session: Session | None) -> str:
    """The answer to ``prompt=none``: as the person let this app before, or an error; never a question.

    It brings an access token alone: lasting access is the one that was asked about, and is not multiplied. A public app
    on a person's own machine is whichever program answers there: it is never let in unseen.

    https://openid.net/specs/openid-connect-core-1_0.html#AuthRequest, https://www.rfc-editor.org/rfc/rfc8252#section-8.6
    """
    now_ms = smart.now_ms()
    if session is None or session.user is None or asked.needs_sign_in(session, now_ms):
        return refuse(smart, asked.handle, "login_required")
    if asked.client.auth == "none" and is_native(asked.redirect_uri):
        return refuse(smart, asked.handle, "interaction_required")
    found = None if asked.launch is not None else next(
        (one for one in authorizations_of(smart.database.reader, session.user)
         if one.client == asked.client.id and one.reason is None and one.expires_ms > now_ms
         and asked.asked.within(one.scopes)), None)
    if found is None:
        return refuse(smart, asked.handle, "consent_required")
    try:
        return approve(smart, asked.handle, session=session, scopes=asked.asked, patient=found.patient,
                       encounter=found.encounter, purpose=found.purpose, reason=None, offline=None,
                       consent=found.consent)
    except Conflict:
        return refuse(smart, asked.handle, "consent_required")


def find_authorization(connection: apsw.Connection, id_: str) -> Authorization | None:
    """The authorization, standing or not."""
    return next(iter(_found(connection, "id=?", (id_,))), None)


def authorizations_of(connection: apsw.Connection, user: str) -> list[Authorization]:
    """What a person lets apps do, newest first; what ended is not among them."""
    return _found(connection, "user=? AND revoked_ms IS NULL ORDER BY created_ms DESC, id", (user,))


def authorizations_about(connection: apsw.Connection, patient: str) -> list[Authorization]:
    """What others let apps do with a patient's record (Patient/ID), newest first; what ended is not among them."""
    return _found(connection, "patient=? AND user<>? AND revoked_ms IS NULL ORDER BY created_ms DESC, id",
                  (patient, patient))


def authorizations_on(connection: apsw.Connection, consent: str) -> list[Authorization]:
    """What rests on a Consent (its logical id) and has not ended."""
    return _found(connection, "consent=? AND revoked_ms IS NULL ORDER BY id", (consent,))


def revoke_authorization(connection: apsw.Connection, id_: str, now_ms: int) -> bool:
    """End an authorization and all that hangs on it, inside the open transaction; whether it stood until now."""
    connection.execute("UPDATE authorization SET revoked_ms=? WHERE id=? AND revoked_ms IS NULL", (now_ms, id_))
    if not connection.changes():
        return False
    revoke_of_authorization(connection, id_, now_ms)
    return True


def revoke_session(connection: apsw.Connection, session_ids: Iterable[str], now_ms: int) -> None:
    """A person signed out: end what lives as long as their session, inside the open transaction."""
    for session in session_ids:
        for (id_,) in connection.execute("SELECT id FROM authorization WHERE session=? AND access='online' "
                                         "AND revoked_ms IS NULL", (session,)).fetchall():
            revoke_authorization(connection, str(id_), now_ms)


def audit(smart: Smart, connection: apsw.Connection, interaction: str, action: str, made: Authorization, role: str,
          now_ms: int, *, by: str | None = None) -> None:
    """One row about an authorization, to its patient's audit where it has one; ``by``: who, if not who made it."""
    patient = made.patient or (made.user if made.user.startswith("Patient/") else None)
    smart.audit(connection, AuditEntry(
        time_ms=now_ms, action=action, interaction=interaction, outcome="0", what=(f"Device/{made.client}",),
        client=made.client, user=by or made.user, role=role, purpose=made.purpose, reason=made.reason,
        query=f"scope={made.scopes}"), patient.removeprefix("Patient/") if patient else None)


def _person(connection: apsw.Connection, asked: PendingAuthorization, session: Session, now_ms: int) -> str:
    if session.user is None:
        raise Unauthenticated("sign in with an account whose identity was proofed")
    require_open(connection, session.id)
    if asked.needs_sign_in(session, now_ms):
        raise Unauthenticated("the app asks for a fresh sign-in")
    if asked.launch is not None and not asked.launch.is_for(session.user):
        raise Forbidden("this launch was opened for somebody else")
    return session.user


def _patient(asked: PendingAuthorization, standing: Standing, patient: str | None, scopes: ScopeSet) -> str | None:
    chosen = _reference("Patient", patient)
    account = standing.account
    own = {"patient": account.fhir_user, "delegate": account.represents}.get(standing.role.name)
    launched = None if asked.launch is None else asked.launch.patient
    for only, why in ((own, "a person's own record"), (launched, "the launch")):
        if only is not None and chosen not in (None, only):
            raise Forbidden(f"the patient is that of {why}, and no other")
    if own is not None and launched not in (None, own):
        raise Forbidden("the launch is about another patient")
    found = own or launched or chosen
    if found is None and ("launch/patient" in scopes.others or any(
            scope.context == "patient" for scope in scopes.resources)):
        raise Unprocessable("the app asks for one patient's data: choose the patient")
    return found


def _encounter(asked: PendingAuthorization, patient: str | None, encounter: str | None) -> str | None:
    chosen = _reference("Encounter", encounter)
    launched = None if asked.launch is None else asked.launch.encounter
    if launched is not None and chosen not in (None, launched):
        raise Forbidden("the encounter is that of the launch, and no other")
    found = launched or chosen
    if found is not None and patient is None:
        raise Unprocessable("an encounter needs its patient")
    return found


def _reference(type_: str, value: str | None) -> str | None:
    if value is None:
        return None
    reference = value if "/" in value else f"{type_}/{value}"
    if not reference.startswith(f"{type_}/") or not REFERENCE.fullmatch(reference):
        raise Unprocessable(f"given is not {type_}/ID")
    return reference


def _scopes(asked: PendingAuthorization, role: Role, scopes: ScopeSet, offline: Access | None) -> ScopeSet:
    # 1. Never more than was asked, which was cut to the client's registration; and that again, should it have shrunk.
    if not scopes.within(asked.asked):
        raise OAuthError("invalid_scope", "more than the app asked for")
    # 2. A refresh token is given where the scope says so, and the scope says so where one is given.
    if offline is not None and f"{offline}_access" not in scopes.others:
        raise OAuthError("invalid_scope", f"{offline}_access was not asked for, or not chosen")
    others = scopes.others & asked.client.scopes.others - ({"online_access", "offline_access"} - {f"{offline}_access"})
    # 3. What both the client and the role may have.
    resources = scopes.narrow(asked.client.scopes).narrow(role.ceiling).resources
    if scopes.resources and not resources:
        raise OAuthError("invalid_scope", f"nothing of it is within what a {role.name} may have")
    return ScopeSet(resources, others)


def _reason(role: Role, purpose: str, patient: str | None, reason: str | None, offline: Access | None) -> str | None:
    tables = policy()
    if purpose not in tables.purposes:
        raise Unprocessable("the purpose of use is not known here")
    if purpose not in tables.break_glass_purposes:
        return None
    if not role.break_glass:
        raise Forbidden(f"the role {role.name} may not break the glass")
    if patient is None:
        raise Unprocessable("breaking the glass needs a patient")
    if reason is None or not reason.strip() or len(reason) > 500:
        raise Unprocessable("breaking the glass needs a reason of at most 500 characters")
    if offline is not None:
        raise Unprocessable("a broken glass gives no refresh token")
    return reason


def _launch(asked: PendingAuthorization) -> dict[str, Any]:
    launch = asked.launch
    if launch is None:
        return {"need_patient_banner": True}  # no record system stands around a standalone app
    return {"need_patient_banner": launch.need_patient_banner,
            **({"fhirContext": list(launch.fhir_context)} if launch.fhir_context else {}),
            **({"intent": launch.intent} if launch.intent else {})}


def _expires_ms(offline: Access | None, standing: Standing, now_ms: int) -> int:
    life_ms = {"offline": OFFLINE_LIFE_MS, "online": SESSION_LIFE_MS, None: CODE_LIFE_MS + TOKEN_LIFE_MS}[offline]
    mandate_ms = standing.account.mandate_until_ms
    return now_ms + life_ms if mandate_ms is None else min(now_ms + life_ms, mandate_ms)


def _store(connection: apsw.Connection, made: Authorization) -> None:
    connection.execute(
        f"INSERT INTO authorization ({_COLUMNS}) VALUES ({','.join('?' * 19)})",  # noqa: S608
        (made.id, made.client, made.user, made.session, str(made.scopes), int(made.v1), made.patient, made.encounter,
         made.purpose, made.reason, made.access, made.consent, json.dumps(dict(made.launch)), made.nonce,
         made.auth_time_ms, made.created_ms, made.used_ms, made.expires_ms, made.revoked_ms))


def _found(connection: apsw.Connection, where: str, values: tuple[Any, ...]) -> list[Authorization]:
    rows: list[tuple[Any, ...]] = connection.execute(
        f"SELECT {_COLUMNS} FROM authorization WHERE {where}", values).fetchall()  # noqa: S608
    return [Authorization(
        id=row[0], client=row[1], user=row[2], session=row[3], scopes=parse(row[4]), v1=bool(row[5]), patient=row[6],
        encounter=row[7], purpose=row[8], reason=row[9], access=row[10], consent=row[11], launch=json.loads(row[12]),
        nonce=row[13], auth_time_ms=row[14], created_ms=row[15], used_ms=row[16], expires_ms=row[17],
        revoked_ms=row[18]) for row in rows]
