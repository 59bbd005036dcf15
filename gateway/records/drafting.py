"""A resource made ready to be decided about: checked against R4, with the facts that decisions and the index need.

Owns what a resource of any interaction must hold before anything is decided; refuses what breaks R4, and references
that can lead nowhere. Looks at nothing stored. https://hl7.org/fhir/R4/http.html#create
"""

from __future__ import annotations

from dataclasses import replace

from gateway.access.facts import facts_of
from gateway.errors import Invalid, Issue, Unprocessable
from gateway.fhir.home import home_patients
from gateway.fhir.resource import Resource, reference_target, references
from gateway.records.gate import Caller
from gateway.records.node import Node
from gateway.records.versions import Draft


def validated(node: Node, resource: Resource, type_: str | None, expression: str | None = None) -> None:
    """Refuse a resource that breaks R4, or whose references dangle. Raises Invalid, Unprocessable."""
    issues = [issue for issue in node.validator.validate(resource, expected_type=type_)
              if issue.severity in ("error", "fatal")]
    if issues:
        raise Invalid([_below(issue, resource, expression) for issue in issues])
    inside = _full_urls(resource)
    dangling = []
    for path, target in references(resource):
        text = target["reference"]
        if text.startswith("urn:uuid:") and text not in inside:
            dangling.append(Issue("error", "not-found", f"{text} can be resolved in a bundle only",
                                  f"{path}.reference"))
        elif "?" in text and reference_target(text).kind == "query":
            # Stored as it stands it would name no patient, and so ask none (R4: a server resolves it, or refuses).
            dangling.append(Issue("error", "not-supported", "a conditional reference is resolved in a transaction only",
                                  f"{path}.reference"))
    if dangling:
        raise Unprocessable([_below(issue, resource, expression) for issue in dangling])


def _full_urls(resource: Resource) -> frozenset[str]:
    """What references inside a stored Bundle, a document say, may name: the fullUrls of its entries."""
    if resource["resourceType"] != "Bundle":
        return frozenset()
    return frozenset(entry["fullUrl"] for entry in resource.get("entry", ()) if "fullUrl" in entry)


def _below(issue: Issue, resource: Resource, expression: str | None) -> Issue:
    if expression is None:
        return issue
    tail = (issue.expression or "").removeprefix(str(resource.get("resourceType")))
    return replace(issue, expression=f"{expression}.resource{tail}")


def draft(node: Node, caller: Caller, resource: Resource, id_: str) -> Draft:
    """Facts for deciding and indexing, of a validated resource that is to live under ``id_``."""
    return drafted(node, resource, id_, client=caller.grant.client_id, user=caller.grant.user)


def drafted(node: Node, resource: Resource, id_: str, *, client: str, user: str | None) -> Draft:
    """The same for an author by name."""
    placed = {**resource, "id": id_}
    homes = home_patients(placed, node.definitions.home_paths, base=node.settings.base_url)
    access = facts_of(placed, homes, author_client=client, author_user=user, base=node.settings.base_url)
    hashed = frozenset(str(node.index.category(token)) for token in access.categories)
    generation = node.parameters.generation  # read before the facts are: they may be newer, never older
    return Draft(resource=resource, access=replace(access, categories=hashed), search=node.extractor.facts(placed),
                 generation=generation)
