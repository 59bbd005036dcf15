"""Signers of a Consent: what each is asked to sign, and whether what came back is theirs.

Owns the messages, made anew from the version each time, and the kept key's own signature; refuses another signer's.
``data.md``: Consent on the wire. Invariant 11.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass

import apsw

from gateway.access import signature as signatures
from gateway.access.provision import Provision
from gateway.access.terms import grantee_text, terms_of
from gateway.access.typed_data import (
    GrantMessage,
    RevokeMessage,
    SignerKind,
    digest,
    grant_id,
    grantee_hash,
    nonce_of,
    terms_hash,
    validity_s,
)
from gateway.crypto.index_hash import Pseudonymizer
from gateway.errors import Forbidden, Issue, Unprocessable
from gateway.fhir.resource import Resource
from gateway.ledger.chain import GrantCall, address
from gateway.records.consent_standing import Current, rules_of
from gateway.records.gate import Caller
from gateway.records.node import Node
from gateway.store.sql import now_ms

DEADLINE_S = 30 * 24 * 3600
_KINDS: tuple[SignerKind, ...] = ("wallet", "custodial", "passkey", "attested")
_WALLET = re.compile(r"(?:0x)?[0-9A-Fa-f]{40}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Signable:
    """What one version of a Consent asks its patient to sign, the same each time it is asked for."""

    kind: SignerKind
    message: GrantMessage
    provisions: tuple[Provision, ...]

    @property
    def on_chain(self) -> bool:
        """A deny protects at once and stays here; a permit rests on the chain."""
        return self.provisions[0].permit

    @property
    def grant(self) -> bytes:
        return grant_id(self.message.patient, self.message.grantee, terms_hash(self.message.terms))


def kind_for(node: Node, caller: Caller, patient: str, wallet: str | None,
              asked: str | None) -> tuple[SignerKind, str | None]:
    """Which signer this Consent gets: the registered wallet, one the patient's own session brings, or the kept key."""
    registered = _wallet_of(node.database.reader, patient)
    if wallet is not None:
        wallet = _address(wallet)
        # Not a delegate's: the mandate ends, a registered wallet stays.
        own = caller.grant.role == "patient" and caller.grant.self_patient == f"Patient/{patient}"
        if registered is not None and address(registered) != address(wallet):
            raise Unprocessable("another wallet is registered for this patient", code="business-rule",
                                expression="wallet")
        if registered is None and not own:
            raise Forbidden("only the patient's own session may bring a wallet that is not registered")
        return "wallet", wallet
    if asked in (None, "wallet") and registered is not None:
        return "wallet", address(registered)
    kind = asked or "custodial"
    if kind not in _KINDS:
        raise Unprocessable(f"signer kind {kind!r} is none of {', '.join(_KINDS)}", code="value", expression="kind")
    if kind == "custodial" and registered is not None:
        raise Unprocessable("the patient's registered wallet signs: send its signature", code="business-rule",
                            expression="kind")
    if kind == "passkey":
        raise Unprocessable("no passkey is registered for this patient", code="not-supported", expression="kind")
    if kind == "wallet":
        raise Unprocessable("no wallet is registered for this patient: ask with ?wallet=0x…", code="not-found",
                            expression="kind")
    return kind, None


def _address(text: str) -> str:
    if _WALLET.fullmatch(text) is None:
        raise Unprocessable("a wallet is 0x and 40 hex digits", code="value", expression="wallet")
    return address(text)


def _wallet_of(connection: apsw.Connection, patient: str) -> str | None:
    for (wallet,) in connection.execute(
            "SELECT wallet FROM account WHERE fhir_user=? AND closed_ms IS NULL", (f"Patient/{patient}",)):
        return None if wallet is None else str(wallet)
    return None


def signable_of(node: Node, connection: apsw.Connection, at: Current, kind: SignerKind,
              wallet: str | None) -> Signable:
    """Deterministic: salts and nonce come from the version, so that nothing is kept between showing and signing."""
    row, patient = at.row, at.patient
    place = (row.id, str(row.vid), kind, wallet or "")
    found = rules_of(node, at.consent)
    names = _names(node, connection, found)
    terms = terms_of(found, hospital=node.settings.hospital_name, names=names,
                     salt=derived(node, patient, "terms salt", *place))
    signer = address(wallet) if kind == "wallet" and wallet else kept_address(node, patient)
    valid_from_s, valid_until_s = validity_s(found[0])
    grantee = grantee_hash(derived(node, patient, "grantee salt", *place), grantee_text(found))
    message = GrantMessage(
        patient=signer, grantee=grantee, terms=terms,
        valid_from_s=valid_from_s, valid_until_s=valid_until_s,
        nonce=nonce_of(kind, derived(node, patient, "grant nonce", *place)[:31]),
        deadline_s=row.updated_ms // 1000 + DEADLINE_S)
    return Signable(kind=kind, message=message, provisions=found)


def _names(node: Node, connection: apsw.Connection, found: tuple[Provision, ...]) -> Mapping[str, str]:
    """Names of accounts the hospital proofed: never from a resource a client can write."""
    references = {p.grantee for p in found if p.grantee is not None}
    names = {node.settings.hospital_reference: node.settings.hospital_name}
    for reference in references:
        for (name,) in connection.execute(
                "SELECT name FROM account WHERE fhir_user=? AND closed_ms IS NULL", (reference,)):
            names[reference] = str(name)
    return names


def deadlines_s() -> tuple[int, int]:
    """Until when a revocation is good, and what was said in the period before: 30 to 60 days, alike for all who ask
    within 30, so that nothing is kept between showing and signing, however old the grant."""
    present = now_ms() // 1000 // DEADLINE_S
    return (present + 2) * DEADLINE_S, (present + 1) * DEADLINE_S


def revoke_message(node: Node, at: Current, granted: GrantCall, deadline_s: int) -> RevokeMessage:
    kind: SignerKind = "custodial" if kept_address(node, at.patient) == granted.patient else "wallet"
    return RevokeMessage(
        patient=granted.patient, grant_id=grant_id(granted.patient, granted.grantee, granted.terms_hash),
        nonce=nonce_of(kind, derived(node, at.patient, "revoke nonce", at.row.id)[:31]), deadline_s=deadline_s)


def signature_of(node: Node, caller: Caller, patient: str, signable: Signable, given: str | None) -> bytes:
    if given is not None:
        raw = signature_bytes(given)
        signer = signatures.recover(signable.message, node.domain, raw)
        if address(signer) != address(signable.message.patient):
            raise Unprocessable("the signature is not the patient's over these terms", code="security",
                                expression="Parameters.parameter.where(name='signature')")
        return signatures.normalised(raw)
    if signable.kind == "wallet":
        raise Unprocessable("the patient's wallet signs: send its signature", code="required",
                            expression="Parameters.parameter.where(name='signature')")
    if signable.kind == "attested":
        if caller.grant.role != "records-office":
            raise Forbidden("a paper consent is attested by the records office")
    elif caller.grant.self_patient != f"Patient/{patient}":
        raise Forbidden("the kept key signs in the patient's own session only")
    return sign_kept(node, patient, digest(signable.message, node.domain))


def signature_bytes(text: str) -> bytes:
    try:
        return bytes.fromhex(text.removeprefix("0x"))
    except ValueError:
        pass
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Unprocessable("a signature is 65 bytes, as 0x hex or base64", code="value",
                            expression="Parameters.parameter.where(name='signature')") from None


def parameters_of(resource: Resource) -> dict[str, str]:
    """``signature``, ``kind`` and ``wallet`` of a Parameters resource. Raises Unprocessable for others."""
    if resource.get("resourceType") != "Parameters":
        raise Unprocessable("send a Parameters resource", code="invalid", expression="resourceType")
    given: dict[str, str] = {}
    issues: list[Issue] = []
    parameters = resource.get("parameter") or []
    for place, parameter in enumerate(parameters if isinstance(parameters, list) else []):
        at = f"Parameters.parameter[{place}]"
        name = parameter.get("name") if isinstance(parameter, dict) else None
        value = next((item for key, item in parameter.items() if key.startswith("value")), None) if name else None
        if name not in ("signature", "kind", "signer", "wallet"):
            issues.append(Issue("error", "not-supported", f"{name!r} is none of signature, kind, wallet", f"{at}.name"))
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
