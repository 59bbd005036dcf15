"""``_text`` and ``_content``: words of the narrative and of everything a resource says.

Owns which words those are, and the language they are asked in; refuses phrases and a question of nothing but words that
stand everywhere. Words are compared as strings are: without case, accents and punctuation.
https://hl7.org/fhir/R4/search.html#content

    asked := group, "OR" or a comma between: any    group := terms, "AND" or a space between: every one
    term  := a word | "NOT" term | "(" asked ")"
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any, Final

from gateway.errors import BadSearch
from gateway.fhir.query import AllOf, AnyOf, Not, Predicate
from gateway.fhir.search_encoding import PART, normal

Json = Any  # a JSON value as parsed
Leaf = Callable[[str], Predicate]

TEXT: Final = "_text"
CONTENT: Final = "_content"
WORDS_MAX: Final = 5_000
"""Most different words kept of one resource: those of a book's chapter."""
_WORD_MAX: Final = 64
_TERMS_MAX: Final = 64
_SHORT: Final = 128
STOP: Final = frozenset(["a", "an", "and", "are", "as", "at", "be", "by", "for", "from", "in", "is", "it", "of", "on",
                         "or", "that", "the", "this", "to", "was", "were", "with"])
"""English words that stand everywhere: neither kept nor asked for."""
_TAG: Final = re.compile(r"<[^>]*>")
_TOKEN: Final = re.compile(r"[()\"]|[^\s()\"]+")
_UNSAID: Final = frozenset({"resourceType", "data", "id", "reference", "url", "system", "versionId", "lastUpdated"})
"""Elements whose text is for machines: names, links, bytes."""


def word_text(word: str) -> str:
    """The text a word is hashed under."""
    return f"{PART}w{word}"


def kept(texts: Iterable[str]) -> list[str]:
    """The words of some texts, each once, in order, as they are kept."""
    found: dict[str, None] = {}
    for text in texts:
        found.update(dict.fromkeys(_known_words(text) if len(text) <= _SHORT else words(text)))
        if len(found) > WORDS_MAX:
            return list(found)[:WORDS_MAX]
    return list(found)


def words(text: str) -> tuple[str, ...]:
    """The words of a text that are kept or asked for."""
    return tuple([word[:_WORD_MAX] for word in normal(text).split(" ") if word and word not in STOP])


_known_words = lru_cache(maxsize=8192)(words)


def narrative(resource: Mapping[str, Json]) -> Iterator[str]:
    """The narrative's text."""
    text = resource.get("text")
    div = text.get("div") if type(text) is dict else None
    if type(div) is str:
        yield _plain(div)


def said(value: Json) -> Iterator[str]:
    """Every string of a resource that is said to a person."""
    if type(value) is str:
        yield _plain(value) if value[:4] == "<div" else value
    elif type(value) is dict:
        for key, one in value.items():
            if key not in _UNSAID:
                yield from said(one)
    elif type(value) is list:
        for one in value:
            yield from said(one)


def _plain(div: str) -> str:
    return html.unescape(_TAG.sub(" ", div))


READERS: Final[Mapping[str, Callable[[Mapping[str, Json]], Iterator[str]]]] = {TEXT: narrative, CONTENT: said}


def asked(text: str, name: str, leaf: Leaf) -> Predicate:
    """What ``text`` asks, a predicate for each word made by ``leaf``. Raises BadSearch."""
    tokens = _TOKEN.findall(text)
    if len(tokens) > _TERMS_MAX:
        raise BadSearch(f"{name}: more than {_TERMS_MAX} words", code="too-costly", expression=f"http.{name}")
    if '"' in tokens:
        raise BadSearch(f"{name}: phrases are not searched for; give the words alone", code="not-supported",
                        expression=f"http.{name}")
    reading = _Reading(tokens, name, leaf)
    found = reading.any_of()
    if reading.tokens:
        raise reading.unread("a ( is missing")
    if found is None:
        raise BadSearch(f"{name}: a word is needed that does not stand everywhere", code="value",
                        expression=f"http.{name}")
    return found


class _Reading:
    """The terms not read yet, last first; None stands for a term of words that are never kept."""

    def __init__(self, tokens: list[str], name: str, leaf: Leaf) -> None:
        self.tokens = tokens[::-1]
        self._name = name
        self._leaf = leaf

    def any_of(self) -> Predicate | None:
        found = [self._every()]
        while self.tokens and self.tokens[-1] == "OR":
            self.tokens.pop()
            found.append(self._every())
        some = [one for one in found if one is not None]
        return None if not some else some[0] if len(some) == 1 else AnyOf(tuple(some))

    def _every(self) -> Predicate | None:
        found = [self._term()]
        while self.tokens and self.tokens[-1] not in ("OR", ")"):
            if self.tokens[-1] == "AND":
                self.tokens.pop()
            found.append(self._term())
        some = [one for one in found if one is not None]
        return None if not some else some[0] if len(some) == 1 else AllOf(tuple(some))

    def _term(self) -> Predicate | None:
        if not self.tokens or self.tokens[-1] in (")", "OR", "AND"):
            raise self.unread("a word is missing")
        token = self.tokens.pop()
        if token == "NOT":  # noqa: S105  # a word of the language, no secret
            inner = self._term()
            return None if inner is None else Not(inner)
        if token == "(":  # noqa: S105  # as above
            inner = self.any_of()
            if not self.tokens or self.tokens.pop() != ")":
                raise self.unread("a ) is missing")
            return inner
        found = tuple(self._leaf(word) for word in words(token))
        return None if not found else found[0] if len(found) == 1 else AllOf(found)

    def unread(self, why: str) -> BadSearch:
        return BadSearch(f"{self._name}: {why}", code="value", expression=f"http.{self._name}")
