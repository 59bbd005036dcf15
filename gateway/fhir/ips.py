"""Documents: a Composition with what it names, and the International Patient Summary.

Owns the sections of a summary, what goes into which, and their narrative; refuses to leave a required section without
saying that there is no information. Pure. https://hl7.org/fhir/uv/ips/, https://hl7.org/fhir/R4/documents.html
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from gateway.fhir.resource import Resource

LOINC = "http://loinc.org"
_ABSENT = "http://hl7.org/fhir/uv/ips/CodeSystem/absent-unknown-uv-ips"
_PROFILE = "http://hl7.org/fhir/uv/ips/StructureDefinition/"
_CLINICAL = "http://terminology.hl7.org/CodeSystem/"
_UNKNOWN = {"extension": [{"url": "http://hl7.org/fhir/StructureDefinition/data-absent-reason",
                           "valueCode": "unknown"}]}
_OVER = frozenset({"inactive", "resolved", "remission"})
_UNTRUE = frozenset({"refuted", "entered-in-error"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One section: ``searches`` bring its candidates, newest first; ``keeps`` chooses among them.

    ``absent`` makes the statement that nothing is known, for a section that must be there.
    """

    title: str
    code: str
    display: str
    searches: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]
    keeps: Callable[[Resource], bool]
    absent: Callable[[str], Resource] | None = None


def _coded(resource: Mapping[str, Any], name: str) -> set[str]:
    value = resource.get(name)
    codings = value.get("coding") if isinstance(value, dict) else None
    return {str(one.get("code")) for one in codings or () if isinstance(one, dict)}


def _true(resource: Resource) -> bool:
    return resource.get("status") not in ("entered-in-error", "not-done", "cancelled") and not (
        _coded(resource, "verificationStatus") & _UNTRUE)


def _present(resource: Resource) -> bool:
    return _true(resource) and not _coded(resource, "clinicalStatus") & _OVER


def _past(resource: Resource) -> bool:
    return _true(resource) and bool(_coded(resource, "clinicalStatus") & _OVER)


def _taken(resource: Resource) -> bool:
    return resource.get("status") in ("active", "intended", "on-hold", "unknown")


def _no(code: str, display: str) -> dict[str, Any]:
    return {"coding": [{"system": _ABSENT, "code": code, "display": display}]}


def _no_problem(patient: str) -> Resource:
    return {"resourceType": "Condition", "clinicalStatus": {"coding": [
        {"system": f"{_CLINICAL}condition-clinical", "code": "active"}]},
        "code": _no("no-problem-info", "No information about problems"), "subject": {"reference": patient}}


def _no_allergy(patient: str) -> Resource:
    return {"resourceType": "AllergyIntolerance", "clinicalStatus": {"coding": [
        {"system": f"{_CLINICAL}allergyintolerance-clinical", "code": "active"}]},
        "code": _no("no-allergy-info", "No information about allergies"), "patient": {"reference": patient}}


def _no_medication(patient: str) -> Resource:
    return {"resourceType": "MedicationStatement", "status": "unknown",
            "medicationCodeableConcept": _no("no-medication-info", "No information about medications"),
            "subject": {"reference": patient}, "_effectiveDateTime": _UNKNOWN}


_NEWEST = ("_sort", "-date")
SECTIONS = (
    Section(title="Active Problems", code="11450-4", display="Problem list - Reported",
            searches=(("Condition", ()),), keeps=_present, absent=_no_problem),
    Section(title="Allergies and Intolerances", code="48765-2", display="Allergies and adverse reactions Document",
            searches=(("AllergyIntolerance", ()),), keeps=_present, absent=_no_allergy),
    Section(title="Medication Summary", code="10160-0", display="History of Medication use Narrative",
            searches=(("MedicationStatement", ()), ("MedicationRequest", ())), keeps=_taken, absent=_no_medication),
    Section(title="Immunizations", code="11369-6", display="History of Immunization Narrative",
            searches=(("Immunization", (_NEWEST,)),), keeps=_true),
    Section(title="Results", code="30954-2", display="Relevant diagnostic tests/laboratory data Narrative",
            searches=(("Observation", (("category", "laboratory"), _NEWEST)), ("DiagnosticReport", (_NEWEST,))),
            keeps=_true),
    Section(title="History of Procedures", code="47519-4", display="History of Procedures Document",
            searches=(("Procedure", (_NEWEST,)),), keeps=_true),
    Section(title="Medical Devices", code="46264-8", display="History of medical device use",
            searches=(("DeviceUseStatement", ()),), keeps=_true),
    Section(title="Vital Signs", code="8716-3", display="Vital signs",
            searches=(("Observation", (("category", "vital-signs"), _NEWEST)),), keeps=_true),
    Section(title="Social History", code="29762-2", display="Social history Narrative",
            searches=(("Observation", (("category", "social-history"), _NEWEST)),), keeps=_true),
    Section(title="History of Past Illness", code="11348-0", display="History of Past illness Narrative",
            searches=(("Condition", ()),), keeps=_past),
)


def label(resource: Mapping[str, Any]) -> str:
    """What a resource is about, in words, as far as it says."""
    for name in ("code", "vaccineCode", "medicationCodeableConcept", "type", "medicationReference", "device"):
        value = resource.get(name)
        if isinstance(value, dict):
            codings = [one for one in value.get("coding") or () if isinstance(one, dict)]
            texts = [value.get("text"), *(one.get("display") for one in codings), value.get("display"),
                     *(one.get("code") for one in codings)]
            found = next((text for text in texts if isinstance(text, str) and text.strip()), None)
            if found is not None:
                return found
    return str(resource["resourceType"])


def _value(resource: Mapping[str, Any]) -> str:
    quantity = resource.get("valueQuantity")
    if isinstance(quantity, dict) and "value" in quantity:
        return f"{quantity.get('comparator', '')}{quantity['value']} {quantity.get('unit') or quantity.get('code', '')}"
    concept = resource.get("valueCodeableConcept")
    if isinstance(concept, dict):
        return label({"resourceType": "", "code": concept})
    text = resource.get("valueString")
    return text if isinstance(text, str) else ""


def _when(resource: Mapping[str, Any]) -> str:
    for name in ("effectiveDateTime", "occurrenceDateTime", "performedDateTime", "onsetDateTime", "authoredOn",
                 "recordedDate"):
        if isinstance(resource.get(name), str):
            return str(resource[name])[:10]
    return ""


def narrative(resources: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """A list of what the resources are about: text alone, every character of it escaped."""
    lines = [escape(" ".join(part for part in (label(one), _value(one).strip(), _when(one)) if part))
             for one in resources]
    body = "".join(f"<li>{line}</li>" for line in lines)
    inner = f"<ul>{body}</ul>" if body else "<p>No information</p>"
    return {"status": "generated", "div": f'<div xmlns="http://www.w3.org/1999/xhtml">{inner}</div>'}


def section(of: Section, entries: Sequence[tuple[str, Resource]]) -> dict[str, Any]:
    """A section of a Composition; ``entries`` are fullUrls with their resources."""
    return {"title": of.title, "code": {"coding": [{"system": LOINC, "code": of.code, "display": of.display}]},
            "text": narrative(resource for _, resource in entries),
            "entry": [{"reference": url} for url, _ in entries]}


def composition(patient: str, custodian: str, date: str, sections: Sequence[dict[str, Any]]) -> Resource:
    """The summary's Composition, by the hospital that keeps the records."""
    return {
        "resourceType": "Composition", "meta": {"profile": [f"{_PROFILE}Composition-uv-ips"]},
        "text": {"status": "generated", "div": '<div xmlns="http://www.w3.org/1999/xhtml">'
                                               f"<p>Patient Summary of {escape(date[:10])}</p></div>"},
        "status": "final", "type": {"coding": [{"system": LOINC, "code": "60591-5",
                                                "display": "Patient summary Document"}]},
        "subject": {"reference": patient}, "date": date, "author": [{"reference": custodian}],
        "title": f"Patient Summary of {date[:10]}", "custodian": {"reference": custodian}, "section": list(sections)}


def document(identifier: str, timestamp: str, entries: Sequence[tuple[str, Resource]], *,
             profile: str | None = None) -> Resource:
    """A document Bundle: the Composition first, then what it names; ``identifier`` is a ``urn:uuid:``."""
    return {
        "resourceType": "Bundle", **({"meta": {"profile": [profile]}} if profile else {}),
        "identifier": {"system": "urn:ietf:rfc:3986", "value": identifier}, "type": "document",
        "timestamp": timestamp, "entry": [{"fullUrl": url, "resource": resource} for url, resource in entries]}


BUNDLE_PROFILE = f"{_PROFILE}Bundle-uv-ips"
