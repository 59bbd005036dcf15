"""One value of a resource to its facts, by search parameter type.

Owns which facts a Coding, HumanName, Quantity, Period ... has; refuses to know where values lie.
https://hl7.org/fhir/R4/search.html#ptypes
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable
from functools import lru_cache

from gateway.fhir.query import DateFact, Facts, HashFact, NumberFact
from gateway.fhir.search_dates import Range, element_range, ladder_texts
from gateway.fhir.search_encoding import (
    PRESENT,
    below_text,
    canonical_texts,
    contained_key,
    exact_text,
    identifier_key,
    normal,
    of_type_text,
    phonetic_text,
    prefix_texts,
    reference_text,
    reference_type,
    token_bare,
    token_code,
    token_texts,
    typed_text,
    uri_ancestors,
    uri_texts,
    word_texts,
)
from gateway.fhir.search_near import position_cells
from gateway.fhir.search_paths import Json, Source

_LIMIT = sys.float_info.max


class Sheet:
    """Facts being gathered of one resource; the same hash twice is kept once.

    ``contained``: (parameter's key, id) of references to resources within this one.
    """

    __slots__ = ("contained", "dates", "hashes", "inside", "names", "numbers", "references")

    def __init__(self) -> None:
        self.references: dict[tuple[str, str], None] = {}
        self.contained: dict[tuple[str, str], None] = {}
        self.inside: tuple[tuple[int, Facts], ...] = ()
        self.names: tuple[str, ...] = ()
        self.hashes: dict[tuple[str, str], None] = {}
        self.numbers: dict[tuple[str, float, float, str, str], None] = {}
        self.dates: dict[tuple[str, int, int], None] = {}

    def facts(self) -> Facts:
        return Facts(
            tuple([HashFact(*row) for row in self.hashes]),
            tuple([NumberFact(*row) for row in self.numbers]),
            tuple([DateFact(*row) for row in self.dates]),
            tuple([HashFact(*row) for row in self.references]),
            self.names,
            self.inside,
        )

    def absorb(self, key: str, type_name: str, inner: Sheet) -> None:
        """Take over the facts of a contained ``type_name`` that the reference parameter ``key`` leads to."""
        self.hashes[contained_key(key, type_name), ""] = None
        for own, text in inner.hashes:
            self.hashes[contained_key(key, own), text] = None
        for own, low, high, unit, code in inner.numbers:
            self.numbers[contained_key(key, own), low, high, unit, code] = None
        for own, low_ms, high_ms in inner.dates:
            self.dates[contained_key(key, own), low_ms, high_ms] = None


Texts = Callable[[Json], Iterable[str]]
"""A value to the texts it is hashed under."""

Amount = tuple[float, float, str, str]
"""low, high, ``system|code``, bare unit."""


def _text(value: Json, name: str) -> str | None:
    found = value.get(name)
    return found if type(found) is str else None


def codeable_concept(value: Json) -> Iterable[str]:
    """Every coding; the text is not a token."""
    codings = value.get("coding") if type(value) is dict else None
    if type(codings) is not list:
        return ()
    if len(codings) == 1:
        return coding(codings[0])
    return [text for one in codings for text in coding(one)]


def coding(value: Json) -> Iterable[str]:
    """A Coding's system and code."""
    return token_texts(_text(value, "system"), _text(value, "code")) if type(value) is dict else ()


def identifier(value: Json) -> Iterable[str]:
    """An Identifier's system and value."""
    return token_texts(_text(value, "system"), _text(value, "value")) if type(value) is dict else ()


def typed_identifier(value: Json) -> Iterable[str]:
    """An Identifier, also by its type."""
    texts = identifier(value)
    kind = value.get("type") if type(value) is dict else None
    codings = kind.get("coding") if type(kind) is dict else None
    number = _text(value, "value") if codings else None
    if number is None or type(codings) is not list:
        return texts
    return [*texts, *(of_type_text(_text(one, "system") or "", code, number) for one in codings
                      if type(one) is dict and (code := _text(one, "code")))]


def described(texts: Texts, *places: tuple[str, ...]) -> Texts:
    """``texts``, and the words by which a person knows the value, for ``:text``."""
    def found(value: Json) -> Iterable[str]:
        result = list(texts(value))
        words: set[str] = set()
        for place in places:
            words |= _words(value, place)
        return result + list(words) if words else result

    return found


@lru_cache(maxsize=4096)
def _words_of(text: str) -> frozenset[str]:
    return frozenset(word_texts(text))


def _words(value: Json, place: tuple[str, ...]) -> frozenset[str]:
    for number, name in enumerate(place):
        if type(value) is list:
            return frozenset().union(*(_words(one, place[number:]) for one in value))
        if type(value) is not dict:
            return frozenset()
        value = value.get(name)
    return _words_of(value) if type(value) is str else frozenset()


def contact_point(value: Json) -> Iterable[str]:
    """A ContactPoint's value; R4 allows no system here."""
    text = value.get("value") if type(value) is dict else None
    return (token_code(text),) if type(text) is str else ()


def primitive_token(value: Json) -> Iterable[str]:
    """A code, boolean, id, string or uri."""
    if type(value) is bool:
        return ("ctrue",) if value else ("cfalse",)
    return () if type(value) is dict else (token_code(str(value)),)


def bare_token(value: Json) -> Iterable[str]:
    """A primitive where others of the parameter are coded: also found as having no system."""
    return [*primitive_token(value), *(token_bare(text[1:]) for text in primitive_token(value))]


_TOKENS: dict[str, Texts] = {
    "CodeableConcept": described(codeable_concept, ("text",), ("coding", "display")),
    "Coding": described(coding, ("display",)),
    "Identifier": described(typed_identifier, ("type", "text")),
    "ContactPoint": contact_point,
}


def token_emitter(source: Source, *, mixed: bool) -> Texts:
    """The texts of a token at ``source``; ``mixed`` when the parameter also has coded values."""
    return _TOKENS.get(source.type, bare_token if mixed else primitive_token)


def plain_string(value: Json) -> Iterable[str]:
    """A string: prefixes of the whole, and the exact text."""
    if type(value) is not str:
        return ()
    return [*prefix_texts(normal(value)), exact_text(value)]


def concept_string(value: Json) -> Iterable[str]:
    """A CodeableConcept searched as a string: its text and displays."""
    if type(value) is not dict:
        return ()
    codings = value.get("coding")
    texts = [value.get("text"), *(one.get("display") for one in (codings if type(codings) is list else ())
                                  if type(one) is dict)]
    return [text for one in texts for text in plain_string(one)]


_PARTS = {
    "HumanName": ("family", "given", "prefix", "suffix", "text"),
    "Address": ("line", "city", "district", "state", "postalCode", "country", "text"),
}


def parted_string(type_name: str, covered: frozenset[str]) -> Texts:
    """A HumanName or Address: each part and each word of it, save what ``covered`` parts store themselves."""
    names = _PARTS[type_name]

    def texts(value: Json) -> Iterable[str]:
        if type(value) is not dict:
            return ()
        found: dict[str, None] = {}
        known: set[str] = set()
        for name in names:
            part = value.get(name)
            for one in part if type(part) is list else (part,):
                if type(one) is not str:
                    continue
                whole = normal(one)
                if name in covered:
                    known.add(whole)
                else:
                    found.update(dict.fromkeys(prefix_texts(whole)))
                    found[exact_text(one)] = None
                words = whole.split(" ")
                known.add(words[0])
                for word in words[1:]:
                    if word not in known:
                        known.add(word)
                        found.update(dict.fromkeys(prefix_texts(word)))
        return found

    return texts


def string_emitter(source: Source, covered: frozenset[str]) -> Texts:
    """The texts of a string at ``source``."""
    if source.type in _PARTS:
        return parted_string(source.type, covered)
    return concept_string if source.type == "CodeableConcept" else plain_string


def reference_emitter(only: str | None, own_bases: frozenset[str]) -> Texts:
    """The text of a Reference or canonical; ``only`` one resource type."""

    def texts(value: Json) -> Iterable[str]:
        if type(value) is dict:
            value = value.get("reference")
        if type(value) is not str:
            return ()
        if "|" in value and only is None:
            return uri_texts(value)
        text = reference_text(value, own_bases)
        if text is None or (only is not None and reference_type(text) != only):
            return ()
        return (text,)

    return texts


def reference_writer(key: str, narrowed: frozenset[str], texts: Texts) -> Callable[[Json, Sheet], None]:
    """All that is kept of a reference: what it leads to, its identifier, its display, that it is there.

    ``narrowed``: types for which other parameters ask.
    """
    shown = described(lambda _: (), ("display",))
    identifiers = identifier_key(key)

    def write(value: Json, sheet: Sheet) -> None:
        if value is None:
            return
        hashes = sheet.hashes
        hashes[key, PRESENT] = None
        kind = None
        for text in texts(value):
            hashes[key, text] = None
            sheet.references[key, text] = None
            kind = reference_type(text)
        if type(value) is str:
            hashes.update(dict.fromkeys([(key, text) for text in canonical_texts(value)]))
        elif type(value) is dict:
            if "display" in value:
                hashes.update(dict.fromkeys([(key, word) for word in shown(value)]))
            literal = value.get("reference")
            if type(literal) is str and literal[:1] == "#":
                sheet.contained[key, literal[1:]] = None
            kind = kind or _text(value, "type")
            if "identifier" in value:
                for text in identifier(value["identifier"]):
                    hashes[identifiers, text] = None
                    if kind is not None and kind in narrowed:
                        hashes[identifiers, typed_text(kind, text)] = None
        if kind is not None and kind in narrowed:
            hashes[key, PRESENT + kind] = None

    return write


def uri(value: Json) -> Iterable[str]:
    """A uri as it stands, a canonical also without its version, and what it lies under."""
    if type(value) is not str:
        return ()
    return [*uri_texts(value), *[below_text(one) for one in uri_ancestors(value)]]


def plain_uri(value: Json) -> Iterable[str]:
    """A uri as it stands, within a composite."""
    return uri_texts(value) if type(value) is str else ()


def sounds(value: Json) -> Iterable[str]:
    """Each word of a HumanName or a name as it sounds."""
    if type(value) is str:
        return [text for word in normal(value).split(" ") if (text := phonetic_text(word))]
    if type(value) is not dict:
        return ()
    parts = [part for name in _PARTS["HumanName"] for part in (
        value[name] if type(value.get(name)) is list else [value.get(name)])]
    return [text for part in parts if type(part) is str for text in sounds(part)]


def position(value: Json) -> Iterable[str]:
    """The cells of a Location's position."""
    return position_cells(value)


def ladder(value: Json) -> Iterable[str]:
    """The rungs of a birth or death date."""
    return ladder_texts(value) if type(value) is str else ()


def bounded(value: Json) -> float | None:
    """A JSON number as a float within a double's range; None for anything else."""
    if type(value) in (dict, list, str, bool) or value is None:
        return None
    found = float(str(value)) if type(value) is int else float(value)
    return found if -_LIMIT <= found <= _LIMIT else math.copysign(_LIMIT, found)


def quantity(value: Json) -> Iterable[Amount]:
    """A Quantity or its kin, Money, Range, SampledData or a bare number. A comparator opens the range."""
    if type(value) is not dict:
        number = bounded(value)
        return () if number is None else ((number, number, "", ""),)
    if "low" in value or "high" in value:
        return _range(value)
    if "origin" in value:
        return _sampled(value)
    number = bounded(value.get("value"))
    if number is None:
        return ()
    low = high = number
    comparator = value.get("comparator")
    if comparator in ("<", "<="):
        low = -_LIMIT
    elif comparator in (">", ">="):
        high = _LIMIT
    return _united(value, low, high)


def _united(value: Json, low: float, high: float) -> Iterable[Amount]:
    currency = _text(value, "currency")
    if currency is not None:
        return ((low, high, f"urn:iso:std:iso:4217|{currency}", currency),)
    system, code, unit = _text(value, "system"), _text(value, "code"), _text(value, "unit")
    full = f"{system}|{code}" if system and code else ""
    bare = code or unit or ""
    if code and unit and unit != code:
        # The second row's unit is one nobody can ask for: rows are told apart by their units.
        return (low, high, full, bare), (low, high, "|" + unit, unit)
    return ((low, high, full, bare),)


def _range(value: Json) -> Iterable[Amount]:
    low, high = value.get("low"), value.get("high")
    bottom = bounded(low.get("value")) if type(low) is dict else None
    top = bounded(high.get("value")) if type(high) is dict else None
    if bottom is None and top is None:
        return ()
    return _united(low if bottom is not None else high, -_LIMIT if bottom is None else bottom,
                   _LIMIT if top is None else top)


def _sampled(value: Json) -> Iterable[Amount]:
    low, high = bounded(value.get("lowerLimit")), bounded(value.get("upperLimit"))
    origin = value["origin"]
    if low is None or high is None or type(origin) is not dict:
        return ()
    return _united(origin, low, high)


def dated(value: Json) -> Range | None:
    """The range of a date, dateTime, instant, Period or Timing."""
    return element_range(value)
