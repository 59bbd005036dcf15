"""Lasting access: the Consent a patient's offline access to an app rests on.

Owns making that Consent when an app is allowed, and taking it back where the app then was not; refuses an end that is
not in the future. ``paths.md``: grant and revoke.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from typing import Final

from starlette.requests import Request

from gateway.access.scopes import ScopeSet, parse
from gateway.errors import Unprocessable
from gateway.records import revoking
from gateway.records.app_consents import grant_to_app
from gateway.records.node import Node
from gateway.smart.clients import Client
from gateway.web.portal.acting import caller_of

ROLES: Final = frozenset({"patient"})
"""Whose lasting access rests on a Consent: a delegate's ends with the mandate, a clinician's with the patient's own."""
CONSENT: Final = parse("patient/Consent.crus user/Consent.crus")
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


async def rest_on_consent(node: Node, request: Request, client: Client, scopes: ScopeSet,
                          until: str | None) -> str | None:
    """The logical id of the Consent that says what was allowed; signed by the kept key, or left for the wallet."""
    return await grant_to_app(node, caller_of(request, None, scopes=CONSENT), client_id=client.id,
                              client_name=client.name, scopes=scopes, until=until)


async def end_consent(node: Node, request: Request, consent: str) -> None:
    """End a Consent: nothing rests on it any more. Raises what refuses it."""
    await revoking.revoke(node, caller_of(request, None, scopes=CONSENT), consent, None)
