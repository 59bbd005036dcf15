"""Client metadata: what a client may say of itself when it registers.

Owns the fields of RFC 7591 that are read here, what each may hold and how they must agree, and which change of them
needs a new approval; refuses what would be kept and not obeyed. Fields nobody here reads are dropped (section 2: the
server ignores them). https://www.rfc-editor.org/rfc/rfc7591#section-2, https://www.rfc-editor.org/rfc/rfc9700

Authlib's ClientMetadataClaims is not used: it fails on values that are no text, takes private keys, and knows neither
the redirect rules of native apps nor how the fields must agree.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from gateway.access.grant import ClientKind
from gateway.access.scopes import ScopeSet, parse
from gateway.errors import OAuthError, Unprocessable
from gateway.smart.clients import AUTH_METHODS, check_scopes
from gateway.smart.issuer import Smart
from gateway.smart.jwks import ALGORITHMS, parse_key_set
from gateway.smart.redirects import MAX_URIS, check_redirect_uri

Metadata = dict[str, Any]
"""Checked metadata: JSON in RFC 7591's words, each field of its type, the defaults filled in."""

MAX_BYTES: Final = 16_384
_NAME_MAX: Final = 200
_URI_MAX: Final = 1_000
_TEXT_MAX: Final = 200
_CONTACTS_MAX: Final = 5
_PAGES: Final = ("client_uri", "logo_uri", "tos_uri", "policy_uri")
_GRANT_TYPES: Final[Mapping[ClientKind, frozenset[str]]] = {
    "app": frozenset({"authorization_code", "refresh_token"}), "backend": frozenset({"client_credentials"})}
_FIXED: Final[Mapping[str, frozenset[str]]] = {
    "application_type": frozenset({"web", "native"}), "subject_type": frozenset({"public"}),
    "id_token_signed_response_alg": frozenset({"RS256"}),
    "token_endpoint_auth_signing_alg": frozenset(ALGORITHMS)}
"""Fields that choose something: what of it is done here."""
_FREE: Final = frozenset({"contacts", "software_id", "software_version"})
"""Fields nobody is shown and nothing hangs on: a client changes them as it likes."""
_SETS: Final = frozenset({"redirect_uris", "grant_types"})
"""Fields a client may take from as it likes, and add to with a new approval alone."""


def invalid(field: str, what: str) -> OAuthError:
    """``invalid_client_metadata`` of RFC 7591."""
    return OAuthError("invalid_client_metadata", f"{field}: {what}")


def check_metadata(smart: Smart, asked: Mapping[str, Any]) -> Metadata:
    """What is kept of a registration request. Raises OAuthError (RFC 7591 section 3.2.2) naming the field."""
    # 1. What would be believed were it not looked at.
    if asked.get("software_statement") is not None:
        raise OAuthError("unapproved_software_statement",
                         "software_statement: no issuer of software statements is trusted here; leave it out")
    given = {name: value for name, value in asked.items() if value is not None}
    # 2. What it is, and so which grants, answers and methods fit.
    kept: Metadata = {"client_name": _text(given, "client_name", _NAME_MAX)}
    kind, kept["grant_types"] = _grant_types(given)
    kept["response_types"] = _response_types(given, kind)
    kept["token_endpoint_auth_method"] = _method(given, kind)
    # 3. Where codes go.
    kept |= _redirects(given, kind)
    # 4. The ceiling of its tokens.
    kept["scope"] = str(_scope(smart, given, kind))
    # 5. Its keys.
    kept |= _keys(smart, given, kept["token_endpoint_auth_method"])
    # 6. What people are shown, and the rest.
    for name in _PAGES:
        if name in given:
            kept[name] = _page(given, name)
    if "contacts" in given:
        kept["contacts"] = _contacts(given["contacts"])
    for name in ("software_id", "software_version"):
        if name in given:
            kept[name] = _text(given, name, _TEXT_MAX)
    for name, allowed in _FIXED.items():
        if name in given:
            if not isinstance(given[name], str) or given[name] not in allowed:
                raise invalid(name, f"is {' or '.join(sorted(allowed))} here")
            kept[name] = given[name]
    if len(json.dumps(kept)) > MAX_BYTES:
        raise invalid("client metadata", f"holds at most {MAX_BYTES} bytes")
    return kept


def kind_of(metadata: Metadata) -> ClientKind:
    """An app has people before it; a backend acts for itself, and is never this hospital's own feed."""
    return "backend" if "client_credentials" in metadata["grant_types"] else "app"


def widens(old: Metadata, new: Metadata) -> bool:
    """Whether ``new`` needs an approval that ``old`` had: it may do more, is reached or proves itself otherwise, or
    shows people something else."""
    if not parse(new["scope"]).within(parse(old["scope"])):
        return True
    if any(not set(new.get(name, ())) <= set(old.get(name, ())) for name in _SETS):
        return True
    return any(old.get(name) != new.get(name) for name in (old.keys() | new.keys()) - _FREE - _SETS - {"scope"})


def _text(given: Mapping[str, Any], name: str, most: int) -> str:
    value = given.get(name)
    if not isinstance(value, str) or not value.strip() or len(value) > most or not value.isprintable():
        raise invalid(name, f"is needed, as printable text of at most {most} characters")
    return value


def _words(given: Mapping[str, Any], name: str, default: tuple[str, ...],
           error: Callable[[str, str], Exception] = invalid) -> tuple[str, ...]:
    value = given.get(name, list(default))
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise error(name, "is a list of texts")
    return tuple(dict.fromkeys(value))


def _grant_types(given: Mapping[str, Any]) -> tuple[ClientKind, list[str]]:
    asked = _words(given, "grant_types", ("authorization_code",))
    for kind, allowed in _GRANT_TYPES.items():
        if asked and asked[0] in allowed:
            if not set(asked) <= allowed:
                break
            if kind == "app" and "authorization_code" not in asked:
                raise invalid("grant_types", "refresh_token comes with authorization_code")
            return kind, list(asked)
    raise invalid("grant_types", "is authorization_code with or without refresh_token, or client_credentials; what "
                                 "does both registers twice")


def _response_types(given: Mapping[str, Any], kind: ClientKind) -> list[str]:
    fitting = ("code",) if kind == "app" else ()
    if _words(given, "response_types", fitting) != fitting:
        raise invalid("response_types", 'is ["code"] with authorization_code, and [] without it')
    return list(fitting)


def _method(given: Mapping[str, Any], kind: ClientKind) -> str:
    method = given.get("token_endpoint_auth_method", "client_secret_basic")
    allowed = AUTH_METHODS if kind == "app" else ("private_key_jwt",)
    if not isinstance(method, str) or method not in allowed:
        raise invalid("token_endpoint_auth_method", f"is {', '.join(allowed)} for such a client (client_secret_basic "
                                                    "when left out)")
    return method


def _redirects(given: Mapping[str, Any], kind: ClientKind) -> Metadata:
    uris = _words(given, "redirect_uris", (), _invalid_redirect)
    if kind != "app":
        if uris or "launch_uri" in given:
            raise _invalid_redirect("redirect_uris", "belong to authorization_code")
        return {}
    if not 1 <= len(uris) <= MAX_URIS:
        raise _invalid_redirect("redirect_uris", f"from 1 to {MAX_URIS} are needed")
    for uri in uris:
        _check_uri("redirect_uris", uri)
    kept: Metadata = {"redirect_uris": list(uris)}
    if "launch_uri" in given:
        launch = given["launch_uri"]
        if not isinstance(launch, str) or urlsplit(launch).scheme not in ("https", "http"):
            raise invalid("launch_uri", "is the https URL an EHR launch opens")
        _check_uri("launch_uri", launch)
        kept["launch_uri"] = launch
    return kept


def _check_uri(field: str, uri: str) -> None:
    if "*" in uri:
        raise _invalid_redirect(field, "wildcards are not matched: register each URI")
    try:
        check_redirect_uri(uri)
    except Unprocessable as error:
        raise _invalid_redirect(field, error.issues[0].diagnostics) from error


def _invalid_redirect(field: str, what: str) -> OAuthError:
    return OAuthError("invalid_redirect_uri", f"{field}: {what}")


def _scope(smart: Smart, given: Mapping[str, Any], kind: ClientKind) -> ScopeSet:
    text = given.get("scope")
    if not isinstance(text, str) or not text.strip():
        raise invalid("scope", "is needed: the most any of its tokens may have")
    try:
        scopes = smart.parse_scope(text)
        check_scopes(scopes, kind)
    except OAuthError as error:
        raise invalid("scope", error.description) from error
    return scopes


def _keys(smart: Smart, given: Mapping[str, Any], method: str) -> Metadata:
    if method != "private_key_jwt":
        if "jwks" in given or "jwks_uri" in given:
            raise invalid("jwks", "keys are for private_key_jwt, which another method excludes")
        return {}
    if ("jwks" in given) == ("jwks_uri" in given):
        raise invalid("jwks", "either jwks or jwks_uri is needed, never both")
    try:
        if "jwks" in given:
            if not isinstance(given["jwks"], dict):
                raise invalid("jwks", "is an object")
            parse_key_set(json.dumps(given["jwks"]).encode())
            return {"jwks": given["jwks"]}
        if not isinstance(given["jwks_uri"], str) or len(given["jwks_uri"]) > _URI_MAX:
            raise invalid("jwks_uri", "is a URL")
        smart.jwks.check(given["jwks_uri"])
        return {"jwks_uri": given["jwks_uri"]}
    except Unprocessable as error:
        raise invalid("jwks" if "jwks" in given else "jwks_uri", error.issues[0].diagnostics) from error


def _page(given: Mapping[str, Any], name: str) -> str:
    value = given[name]
    try:
        parts = urlsplit(value) if isinstance(value, str) else None
        fits = (parts is not None and parts.scheme == "https" and bool(parts.hostname) and "@" not in parts.netloc
                and len(value) <= _URI_MAX and value.isascii() and value.isprintable()
                and not set(value) & set(" \"'<>\\^`{|}"))
        _ = parts.port if parts is not None else None
    except ValueError:
        fits = False
    if not fits:
        raise invalid(name, "is an https URL")
    return str(value)


def _contacts(value: object) -> list[str]:
    if (not isinstance(value, list) or len(value) > _CONTACTS_MAX
            or not all(isinstance(one, str) and 0 < len(one) <= _TEXT_MAX and one.isprintable() for one in value)):
        raise invalid("contacts", f"is a list of at most {_CONTACTS_MAX} texts")
    return list(value)
