"""Passkeys: WebAuthn credentials, verified by py_webauthn.

Owns the options a browser gets, the one-time challenge and the stored public keys; refuses an authenticator that did
not verify its user, another origin or relying party, a challenge used before, and a counter that went back (a clone).
https://www.w3.org/TR/webauthn-2/
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import apsw
import orjson
from webauthn import (
    generate_authentication_options,
    generate_registration_options,
    options_to_json,
    verify_authentication_response,
    verify_registration_response,
)
from webauthn.helpers import (
    base64url_to_bytes,
    bytes_to_base64url,
    generate_challenge,
    parse_authentication_credential_json,
    parse_client_data_json,
    parse_registration_credential_json,
)
from webauthn.helpers.cose import COSEAlgorithmIdentifier
from webauthn.helpers.exceptions import WebAuthnException
from webauthn.helpers.structs import (
    AuthenticatorSelectionCriteria,
    PublicKeyCredentialDescriptor,
    ResidentKeyRequirement,
    UserVerificationRequirement,
)

from gateway.config import Settings
from gateway.errors import Conflict, Unprocessable
from gateway.smart import ceremonies
from gateway.smart.issuer import Smart
from gateway.smart.sessions import web_origin

MOST: Final = 20
"""Passkeys one login may have."""
_ALGORITHMS: Final = (COSEAlgorithmIdentifier.ECDSA_SHA_256, COSEAlgorithmIdentifier.EDDSA,
                      COSEAlgorithmIdentifier.RSASSA_PKCS1_v1_5_SHA_256)
"""The device takes the first it can. The contract verifies ES256 alone: a passkey of another kind only signs in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Passkey:
    """One line of the list a person sees. ``id``: hex of the credential id; times in epoch milliseconds."""

    id: str
    name: str
    created_ms: int
    used_ms: int | None


def relying_party(settings: Settings) -> str | None:
    """The rpId: this gateway's host name. None where it is known by an address alone, which WebAuthn does not take."""
    host = urlsplit(settings.base_url).hostname or ""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host or None
    return None


def passkeys_of(connection: apsw.Connection, login: str) -> list[Passkey]:
    """The passkeys of a login, the oldest first."""
    rows: list[tuple[Any, ...]] = connection.execute(
        "SELECT id, name, created_ms, used_ms FROM passkey WHERE login=? ORDER BY created_ms, id", (login,)).fetchall()
    return [Passkey(id=bytes(row[0]).hex(), name=row[1], created_ms=row[2], used_ms=row[3]) for row in rows]


def begin_adding(smart: Smart, *, login: str, name: str, shown: str, bound: str) -> dict[str, Any]:
    """PublicKeyCredentialCreationOptions as JSON; the challenge is ``bound``'s, once. Raises Conflict."""
    challenge, rp_id = generate_challenge(), _rp_id(smart)
    now_ms = smart.now_ms()

    def work(connection: apsw.Connection) -> list[Passkey]:
        known = passkeys_of(connection, login)
        if len(known) >= MOST:
            raise Conflict(f"a login has at most {MOST} passkeys: remove one first")
        ceremonies.begin(connection, smart, "passkey-add", bytes_to_base64url(challenge), bound=bound, now_ms=now_ms,
                         body={"login": login})
        return known
    known = smart.database.transact(work)
    options = generate_registration_options(
        rp_id=rp_id, rp_name=smart.settings.hospital_name, user_id=bytes.fromhex(login), user_name=name,
        user_display_name=shown, challenge=challenge, supported_pub_key_algs=list(_ALGORITHMS),
        exclude_credentials=[PublicKeyCredentialDescriptor(id=bytes.fromhex(one.id)) for one in known],
        authenticator_selection=AuthenticatorSelectionCriteria(
            resident_key=ResidentKeyRequirement.REQUIRED, user_verification=UserVerificationRequirement.REQUIRED))
    return _json(options)


def add(smart: Smart, *, login: str, bound: str, name: str, credential: Any,
        tell: Callable[[apsw.Connection], None]) -> None:
    """Store a new passkey; ``credential``: the browser's JSON; ``tell``: what is done in the same transaction.

    Raises Unprocessable.
    """
    now_ms = smart.now_ms()
    given = _parsed(parse_registration_credential_json, credential)
    handle = _challenge(given.response.client_data_json)
    body = smart.database.transact(lambda connection: ceremonies.finish(
        connection, smart, "passkey-add", handle, bound=bound, now_ms=now_ms))
    if body["login"] != login:
        raise Unprocessable("this passkey was begun by another login")
    try:
        made = verify_registration_response(
            credential=given, expected_challenge=base64url_to_bytes(handle), expected_rp_id=_rp_id(smart),
            expected_origin=web_origin(smart.settings), require_user_verification=True,
            supported_pub_key_algs=list(_ALGORITHMS))
    except (WebAuthnException, ValueError, TypeError, LookupError, AttributeError) as error:
        raise Unprocessable("the passkey was not made as asked") from error
    said = " ".join(name.split())[:60]

    def work(connection: apsw.Connection) -> None:
        known = connection.execute("SELECT 1 FROM passkey WHERE id=?", (made.credential_id,)).fetchall()
        if known or not said.isprintable() or len(made.credential_id) > 1_023:
            raise Unprocessable("this passkey is registered already, or has no printable name")
        connection.execute("INSERT INTO passkey (id,login,public_key,counter,name,created_ms) VALUES (?,?,?,?,?,?)",
                           (made.credential_id, login, made.credential_public_key, made.sign_count, said or "Passkey",
                            now_ms))
        tell(connection)
    smart.database.transact(work)


def begin_sign_in(smart: Smart, *, bound: str) -> dict[str, Any]:
    """PublicKeyCredentialRequestOptions as JSON, for any passkey of this hospital: it names nobody."""
    challenge, rp_id = generate_challenge(), _rp_id(smart)
    smart.database.transact(lambda connection: ceremonies.begin(
        connection, smart, "passkey-use", bytes_to_base64url(challenge), bound=bound, now_ms=smart.now_ms()))
    return _json(generate_authentication_options(rp_id=rp_id, challenge=challenge,
                                                 user_verification=UserVerificationRequirement.REQUIRED))


def login_of(connection: apsw.Connection, smart: Smart, *, bound: str, credential: Any, now_ms: int) -> str:
    """The login whose passkey signed the challenge, inside the open transaction. Raises Unprocessable."""
    given = _parsed(parse_authentication_credential_json, credential)
    handle = _challenge(given.response.client_data_json)
    ceremonies.finish(connection, smart, "passkey-use", handle, bound=bound, now_ms=now_ms)
    rows: list[tuple[Any, ...]] = connection.execute(
        "SELECT login, public_key, counter FROM passkey WHERE id=?", (given.raw_id,)).fetchall()
    if not rows:
        raise Unprocessable("this passkey is not registered here")
    login, public_key, counter = str(rows[0][0]), bytes(rows[0][1]), int(rows[0][2])
    if given.response.user_handle is not None and given.response.user_handle != bytes.fromhex(login):
        raise Unprocessable("this passkey is another person's")
    try:
        done = verify_authentication_response(
            credential=given, expected_challenge=base64url_to_bytes(handle), expected_rp_id=_rp_id(smart),
            expected_origin=web_origin(smart.settings), credential_public_key=public_key,
            credential_current_sign_count=counter, require_user_verification=True)
    except (WebAuthnException, ValueError) as error:
        raise Unprocessable("the passkey did not sign as asked") from error
    connection.execute("UPDATE passkey SET counter=?, used_ms=? WHERE id=?",
                       (done.new_sign_count, now_ms, given.raw_id))
    return login


def remove(connection: apsw.Connection, *, login: str, id_: str) -> bool:
    """Delete a passkey of a login inside the open transaction; whether there was one."""
    try:
        raw = bytes.fromhex(id_)
    except ValueError:
        return False
    connection.execute("DELETE FROM passkey WHERE id=? AND login=?", (raw, login))
    return bool(connection.changes())


def _rp_id(smart: Smart) -> str:
    found = relying_party(smart.settings)
    if found is None:
        raise Conflict("passkeys need a host name: GATEWAY_BASE_URL names an address")
    return found


def _parsed(parse: Any, credential: Any) -> Any:
    # Any: two classes of one shape, without a common one; the JSON is whatever came.
    try:
        return parse(credential)
    except (WebAuthnException, ValueError, TypeError, KeyError, AttributeError) as error:
        raise Unprocessable("this is no WebAuthn credential") from error


def _challenge(client_data: bytes) -> str:
    try:
        return bytes_to_base64url(parse_client_data_json(client_data).challenge)
    except (WebAuthnException, ValueError, TypeError, KeyError, AttributeError) as error:
        raise Unprocessable("this is no WebAuthn credential") from error


def _json(options: Any) -> dict[str, Any]:
    # Any: either class of options.
    made: dict[str, Any] = orjson.loads(options_to_json(options))
    return made
