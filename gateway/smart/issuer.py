"""Smart: what every door of the authorisation server shares.

Owns the URLs under which the doors are known, the strict scope grammar of this server, and the audit of what was
issued; refuses nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import apsw

from gateway.access.grant import Grant
from gateway.access.scopes import ScopeSet, parse_strict
from gateway.audit import AuditEntry
from gateway.config import Settings
from gateway.crypto.root import Label
from gateway.fhir.definitions import Definitions
from gateway.smart.jwks_url import JwksUrls
from gateway.smart.tokens import TokenStore
from gateway.store import sql
from gateway.store.sql import Database

AuditHook = Callable[[apsw.Connection, AuditEntry, str | None], None]
"""``(connection, entry, patient)``: append one audit row inside the open transaction; ``patient`` is a logical id."""
ScopeGrammar = Callable[[str], ScopeSet]
Secrets = Callable[[Label], tuple[bytes, ...]]
"""All generations of a hospital secret, newest first (``KeyRing.secrets``)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Smart:
    """One hospital's authorisation server. Make it with ``open_smart``."""

    database: Database
    settings: Settings
    tokens: TokenStore
    jwks: JwksUrls
    parse_scope: ScopeGrammar
    audit: AuditHook
    now_ms: Callable[[], int]
    secrets: Secrets

    @property
    def issuer(self) -> str:
        """Who issues tokens here: ``iss`` of id_tokens and of RFC 9207, and what discovery is found below."""
        return self.settings.base_url.removesuffix("/fhir")

    @property
    def authorize_url(self) -> str:
        return f"{self.issuer}/oauth/authorize"

    @property
    def token_url(self) -> str:
        """What an assertion must name as its audience."""
        return f"{self.issuer}/oauth/token"

    @property
    def revocation_url(self) -> str:
        return f"{self.issuer}/oauth/revoke"

    @property
    def introspection_url(self) -> str:
        return f"{self.issuer}/oauth/introspect"

    @property
    def userinfo_url(self) -> str:
        return f"{self.issuer}/oauth/userinfo"

    @property
    def keys_url(self) -> str:
        """Where the keys are that id_tokens are signed with."""
        return f"{self.issuer}/oauth/jwks"

    @property
    def style_url(self) -> str:
        """SMART's ``smart_style_url``: the colours and measures an app may take on."""
        return f"{self.issuer}/oauth/style.json"

    def audit_grant(self, connection: apsw.Connection, interaction: str, grant: Grant, now_ms: int) -> None:
        """One row about a token: to its patient's audit where it has one."""
        patient = grant.launch_patient
        self.audit(connection, AuditEntry(
            time_ms=now_ms, action="E", interaction=interaction, outcome="0", what=(), client=grant.client_id,
            user=grant.user, role=grant.role, purpose=grant.purpose, reason=grant.break_glass_reason,
            query=f"scope={grant.scopes}", operator=grant.minted_by_operator, token=grant.token_id,
            notify=grant.break_glass_reason is not None,  # a glass is broken when the token is given
        ), patient.removeprefix("Patient/") if patient else None)

    def audit_operator(self, connection: apsw.Connection, interaction: str, action: str, what: str,
                       role: str, now_ms: int) -> None:
        """One row about a client or an account the operator changed."""
        self.audit(connection, AuditEntry(
            time_ms=now_ms, action=action, interaction=interaction, outcome="0", what=(what,), client="cli", user=None,
            role=role, purpose="HOPERAT", operator=True), None)


def open_smart(*, database: Database, settings: Settings, token_key: bytes, definitions: Definitions,
               audit: AuditHook, allow_loopback_jwks: bool, secrets: Secrets,
               now_ms: Callable[[], int] = sql.now_ms) -> Smart:
    """Assemble it.

    ``token_key``: the root's ``token-hash`` key; ``allow_loopback_jwks``: whether JWKS URLs may name this machine;
    ``secrets``: the other keys of the root, by label.
    """
    return Smart(database=database, settings=settings, tokens=TokenStore(token_key),
                 jwks=JwksUrls(allow_loopback=allow_loopback_jwks), parse_scope=scope_grammar(definitions),
                 audit=audit, now_ms=now_ms, secrets=secrets)


def scope_grammar(definitions: Definitions) -> ScopeGrammar:
    """``parse_strict`` with the types served and the parameters that can be searched."""
    def knows(type_: str, parameter: str) -> bool:
        return parameter in definitions.search_parameters(type_)

    def grammar(text: str) -> ScopeSet:
        return parse_strict(text, types=definitions.resource_types, knows=knows)
    return grammar
