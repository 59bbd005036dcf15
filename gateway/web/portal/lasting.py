"""Lasting access: the Consent a patient's offline access to an app rests on.

Owns making that Consent when an app is allowed, and taking it back where the app then was not; refuses an end that is
not in the future, and a Consent that says something else than what was allowed. ``README.md``, Paths: Authorize.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from starlette.requests import Request

from gateway.access.scopes import ScopeSet, parse
from gateway.errors import GatewayError, Gone, NotFound, Unprocessable
from gateway.fhir.resource import parse as parse_resource
from gateway.records import read, revoking
from gateway.records.app_consents import consent_of, grant_to_app
from gateway.records.consent_signers import Signers, signers_of, words_of
from gateway.records.consent_standing import is_signed
from gateway.records.node import Node
from gateway.smart.authorization import authorizations_on
from gateway.smart.clients import Client
from gateway.web.portal.acting import caller_of

ROLES: Final = frozenset({"patient"})
"""Whose lasting access rests on a Consent: a delegate's ends with the mandate, a clinician's with the patient's own."""
CONSENT: Final = parse("patient/Consent.crus user/Consent.crus")
_OTHER: Final = "what was signed is not what is allowed here: choose again"
_DAY: Final = re.compile(r"\d{4}-\d\d-\d\d")


def until_of(form: Mapping[str, str], now_ms: int) -> str | None:
    """The last day of the access, or None for until it is revoked. Raises Unprocessable."""
    text = form.get("until", "").strip()
    if not text:
        return None
    try:
        if not _DAY.fullmatch(text):
            raise ValueError
        day = datetime.date.fromisoformat(text)
    except ValueError as error:
        raise Unprocessable("the end is written as year-month-day, such as 2031-01-31", code="value") from error
    if day <= datetime.datetime.fromtimestamp(now_ms / 1_000, datetime.UTC).date():
        raise Unprocessable("the end must be after today", code="value")
    return day.isoformat()


@dataclass(frozen=True, slots=True, kw_only=True)
class Resting:
    """The Consent that says what was allowed. ``signed``: by the kept key at once, or by the person since; ``version``:
    the one that ``words`` are of."""

    id: str
    version: str
    signed: bool
    words: str
    signers: Signers


async def rest_on_consent(node: Node, request: Request, client: Client, scopes: ScopeSet, until: str | None,
                          made: str | None) -> Resting:
    """Make the Consent of what was allowed, or take up the one ``made`` for it when it was asked for a signature.

    Raises Unprocessable (``made`` says something else, or another access rests on it).
    """
    caller = caller_of(request, None, scopes=CONSENT)
    id_ = made or await grant_to_app(node, caller, client_id=client.id, client_name=client.name, scopes=scopes,
                                     until=until)
    own = str(caller.grant.self_patient)
    try:
        stored = parse_resource((await read.read(node, caller.again(), "Consent", id_)).stored)
    except (NotFound, Gone) as error:
        raise Unprocessable(_OTHER, code="value") from error
    if made:
        wanted = consent_of(own, client_id=client.id, client_name=client.name, scopes=scopes,
                            purpose=caller.grant.purpose, until=until)
        if any(stored.get(name) != wanted[name] for name in ("patient", "provision")) or stored.get(
                "status") not in ("proposed", "active") or authorizations_on(node.database.reader, id_):
            raise Unprocessable(_OTHER, code="value")
    terms = words_of(node, stored)
    return Resting(id=id_, version=str(stored["meta"]["versionId"]), signed=is_signed(node.database.reader, id_),
                   words=terms.statement if terms else "",
                   signers=signers_of(node, caller, own.removeprefix("Patient/")))


async def drop_consent(node: Node, request: Request, consent: str) -> None:
    """End a Consent that was made for an access which then was not wanted, and which nothing rests on."""
    if not authorizations_on(node.database.reader, consent):
        with suppress(GatewayError):  # ended already, or never the person's
            await end_consent(node, request, consent)


async def end_consent(node: Node, request: Request, consent: str) -> None:
    """End a Consent: nothing rests on it any more. Raises what refuses it."""
    await revoking.revoke(node, caller_of(request, None, scopes=CONSENT), consent, None)
