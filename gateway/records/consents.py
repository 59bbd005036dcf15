"""Consent over REST: proposed, shown as typed data, signed, active once its grant is final, ended.

Owns the life of a Consent and the act behind each step (provisions, on-chain intents) in the commit of the
version that shows it; refuses a status nobody signed for, and terms that cannot be enforced. ``data.md``:
Consent on the wire. Invariants 5, 6, 11.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import apsw

from gateway import audit
from gateway.access import signature as signatures
from gateway.access.consent import Actor, provisions_of, same_terms, transition
from gateway.access.decision import Decision, Deny
from gateway.access.provision import Failure, Provision
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
    typed_data,
    validity_s,
)
from gateway.audit import Disclosure
from gateway.crypto.index_hash import Pseudonymizer
from gateway.errors import Conflict, Forbidden, Gone, Issue, Moved, NotFound, PreconditionFailed, Unprocessable
from gateway.fhir.resource import Resource, parse, serialise
from gateway.ledger.chain import GrantCall, RevokeCall, address
from gateway.records import write
from gateway.records.gate import Caller, refusal
from gateway.records.node import Hook, Node, TypeRules, still
from gateway.records.versions import Draft
from gateway.records.write import Written
from gateway.store import journal, outbox, provisions, search_parameters
from gateway.store.journal import VersionRow
from gateway.store.sql import now_ms

REFUSED = "urn:fhir-gateway:consent-refused"
"""Extension of a proposed Consent: the contract's error with which the chain refused the grant signed for it."""
_DEADLINE_S = 30 * 24 * 3600
_KINDS: tuple[SignerKind, ...] = ("wallet", "custodial", "passkey", "attested")
_OPEN = ("draft", "proposed")
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


def actor(caller: Caller) -> Actor:
    """In which capacity the caller moves a Consent."""
    match caller.grant.role:
        case "patient" | "delegate":
            return "patient"
        case "system":
            return "feed"
        case _:
            return "office"


def check_write(node: Node, caller: Caller, old: Resource | None, new: Resource) -> Hook | None:
    """The rules of a Consent written through REST, and what must be committed with it.

    Raises Unprocessable naming the place: an impossible status, unenforceable terms, terms changed after signing.
    """
    before = old.get("status") if old else None
    status = str(new.get("status"))
    # What is signed is in force, or will be by itself: from here on it can only be ended, whatever its status shows.
    # A signature between this look and the commit moves decision_seq, and all is decided again.
    signed = before in _OPEN and _is_signed(node.database.reader, str(new["id"]))
    outcome = transition("active" if signed else before, status, actor(caller))
    if isinstance(outcome, Failure):
        raise Unprocessable(outcome.reason, code="business-rule", expression="Consent.status")
    if status in _OPEN:
        _provisions(node, new)
        return None
    if old is not None and not same_terms(old, new):
        raise Unprocessable("what was signed cannot be changed: write a new Consent", code="business-rule",
                            expression="Consent.provision")
    return _ending(node, str(new["id"]))


def check_deletion(node: Node, connection: apsw.Connection, row: VersionRow) -> Hook | None:
    """An active Consent, or one signed to be, is ended, not deleted. Raises Conflict."""
    status = parse(node.versions.open(connection, row).stored).get("status")
    if status == "active" or (status in _OPEN and _is_signed(connection, row.id)):
        raise Conflict("the Consent is signed: make it inactive (or POST $revoke) first")
    return None


def _is_signed(connection: apsw.Connection, consent: str) -> bool:
    """Whether somebody signed an open Consent: its grant is on its way or final, or it denies. A grant that the chain
    refused does not count: those terms may be put right and signed anew."""
    return outbox.grant_of_consent(connection, consent) is not None or connection.execute(
        "SELECT 1 FROM provision WHERE consent=? AND state='final' LIMIT 1", (consent,)).get is not None


def _provisions(node: Node, consent: Resource, **state: Any) -> tuple[Provision, ...]:
    return provisions_of(consent, custodian=node.settings.hospital_reference, base=node.settings.base_url,
                         types=node.definitions.resource_types, **state)


def _ending(node: Node, consent: str) -> Hook:
    """Deny from this commit on, and tell the chain."""
    def hook(connection: apsw.Connection) -> None:
        provisions.set_state_of_consent(connection, consent, "revoked", only=("pending", "final"))
        call = _revocation(node, connection, consent)
        if call is not None:
            outbox.enqueue(connection, kind="revoke", consent=consent, call=call, created_ms=now_ms())
    return hook


def _revocation(node: Node, connection: apsw.Connection, consent: str) -> RevokeCall | None:
    """The custodial patient's signed revocation of a grant; a wallet signs its own."""
    granted = outbox.grant_of_consent(connection, consent)
    if granted is None:
        return None
    patient = str(connection.execute("SELECT h.id FROM provision p JOIN patient h ON h.pk=p.patient "
                                     "WHERE p.consent=? LIMIT 1", (consent,)).get)
    if _custodial_address(node, patient) != address(granted.patient):
        return None
    message = RevokeMessage(
        patient=granted.patient, grant_id=grant_id(granted.patient, granted.grantee, granted.terms_hash),
        nonce=nonce_of("custodial", _derived(node, patient, "revoke nonce", consent)[:31]),
        deadline_s=now_ms() // 1000 + _DEADLINE_S)
    signed = _sign(node, patient, digest(message, node.domain))
    return RevokeCall(patient=granted.patient, grantee=granted.grantee, terms_hash=granted.terms_hash,
                      nonce=message.nonce, deadline_s=message.deadline_s, signature=signed)


def _derived(node: Node, patient: str, purpose: str, *parts: str) -> bytes:
    """32 bytes under the patient's own key: an erasure destroys every salt with it."""
    return Pseudonymizer(node.ring.category_keys((patient,), "consent").material).pseudonym(purpose, *parts)


def _custodial_address(node: Node, patient: str) -> str:
    from eth_keys.datatypes import PrivateKey  # loaded by the few workers that sign

    key = PrivateKey(node.ring.custodial_key(patient))
    return address(key.public_key.to_address())


def _sign(node: Node, patient: str, hashed: bytes) -> bytes:
    from eth_keys.datatypes import PrivateKey  # loaded by the few workers that sign

    signed = PrivateKey(node.ring.custodial_key(patient)).sign_msg_hash(hashed)
    return signatures.normalised(bytes(signed.to_bytes()))


def _signable(node: Node, connection: apsw.Connection, at: _Current, kind: SignerKind,
              wallet: str | None) -> Signable:
    """Deterministic: salts and nonce come from the version, so that nothing is kept between showing and signing."""
    row, patient = at.row, at.patient
    place = (row.id, str(row.vid), kind, wallet or "")
    found = _provisions(node, at.consent)
    names = _names(node, connection, found)
    terms = terms_of(found, hospital=node.settings.hospital_name, names=names,
                     salt=_derived(node, patient, "terms salt", *place))
    signer = address(wallet) if kind == "wallet" and wallet else _custodial_address(node, patient)
    valid_from_s, valid_until_s = validity_s(found[0])
    grantee = grantee_hash(_derived(node, patient, "grantee salt", *place), grantee_text(found))
    message = GrantMessage(
        patient=signer, grantee=grantee, terms=terms,
        valid_from_s=valid_from_s, valid_until_s=valid_until_s,
        nonce=nonce_of(kind, _derived(node, patient, "grant nonce", *place)[:31]),
        deadline_s=row.updated_ms // 1000 + _DEADLINE_S)
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


def _wallet_of(connection: apsw.Connection, patient: str) -> str | None:
    for (wallet,) in connection.execute(
            "SELECT wallet FROM account WHERE fhir_user=? AND closed_ms IS NULL", (f"Patient/{patient}",)):
        return None if wallet is None else str(wallet)
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Current:
    """A Consent's current version as the caller may see it; ``patient`` is a logical id."""

    row: VersionRow
    consent: Resource
    patient: str
    decision: Decision


async def _current(node: Node, caller: Caller, id_: str, name: str, letter: Literal["r", "u"]) -> _Current:
    """The current Consent, if the caller may read it, and with ``u`` also change it; else what absent looks like."""
    connection, what = node.database.reader, f"Consent/{id_}"
    row = journal.current(connection, "Consent", id_)
    if row is None:
        rows = node.gate.entries(caller, letter, name, None, what=(what,), patients=(), outcome="4")
        await node.commits.commit(lambda tx: audit.append(tx, rows))
        for needed in dict.fromkeys(("r", letter)):
            node.gate.require_scope(caller, "Consent", needed)
        raise NotFound(f"{what} is not known")
    facts, matcher = node.gate.facts(connection, row), node.gate.stored_matcher(connection, row.seq)
    decision = node.gate.decide(connection, caller, "r", stored=facts, stored_matcher=matcher)
    readable = not isinstance(decision, Deny)
    if readable and letter == "u":
        decision = node.gate.decide(connection, caller, "u", stored=facts, proposed=facts, stored_matcher=matcher,
                                    proposed_matcher=matcher)
    if isinstance(decision, Deny):
        rows = node.gate.entries(caller, letter, name, decision, what=(what,), patients=facts.home_patients)
        await node.commits.commit(lambda tx: audit.append(tx, rows))
        if readable and decision.kind == "permission":
            raise Forbidden(f"{what} may be read, not changed, with this token")
        raise refusal(decision, what)
    if row.deleted:
        raise Gone(f"{what} was deleted", version_id=row.vid)
    return _Current(row=row, consent=parse(node.versions.open(connection, row).stored), decision=decision,
                    patient=facts.home_patients[0].removeprefix("Patient/"))


def _kind_for(node: Node, caller: Caller, patient: str, wallet: str | None,
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


async def show(node: Node, caller: Caller, id_: str, *, wallet: str | None) -> bytes:
    """``$typed-data``: the EIP-712 JSON to sign; of a Consent that was signed, the revocation of its grant."""
    async def attempt(caller: Caller) -> bytes:
        at = await _current(node, caller, id_, "typed-data", "r")
        shown = serialise(typed_data(_asked(node, caller, at, wallet), node.domain))
        rows = node.gate.entries(caller, "r", "typed-data", at.decision, patients=(f"Patient/{at.patient}",),
                                 what=(f"Consent/{id_}/_history/{at.row.vid}",))
        await node.disclosures.join(Disclosure(caller.seq, rows))
        return shown
    return await node.decided(caller, attempt)


def _asked(node: Node, caller: Caller, at: _Current, wallet: str | None) -> GrantMessage | RevokeMessage:
    connection, status = node.database.reader, at.consent.get("status")
    granted = outbox.grant_of_consent(connection, at.row.id)
    if granted is not None:
        return _revoke_message(node, at, granted, _deadlines_s()[0])
    if status == "active":
        raise Conflict("this Consent rests on no grant; revoke it with $revoke")
    if status != "proposed":
        raise Conflict(f"a Consent that is {status} is not signed")
    kind, signer = _kind_for(node, caller, at.patient, wallet, None)
    return _signable(node, connection, at, kind, signer).message


def _deadlines_s() -> tuple[int, int]:
    """Until when a revocation is good, and what was said in the period before: 30 to 60 days, alike for all who ask
    within 30, so that nothing is kept between showing and signing, however old the grant."""
    present = now_ms() // 1000 // _DEADLINE_S
    return (present + 2) * _DEADLINE_S, (present + 1) * _DEADLINE_S


def _revoke_message(node: Node, at: _Current, granted: GrantCall, deadline_s: int) -> RevokeMessage:
    kind: SignerKind = "custodial" if _custodial_address(node, at.patient) == granted.patient else "wallet"
    return RevokeMessage(
        patient=granted.patient, grant_id=grant_id(granted.patient, granted.grantee, granted.terms_hash),
        nonce=nonce_of(kind, _derived(node, at.patient, "revoke nonce", at.row.id)[:31]), deadline_s=deadline_s)


async def sign(node: Node, caller: Caller, id_: str, parameters: Resource) -> Written:
    """``$sign``: check the signature, store the provisions as pending and the grant for the relay, in one commit.

    Raises Unprocessable (other terms, another signer), Conflict (signed already), Forbidden (another's session, or a
    token that may not change the Consent: a signature decides who reads).
    """
    given = _parameters(parameters)

    async def attempt(caller: Caller) -> Written:
        at = await _current(node, caller, id_, "sign", "u")
        row, patient = at.row, at.patient
        if at.consent.get("status") != "proposed" or _is_signed(node.database.reader, id_):
            raise Conflict(f"Consent/{id_} is {at.consent.get('status')}, or was signed already")
        kind, wallet = _kind_for(node, caller, patient, given.get("wallet"), given.get("kind") or (
            None if given.get("signature") else "custodial"))
        signable = _signable(node, node.database.reader, at, kind, wallet)
        if signable.message.deadline_s < now_ms() // 1000:
            raise Unprocessable("the time to sign has passed: update the Consent and ask again", code="expired",
                                expression="Consent")
        if signable.provisions[0].valid_until_ms <= now_ms():
            raise Unprocessable("the period of the terms is over", code="expired",
                                expression="Consent.provision.period")
        signed = _signature(node, caller, patient, signable, given.get("signature"))
        rows = node.gate.entries(caller, "u", "sign", at.decision, what=(f"Consent/{id_}/_history/{row.vid}",),
                                 patients=(f"Patient/{patient}",))

        def work(connection: apsw.Connection) -> None:
            still(connection, caller)
            now = journal.current(connection, "Consent", id_)
            if now is None or now.seq != row.seq or _is_signed(connection, id_):
                raise Moved("the Consent changed")
            _store(node, connection, id_, signable, signed)
            if given.get("wallet") and kind == "wallet":
                connection.execute("UPDATE account SET wallet=? WHERE fhir_user=? AND wallet IS NULL",
                                   (wallet, f"Patient/{patient}"))
            audit.append(connection, rows)

        await node.commits.commit(work)
        return Written("Consent", id_, row.vid, row.updated_ms, serialise(at.consent), False, False)
    return await node.decided(caller, attempt)


def _store(node: Node, connection: apsw.Connection, id_: str, signable: Signable, signed: bytes) -> None:
    state: Literal["pending", "final"] = "pending" if signable.on_chain else "final"
    grant = signable.grant if signable.on_chain else b""
    for provision in signable.provisions:
        provisions.put(connection, replace(provision, state=state, grant_id=grant), consent=id_,
                       address=signable.message.patient, grantee_hash=node.index.grantee,
                       category_hash=node.index.category)
    if signable.on_chain:
        message = signable.message
        outbox.enqueue(connection, kind="grant", consent=id_, created_ms=now_ms(), call=GrantCall(
            patient=address(message.patient), grantee=message.grantee, terms_hash=terms_hash(message.terms),
            valid_from_s=message.valid_from_s, valid_until_s=message.valid_until_s, nonce=message.nonce,
            deadline_s=message.deadline_s, signature=signed))


def _signature(node: Node, caller: Caller, patient: str, signable: Signable, given: str | None) -> bytes:
    if given is not None:
        raw = _bytes(given)
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
    return _sign(node, patient, digest(signable.message, node.domain))


def _bytes(text: str) -> bytes:
    try:
        return bytes.fromhex(text.removeprefix("0x"))
    except ValueError:
        pass
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Unprocessable("a signature is 65 bytes, as 0x hex or base64", code="value",
                            expression="Parameters.parameter.where(name='signature')") from None


def _parameters(resource: Resource) -> dict[str, str]:
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


async def revoke(node: Node, caller: Caller, id_: str, parameters: Resource | None) -> Written:
    """``$revoke``: the Consent becomes inactive and denies at once; a wallet's own signature goes to the chain too."""
    given = _parameters(parameters) if parameters is not None else {}

    async def attempt(caller: Caller) -> Written:
        at = await _current(node, caller, id_, "revoke", "u")
        hook: Hook | None = None
        if given.get("signature"):
            signed = _signed_revocation(node, at, _bytes(given["signature"]))

            def enqueue(connection: apsw.Connection) -> None:
                outbox.enqueue(connection, kind="revoke", consent=id_, call=signed, created_ms=now_ms())
            hook = enqueue
        try:
            return await write.update(node, caller, "Consent", id_, {**at.consent, "status": "inactive"},
                                      if_match=f'W/"{at.row.vid}"', hook=hook)
        except PreconditionFailed as error:
            raise Moved("its active version was written in between") from error
    return await node.decided(caller, attempt)


def _signed_revocation(node: Node, at: _Current, raw: bytes) -> RevokeCall:
    granted = outbox.grant_of_consent(node.database.reader, at.row.id)
    if granted is None:
        raise Conflict("this Consent rests on no grant")
    if _custodial_address(node, at.patient) == granted.patient:
        raise Unprocessable("the kept key signs this revocation by itself", code="business-rule",
                            expression="Parameters.parameter.where(name='signature')")
    for deadline_s in _deadlines_s():
        message = _revoke_message(node, at, granted, deadline_s)
        if address(signatures.recover(message, node.domain, raw)) == granted.patient:
            return RevokeCall(patient=granted.patient, grantee=granted.grantee, terms_hash=granted.terms_hash,
                              nonce=message.nonce, deadline_s=deadline_s, signature=signatures.normalised(raw))
    raise Unprocessable("the signature is not the patient's over this revocation", code="security",
                        expression="Parameters.parameter.where(name='signature')")


def show_finality(node: Node) -> int:
    """Write the ``active`` version of every Consent whose provisions became final, ``inactive`` of those whose grant
    was revoked on chain, and of one whose grant the chain refused a version that says why and, as every version, can be
    signed; how many. For the background loop; each Consent is one transaction."""
    changed = 0
    node.parameters.follow(node, journal.decision_seq(node.database.reader))
    due = node.database.reader.execute(
        "SELECT DISTINCT consent, state FROM provision WHERE state<>'pending' AND shown<>state").fetchall()
    for consent, state in due:
        changed += _show(node, str(consent), str(state))
    return changed


def _show(node: Node, id_: str, state: str) -> int:
    connection, status = node.database.reader, "active" if state == "final" else "inactive"
    generation = node.parameters.generation
    refusal = outbox.refusal_of_consent(connection, id_) if state == "revoked" else None
    row = journal.current(connection, "Consent", id_)
    new = None
    if row is not None and not row.deleted:
        consent = parse(node.versions.open(connection, row).stored)
        before = consent.get("status")
        if refusal is not None and before == "proposed":
            status = "proposed"
        if not isinstance(transition(before, status, "gateway"), Failure) and (
                before != status or refusal is not None):
            facts = node.gate.facts(connection, row)
            shown = _telling({**consent, "status": status}, refusal)
            made = Draft(resource=shown, access=facts, search=node.extractor.facts(shown))
            new, _ = node.versions.seal(made, id_=id_, vid=row.vid + 1, updated_ms=now_ms(), client=row.client,
                                        user=row.user)

    def work(tx: apsw.Connection) -> None:
        if new is not None and search_parameters.generation(tx) != generation:
            raise Conflict("a search parameter came or went: extracted anew at the next turn")
        # That state alone: one that came in between is still to be shown.
        tx.execute("UPDATE provision SET shown=state WHERE consent=? AND state=?", (id_, state))
        if new is not None:
            journal.append(tx, new)
    try:
        node.database.transact(work)
    except Conflict:
        return 0
    return int(new is not None)


def _telling(consent: Resource, refusal: str | None) -> Resource:
    """With the extension that says why the chain refused what was signed last, or without."""
    told = [one for one in consent.get("extension") or () if one.get("url") != REFUSED]
    if refusal is not None:
        told.append({"url": REFUSED, "valueCode": refusal})
    rest = {name: value for name, value in consent.items() if name != "extension"}
    return {**rest, "extension": told} if told else rest


RULES = TypeRules(check_write=check_write, check_deletion=check_deletion)
"""What writing a Consent through REST must obey, for ``Node.rules``."""
