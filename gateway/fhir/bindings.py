"""Required bindings: whether a code, Coding, CodeableConcept or Quantity stays inside its value set.

Owns the checks by expansion and, where HL7 lists no codes, by the syntax of the code system (BCP 47, BCP 13,
ISO 4217). Refuses to judge displays, and extensible bindings: those need a terminology server.
https://hl7.org/fhir/R4/terminologies.html#required
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from gateway.fhir.definitions import Binding, Definitions, ValueSet

CodeCheck = Callable[[str], bool]
ConceptCheck = Callable[[dict[str, Any]], str | None]
"""None when inside the value set, else why not."""

_BCP47 = re.compile(
    r"(?:[A-Za-z]{2,3}(?:-[A-Za-z]{3}){0,3}|[A-Za-z]{4,8})(?:-[A-Za-z]{4})?(?:-(?:[A-Za-z]{2}|\d{3}))?"
    r"(?:-(?:[A-Za-z0-9]{5,8}|\d[A-Za-z0-9]{3}))*(?:-[A-WY-Za-wy-z0-9](?:-[A-Za-z0-9]{2,8})+)*"
    r"(?:-[xX](?:-[A-Za-z0-9]{1,8})+)?|[xX](?:-[A-Za-z0-9]{1,8})+|i-[a-z]+", re.ASCII)
_TOKEN = r"[A-Za-z0-9!#$%&'*+.^_`|~-]+"  # noqa: S105  # RFC 9110's word for it
_MIMETYPE = re.compile(rf"{_TOKEN}/{_TOKEN}(?:\s*;.*)?")
"""Parameters are not judged: HL7's own examples have ``variant=DICOM WADO-RS`` unquoted."""
_BARE_FORMATS = frozenset({"json", "xml", "ttl", "turtle"})
"""FHIR's own short forms, as CapabilityStatement.format has them."""
_CURRENCY = re.compile(r"[A-Z]{3}")

_SYNTAX: Mapping[str, CodeCheck] = MappingProxyType({
    "any": lambda code: True,
    "bcp47": lambda code: _BCP47.fullmatch(code) is not None,
    "mimetype": lambda code: _MIMETYPE.fullmatch(code) is not None or code in _BARE_FORMATS,
    "currency": lambda code: _CURRENCY.fullmatch(code) is not None,
})


def value_sets(definitions: Definitions, binding: Binding | None) -> tuple[tuple[ValueSet, bool], ...]:
    """The value sets this binding confines to, each with whether a code is a must: required yes, maximum no."""
    if binding is None:
        return ()
    urls = [(binding.value_set, True)] if binding.strength == "required" else []
    if binding.maximum is not None:
        urls.append((binding.maximum, False))
    found = ((definitions.value_set(url), needed) for url, needed in urls)
    return tuple((value_set, needed) for value_set, needed in found
                 if value_set is not None and value_set.rule != "any")


def code_check(value_set: ValueSet) -> tuple[frozenset[str], CodeCheck]:
    """For a ``code`` element: the codes it may take, and the test for what is not among them."""
    if value_set.rule is None:
        return value_set.all_codes(), lambda code: False
    return frozenset(), _SYNTAX.get(value_set.rule, _SYNTAX["any"])


def coding_check(value_set: ValueSet) -> ConceptCheck:
    """For a Coding or Quantity: system and code together."""
    codes, rule = value_set.codes, value_set.rule

    def inside(value: dict[str, Any]) -> str | None:
        system, code = value.get("system"), value.get("code")
        if code is None and "extension" in value:
            return None
        if rule is None:
            if type(code) is str and type(system) is str and code in codes.get(system, ()):
                return None
        elif rule.startswith("system:"):
            if system == rule.removeprefix("system:") and type(code) is str:
                return None
        elif type(code) is str and _SYNTAX[rule](code):
            return None
        return f"the code is not in the required value set {value_set.url}"
    return inside


def concept_check(value_set: ValueSet, *, needed: bool) -> ConceptCheck:
    """For a CodeableConcept: one coding inside is enough; none where one is ``needed`` is not, unless an extension
    says why."""
    inside = coding_check(value_set)

    def check(value: dict[str, Any]) -> str | None:
        codings = value.get("coding")
        if codings is None:
            if "extension" in value or not needed:
                return None
            return f"a code from the required value set {value_set.url} is needed"
        if any(type(coding) is dict and inside(coding) is None for coding in codings):
            return None
        return f"none of the codings is in the required value set {value_set.url}"
    return check
