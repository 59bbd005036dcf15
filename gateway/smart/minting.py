"""Tokens the operator mints on the command line.

Owns the rules of ``gateway token``; refuses what no door would issue: a system scope for a person, a person's scope
without the person, another patient in a patient's token, a broken glass without a reason. Each token is marked as
the operator's and audited in the commit that stores it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import apsw

from gateway.access.grant import Grant
from gateway.access.roles import Role, policy
from gateway.access.scopes import ScopeSet, parse
from gateway.errors import NotFound, OAuthError, Unprocessable
from gateway.smart.accounts import REFERENCE, Account, check_user, default_role, find_account
from gateway.smart.clients import COMMAND_LINE, FEED, Client, ensure_built_in, find_client
from gateway.smart.issuer import Smart
from gateway.smart.tokens import Secret

MAX_TTL_S: Final = 24 * 3_600
DEFAULT_TTL_S: Final = 3_600
BREAK_GLASS_TTL_S: Final = 900
_PURPOSES: Final = {"clinician": "TREAT", "patient": "PATRQT", "delegate": "FAMRQT"}
_DEFAULT_SCOPES: Final = {"patient": "patient/*.cruds", "delegate": "patient/*.cruds"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Holder:
    """Who holds the token: a person (``user``) or, without one, the client itself."""

    client: Client
    user: str | None
    role: Role
    account: Account | None


def mint_token(smart: Smart, *, scope: str | None = None, client: str | None = None, user: str | None = None,
               patient: str | None = None, purpose: str | None = None, ttl_s: int | None = None,
               reason: str | None = None) -> tuple[Secret, Grant]:
    """Mint a token and return its secret, told once, with what it may do.

    ``scope`` is cut down to what the client and the role may have; ``patient`` (``ID`` or ``Patient/ID``) is the
    launch context; ``reason`` is needed to break the glass. Raises Unprocessable, NotFound, or OAuthError
    ``invalid_scope``.
    """
    now_ms = smart.now_ms()
    asked = None if scope is None else smart.parse_scope(scope)

    def work(connection: apsw.Connection) -> tuple[Secret, Grant]:
        ensure_built_in(connection, now_ms)
        holder = _holder(connection, client, user)
        whose = _patient(holder, patient)
        use = _purpose(holder, purpose)
        glass = use in policy().break_glass_purposes
        if glass:
            _check_glass(holder, whose, reason)
        expires_ms = now_ms + _ttl_s(ttl_s, glass=glass) * 1_000
        if holder.account is not None and holder.account.mandate_until_ms is not None:
            expires_ms = min(expires_ms, holder.account.mandate_until_ms)
            if expires_ms <= now_ms:
                raise Unprocessable("the delegate's mandate has ended")
        secret, grant = smart.tokens.issue(
            connection, client_id=holder.client.id, client_kind=holder.client.kind, user=holder.user,
            role=holder.role.name, scopes=_scopes(holder, asked, whose), patient=whose, purpose=use,
            grantees=grantees(holder.client, holder.user, holder.role, holder.account,
                              smart.settings.hospital_reference),
            now_ms=now_ms, expires_ms=expires_ms, break_glass_reason=reason if glass else None, operator=True)
        smart.audit_grant(connection, "token-minted", grant, now_ms)
        return secret, grant
    return smart.database.transact(work)


def grantees(client: Client, user: str | None, role: Role, account: Account | None,
             hospital: str) -> tuple[str, ...]:
    """Every reference a patient may name to reach the holder of a token.

    The person, their organisations, the client as ``Device/ID``, and this hospital for the staff a grant can admit.
    """
    named = [user] if user is not None else []
    named += account.organizations if account is not None else ()
    if role.grant and user is not None and user.startswith("Practitioner/"):
        named.append(hospital)
    return tuple(dict.fromkeys((*named, client.device)))


def _holder(connection: apsw.Connection, client_id: str | None, user: str | None) -> _Holder:
    client_id = client_id or (FEED if user is None else COMMAND_LINE)
    client = find_client(connection, client_id)
    if client is None:
        raise NotFound(f"there is no client {client_id}")
    if client.closed_ms is not None:
        raise Unprocessable(f"the client {client_id} is closed")
    if user is None:
        if client.kind == "app":
            raise Unprocessable("an app acts for a person: give --user")
        return _Holder(client=client, user=None, role=policy().roles["system"], account=None)
    check_user(user)
    if client.kind != "app":
        raise Unprocessable(f"a person's token needs an app, and {client_id} is a {client.kind}")
    account = find_account(connection, user)
    if account is not None and account.closed_ms is not None:
        raise Unprocessable(f"the account {user} is closed")
    role = default_role(user) if account is None else account.role
    if role is None:
        raise Unprocessable(f"{user} has no account: only `gateway user add` can say whom they represent")
    return _Holder(client=client, user=user, role=policy().roles[role], account=account)


def _patient(holder: _Holder, patient: str | None) -> str | None:
    if patient is not None and "/" not in patient:
        patient = f"Patient/{patient}"
    if patient is not None and not (patient.startswith("Patient/") and REFERENCE.fullmatch(patient)):
        raise Unprocessable("--patient is ID or Patient/ID")
    if holder.user is None:
        if patient is not None:
            raise Unprocessable("a launch patient belongs to a person's token: give --user")
        return None
    own: str | None = None
    if holder.role.name == "patient":
        own = holder.user
    elif holder.account is not None:
        own = holder.account.represents
    if own is not None and patient not in (None, own):
        raise Unprocessable(f"the launch patient of {holder.user} is {own}, and no other")
    return own or patient


def _purpose(holder: _Holder, purpose: str | None) -> str:
    tables = policy()
    if purpose is None:
        return holder.client.purposes[0] if holder.user is None else _PURPOSES.get(holder.role.name, "HOPERAT")
    if purpose not in tables.purposes:
        raise Unprocessable(f"{purpose} is not a purpose of use known here")
    if holder.user is None and holder.client.id != FEED and purpose not in holder.client.purposes:
        raise Unprocessable(f"the client is registered for {', '.join(holder.client.purposes)}, not {purpose}")
    return purpose


def _check_glass(holder: _Holder, patient: str | None, reason: str | None) -> None:
    if holder.user is None:
        raise Unprocessable("a system never breaks the glass")
    if not holder.role.break_glass:
        raise Unprocessable(f"the role {holder.role.name} may not break the glass")
    if patient is None:
        raise Unprocessable("breaking the glass needs --patient: whose")
    if reason is None or not reason.strip() or len(reason) > 500:
        raise Unprocessable("breaking the glass needs a reason of at most 500 characters")


def _ttl_s(ttl_s: int | None, *, glass: bool) -> int:
    most = BREAK_GLASS_TTL_S if glass else MAX_TTL_S
    if ttl_s is None:
        return min(DEFAULT_TTL_S, most)
    if not 1 <= ttl_s <= most:
        raise Unprocessable(f"such a token lives from 1 s to {most} s")
    return ttl_s


def _scopes(holder: _Holder, asked: ScopeSet | None, patient: str | None) -> ScopeSet:
    if asked is None:
        default = "system/*.cruds" if holder.user is None else _DEFAULT_SCOPES.get(holder.role.name, "user/*.cruds")
        asked = parse(default)
    contexts = {"system"} if holder.user is None else {"patient", "user"}
    for scope in asked.resources:
        if scope.context not in contexts:
            raise OAuthError("invalid_scope", f"{scope}: {'a person' if holder.user else 'a system'} cannot have it")
        if scope.context == "patient" and patient is None:
            raise OAuthError("invalid_scope", f"{scope}: needs a launch patient: give --patient")
    granted = asked.narrow(holder.client.scopes)
    granted = ScopeSet(granted.narrow(holder.role.ceiling).resources, granted.others)
    if not granted.resources:
        raise OAuthError("invalid_scope", "nothing of the scope is within what the client and the role may have")
    return granted
