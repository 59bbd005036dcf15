"""One interaction as it is asked for, by an HTTP request or by an entry of a bundle.

Owns what the interactions want of a request: its path, query, headers, preferences and body; refuses a body that is too
long or of a type this server does not read. https://hl7.org/fhir/R4/http.html#general
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from urllib.parse import parse_qsl

from gateway.config import Settings
from gateway.errors import BadSearch, Malformed, TooCostly, UnsupportedMedia
from gateway.fhir.resource import Resource
from gateway.fhir.xml_shapes import Shapes
from gateway.records import aside
from gateway.records.gate import Caller
from gateway.web import binary
from gateway.web.formats import body_syntax, is_fhir, read_resource

CONTROLS = frozenset({"_format", "_pretty"})
"""Parameters about the answer's form: no interaction sees them."""
_FIELDS_MAX = 1_000
_PREFERENCE = re.compile(r"\s*([\w-]+)\s*(?:=\s*\"?([\w-]+)\"?\s*)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """``headers`` have lower-case names; ``given`` is the resource of a bundle's entry, which has no bytes.

    ``controls``: parameters about the answer's form that stood in the body's form, once it was read.
    """

    settings: Settings
    shapes: Shapes
    caller: Caller
    method: str
    parts: tuple[str, ...]
    query: str
    headers: Mapping[str, str]
    read_body: Callable[[], Awaitable[bytes]]
    given: Resource | None = None
    controls: list[tuple[str, str]] = field(default_factory=list)

    @property
    def type(self) -> str:
        return self.parts[0]

    @property
    def id(self) -> str:
        return self.parts[1]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The query's parameters in order, but those about the answer's form."""
        if not self.query:
            return []
        return [pair for pair in parse_qsl(self.query, keep_blank_values=True) if pair[0] not in CONTROLS]

    def one(self, name: str) -> str | None:
        """The first value of a query parameter."""
        return next((value for key, value in parse_qsl(self.query, keep_blank_values=True) if key == name), None)

    def number(self, name: str, default: int) -> int:
        """A query parameter that is a natural number. Raises BadSearch."""
        text = self.one(name)
        if text is None:
            return default
        if not text.isdecimal() or len(text) > 15:
            raise BadSearch(f"{name}={text[:32]!r} is not a number", code="value", expression=f"http.{name}")
        return int(text)

    def preference(self, name: str) -> str | None:
        """A preference of ``Prefer``, empty where it has no value. https://www.rfc-editor.org/rfc/rfc7240"""
        for part in self.headers.get("prefer", "").replace(";", ",").split(","):
            match = _PREFERENCE.fullmatch(part)
            if match is not None and match[1].lower() == name:
                return match[2] or ""
        return None

    @property
    def strict(self) -> bool:
        """Whether an unknown search parameter is refused."""
        wanted = self.preference("handling") or self.settings.handling
        return wanted != "lenient"

    def only_known(self, known: frozenset[str], interaction: str) -> None:
        """Refuse, where strict, query parameters the interaction does not take. Raises BadSearch."""
        unknown = sorted({name for name, _ in self.pairs} - known)
        if unknown and self.strict:
            raise BadSearch(f"{interaction} does not take {unknown[0][:64]!r}", code="not-supported",
                            expression=f"http.{unknown[0][:64]}")

    async def resource(self) -> Resource:
        """The resource sent. Raises Malformed, TooLarge, UnsupportedMedia."""
        if self.given is not None:
            return self.given
        kind = self.headers.get("content-type", "")
        if self.parts[:1] == ("Binary",) and not is_fhir(kind) and self.parts[-1][:1] != "$":
            return await binary.from_content(await self.read_body(), self.headers,
                                             self.id if len(self.parts) > 1 else None)
        syntax = body_syntax(kind)
        if syntax is None:
            raise UnsupportedMedia(f"Content-Type {kind[:64]!r}: send application/fhir+json or application/fhir+xml",
                                   code="not-supported", expression="http.Content-Type")
        return await read_resource(await self.read_body(), syntax, self.shapes)

    @property
    def has_body(self) -> bool:
        """Whether a resource was sent at all."""
        return self.given is not None or "content-type" in self.headers

    async def form(self) -> list[tuple[str, str]]:
        """The parameters of a form. Raises Malformed, UnsupportedMedia."""
        kind = self.headers.get("content-type", "").partition(";")[0].strip()
        if kind != "application/x-www-form-urlencoded":
            raise UnsupportedMedia("_search takes application/x-www-form-urlencoded", code="not-supported",
                                   expression="http.Content-Type")
        try:
            text = (await self.read_body()).decode()
        except UnicodeDecodeError as error:
            raise Malformed("the form is not UTF-8", code="structure") from error
        if text.count("&") >= _FIELDS_MAX:
            raise TooCostly(f"a form holds at most {_FIELDS_MAX} parameters", code="too-costly")
        pairs = await aside.done(len(text) > aside.BYTES, lambda: parse_qsl(text, keep_blank_values=True))
        self.controls.extend(pair for pair in pairs if pair[0] in CONTROLS)
        return [pair for pair in pairs if pair[0] not in CONTROLS]

    def again(self) -> Ask:
        """The same with the caller read anew."""
        return replace(self, caller=self.caller.again())
