"""Texts that are hashed on both sides of a search: in facts and in predicates.

Owns normalisation of strings, tokens, references and uris; refuses to know parameters or resources. What
is stored and what is asked go through the same function here, or they would never meet.
https://hl7.org/fhir/R4/search.html#ptypes

Tokens are compared without case, as R4 3.1.1.4.10 recommends in doubt; systems and uris exactly.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from gateway.fhir.resource import reference_target

PREFIX_MAX = 32
"""Longest text a string search may ask for; each stored text has a fact per prefix up to it."""

_BETWEEN = "\x1f"  # never in a uri, nor in a FHIR string (R4 2.24.0.1 allows only tab, CR, LF below space)
PART = "\x1e"
"""Between the parts of a composite."""

_VERSION_PARTS = 8
"""Parts of a version between dots that count; what follows them is one."""

PRESENT = PART + "?"
"""The parameter has a value; with a resource type after it, a reference to that type."""
ABSENT = PART + "!"
"""A mandatory element has no value: the rare case is the one that is kept."""

_DROPPED = frozenset("'`.\u00b4\u2018\u2019\u02bc")
"""Apostrophes of every kind and the dot: O'Brien is also found as obrien, St. as st."""


def normal(text: str) -> str:
    """A string without case, accents and punctuation, words one space apart."""
    if text.isascii():
        folded = text.lower()
        if folded.isalnum():
            return folded
    else:
        plain = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
        folded = "".join(one for one in plain if not unicodedata.combining(one))
    letters = [one if one.isalnum() else " " for one in folded if one not in _DROPPED]
    return " ".join("".join(letters).split())


def prefix_text(normalised: str) -> str:
    """The text of one prefix; ``normalised`` is at most PREFIX_MAX long."""
    return "p" + normalised


def prefix_texts(normalised: str) -> Iterable[str]:
    """A text for every prefix of a normalised string, up to PREFIX_MAX."""
    return ["p" + normalised[:size] for size in range(1, min(len(normalised), PREFIX_MAX) + 1)]


def exact_text(text: str) -> str:
    """``:exact``: the string as it stands, composed (NFC)."""
    return "e" + (text if text.isascii() else unicodedata.normalize("NFC", text))


def token_code(code: str) -> str:
    """A code in any system."""
    return "c" + code.casefold()


def token_system(system: str) -> str:
    """Any code of a system."""
    return "s" + system


def token_full(system: str, code: str) -> str:
    """A code of a system."""
    return f"f{system}{_BETWEEN}{code.casefold()}"


def token_bare(code: str) -> str:
    """A code that has no system."""
    return "n" + code.casefold()


def token_texts(system: str | None, code: str | None) -> tuple[str, ...]:
    """Every text by which a coded value may be asked for."""
    if code is None or code == "":
        return (token_system(system),) if system else ()
    if system:
        folded = code.casefold()
        return f"f{system}{_BETWEEN}{folded}", "c" + folded, "s" + system
    folded = code.casefold()
    return "c" + folded, "n" + folded


def reference_text(text: str, own_bases: Iterable[str] = ()) -> str | None:
    """A reference without version, relative where it points into this server; None for a contained one."""
    target = reference_target(text)
    if target.kind == "relative":
        return f"{target.type}/{target.id}"
    if target.kind == "absolute":
        if target.base is not None and target.base.rstrip("/") in own_bases:
            return f"{target.type}/{target.id}"
        return f"{target.base}/{target.type}/{target.id}"
    if target.kind in ("fragment", "query"):
        return None
    return text


def reference_type(text: str) -> str | None:
    """The resource type a ``reference_text`` names, None for urns and canonicals."""
    parts = text.rsplit("/", 2)
    return parts[-2] if len(parts) >= 2 and parts[-2][:1].isupper() else None


def uri_texts(text: str) -> tuple[str, ...]:
    """A uri, and a canonical also without its version."""
    url, bar, _ = text.partition("|")
    return (text, url) if bar else (text,)


def word_texts(text: str) -> list[str]:
    """``:text``: each word of a display, whole."""
    return [f"{PART}w{word}" for word in normal(text).split(" ") if word]


def of_type_text(system: str, code: str, value: str) -> str:
    """``:of-type``: an identifier with its type."""
    return f"{PART}o{system}{_BETWEEN}{code.casefold()}{_BETWEEN}{value.casefold()}"


def below_text(uri: str) -> str:
    """``:below``: what lies under a uri, itself included; a slash at its end says nothing more."""
    return f"{PART}b{uri.rstrip('/')}"


def uri_ancestors(uri: str) -> list[str]:
    """A uri and what it lies under, path segment by segment; a urn stands alone."""
    url = uri.partition("|")[0].rstrip("/")
    scheme, slashes, path = url.partition("://")
    if not slashes:
        return [url]
    parts = path.split("/")
    return [f"{scheme}://{'/'.join(parts[:size])}" for size in range(len(parts), 0, -1)]


def version_ancestors(canonical: str) -> list[str]:
    """Of ``url|1.2.3`` what is named less finely: ``url|1.2`` and ``url|1``; nothing of a url alone."""
    url, _, version = canonical.partition("|")
    parts = version.split(".", _VERSION_PARTS)
    return [f"{url}|{'.'.join(parts[:size])}" for size in range(len(parts) - 1, 0, -1)]


def finer_text(canonical: str) -> str:
    """``:below`` on canonicals: what names a finer version than this."""
    return f"{PART}v{canonical}"


def unversioned_text(url: str) -> str:
    """A canonical that names no version, and so stands above every one."""
    return f"{PART}u{url}"


def canonical_texts(canonical: str) -> list[str]:
    """What a canonical is found by besides itself and its url."""
    if "|" not in canonical:
        return [unversioned_text(canonical)]
    return [finer_text(one) for one in version_ancestors(canonical)]


def identifier_key(key: str) -> str:
    """Under which the identifiers within a reference parameter's values are kept."""
    return f"{key}:identifier"


def contained_key(key: str, inner: str) -> str:
    """``inner`` (a parameter's key, a type) of what a reference parameter finds within the resource itself."""
    return f"{key}#{inner}"


def typed_text(type_name: str, text: str) -> str:
    """A text that counts for one type of target."""
    return f"{PART}t{type_name}{PART}{text}"


def phonetic_text(word: str) -> str | None:
    """A word as it sounds (American Soundex on its plain letters); None where it has none of them."""
    letters = [one for one in word if "a" <= one <= "z"]
    if not letters:
        return None
    code, last = letters[0].upper(), _SOUNDS.get(letters[0], "")
    for one in letters[1:]:
        sound = _SOUNDS.get(one, "")
        if sound and sound != last:
            code += sound
        if one not in "hw":
            last = sound
    return f"{PART}k{code[:4].ljust(4, '0')}"


_SOUNDS = {letter: digit for digit, letters in (("1", "bfpv"), ("2", "cgjkqsxz"), ("3", "dt"), ("4", "l"), ("5", "mn"),
                                                ("6", "r")) for letter in letters}
