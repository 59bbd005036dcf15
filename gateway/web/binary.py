"""Binary in its own content type: bytes in, bytes out, and ranges of them.

Owns the two forms of https://hl7.org/fhir/R4/binary.html#rest; refuses to let a browser run what it gets: no sniffing,
no inline display but of a few types, and a sandbox. Deciding, sealing and audit are those of any resource.
"""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import Mapping
from dataclasses import replace

from gateway.errors import Issue, UnsupportedMedia
from gateway.fhir.outcome import operation_outcome
from gateway.fhir.resource import Resource, parse
from gateway.records.answer import Answer
from gateway.web.formats import THREAD_BYTES

_TYPE = re.compile(r"[\w.+-]{1,64}/[\w.+-]{1,64}(;[ -:<-~]{1,128})*", re.ASCII)
_INLINE = frozenset({"application/pdf", "image/gif", "image/jpeg", "image/png", "text/plain"})
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII)
_SAFE = {"Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; sandbox", "Accept-Ranges": "bytes"}


async def from_content(content: bytes, headers: Mapping[str, str], id_: str | None) -> Resource:
    """The Binary that holds ``content``, of the request's Content-Type; X-Security-Context is its securityContext.

    Raises UnsupportedMedia without a Content-Type.
    """
    kind = headers.get("content-type", "").strip()
    if not kind:
        raise UnsupportedMedia("a Binary needs a Content-Type", code="required", expression="http.Content-Type")
    encode = base64.b64encode
    data = await asyncio.to_thread(encode, content) if len(content) > THREAD_BYTES else encode(content)
    context = headers.get("x-security-context")
    return {"resourceType": "Binary", **({"id": id_} if id_ is not None else {}), "contentType": kind,
            **({"securityContext": {"reference": context}} if context else {}),
            **({"data": data.decode()} if data else {})}


async def as_content(answer: Answer, headers: Mapping[str, str]) -> Answer:
    """A read Binary as its content: all of it, or the range asked for."""
    if not answer.body:
        return replace(answer, headers={**answer.headers, "ETag": answer.headers["ETag"].removeprefix("W/")})
    if len(answer.body) > THREAD_BYTES:
        return await asyncio.to_thread(_content, answer, headers)
    return _content(answer, headers)


def _content(answer: Answer, headers: Mapping[str, str]) -> Answer:
    resource = parse(answer.body)
    content = base64.b64decode(resource.get("data", ""))
    stated = resource["contentType"]
    kind = stated if _TYPE.fullmatch(stated) else "application/octet-stream"
    inline = kind.partition(";")[0].strip().lower() in _INLINE
    # The same version is the same bytes for ever: in this form the tag is a strong one, as ranges need.
    tag = answer.headers["ETag"].removeprefix("W/")
    whole = replace(answer, body=content, media_type=kind, headers={
        **answer.headers, **_SAFE, "ETag": tag,
        "Content-Disposition": "inline" if inline else f'attachment; filename="Binary-{resource["id"]}"'})
    if answer.status != 200 or "range" not in headers or not _still(headers.get("if-range"), tag, answer):
        return whole
    return _part(whole, headers["range"])


def _still(condition: str | None, tag: str, answer: Answer) -> bool:
    """Whether If-Range holds: by the strong tag or the exact date (RFC 9110 13.1.5)."""
    return condition is None or condition.strip() in (tag, answer.last_modified)


def _part(whole: Answer, asked: str) -> Answer:
    """206, or 416 past the end; all of it for several ranges, other units, and what is no range (RFC 9110 14.2)."""
    match = _RANGE.fullmatch(asked.strip())
    if match is None or match.group(1, 2) == ("", ""):
        return whole
    size = len(whole.body)
    if match[1]:
        first, last = int(match[1]), min(int(match[2]) if match[2] else size, size - 1)
        if match[2] and int(match[2]) < first:
            return whole
    else:
        first, last = max(0, size - int(match[2])), size - 1
    if first >= size:
        issue = Issue("error", "value", f"the content has {size} bytes", "http.Range")
        return Answer(416, operation_outcome((issue,)), {"Content-Range": f"bytes */{size}", "Accept-Ranges": "bytes"})
    return replace(whole, status=206, body=whole.body[first:last + 1],
                   headers={**whole.headers, "Content-Range": f"bytes {first}-{last}/{size}"})
