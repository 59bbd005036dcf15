"""Terminology as search asks for it: ``:in``, ``:not-in``, ``:above``, ``:below`` on tokens.

Owns the questions and their smallest answer, the value sets R4 binds codes to; refuses what is not carried, by name.
``gateway/fhir/terminology.py`` answers for more. https://hl7.org/fhir/R4/search.html#modifiers
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, TypeVar

from gateway.errors import BadSearch, InputRefused, NotFound
from gateway.fhir.definitions import Definitions

T = TypeVar("T")


class Codes(Protocol):
    """What a code belongs to. Each raises NotFound or InputRefused for what it does not carry."""

    def members(self, canonical: str) -> Mapping[str, frozenset[str]]:
        """The codes of a value set by system."""

    def descendants(self, system: str, code: str) -> frozenset[str]:
        """The codes that ``code`` subsumes, without it."""

    def ancestors(self, system: str, code: str) -> frozenset[str]:
        """The codes that subsume ``code``, without it."""


class BoundCodes:
    """The value sets R4 binds its elements to; no hierarchy."""

    def __init__(self, definitions: Definitions) -> None:
        self._definitions = definitions

    def members(self, canonical: str) -> Mapping[str, frozenset[str]]:
        found = self._definitions.value_set(canonical)
        if found is None or found.rule is not None:
            raise NotFound("no value set with this url is known")
        return found.codes

    def descendants(self, system: str, code: str) -> frozenset[str]:
        raise NotFound("the code system is not carried here")

    def ancestors(self, system: str, code: str) -> frozenset[str]:
        raise NotFound("the code system is not carried here")


def known(ask: Callable[[], T], name: str) -> T:
    """The answer to a terminology question of the parameter ``name``. Raises BadSearch in place of its refusals."""
    try:
        return ask()
    except NotFound as error:
        raise BadSearch(f"{name}: {error}", code="not-found", expression=f"http.{name}") from error
    except InputRefused as error:
        raise BadSearch(f"{name}: {error.issues[0].diagnostics}", code=error.issues[0].code,
                        expression=f"http.{name}") from error
