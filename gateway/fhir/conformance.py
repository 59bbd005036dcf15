"""The CapabilityStatement, made from the tables the doors are driven by.

Owns saying what is offered, no more and no less: a search parameter appears when the query parser takes it.
https://hl7.org/fhir/R4/capabilitystatement.html
"""

from __future__ import annotations

from typing import Any

from gateway.fhir.definitions import Definitions
from gateway.fhir.search import Plans

_INTERACTIONS = ("read", "vread", "update", "delete", "history-instance", "create", "search-type")
_CONTROL = (("_count", "number", "Resources on a page; 0 asks for the count alone"),)
RELEASED = "2026-11-21"


def capability_statement(definitions: Definitions, plans: Plans, *, base_url: str, token_url: str,
                         update_creates: bool) -> dict[str, Any]:
    """The statement of this server at ``base_url``; ``token_url`` is where clients get tokens.

    ``update_creates``: whether an update to an id never used makes it.
    """
    return {
        "resourceType": "CapabilityStatement", "status": "active", "date": RELEASED, "kind": "instance",
        "software": {"name": "FHIR gateway", "version": "0.1.0"},
        "implementation": {"description": "Sealed, anchored, consent-checked FHIR R4", "url": base_url},
        "fhirVersion": "4.0.1", "format": ["application/fhir+json", "json"],
        "rest": [{
            "mode": "server",
            "security": {
                "cors": False,
                "service": [{"coding": [{
                    "system": "http://terminology.hl7.org/CodeSystem/restful-security-service",
                    "code": "SMART-on-FHIR"}]}],
                "description": "Bearer tokens; every resource is checked against what its patient granted on chain",
                "extension": [{
                    "url": "http://fhir-registry.smarthealthit.org/StructureDefinition/oauth-uris",
                    "extension": [{"url": "token", "valueUri": token_url}]}]},
            "resource": [_resource(plans, name, update_creates) for name in sorted(definitions.resource_types)],
            "interaction": [{"code": "batch"}, {"code": "transaction"}],
        }]}


def _resource(plans: Plans, name: str, update_creates: bool) -> dict[str, Any]:
    row: dict[str, Any] = {
        "type": name, "profile": f"http://hl7.org/fhir/StructureDefinition/{name}",
        "interaction": [{"code": code} for code in _INTERACTIONS],
        "versioning": "versioned-update", "readHistory": True, "updateCreate": update_creates,
        "conditionalCreate": True, "conditionalRead": "not-match", "referencePolicy": ["literal", "local"],
        "searchParam": [*({"name": code, "type": plan.parameter.type, "definition": plan.parameter.url}
                          for code, plan in sorted(plans.of(name).items()) if not plan.refused),
                        *({"name": code, "type": type_, "documentation": text} for code, type_, text in _CONTROL)]}
    operations = [{"name": "receipt", "definition": "urn:fhir-gateway:operation:receipt"}]
    if name == "Consent":
        operations += [{"name": operation, "definition": f"urn:fhir-gateway:operation:{operation}"}
                       for operation in ("typed-data", "sign", "revoke")]
    row["operation"] = operations
    return row
