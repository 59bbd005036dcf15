"""The CapabilityStatement, made from the tables the doors are driven by.

Owns saying what is offered, no more and no less: a search parameter appears when the query parser takes it.
https://hl7.org/fhir/R4/capabilitystatement.html
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gateway.fhir.definitions import Definitions
from gateway.fhir.search import Plan, Plans
from gateway.fhir.search_criteria import modifiers_of
from gateway.fhir.search_results import CONTROLS, may_target, refers
from gateway.fhir.subscriptions import BACKPORT, topics

_SYSTEM_CONTROLS = {**CONTROLS, "_type": ("string", "Comma-separated resource types; all that may be searched without")}

_AUDIT = "AuditEvent"
_AUDIT_CONTROLS = frozenset({"_count", "_sort", "_summary", "_elements"})
BULK_DATA = "http://hl7.org/fhir/uv/bulkdata/CapabilityStatement/bulk-data"
RELEASED = "2026-11-21"


@dataclass(frozen=True, slots=True, kw_only=True)
class Offered:
    """One interaction or operation (those have a ``definition``) the doors offer; ``types`` None: on every type.

    ``system``: it is asked at the base, not at a type.
    """

    name: str
    types: frozenset[str] | None = None
    system: bool = False
    definition: str | None = None


def capability_statement(definitions: Definitions, plans: Plans, offered: Sequence[Offered], *, base_url: str,
                         oauth_urls: Mapping[str, str], update_creates: bool, conditional_delete: str,
                         enforced: frozenset[str], cors: bool = False) -> dict[str, Any]:
    """The statement of this server at ``base_url``; ``oauth_urls``: those of SMART's extension, by its names.

    ``update_creates``: whether an update to an id never used makes it; ``conditional_delete``: ``single`` or
    ``multiple``; ``enforced``: the types whose references must lead somewhere; ``cors``: whether pages elsewhere may
    ask.
    """
    system = [one for one in offered if one.system]
    included = _included(plans)
    return {
        "resourceType": "CapabilityStatement", "status": "active", "date": RELEASED, "kind": "instance",
        "instantiates": [BULK_DATA],
        "software": {"name": "FHIR gateway", "version": "0.1.0"},
        "implementation": {"description": "Sealed, anchored, consent-checked FHIR R4", "url": base_url},
        "fhirVersion": "4.0.1", "format": ["application/fhir+json", "application/fhir+xml", "json", "xml"],
        "patchFormat": ["application/fhir+json", "application/fhir+xml", "application/json-patch+json"],
        "rest": [{
            "mode": "server",
            "security": {
                "cors": cors,
                "service": [{"coding": [{
                    "system": "http://terminology.hl7.org/CodeSystem/restful-security-service",
                    "code": "SMART-on-FHIR"}]}],
                "description": "Bearer tokens; every resource is checked against what its patient granted on chain",
                "extension": [{
                    "url": "http://fhir-registry.smarthealthit.org/StructureDefinition/oauth-uris",
                    "extension": [{"url": name, "valueUri": url} for name, url in oauth_urls.items()]}]},
            "resource": [_resource(plans, name, [
                one for one in offered if not one.system and (one.types is None or name in one.types)],
                updateCreate=update_creates, conditionalDelete=conditional_delete,
                referencePolicy=["literal", "logical", "local", *(["enforced"] if name in enforced else [])],
                **included.get(name, {}))
                for name in sorted(definitions.resource_types)],
            "searchParam": [_control(*one) for one in sorted(_SYSTEM_CONTROLS.items())],
            "compartment": [f"http://hl7.org/fhir/CompartmentDefinition/{name.lower()}"
                            for name in sorted(definitions.compartments)],
            "interaction": _interactions(system), **_operations(system),
        }]}


def _interactions(offered: Iterable[Offered]) -> list[dict[str, str]]:
    return [{"code": code} for code in sorted({one.name for one in offered if one.definition is None})]


def _operations(offered: Iterable[Offered]) -> dict[str, list[dict[str, str]]]:
    found = sorted({(one.name, one.definition) for one in offered if one.definition is not None})
    return {"operation": [{"name": name, "definition": definition} for name, definition in found]} if found else {}


def _resource(plans: Plans, name: str, offered: Sequence[Offered], **chosen: Any) -> dict[str, Any]:
    """``chosen``: elements that settings decide."""
    return {
        "type": name, "profile": f"http://hl7.org/fhir/StructureDefinition/{name}",
        "interaction": _interactions(offered),
        "versioning": "versioned-update", "readHistory": True, "conditionalCreate": True, "conditionalUpdate": True,
        "conditionalRead": "full-support", **chosen,
        **(_topics(plans.definitions) if name == "Subscription" else {}),
        "searchParam": [*(_parameter(code, plan) for code, plan in sorted(plans.of(name).items()) if not plan.refused),
                        *(_control(*one) for one in sorted(CONTROLS.items())
                          if name != _AUDIT or one[0] in _AUDIT_CONTROLS)],
        **_operations(offered)}


def _topics(definitions: Definitions) -> dict[str, Any]:
    """What can be subscribed to. https://hl7.org/fhir/uv/subscriptions-backport/STU1.1/components.html"""
    found = [topic.url for topic in topics(definitions.resource_types).values() if topic.general]
    return {"extension": [{"url": f"{BACKPORT}StructureDefinition/capabilitystatement-subscriptiontopic-canonical",
                           "valueCanonical": url} for url in found],
            "supportedProfile": [f"{BACKPORT}StructureDefinition/backport-subscription"],
            "documentation": "rest-hook alone, to hosts the operator lists. The topic of a type is also there as "
                             "-created, -updated and -deleted. Whoever made a Subscription sees it, and nobody else"}


def _parameter(code: str, plan: Plan) -> dict[str, str]:
    """R4 has no element for modifiers here: they are told in words."""
    modifiers = [f":{one}" for one in modifiers_of(plan)]
    if plan.parameter.type == "reference" and modifiers:
        modifiers.append(":[type]")
    told = {"documentation": f"Modifiers: {' '.join(modifiers)}"} if modifiers else {}
    return {"name": code, "type": plan.parameter.type, "definition": plan.parameter.url, **told}


def _control(name: str, meaning: tuple[str, str]) -> dict[str, str]:
    return {"name": name, "type": meaning[0], "documentation": meaning[1]}


def _included(plans: Plans) -> dict[str, dict[str, list[str]]]:
    """What ``_include`` and ``_revinclude`` follow, by type; the audit's own events stand in no index."""
    types = sorted(plans.definitions.resource_types - {_AUDIT})
    referring = {name: [(code, plan) for code, plan in sorted(plans.of(name).items()) if refers(plan)]
                 for name in types}
    found = {name: {"searchInclude": ["*", *([f"{name}:*", *(f"{name}:{code}" for code, _ in own)] if own else [])],
                    "searchRevInclude": ["*"]} for name, own in referring.items()}
    for other, own in referring.items():
        for code, plan in own:
            for name in types:
                if may_target(plan, name):
                    found[name]["searchRevInclude"].append(f"{other}:{code}")
    return found
