"""Batch and transaction as a plan: entries read and checked, links between them rewritten.

Owns reading a Bundle into entries in the order the standard processes them, and replacing the links of new
resources; refuses a bundle in which one resource appears twice or a link points nowhere.
https://hl7.org/fhir/R4/http.html#transaction
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal
from urllib.parse import unquote

from gateway.errors import Invalid, Issue, Unprocessable
from gateway.fhir.resource import Resource, is_id, reference_target, walk

Method = Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]
_ORDER: Mapping[str, int] = {"DELETE": 0, "POST": 1, "PUT": 2, "PATCH": 2, "GET": 3, "HEAD": 3}
_METHODS = frozenset(_ORDER)
_LINK_KEYS = frozenset({"url", "uri", "valueUri", "valueUrl", "valueOid", "valueUuid", "valueCanonical"})
_ABSOLUTE = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*:\S")
_NARRATIVE_LINK = re.compile(r'((?:href|src)=")([^"]+)(")')


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleEntry:
    """One request of a bundle; ``place`` is its index. ``query`` is the condition of a write that names no id."""

    place: int
    full_url: str | None
    method: Method
    url: str
    type: str
    id: str | None
    query: str
    resource: Resource | None
    if_match: str | None
    if_none_match: str | None
    if_none_exist: str | None

    @property
    def expression(self) -> str:
        return f"Bundle.entry[{self.place}]"


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryRequest:
    """An entry as the request it stands for: ``path`` without the base, ``headers`` with lower-case names."""

    place: int
    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    resource: Resource | None


_HEADERS = {"ifMatch": "if-match", "ifNoneMatch": "if-none-match", "ifNoneExist": "if-none-exist",
            "ifModifiedSince": "if-modified-since"}


def entry_request(place: int, raw: Any, base: str) -> EntryRequest:  # Any: whatever the entry is, looked into here
    """The request of one entry. Raises Invalid naming the place."""
    at = f"Bundle.entry[{place}]"
    request = raw.get("request") if isinstance(raw, dict) else None
    if not isinstance(request, dict):
        raise Invalid(Issue("error", "required", "an entry of a batch or transaction needs a request", f"{at}.request"))
    method, url, resource = request.get("method"), request.get("url"), raw.get("resource")
    if method not in _METHODS:
        raise Invalid(Issue("error", "not-supported", f"the method {method!r} is not carried out in a bundle",
                            f"{at}.request.method"))
    if not isinstance(url, str):
        raise Invalid(Issue("error", "required", "an entry needs request.url", f"{at}.request.url"))
    if resource is None and method in ("POST", "PUT", "PATCH") and "$" not in url and "_search" not in url:
        raise Invalid(Issue("error", "required", f"{method} needs a resource", f"{at}.resource"))
    path, _, query = url.removeprefix(base).lstrip("/").partition("?")
    return EntryRequest(place=place, method=method, path=path, query=query, resource=resource, headers={
        header: str(request[name]) for name, header in _HEADERS.items() if request.get(name) is not None})


def without_resources(bundle: Resource) -> Resource:
    """The envelope of a batch or transaction, whose resources are validated where they are carried out."""
    entries = bundle.get("entry")
    if type(entries) is not list:
        return bundle
    return {**bundle, "entry": [{name: value for name, value in entry.items() if name != "resource"}
                                if type(entry) is dict else entry for entry in entries]}


def read_bundle(bundle: Resource, types: frozenset[str], base: str) -> tuple[BundleEntry, ...]:
    """The entries of a batch or transaction in the client's order. Raises Invalid naming each faulty entry."""
    issues: list[Issue] = []
    entries: list[BundleEntry] = []
    for place, raw in enumerate(bundle.get("entry") or ()):
        try:
            entries.append(_entry(place, raw, types, base))
        except Invalid as error:
            issues.extend(error.issues)
    if issues:
        raise Invalid(issues)
    return tuple(entries)


def processing_order(entries: Sequence[BundleEntry]) -> list[BundleEntry]:
    """DELETE, POST, PUT and PATCH, GET: the order a transaction is carried out in."""
    return sorted(entries, key=lambda entry: _ORDER[entry.method])


def _entry(place: int, raw: dict[str, Any], types: frozenset[str], base: str) -> BundleEntry:
    at = f"Bundle.entry[{place}]"

    def faulty(code: str, text: str, below: str) -> Invalid:
        return Invalid(Issue("error", code, text, at + below))

    request = raw.get("request")
    if not isinstance(request, dict):
        raise faulty("required", "an entry of a batch or transaction needs a request", ".request")
    method: Any = request.get("method")  # Any: checked against _ORDER on the next line
    url, resource = request.get("url"), raw.get("resource")
    if method not in _ORDER:
        raise faulty("not-supported", f"the method {method!r} is not carried out in a bundle", ".request.method")
    if not isinstance(url, str):
        raise faulty("required", "an entry needs request.url", ".request.url")
    path, _, query = url.removeprefix(base + "/").removeprefix("/").partition("?")
    parts = [unquote(part) for part in path.split("/")]
    type_ = parts[0]
    if type_ not in types:
        raise faulty("not-supported", f"{url!r} names no R4 resource type", ".request.url")
    id_ = parts[1] if len(parts) > 1 and parts[1] else None
    if method in ("GET", "HEAD"):
        resource = None
    elif id_ is not None and id_.startswith("$"):
        raise faulty("not-supported", "an operation is carried out in a batch, not in a transaction", ".request.url")
    elif id_ is not None and not is_id(id_):
        raise faulty("value", f"{id_!r} is not a FHIR id", ".request.url")
    elif len(parts) > 2:
        raise faulty("value", f"{method} goes to a type or a resource", ".request.url")
    elif method != "POST" and (id_ is None) is not bool(query):
        raise faulty("invalid", f"{method} takes an id or a condition", ".request.url")
    elif method == "DELETE":
        resource = None
    elif not isinstance(resource, dict):
        raise faulty("required", f"{method} needs a resource", ".resource")
    elif method != "PATCH":
        _check_place(method, type_, id_, query, resource, faulty)
    full_url = raw.get("fullUrl")
    if full_url is not None:
        _check_full_url(full_url, method, f"{type_}/{id_}" if id_ else None, base, faulty)
    return BundleEntry(
        place=place, full_url=full_url, method=method, url=url, type=type_, id=id_, query=query, resource=resource,
        if_match=request.get("ifMatch"),
        if_none_match=request.get("ifNoneMatch"), if_none_exist=request.get("ifNoneExist"))


Fault = Callable[[str, str, str], Invalid]


def _check_place(method: str, type_: str, id_: str | None, query: str, resource: Resource, faulty: Fault) -> None:
    if resource.get("resourceType") != type_:
        raise faulty("invalid", f"the resource is a {resource.get('resourceType')}, the URL says {type_}", ".resource")
    if method == "POST" and (id_ is not None or query):
        raise faulty("invalid", "POST goes to the type, without an id or query", ".request.url")
    if method == "PUT" and id_ is not None and resource.get("id") != id_:
        raise faulty("invalid", "the resource's id is not the one in the URL", ".resource.id")


def _check_full_url(text: object, method: str, place: str | None, base: str, faulty: Fault) -> None:
    """An identity that is absolute, of no version, and not another one's of this server (bundle.html#bundle-unique)."""
    if type(text) is not str or not _ABSOLUTE.match(text):
        raise faulty("value", "a fullUrl is an absolute URL or a urn", ".fullUrl")
    if place is not None and text.startswith(f"{base}/") and text != f"{base}/{place}":
        raise faulty("invalid", "the fullUrl names another resource than the request", ".fullUrl")


def check_distinct(entries: Sequence[BundleEntry], ids: Mapping[int, str] = MappingProxyType({})) -> None:
    """Refuse a transaction that writes one resource twice, or uses one fullUrl twice. Raises Invalid.

    ``ids``: what the places of entries with a condition came to.
    """
    issues: list[Issue] = []
    seen: set[str] = set()
    for entry in entries:
        if entry.method in ("GET", "HEAD"):
            continue
        names = {entry.full_url} if entry.full_url else set()
        id_ = ids.get(entry.place, entry.id)
        if id_ is not None:
            names.add(f"{entry.type}/{id_}")
        if names & seen:
            issues.append(Issue("error", "invalid", "a transaction may hold each resource once", entry.expression))
        seen |= names
    if issues:
        raise Invalid(issues)


def link_targets(entries: Sequence[BundleEntry], ids: Mapping[int, str]) -> dict[str, str]:
    """What each link inside the bundle becomes; ``ids`` maps an entry's place to its logical id."""
    targets: dict[str, str] = {}
    for entry in entries:
        if entry.full_url is None or entry.place not in ids or entry.method == "DELETE":
            continue
        target = f"{entry.type}/{ids[entry.place]}"
        targets[entry.full_url] = target
        reference = reference_target(entry.full_url)
        if reference.kind == "absolute":
            targets[f"{reference.type}/{reference.id}"] = target
    return targets


def rewrite_links(resource: Resource, targets: Mapping[str, str], expression: str) -> None:
    """Replace links to entries of the bundle, in place: references, uris, and links in narratives.

    Raises Unprocessable for a ``urn:`` reference that no entry answers.
    """
    issues: list[Issue] = []
    for path, node in walk(resource, expression):
        reference = node.get("reference")
        if type(reference) is str:
            target = targets.get(reference)
            if target is not None:
                node["reference"] = target
            elif reference.startswith("urn:"):
                issues.append(Issue("error", "not-found", f"{reference} names no entry of the bundle",
                                    f"{path}.reference"))
        for key in _LINK_KEYS & node.keys():
            value = node[key]
            if type(value) is str and value in targets:
                node[key] = targets[value]
        div = node.get("div")
        if type(div) is str and "urn:" in div:
            node["div"] = _NARRATIVE_LINK.sub(
                lambda match: match[1] + targets.get(match[2], match[2]) + match[3], div)
    if issues:
        raise Unprocessable(issues)


def conditional_references(resource: Resource, expression: str) -> Iterator[tuple[str, dict[str, Any], str, str]]:
    """Every ``Type?query`` reference: its location, the Reference itself, the type and the query string."""
    for path, node in walk(resource, expression):
        reference = node.get("reference")
        if type(reference) is str and "?" in reference:
            target = reference_target(reference)
            if target.kind == "query" and target.type is not None and target.query is not None:
                yield f"{path}.reference", node, target.type, target.query
