"""Narrative XHTML by txt-1 and txt-2: formatting, links and images, nothing active.

Owns the list of elements and attributes R4 allows in ``Narrative.div`` and refuses the rest: scripts, event
attributes, forms, frames, active URL schemes, DTDs, entities, other namespaces.
https://hl7.org/fhir/R4/narrative.html#xhtml
"""

from __future__ import annotations

import re
from typing import Any
from xml.parsers import expat

_NAMESPACE = "http://www.w3.org/1999/xhtml"

# HTML 4.0 chapters 7-11 (without 9.4) and 15, less head, body and the deprecated lists, plus a, img and maps.
_NAMES = (
    "div span h1 h2 h3 h4 h5 h6 address em strong dfn code samp kbd var cite abbr acronym blockquote q sub sup p br "
    "pre ul ol li dl dt dd table caption thead tfoot tbody colgroup col tr th td a img map area "
    "tt i b big small strike s u font hr bdo")
_PROPERTIES = (
    "id class style title lang dir accesskey tabindex align valign char charoff width height "
    "span abbr axis headers scope rowspan colspan nowrap bgcolor border frame rules cellspacing cellpadding summary "
    "href name charset type hreflang rel rev shape coords target src alt longdesc usemap ismap hspace vspace cite "
    "start value compact clear size noshade color face nohref")
_QUALIFIED = frozenset(f"{_NAMESPACE} {name}" for name in _NAMES.split())
_IMAGE = f"{_NAMESPACE} img"
_XML = "http://www.w3.org/XML/1998/namespace"
_ATTRIBUTES = frozenset(_PROPERTIES.split()) | {f"{_XML} lang", f"{_XML} space"}
_LINKS = frozenset({"href", "src", "cite", "longdesc", "usemap"})
_SCHEME = re.compile(r"[\s\x00-\x20]*([A-Za-z][A-Za-z0-9+.\-\s]*):")
_ACTIVE = frozenset({"javascript", "vbscript", "data"})
_ACTIVE_STYLE = re.compile(r"expression\s*\(|javascript:|vbscript:|behavior\s*:|-moz-binding|@import|\\", re.IGNORECASE)


class _RefusedError(Exception):
    """The narrative holds what R4 does not allow."""


def narrative_problem(value: Any) -> str | None:
    """None for a valid ``div``, else why it is refused. Never fetches, never expands an entity."""
    if type(value) is not str:
        return "must be a JSON string holding a <div>"
    reader = _Reader()
    try:
        reader.parser.Parse(value.encode(), True)
    except _RefusedError as error:
        return str(error)
    except (expat.ExpatError, UnicodeEncodeError) as error:
        return f"not well-formed XHTML: {error}"
    return None if reader.content else "the narrative has no text and no image (txt-2)"


class _Reader:
    __slots__ = ("content", "parser")

    def __init__(self) -> None:
        self.content = False
        self.parser = expat.ParserCreate(namespace_separator=" ")
        self.parser.StartElementHandler = self.root
        self.parser.CharacterDataHandler = self.text
        self.parser.StartDoctypeDeclHandler = self.doctype
        self.parser.ProcessingInstructionHandler = self.instruction

    def root(self, name: str, attributes: dict[str, str]) -> None:
        self.start(name, attributes)
        if name != f"{_NAMESPACE} div":
            raise _RefusedError("the root must be a <div> (txt-1)")
        self.parser.StartElementHandler = self.start

    def start(self, name: str, attributes: dict[str, str]) -> None:
        if name not in _QUALIFIED:
            namespace, _, local = name.rpartition(" ")
            if namespace != _NAMESPACE:
                raise _RefusedError(f"element {local[:40]!r} is not in the XHTML namespace (txt-1)")
            raise _RefusedError(f"element {local[:40]!r} is not allowed in a narrative (txt-1)")
        if name == _IMAGE:
            self.content = True
        for attribute, value in attributes.items():
            if attribute not in _ATTRIBUTES:
                raise _RefusedError(f"attribute {attribute.rpartition(' ')[2][:40]!r} is not allowed (txt-1)")
            if attribute in _LINKS:
                if _active(value, image=name == _IMAGE and attribute == "src"):
                    raise _RefusedError(f"attribute {attribute!r} holds an active URL")
            elif attribute == "style" and _ACTIVE_STYLE.search(value):
                raise _RefusedError("a style may not be active")

    def text(self, data: str) -> None:
        if not self.content and not data.isspace():
            self.content = True

    def doctype(self, *_: object) -> None:
        raise _RefusedError("a document type declaration is not allowed in a narrative")

    def instruction(self, *_: object) -> None:
        raise _RefusedError("a processing instruction is not allowed in a narrative")


def _active(url: str, *, image: bool) -> bool:
    match = _SCHEME.match(url)
    if match is None:
        return False
    scheme = "".join(match[1].split()).lower()
    if image and scheme == "data":
        return not re.match(r"\s*data:image/(png|jpe?g|gif|webp|bmp)[;,]", url, re.IGNORECASE)
    return scheme in _ACTIVE
