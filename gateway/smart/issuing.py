"""What an app gets for an authorization: access token, refresh token, launch context, id_token.

Owns the one commit in which a code or refresh token is used up and what follows from it is stored; refuses where the
authorization, its client, its person or (for online access) their session no longer stands, and more than the
authorization. A code or refresh token that comes a second time gives a thief away: the authorization ends.
https://hl7.org/fhir/smart-app-launch/STU2.2/app-launch.html#obtain-access-token, https://www.rfc-editor.org/rfc/rfc9700#section-4.14
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import apsw

from gateway.access.roles import policy
from gateway.access.scopes import ScopeSet
from gateway.errors import Forbidden, OAuthError
from gateway.smart.authorization import (
    TOKEN_LIFE_MS,
    Authorization,
    audit,
    find_authorization,
    revoke_authorization,
    standing_of,
)
from gateway.smart.clients import Client, find_client
from gateway.smart.issuer import Smart
from gateway.smart.minting import BREAK_GLASS_TTL_S, grantees
from gateway.smart.oauth import told
from gateway.smart.refresh_tokens import family_of, put, successor, take
from gateway.smart.signing import SigningKeys
from gateway.smart.tokens import Secret

Kind = Literal["authorization_code", "refresh_token"]
_CONTEXT: Final = frozenset({"launch", "launch/patient", "launch/encounter"})
_GONE: Final = "it is unknown, expired, used or revoked"


@dataclass(frozen=True, slots=True, kw_only=True)
class Presented:
    """A code or refresh token that is good now, and what it stands for. ``challenge``, ``redirect_uri``: of a code."""

    kind: Kind
    secret: Secret = field(repr=False)
    authorization: Authorization
    redirect_uri: str | None = None
    challenge: str | None = field(default=None, repr=False)


def present(smart: Smart, kind: Kind, secret: str, client_id: str | None) -> Presented | None:
    """What ``secret`` is worth now for this client (None: whoever asks); None where it is worth nothing.

    One that was used before ends its authorization.
    """
    hashed, now_ms, reader = smart.tokens.hash(secret), smart.now_ms(), smart.database.reader
    columns = "redirect_uri, challenge" if kind == "authorization_code" else "NULL, NULL"
    rows: list[tuple[Any, ...]] = reader.execute(
        f"SELECT authorization, expires_ms, used_ms, {columns} FROM {kind} WHERE hash=?", (hashed,)).fetchall()  # noqa: S608
    of_family = None if rows or kind != "refresh_token" else family_of(reader, smart, secret)
    if not rows and of_family is None:
        return None
    authorization_id, expires_ms, used_ms, redirect_uri, challenge = rows[0] if rows else (of_family, 0, 0, None, None)
    authorization = find_authorization(reader, authorization_id)
    if authorization is None or client_id not in (None, authorization.client):
        return None
    client = find_client(reader, authorization.client)
    if client is None or not client.stands:
        return None
    if used_ms is not None:
        give_away(smart, authorization, kind)
        return None
    if expires_ms <= now_ms or not _stands(reader, authorization, now_ms):
        return None
    return Presented(kind=kind, secret=Secret(secret), authorization=authorization, redirect_uri=redirect_uri,
                     challenge=challenge)


def give_away(smart: Smart, authorization: Authorization, kind: Kind) -> None:
    """A second use: end the authorization, and say so in the audit."""
    now_ms = smart.now_ms()

    def work(connection: apsw.Connection) -> None:
        if revoke_authorization(connection, authorization.id, now_ms):
            audit(smart, connection, f"{kind}-reused".replace("_", "-"), "D", authorization, "", now_ms)
    smart.database.transact(work)


class Issuing:
    """Issues for authorizations of one hospital. Safe between threads."""

    def __init__(self, smart: Smart, keys: SigningKeys) -> None:
        self._smart = smart
        self._keys = keys

    def issue(self, presented: Presented, secret: Secret, *, asked: ScopeSet | None, v1: bool) -> dict[str, Any]:
        """The members of the token response beside ``access_token`` and ``token_type``.

        ``asked``: what of the authorization a refresh narrows to, told in ``v1`` words if it was asked in them. Raises
        OAuthError ``invalid_grant``.
        """
        smart, now_ms = self._smart, self._smart.now_ms()
        refresh = successor(presented.secret if presented.kind == "refresh_token" else None)

        def work(connection: apsw.Connection) -> tuple[Authorization, ScopeSet, int] | None:
            if not _use_up(connection, smart, presented, now_ms):
                return None
            authorization = find_authorization(connection, presented.authorization.id)
            client = find_client(connection, presented.authorization.client)
            if authorization is None or client is None or not client.stands \
                    or not _stands(connection, authorization, now_ms):
                raise OAuthError("invalid_grant", _GONE)
            scopes, expires_ms = self._token(connection, presented.kind, authorization, client, asked, secret, now_ms,
                                             v1=v1)
            if authorization.access is not None:
                put(connection, smart, refresh, authorization, now_ms)
            return authorization, scopes, expires_ms
        made = smart.database.transact(work)
        if made is None:
            # Somebody used it between being looked at and this commit: two hold it.
            give_away(smart, presented.authorization, presented.kind)
            raise OAuthError("invalid_grant", _GONE)
        authorization, scopes, expires_ms = made
        answer = {"expires_in": (expires_ms - now_ms) // 1_000, "scope": told(scopes, v1=v1),
                  **context_of(smart, authorization, scopes)}
        if authorization.access is not None:
            answer["refresh_token"] = refresh
        if "openid" in scopes.others:
            answer["id_token"] = Secret(self._id_token(
                authorization, scopes, now_ms, with_nonce=presented.kind == "authorization_code"))
        return answer

    def _token(self, connection: apsw.Connection, kind: Kind, authorization: Authorization, client: Client,
               asked: ScopeSet | None, secret: Secret, now_ms: int, *, v1: bool) -> tuple[ScopeSet, int]:
        smart = self._smart
        try:
            standing = standing_of(connection, authorization.user, now_ms)
        except Forbidden as error:
            raise OAuthError("invalid_grant", _GONE) from error
        wanted = authorization.scopes if asked is None else asked
        # The registration and the role may have shrunk since it was given.
        scopes = ScopeSet(wanted.narrow(client.scopes).narrow(standing.role.ceiling).resources, wanted.others)
        glass = authorization.purpose in policy().break_glass_purposes
        expires_ms = min(now_ms + (BREAK_GLASS_TTL_S * 1_000 if glass else TOKEN_LIFE_MS),
                         standing.account.mandate_until_ms or 2**62)
        _, grant = smart.tokens.issue(
            connection, client_id=client.id, client_kind=client.kind, user=authorization.user, role=standing.role.name,
            scopes=scopes, patient=authorization.patient, purpose=authorization.purpose,
            grantees=grantees(client, authorization.user, standing.role, standing.account,
                              smart.settings.hospital_reference),
            now_ms=now_ms, expires_ms=expires_ms, break_glass_reason=authorization.reason if glass else None,
            secret=secret, authorization=authorization.id, told=told(scopes, v1=v1))
        smart.audit_grant(connection, "token" if kind == "authorization_code" else "token-refreshed", grant, now_ms)
        return scopes, expires_ms

    def _id_token(self, authorization: Authorization, scopes: ScopeSet, now_ms: int, *, with_nonce: bool) -> str:
        claims = {"iss": self._smart.issuer, **identity(self._smart, authorization.user, scopes),
                  "aud": authorization.client, "iat": now_ms // 1_000, "exp": (now_ms + TOKEN_LIFE_MS) // 1_000,
                  "auth_time": authorization.auth_time_ms // 1_000}
        if with_nonce and authorization.nonce is not None:
            claims["nonce"] = authorization.nonce
        return self._keys.sign(claims)


def context_of(smart: Smart, authorization: Authorization, scopes: ScopeSet) -> dict[str, Any]:
    """SMART's launch context parameters, as far as the scope asks for any."""
    by_patient = any(scope.context == "patient" for scope in scopes.resources)
    if not by_patient and not scopes.others & _CONTEXT:
        return {}
    found: dict[str, Any] = {**authorization.launch, "smart_style_url": smart.style_url}
    if authorization.patient is not None:
        found["patient"] = authorization.patient.removeprefix("Patient/")
    if authorization.encounter is not None:
        found["encounter"] = authorization.encounter.removeprefix("Encounter/")
    return found


def identity(smart: Smart, user: str, scopes: ScopeSet) -> dict[str, str]:
    """``sub`` and, where the scope asks for it, ``fhirUser``. ``sub`` says nothing of who it is, and never changes."""
    mac = hmac.digest(smart.secrets("pseudonym")[0], b"oidc subject " + user.encode(), "sha256")
    told_user = {"fhirUser": f"{smart.settings.base_url}/{user}"} if scopes.others & {"fhirUser", "profile"} else {}
    return {"sub": mac.hex(), **told_user}


def _stands(connection: apsw.Connection, authorization: Authorization, now_ms: int) -> bool:
    if authorization.revoked_ms is not None or authorization.expires_ms <= now_ms:
        return False
    return authorization.access != "online" or bool(connection.execute(
        "SELECT EXISTS (SELECT 1 FROM session WHERE id=? AND ended_ms IS NULL AND expires_ms>?)",
        (authorization.session, now_ms)).get)


def _use_up(connection: apsw.Connection, smart: Smart, presented: Presented, now_ms: int) -> bool:
    if presented.kind == "refresh_token":
        return take(connection, smart, presented.secret, now_ms)
    connection.execute("UPDATE authorization_code SET used_ms=? WHERE hash=? AND used_ms IS NULL",
                       (now_ms, smart.tokens.hash(presented.secret)))
    return bool(connection.changes())
