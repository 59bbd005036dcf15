"""The authoritative R4 validator: a resource in, OperationOutcome issues out.

Owns the resource level (type, contained resources, dom-2 to dom-5, inner resources of bundles) and the public door;
``structure.py`` checks elements. Refuses to fetch anything: profiles, remote references and extensible bindings are
not judged here. https://hl7.org/fhir/R4/validation.html
"""

from __future__ import annotations

from typing import Any

from gateway.errors import Invalid, Issue
from gateway.fhir.definitions import Definitions
from gateway.fhir.fhirpath import TypeModel
from gateway.fhir.fhirpath.model import DefinitionsModel
from gateway.fhir.resource import Resource
from gateway.fhir.run import Run
from gateway.fhir.structure import Structure


class Validator:
    """Validates resources of every R4 type. Make one per process; checks compile on first use."""

    def __init__(self, definitions: Definitions, model: TypeModel | None = None) -> None:
        self._types = definitions.resource_types
        self._model: TypeModel = model or DefinitionsModel.load(definitions)
        self._structure = Structure(definitions, self._model, self._inner, self._contained)
        self._with_contained = frozenset(
            name for name in definitions.resource_types if definitions.is_a(name, "DomainResource"))

    @property
    def model(self) -> TypeModel:
        """The FHIR types as FHIRPath asks for them."""
        return self._model

    def validate(self, resource: Resource, *, expected_type: str | None = None) -> list[Issue]:
        """Every issue found, errors and warnings, in document order; no error means valid.

        ``expected_type`` is the type of the URL the resource came to.
        """
        run = Run(resource, self._model)
        name = resource.get("resourceType")
        if expected_type is not None and name != expected_type:
            return [Issue("error", "invalid", f"the resourceType must be {expected_type} here", "resourceType")]
        if type(name) is not str or name not in self._types:
            return [Issue("error", "structure", "there is no such resourceType in R4", "resourceType")]
        self._check(resource, name, name, run)
        return run.issues

    def require(self, resource: Resource, *, expected_type: str | None = None) -> list[Issue]:
        """The warnings of a valid resource; raises Invalid with every issue of another."""
        issues = self.validate(resource, expected_type=expected_type)
        if any(issue.severity in ("error", "fatal") for issue in issues):
            raise Invalid(issues)
        return issues

    def _check(self, resource: Resource, name: str, path: str, run: Run) -> None:
        if "contained" in resource and name in self._with_contained:
            run.contained = _contained_types(resource["contained"])
            self._structure.node(name)(resource, path, run)
            _refer_to_each_other(resource, path, run)
        else:
            self._structure.node(name)(resource, path, run)

    def _inner(self, value: Any, path: str, run: Run) -> None:
        """A resource that stands for itself inside a Bundle entry or a parameter."""
        name = self._name(value, path, run)
        if name is not None:
            before = run.enter(value, own_root=True)
            self._check(value, name, path, run)
            run.leave(before)

    def _contained(self, value: Any, path: str, run: Run) -> None:
        name = self._name(value, path, run)
        if name is None:
            return
        if "contained" in value:
            run.error("invariant", "dom-2: a contained resource must not contain another", path)
            return
        meta = value.get("meta")
        if type(meta) is dict:
            if "versionId" in meta or "lastUpdated" in meta:
                run.error("invariant", "dom-4: a contained resource has no meta.versionId and meta.lastUpdated", path)
            if "security" in meta:
                run.error("invariant", "dom-5: a contained resource has no security label", path)
        before = run.enter(value, own_root=False)
        self._structure.node(name)(value, path, run)
        run.leave(before)

    def _name(self, value: Any, path: str, run: Run) -> str | None:
        name = value.get("resourceType") if type(value) is dict else None
        if type(name) is str and name in self._types:
            return name
        run.error("structure", "must be a resource: an object with a resourceType of R4", path)
        return None


def _contained_types(contained: Any) -> dict[str, str]:
    if type(contained) is not list:
        return {}
    return {one["id"]: one["resourceType"] for one in contained
            if type(one) is dict and type(one.get("id")) is str and type(one.get("resourceType")) is str}


def _refer_to_each_other(resource: Resource, path: str, run: Run) -> None:
    """dom-3: a contained resource is referred to from elsewhere, or refers to its container; ids are unique."""
    contained = resource["contained"]
    if type(contained) is not list:
        return
    used = _fragments(resource)
    seen: set[str] = set()
    for index, one in enumerate(contained):
        if type(one) is not dict:
            continue
        place = f"{path}.contained[{index}]"
        own = one.get("id")
        if type(own) is not str:
            continue
        if own in seen:
            run.error("structure", "two contained resources have the same id", f"{place}.id")
        seen.add(own)
        if f"#{own}" not in used and "#" not in _fragments(one):
            run.error("invariant", "dom-3: a contained resource must be referred to from elsewhere in the resource, "
                      "or refer to the containing resource", place)


def _fragments(value: Any) -> set[str]:
    """Every text that begins with ``#``: references, canonicals and uris into the resource itself."""
    found: set[str] = set()
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if type(item) is dict:
            waiting.extend(item.values())
        elif type(item) is list:
            waiting.extend(item)
        elif type(item) is str and item.startswith("#"):
            found.add(item)
    return found
