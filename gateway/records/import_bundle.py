"""What a file holds, as a transaction: a resource as one entry, a Bundle of any kind as its entries.

Owns the reading of each Bundle type for an import; refuses those that are answers or histories, and entries that bring
nothing. Pure. https://hl7.org/fhir/R4/bundle.html
"""

from __future__ import annotations

from typing import Any, Final

from gateway.errors import Invalid, Issue
from gateway.fhir.resource import Resource, is_id

REQUESTS: Final = frozenset({"transaction", "batch"})
_CONTENTS: Final = frozenset({"collection", "searchset", "document", "message"})
_NOT_IMPORTED: Final = {
    "history": "a history holds several versions of one resource: import a searchset or NDJSON of the newest",
    "transaction-response": "a response brings no resources", "batch-response": "a response brings no resources",
}


def as_entry(resource: Resource, types: frozenset[str], *, at: str, full_url: object = None) -> dict[str, Any]:
    """A transaction's entry: PUT under the resource's own id, so that references hold; POST where it has none.

    ``at``: FHIRPath of the resource. Raises Invalid.
    """
    type_, id_ = resource.get("resourceType"), resource.get("id")
    if type(type_) is not str or type_ not in types:
        raise Invalid(Issue("error", "not-supported", f"{str(type_)[:64]!r} is not an R4 resource type",
                            f"{at}.resourceType"))
    if "id" in resource and (type(id_) is not str or not is_id(id_)):
        raise Invalid(Issue("error", "value", f"{str(id_)[:80]!r} is not a FHIR id", f"{at}.id"))
    request = {"method": "PUT", "url": f"{type_}/{id_}"} if id_ else {"method": "POST", "url": type_}
    if full_url is not None and type(full_url) is not str:
        raise Invalid(Issue("error", "structure", "fullUrl must be text", f"{at.removesuffix('.resource')}.fullUrl"))
    return {**({"fullUrl": full_url} if full_url else {}), "resource": resource, "request": request}


def as_transaction(bundle: Resource, types: frozenset[str]) -> Resource:
    """The transaction that imports ``bundle``. Raises Invalid naming every entry at fault.

    Of a batch or transaction the entries are its own; their envelope is still to be validated.
    """
    kind = bundle.get("type")
    if type(kind) is str and kind in REQUESTS:
        return {**bundle, "type": "transaction"}
    if type(kind) is not str or kind not in _CONTENTS:
        why = _NOT_IMPORTED.get(kind, "no R4 Bundle has it") if type(kind) is str else "a Bundle needs one"
        raise Invalid(Issue("error", "not-supported", f"the type {str(kind)[:32]!r} is not imported: {why}",
                            "Bundle.type"))
    raw = bundle.get("entry", [])
    if type(raw) is not list:
        raise Invalid(Issue("error", "structure", "entry must be a list", "Bundle.entry"))
    entries: list[dict[str, Any]] = []
    issues: list[Issue] = []
    for place, entry in enumerate(raw):
        at = f"Bundle.entry[{place}]"
        try:
            if type(entry) is not dict or type(entry.get("resource")) is not dict:
                raise Invalid(Issue("error", "required", "an entry to import holds a resource", f"{at}.resource"))
            if not _is_outcome(entry):
                entries.append(as_entry(entry["resource"], types, at=f"{at}.resource", full_url=entry.get("fullUrl")))
            else:
                entries.append({})
        except Invalid as error:
            issues.extend(error.issues)
    if issues:
        raise Invalid(issues)
    return {"resourceType": "Bundle", "type": "transaction", "entry": [entry for entry in entries if entry]}


def _is_outcome(entry: dict[str, Any]) -> bool:
    """A searchset's message about the search, which is no match."""
    search = entry.get("search")
    return type(search) is dict and search.get("mode") == "outcome"
