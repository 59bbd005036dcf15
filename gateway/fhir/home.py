"""Whose record a resource is: its home patients.

Owns applying the table ``mappings/fhir/home_patients.toml`` (``Definitions.home_paths``) to a resource; refuses to
follow references: a contained target, an identifier or a urn names no patient here, and another server's patient
is not ours. All home patients must permit (invariant 4).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

HomePaths = Mapping[str, tuple[tuple[str, ...], ...]]

_PATIENT = re.compile(r"Patient/([A-Za-z0-9\-.]{1,64})(?:/_history/[A-Za-z0-9\-.]{1,64})?")


def home_patients(resource: Mapping[str, Any], paths: HomePaths, *, base: str | None = None) -> tuple[str, ...]:
    """Logical ids of the home patients, sorted, each once; empty when the custodian alone is responsible.

    ``base`` is our own FHIR base: an absolute reference under it counts like a relative one. A Patient's home is
    itself. A Bundle's are those of its entries; a Patient entry counts unless its fullUrl is another server's or a urn.
    """
    prefix = base.rstrip("/") + "/" if base else None
    return tuple(sorted(set(_homes(resource, paths, prefix))))


def _homes(resource: Mapping[str, Any], paths: HomePaths, prefix: str | None) -> Iterator[str]:
    name = resource.get("resourceType")
    if name == "Patient":
        own = resource.get("id")
        if type(own) is str:
            yield own
    elif name == "Bundle":
        yield from _bundle(resource, paths, prefix)
    elif type(name) is str:
        for path in paths.get(name, ()):
            for target in _targets(resource, path):
                patient = _patient(target, prefix)
                if patient is not None:
                    yield patient


def _bundle(bundle: Mapping[str, Any], paths: HomePaths, prefix: str | None) -> Iterator[str]:
    entries = bundle.get("entry")
    for entry in entries if type(entries) is list else ():
        inner = entry.get("resource") if type(entry) is dict else None
        if type(inner) is not dict:
            continue
        url = entry.get("fullUrl")
        if inner.get("resourceType") == "Patient" and type(url) is str and _patient(url, prefix) is None:
            continue
        yield from _homes(inner, paths, prefix)


def _targets(value: Any, path: tuple[str, ...]) -> Iterator[str]:
    if type(value) is list:
        for item in value:
            yield from _targets(item, path)
    elif type(value) is dict:
        if path:
            yield from _targets(value.get(path[0]), path[1:])
        elif type(value.get("reference")) is str:
            yield value["reference"]


def _patient(reference: str, prefix: str | None) -> str | None:
    if prefix is not None and reference.startswith(prefix):
        reference = reference[len(prefix):]
    match = _PATIENT.fullmatch(reference)
    return match[1] if match is not None else None
