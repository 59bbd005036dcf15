"""A request put off to a job: ``Prefer: respond-async``, and where the client looks for what it came to.

Owns which interactions may be asked for so, what is kept of the request, and the 202; what becomes of it is
``asynchronous.py``'s. Refuses to keep headers no interaction reads. https://hl7.org/fhir/R4/async.html,
https://www.rfc-editor.org/rfc/rfc7240#section-4.1
"""

from __future__ import annotations

from typing import Final

from gateway.config import Settings
from gateway.records import jobs
from gateway.records.answer import Answer
from gateway.records.node import Node
from gateway.web.ask import Ask

PLACE: Final = "_jobs"
PREFERENCE: Final = "respond-async"
RETRY_S: Final = "1"
_OWN: Final = frozenset({"export", "import", "reindex"})
_OFFERED: Final = frozenset({"transaction", "batch", "search-type", "search-system", "search-compartment",
                             "history-instance", "history-type", "history-system"})
_HEADERS: Final = ("accept", "content-type", "prefer", "if-match", "if-none-match", "if-none-exist",
                   "if-modified-since")


def wanted(name: str, kind: str, ask: Ask) -> bool:
    """Whether a request of the interaction or operation ``name`` is one for a job: searches, histories, bundles and
    operations, where preferred."""
    return PREFERENCE in ask.headers.get("prefer", "") and ask.preference(PREFERENCE) is not None and (
        name in _OFFERED or (kind == "operation" and name not in _OWN))


async def accept(node: Node, name: str, ask: Ask) -> Answer:
    """Queue the request. Raises TooLarge, Throttled."""
    body = b"" if ask.method in ("GET", "HEAD", "DELETE") else await ask.read_body()
    headers = {one: ask.headers[one] for one in _HEADERS if one in ask.headers}
    headers["prefer"] = ",".join(part for part in headers["prefer"].split(",") if PREFERENCE not in part)
    reading = ask.method in ("GET", "HEAD") or name.startswith("search-")
    id_ = await jobs.ask(node, ask.caller, "request", {
        "url": url(node.settings, ask), "method": ask.method, "parts": ask.parts, "query": ask.query,
        "headers": headers, "reading": reading, "holder": ask.caller.holder}, what=name, inputs=[("request", body)])
    return accepted(node.settings, id_, applied=True)


def accepted(settings: Settings, id_: str, *, applied: bool = False) -> Answer:
    """202 with the place to poll."""
    headers = {"Content-Location": f"{settings.base_url}/{PLACE}/{id_}", "Retry-After": RETRY_S}
    if applied:
        headers["Preference-Applied"] = PREFERENCE
    return Answer(202, headers=headers)


def url(settings: Settings, ask: Ask) -> str:
    """The request's own URL."""
    return f"{settings.base_url}/{'/'.join(ask.parts)}".rstrip("/") + (f"?{ask.query}" if ask.query else "")
