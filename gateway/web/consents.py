"""A Consent's own doors, ``$typed-data``, ``$sign`` and ``$revoke``, a patient's ``$revoke-all``, and every version's
``$receipt``. ``FORMATS.md``, Consent and Receipt."""

from __future__ import annotations

from gateway.errors import NotFound
from gateway.records import granting, receipts, revoking, revoking_all
from gateway.records.answer import Answer
from gateway.web.ask import Ask
from gateway.web.door import Door, Route
from gateway.web.interactions import version_id

_CONSENT = frozenset({"Consent"})
_PATIENT = frozenset({"Patient"})
_URN = "urn:fhir-gateway:operation:"


async def receipt(door: Door, ask: Ask) -> Answer:
    """The proof of a version; 202 while it is not anchored yet."""
    vid = version_id(ask) if len(ask.parts) > 3 else None
    if vid == 0:
        raise NotFound(f"{ask.type}/{ask.id}/_history/{ask.parts[3][:64]} is not known")
    status, body = await receipts.receipt(door.node, ask.caller, ask.type, ask.id, vid)
    return Answer(status, body, {"Retry-After": "2"} if status == 202 else {})


async def typed_data(door: Door, ask: Ask) -> Answer:
    """What a wallet, or a passkey, is asked to sign."""
    return Answer(200, await granting.show(door.node, ask.caller, ask.id, _signer(ask)))


def _signer(ask: Ask) -> dict[str, str]:
    return {name: value for name in ("wallet", "kind", "credential") if (value := ask.one(name)) is not None}


async def sign(door: Door, ask: Ask) -> Answer:
    """The signature of a proposed Consent."""
    return door.written(await granting.sign(door.node, ask.caller, ask.id, await ask.resource()))


async def revoke(door: Door, ask: Ask) -> Answer:
    """The end of a Consent."""
    body = await ask.resource() if ask.has_body else None
    return door.written(await revoking.revoke(door.node, ask.caller, ask.id, body))


async def revoke_all_shown(door: Door, ask: Ask) -> Answer:
    """What a wallet or passkey signs to end everything."""
    return Answer(200, await revoking_all.show(door.node, ask.caller, ask.id, _signer(ask)))


async def revoke_all(door: Door, ask: Ask) -> Answer:
    """The end of everything a patient granted."""
    body = await ask.resource() if ask.has_body else None
    return Answer(200, await revoking_all.revoke_all(door.node, ask.caller, ask.id, body))


ROUTES = (
    Route(method="GET", shape="T/I/_history/V/$receipt", name="receipt", handler=receipt, kind="operation",
          definition=f"{_URN}receipt"),
    Route(method="GET", shape="T/I/$receipt", name="receipt", handler=receipt, kind="operation",
          definition=f"{_URN}receipt"),
    Route(method="GET", shape="T/I/$typed-data", name="typed-data", handler=typed_data, kind="operation",
          types=_CONSENT, definition=f"{_URN}typed-data"),
    Route(method="POST", shape="T/I/$sign", name="sign", handler=sign, kind="operation", types=_CONSENT,
          definition=f"{_URN}sign"),
    Route(method="POST", shape="T/I/$revoke", name="revoke", handler=revoke, kind="operation", types=_CONSENT,
          definition=f"{_URN}revoke"),
    Route(method="GET", shape="T/I/$revoke-all", name="revoke-all", handler=revoke_all_shown, kind="operation",
          types=_PATIENT, definition=f"{_URN}revoke-all"),
    Route(method="POST", shape="T/I/$revoke-all", name="revoke-all", handler=revoke_all, kind="operation",
          types=_PATIENT, definition=f"{_URN}revoke-all"),
)
