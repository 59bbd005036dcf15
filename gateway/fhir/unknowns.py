"""Answers that may be unknown: several questions as one.

Owns how True, False and None (unknown) join; refuses to guess: what is not known decides nothing, and hides nothing
that is. Strong three-valued logic (Kleene), as in https://hl7.org/fhirpath/N1/#boolean-logic
"""

from __future__ import annotations

from collections.abc import Iterable


def any_of(answers: Iterable[bool | None]) -> bool | None:
    """Whether one is True; asks no further once one is."""
    unknown = False
    for answer in answers:
        if answer:
            return True
        unknown = unknown or answer is None
    return None if unknown else False


def all_of(answers: Iterable[bool | None]) -> bool | None:
    """Whether all are True; asks no further once one is False."""
    unknown = False
    for answer in answers:
        if answer is False:
            return False
        unknown = unknown or answer is None
    return None if unknown else True
