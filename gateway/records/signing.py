"""Signers of a Consent: what each is asked to sign, and whether what came back is theirs.

Owns the messages, made anew from the version each time, and the kept key's own signature; refuses another signer's.
``FORMATS.md``, Messages. Invariant 11.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import apsw

from gateway.access import signature as signatures
from gateway.access.passkey import Assertion, PublicKey, RelyingParty, challenge_text, checked
from gateway.access.provision import Provision
from gateway.access.terms import grantee_text, terms_of
from gateway.access.typed_data import (
    GrantMessage,
    Message,
    RevokeAllMessage,
    RevokeMessage,
    SignerKind,
    digest,
    grant_id,
    grantee_hash,
    kind_of,
    nonce_of,
    terms_hash,
    validity_s,
)
from gateway.crypto.index_hash import Pseudonymizer
from gateway.errors import Forbidden, Issue, Unprocessable
from gateway.fhir.resource import Resource
from gateway.ledger.address import address
from gateway.ledger.calls import GrantCall
from gateway.records.consent_standing import Current, rules_of
from gateway.records.cose import public_key_of
from gateway.records.gate import Caller
from gateway.records.node import Node
from gateway.smart.sessions import web_origin
from gateway.store import followed, revocations
from gateway.store.sql import now_ms

DEADLINE_S = 30 * 24 * 3600
_KINDS: tuple[SignerKind, ...] = ("wallet", "custodial", "passkey", "attested")
_NAMES = ("signature", "kind", "signer", "wallet", "credential", "authenticatorData", "clientDataJSON")
_HEX = re.compile(r"0x(?:[0-9A-Fa-f]{2})*|[0-9A-Fa-f]{130}")
_WALLET = re.compile(r"(?:0x)?[0-9A-Fa-f]{40}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Signer:
    """Who signs: ``address`` is the patient on chain. Of a passkey also its credential id and public key."""

    kind: SignerKind
    address: str
    credential: bytes = b""
    key: PublicKey | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Signable:
    """What one version of a Consent asks its patient to sign, the same each time it is asked for."""

    signer: Signer
    message: GrantMessage
    provisions: tuple[Provision, ...]
    ended: int
    """How often the patient had ended everything when it was asked for."""

    @property
    def on_chain(self) -> bool:
        """A deny protects at once and stays here; a permit rests on the chain."""
        return any(provision.permit for provision in self.provisions)

    @property
    def grant(self) -> bytes:
        return grant_id(self.message.patient, self.message.grantee, terms_hash(self.message.terms))


def signer_for(node: Node, caller: Caller, patient: str, given: Mapping[str, str]) -> Signer:
    """Which signer this Consent gets: the registered wallet, one the patient's own session brings, a passkey the
    patient registered, or the kept key."""
    connection = node.database.reader
    registered, wallet = wallet_of(connection, patient), given.get("wallet")
    kind = given.get("kind")
    if wallet is not None:
        wallet = _address(wallet)
        # Not a delegate's: the mandate ends, a registered wallet stays. Not an app's, whatever it may write: a
        # registered wallet signs in as the patient. The account page registers one, after a sign-in of just now.
        own = (caller.grant.role == "patient" and caller.grant.self_patient == f"Patient/{patient}"
               and caller.grant.minted_by_operator)
        if registered is not None and address(registered) != address(wallet):
            raise Unprocessable("another wallet is registered for this patient", code="business-rule",
                                expression="wallet")
        if registered is None and not own:
            raise Forbidden("a wallet is registered by the patient, on the account page: an app brings none")
        return Signer(kind="wallet", address=address(wallet))
    if kind == "passkey" or (kind is None and {"credential", "clientDataJSON"} & given.keys()):
        return _passkey(connection, patient, given.get("credential"))
    if kind in (None, "wallet") and registered is not None:
        return Signer(kind="wallet", address=address(registered))
    kind = kind or "custodial"
    if kind not in _KINDS:
        raise Unprocessable(f"signer kind {kind!r} is none of {', '.join(_KINDS)}", code="value", expression="kind")
    if kind == "custodial" and registered is not None:
        raise Unprocessable("the patient's registered wallet signs: send its signature", code="business-rule",
                            expression="kind")
    if kind == "wallet":
        raise Unprocessable("no wallet is registered for this patient: ask with ?wallet=0x…", code="not-found",
                            expression="kind")
    return Signer(kind=kind, address=kept_address(node, patient))


def signer_at(node: Node, patient: str, kind: SignerKind, account: str) -> Signer:
    """The signer behind an address something was signed with: what revokes it. Raises Unprocessable: the passkey is no
    more registered."""
    if account == kept_address(node, patient):
        return Signer(kind="custodial", address=account)
    if kind == "passkey":
        for one in passkeys_of(node.database.reader, patient):
            if one.address == account:
                return one
        raise Unprocessable("the passkey that granted this is not registered any more", code="not-found",
                            expression="kind")
    return Signer(kind="wallet", address=account)


def _address(text: str) -> str:
    if _WALLET.fullmatch(text) is None:
        raise Unprocessable("a wallet is 0x and 40 hex digits", code="value", expression="wallet")
    return address(text)


def wallet_of(connection: apsw.Connection, patient: str) -> str | None:
    """The wallet registered for a patient (a logical id)."""
    for (wallet,) in connection.execute(
            "SELECT wallet FROM account WHERE fhir_user=? AND closed_ms IS NULL", (f"Patient/{patient}",)):
        return None if wallet is None else str(wallet)
    return None


def passkeys_of(connection: apsw.Connection, patient: str) -> Iterator[Signer]:
    """The P-256 passkeys of a patient's own proofed logins, the oldest first. A delegate's are not the patient's."""
    rows: list[Any] = connection.execute(
        "SELECT p.id, p.public_key FROM login l JOIN passkey p ON p.login=l.id JOIN account a "
        "ON a.fhir_user=l.fhir_user WHERE l.fhir_user=? AND l.state='verified' AND a.closed_ms IS NULL "
        "ORDER BY p.created_ms, p.id", (f"Patient/{patient}",)).fetchall()
    for credential, cose in rows:
        key = public_key_of(bytes(cose))
        if key is not None:
            yield Signer(kind="passkey", address=address(key.account), credential=bytes(credential), key=key)


def _passkey(connection: apsw.Connection, patient: str, credential: str | None) -> Signer:
    wanted = None if credential is None else _given_bytes(credential, "credential")
    for one in passkeys_of(connection, patient):
        if wanted is None or one.credential == wanted:
            return one
    raise Unprocessable("no such passkey is registered for this patient", code="not-found", expression="kind")


def signable_of(node: Node, connection: apsw.Connection, at: Current, signer: Signer) -> Signable:
    """Deterministic: salts and nonce come from the version, so that nothing is kept between showing and signing; and
    from how often the patient ended everything: what they signed before, and nobody sent, is no more what is asked."""
    row, patient = at.row, at.patient
    ended = revocations.times_of(connection, patient)
    place = (row.id, str(row.vid), signer.kind, signer.address if signer.kind in ("wallet", "passkey") else "")
    found = rules_of(node, at.consent)
    names = names_of(node, connection, found)
    terms = terms_of(found, hospital=node.settings.hospital_name, names=names,
                     salt=derived(node, patient, "terms salt", *place))
    valid_from_s, valid_until_s = validity_s(found[0])
    grantee = grantee_hash(derived(node, patient, "grantee salt", *place), grantee_text(found))
    message = GrantMessage(
        patient=signer.address, grantee=grantee, terms=terms,
        valid_from_s=valid_from_s, valid_until_s=valid_until_s,
        epoch=followed.epoch_to_sign(connection, address(signer.address)),
        nonce=nonce_of(signer.kind, derived(node, patient, "grant nonce", *place, *([str(ended)] if ended else []))[
            :31]),
        deadline_s=row.updated_ms // 1000 + DEADLINE_S)
    return Signable(signer=signer, message=message, provisions=found, ended=ended)


def still_asked(connection: apsw.Connection, patient: str, signable: Signable) -> bool:
    """Whether nothing the patient ended since makes another message of it."""
    return (revocations.times_of(connection, patient) == signable.ended and followed.epoch_to_sign(
        connection, address(signable.message.patient)) == signable.message.epoch)


def still_signs(connection: apsw.Connection, patient: str, signer: Signer) -> bool:
    """Whether a signer that was theirs when it signed still is, inside the open transaction."""
    registered = wallet_of(connection, patient)
    match signer.kind:
        case "custodial":
            return registered is None
        case "wallet":
            return registered is None or address(registered) == address(signer.address)
        case "passkey":
            return any(one.credential == signer.credential for one in passkeys_of(connection, patient))
        case "attested":
            return True


def names_of(node: Node, connection: apsw.Connection, found: tuple[Provision, ...]) -> Mapping[str, str]:
    """Names of accounts the hospital proofed and of apps it registered: never from a resource a client can write."""
    references = {p.grantee for p in found if p.grantee is not None}
    names = {node.settings.hospital_reference: node.settings.hospital_name}
    for reference in references:
        type_, _, id_ = reference.partition("/")
        row = connection.execute("SELECT name FROM client WHERE id=? AND closed_ms IS NULL", (id_,)) if (
            type_ == "Device") else connection.execute(
            "SELECT name FROM account WHERE fhir_user=? AND closed_ms IS NULL", (reference,))
        for (name,) in row:
            names[reference] = str(name)
    return names


def deadlines_s() -> tuple[int, int]:
    """Until when a revocation is good, and what was said in the period before: 30 to 60 days, alike for all who ask
    within 30, so that nothing is kept between showing and signing, however old the grant."""
    present = now_ms() // 1000 // DEADLINE_S
    return (present + 2) * DEADLINE_S, (present + 1) * DEADLINE_S


def revoke_message(node: Node, patient: str, consent: str, granted: GrantCall, deadline_s: int) -> RevokeMessage:
    """The revocation of what a Consent granted, for whoever signed that."""
    kept = kept_address(node, patient) == granted.patient
    kind: SignerKind = "custodial" if kept else kind_of(granted.nonce)
    return RevokeMessage(
        patient=granted.patient, grant_id=grant_id(granted.patient, granted.grantee, granted.terms_hash),
        nonce=nonce_of(kind, derived(node, patient, "revoke nonce", consent)[:31]), deadline_s=deadline_s)


def revoke_all_message(node: Node, patient: str, kind: SignerKind, account: str, epoch: int,
                       deadline_s: int) -> RevokeAllMessage:
    """The end of all that an address granted up to an epoch."""
    nonce = derived(node, patient, "revoke-all nonce", account, str(epoch), str(deadline_s))[:31]
    return RevokeAllMessage(patient=account, epoch=epoch, nonce=nonce_of(kind, nonce), deadline_s=deadline_s)


def options(node: Node, signer: Signer, message: Message) -> dict[str, Any]:
    """What a page gives to ``navigator.credentials.get`` to have a passkey sign ``message``.
    https://www.w3.org/TR/webauthn-3/#dictdef-publickeycredentialrequestoptionsjson"""
    return {"challenge": challenge_text(digest(message, node.domain)), "rpId": _party(node).id,
            "allowCredentials": [{"type": "public-key", "id": challenge_text(signer.credential)}],
            "userVerification": "required"}


def _party(node: Node) -> RelyingParty:
    return RelyingParty(id=urlsplit(node.settings.base_url).hostname or "", origins=(web_origin(node.settings),))


def signature_of(node: Node, caller: Caller, patient: str, signable: Signable, given: Mapping[str, str]) -> bytes:
    """The signature over a grant, as the contract takes it: one that was given and is the signer's, or the kept key's
    own. Raises Unprocessable, Forbidden (another's session)."""
    kind = signable.signer.kind
    if given.get("signature") is not None:
        return given_signature(node, signable.signer, signable.message, given)
    if kind in ("wallet", "passkey"):
        raise Unprocessable(f"the patient's {kind} signs: send its signature", code="required",
                            expression="Parameters.parameter.where(name='signature')")
    if kind == "attested":
        if caller.grant.role != "records-office":
            raise Forbidden("a paper consent is attested by the records office")
    elif caller.grant.self_patient != f"Patient/{patient}":
        raise Forbidden("the kept key signs in the patient's own session only")
    return sign_kept(node, patient, digest(signable.message, node.domain))


def given_signature(node: Node, signer: Signer, message: Message, given: Mapping[str, str]) -> bytes:
    """A signature that was sent, if it is the signer's over ``message``. Raises Unprocessable."""
    raw = _given_bytes(given["signature"], "signature")
    if signer.kind == "passkey":
        if signer.key is None or not {"authenticatorData", "clientDataJSON"} <= given.keys():
            raise Unprocessable("a passkey's answer is authenticatorData, clientDataJSON and signature",
                                code="required", expression="Parameters.parameter")
        assertion = Assertion(authenticator_data=_given_bytes(given["authenticatorData"], "authenticatorData"),
                              client_data=_given_bytes(given["clientDataJSON"], "clientDataJSON"), signature=raw)
        return checked(assertion, key=signer.key, digest=digest(message, node.domain), party=_party(node))
    if address(signatures.recover(message, node.domain, raw)) != signer.address:
        raise Unprocessable("the signature is not the patient's over these terms", code="security",
                            expression="Parameters.parameter.where(name='signature')")
    return signatures.normalised(raw)


def _given_bytes(text: str, name: str) -> bytes:
    """Hex (0x, or 65 bytes of it), base64 or base64url, padded or not. Raises Unprocessable."""
    if _HEX.fullmatch(text):
        return bytes.fromhex(text.removeprefix("0x"))
    try:
        plain = text.rstrip("=").replace("-", "+").replace("_", "/")
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise Unprocessable(f"{name} is bytes, as 0x hex or base64", code="value",
                            expression=f"Parameters.parameter.where(name='{name}')") from None


def parameters_of(resource: Resource) -> dict[str, str]:
    """The texts of a Parameters resource about a signature. Raises Unprocessable for others."""
    if resource.get("resourceType") != "Parameters":
        raise Unprocessable("send a Parameters resource", code="invalid", expression="resourceType")
    given: dict[str, str] = {}
    issues: list[Issue] = []
    parameters = resource.get("parameter") or []
    for place, parameter in enumerate(parameters if isinstance(parameters, list) else []):
        at = f"Parameters.parameter[{place}]"
        name = parameter.get("name") if isinstance(parameter, dict) else None
        value = next((item for key, item in parameter.items() if key.startswith("value")), None) if name else None
        if name not in _NAMES:
            issues.append(Issue("error", "not-supported", f"is none of {', '.join(_NAMES)}", f"{at}.name"))
        elif not isinstance(value, str):
            issues.append(Issue("error", "value", f"{name} is a text", f"{at}.value"))
        else:
            given["kind" if name == "signer" else name] = value
    if issues:
        raise Unprocessable(issues)
    return given


def derived(node: Node, patient: str, purpose: str, *parts: str) -> bytes:
    """32 bytes under the patient's own key: an erasure destroys every salt with it."""
    return Pseudonymizer(node.ring.category_keys((patient,), "consent").material).pseudonym(purpose, *parts)


def kept_address(node: Node, patient: str) -> str:
    from eth_keys.datatypes import PrivateKey  # loaded by the few workers that sign

    key = PrivateKey(node.ring.custodial_key(patient))
    return address(key.public_key.to_address())


def sign_kept(node: Node, patient: str, hashed: bytes) -> bytes:
    from eth_keys.datatypes import PrivateKey  # loaded by the few workers that sign

    signed = PrivateKey(node.ring.custodial_key(patient)).sign_msg_hash(hashed)
    return signatures.normalised(bytes(signed.to_bytes()))
