"""The pickers: which patient, and which encounter, an app is about.

Owns what a clinician is shown to choose from: what the gateway's own search answers them, no more. Refuses a choice
they could not have been shown. https://hl7.org/fhir/smart-app-launch/STU2.2/scopes-and-launch-context.html#requesting-context-with-scopes
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from gateway.errors import Forbidden, GatewayError, Gone, NotFound, Unprocessable
from gateway.fhir.resource import parse
from gateway.records import read
from gateway.records.gate import Caller
from gateway.records.node import Node
from gateway.records.search import search

SHOWN_MAX: Final = 20
FIELDS: Final = ("name", "identifier", "birthdate")
_TEXT_MAX: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One to choose: ``reference``, what a person reads first, and what tells it from others."""

    reference: str
    name: str
    details: str


async def patients(node: Node, caller: Caller, given: Mapping[str, str]) -> list[Choice]:
    """At most ``SHOWN_MAX`` + 1 patients the caller may see who match every field given. Raises Unprocessable."""
    pairs = [(name, given[name].strip()) for name in FIELDS if given.get(name, "").strip()]
    if not pairs:
        raise Unprocessable("give a name, an identifier or a birth date", code="required")
    if any(len(value) > _TEXT_MAX for _, value in pairs):
        raise Unprocessable(f"what is searched for has at most {_TEXT_MAX} characters", code="too-long")
    return [_patient(found) for found in await _found(node, caller, "Patient", pairs)]


async def patient(node: Node, caller: Caller, reference: str) -> Choice:
    """The patient, if the caller may read them. Raises Unprocessable, the same for whom they may not and nobody."""
    try:
        reading = await read.read(node, caller, "Patient", _id("Patient", reference))
    except (NotFound, Gone, Forbidden) as error:
        raise Unprocessable("choose a patient whose record you may see", code="value") from error
    return _patient(parse(reading.stored))


async def encounters(node: Node, caller: Caller, patient_: str) -> list[Choice]:
    """The last encounters of the patient that the caller may see, newest first."""
    try:
        found = await _found(node, caller, "Encounter", [("patient", patient_), ("_sort", "-date")])
    except Forbidden:
        return []
    return [_encounter(one) for one in found[:SHOWN_MAX]]


async def encounter(node: Node, caller: Caller, patient_: str, reference: str) -> str:
    """The encounter, if it is the patient's and the caller may see it. Raises Unprocessable."""
    pairs = [("_id", _id("Encounter", reference)), ("patient", patient_)]
    try:
        found = await _found(node, caller, "Encounter", pairs)
    except GatewayError as error:
        raise Unprocessable("choose an encounter of the patient", code="value") from error
    if len(found) != 1:
        raise Unprocessable("choose an encounter of the patient", code="value")
    return f"Encounter/{found[0]['id']}"


def shown(stored: bytes) -> Choice:
    """A stored Patient as it is shown."""
    return _patient(parse(stored))


async def _found(node: Node, caller: Caller, type_: str, pairs: list[tuple[str, str]]) -> list[dict[str, Any]]:
    bundle = parse(await search(node, caller, type_, [*pairs, ("_count", str(SHOWN_MAX + 1))], strict=True))
    return [entry["resource"] for entry in bundle.get("entry", ()) if entry["resource"]["resourceType"] == type_]


def _id(type_: str, reference: str) -> str:
    kind, _, id_ = reference.rpartition("/")
    if kind not in ("", type_) or not id_ or len(id_) > 64:
        raise Unprocessable(f"choose {type_}/ID", code="value")
    return id_


def _patient(resource: Mapping[str, Any]) -> Choice:
    identifiers = [str(one["value"]) for one in resource.get("identifier", ()) if "value" in one]
    details = [f"born {resource['birthDate']}"] if "birthDate" in resource else []
    details += [str(resource["gender"])] if "gender" in resource else []
    details += identifiers[:3]
    return Choice(reference=f"Patient/{resource['id']}", name=_name(resource) or f"Patient/{resource['id']}",
                  details=", ".join(details))


def _name(resource: Mapping[str, Any]) -> str:
    names = sorted(resource.get("name", ()), key=lambda name: name.get("use") != "official")
    for name in names:
        text = name.get("text") or " ".join((*_texts(name.get("given")), *_texts([name.get("family")])))
        if text:
            return str(text)
    return ""


def _texts(values: Iterable[Any] | None) -> list[str]:
    return [value for value in values or () if isinstance(value, str)]


def _encounter(resource: Mapping[str, Any]) -> Choice:
    period = resource.get("period", {})
    kinds = [str(concept.get("text") or next((coding["display"] for coding in concept.get("coding", ())
                                              if "display" in coding), "")) for concept in resource.get("type", ())]
    coded = resource.get("class", {})
    name = next((kind for kind in kinds if kind), "") or str(coded.get("display") or coded.get("code") or "Encounter")
    times = " to ".join(str(period[end]) for end in ("start", "end") if end in period)
    return Choice(reference=f"Encounter/{resource['id']}", name=name,
                  details=", ".join(part for part in (times, str(resource.get("status", ""))) if part))
