"""Rules R4 states in prose, which no StructureDefinition carries.

Owns Bundle.entry.fullUrl, Bundle.link, search results without id, composite SearchParameters, absolute extension
URLs, value sets named where a code system belongs. Refuses to repeat what the definitions say.
https://hl7.org/fhir/R4/bundle.html https://hl7.org/fhir/R4/searchparameter.html
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from gateway.fhir.resource import reference_target
from gateway.fhir.run import Run

ProseRule = Callable[[dict[str, Any], str, Run], None]

_HEAD = re.compile(r"[\s(]*([A-Z][A-Za-z]+)\.")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*:")
_NESTED = re.compile(r"[eE]xtension\[\d+\]\.extension\[\d+\]$")
_VALUE_SET = "http://hl7.org/fhir/ValueSet/"
_PAGE_LINKS = frozenset({"self", "first", "previous", "prev", "next", "last"})


def _bundle(bundle: dict[str, Any], path: str, run: Run) -> None:
    seen: set[str] = set()
    for index, link in enumerate(bundle.get("link", ())):
        relation = link.get("relation")
        if relation in seen and relation in _PAGE_LINKS:
            run.error("structure", f"the link relation {relation} may occur once", f"{path}.link[{index}]")
        seen.add(relation)
    searchset = bundle.get("type") == "searchset"
    for index, entry in enumerate(bundle.get("entry", ())):
        resource = entry.get("resource", {})
        url = entry.get("fullUrl")
        if url is not None:
            _full_url(url, {} if "request" in entry else resource, f"{path}.entry[{index}].fullUrl", run)
        if searchset and resource and "id" not in resource and resource["resourceType"] != "OperationOutcome":
            run.error("structure", "a search result must have an id", f"{path}.entry[{index}].resource")
        if entry.get("search", {}).get("mode") == "outcome" and resource.get("resourceType") != "OperationOutcome":
            run.error("structure", "an entry with search mode outcome holds an OperationOutcome",
                      f"{path}.entry[{index}].resource")


def _full_url(url: str, resource: dict[str, Any], path: str, run: Run) -> None:
    if not _SCHEME.match(url):
        run.error("value", "fullUrl must be an absolute URL", path)
        return
    target = reference_target(url)
    own = resource.get("id")  # The id of a resource to be created is not yet its own: `request` entries have none.
    if target.kind == "absolute" and own is not None and target.type == resource["resourceType"] and target.id != own:
        run.error("value", "fullUrl must not disagree with the id of the resource", path)


def _search_parameter(parameter: dict[str, Any], path: str, run: Run) -> None:
    if parameter.get("type") == "composite" and len(parameter.get("component", ())) < 2:
        run.error("structure", "a composite search parameter has two components or more", f"{path}.component")
    expression, bases = parameter.get("expression"), parameter.get("base", ())
    if type(expression) is str and len(bases) == 1 and bases[0] not in ("Resource", "DomainResource"):
        heads = [_HEAD.match(part) for part in expression.split("|")]
        if all(head is not None and head[1] not in (bases[0], "Resource", "DomainResource") for head in heads):
            run.error("invalid", "the expression says nothing of the type in base", f"{path}.expression")


def _extension(extension: dict[str, Any], path: str, run: Run) -> None:
    if ":" not in extension["url"] and not _NESTED.search(path):
        run.error("value", "the url of an extension must be absolute, save inside another extension", f"{path}.url")


def _coding(coding: dict[str, Any], path: str, run: Run) -> None:
    system = coding.get("system")
    if type(system) is str and system.startswith(_VALUE_SET):
        run.error("value", "system must be a code system, not a value set", f"{path}.system")


PROSE_RULES: Mapping[str, ProseRule] = MappingProxyType({
    "Bundle": _bundle, "Coding": _coding, "Extension": _extension, "SearchParameter": _search_parameter,
})
"""Type -> its rule; run on an element whose structure is sound."""
