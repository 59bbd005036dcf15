"""The authoritative R4 validator: a resource in, OperationOutcome issues out.

Owns the resource level (type, contained resources, dom-2 to dom-5, inner resources of bundles), which profiles a
resource is judged by, and the public door; ``structure.py`` checks elements, ``profiles_check.py`` profiles. Refuses to
fetch anything. https://hl7.org/fhir/R4/validation.html

Profiles are looked at where R4 itself is kept to, and only those that ``meta.profile`` claims, that a setting requires
of the type, or that the caller asks for. A claim nobody here knows is a warning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gateway.errors import Invalid, Issue
from gateway.fhir.definitions import Definitions
from gateway.fhir.fhirpath import TypeModel
from gateway.fhir.fhirpath.model import DefinitionsModel
from gateway.fhir.packages import Packages
from gateway.fhir.profiles import CORE, Profiles, ProfileUnusableError
from gateway.fhir.profiles_check import Conformance, Judge
from gateway.fhir.profiles_survey import Survey
from gateway.fhir.profiles_terms import Library, PackageTerms
from gateway.fhir.resource import Resource
from gateway.fhir.run import Run
from gateway.fhir.slicing import Place
from gateway.fhir.structure import Structure
from gateway.fhir.vital_signs import vital_sign_profiles


class Validator:
    """Validates resources of every R4 type. Make one per process; checks compile on first use.

    ``required``: resource type -> canonical URLs every resource of it must conform to; ``library``: value sets and
    code systems beside those of the ``packages``. Raises Misconfigured where a required profile cannot be judged by.
    """

    def __init__(self, definitions: Definitions, model: TypeModel | None = None, *, packages: Packages | None = None,
                 required: Mapping[str, Sequence[str]] | None = None, library: Library | None = None) -> None:
        self._types = definitions.resource_types
        self._required = {name: tuple(urls) for name, urls in (required or {}).items()}
        self._model: TypeModel = model or DefinitionsModel.load(definitions)
        self._structure = Structure(definitions, self._model, self._inner, self._contained)
        self._with_contained = frozenset(
            name for name in definitions.resource_types if definitions.is_a(name, "DomainResource"))
        held = packages or Packages()
        self._profiles = Profiles(definitions, held)
        terms = PackageTerms(definitions, held, library)
        self._judge = Judge(self._profiles, terms, self._model)
        self._survey = Survey(definitions, self._model, self._profiles, terms)
        for type_, urls in self._required.items():
            for url in urls:
                self._profiles.require(url, type_)

    @property
    def model(self) -> TypeModel:
        """The FHIR types as FHIRPath asks for them."""
        return self._model

    def validate(self, resource: Resource, *, expected_type: str | None = None, profiles: Sequence[str] = (),
                 thorough: bool = False) -> list[Issue]:
        """Every issue found, errors and warnings, in document order; no error means valid.

        ``expected_type`` is the type of the URL the resource came to; ``profiles`` are judged by besides those it
        claims. ``thorough``: also what a write is not refused for: where extensions stand and what they hold, R4's
        vital signs by their code, and warnings of extensible and preferred bindings.
        """
        run = Run(resource, self._model, thorough=thorough)
        name = resource.get("resourceType")
        if expected_type is not None and name != expected_type:
            return [Issue("error", "invalid", f"the resourceType must be {expected_type} here", "resourceType")]
        if type(name) is not str or name not in self._types:
            return [Issue("error", "structure", "there is no such resourceType in R4", "resourceType")]
        self._check(resource, name, name, run, profiles)
        return run.issues

    def require(self, resource: Resource, *, expected_type: str | None = None) -> list[Issue]:
        """The warnings of a valid resource; raises Invalid with every issue of another."""
        issues = self.validate(resource, expected_type=expected_type)
        if any(issue.severity in ("error", "fatal") for issue in issues):
            raise Invalid(issues)
        return issues

    def _check(self, resource: Resource, name: str, path: str, run: Run, asked: Sequence[str] = ()) -> None:
        errors = run.errors
        if "contained" in resource and name in self._with_contained:
            run.contained = _contained_types(resource["contained"])
            self._structure.node(name)(resource, path, run)
            _refer_to_each_other(resource, path, run)
        else:
            self._structure.node(name)(resource, path, run)
        if run.errors == errors:
            self._conform(resource, name, path, run, asked)

    def _conform(self, resource: Resource, name: str, path: str, run: Run, asked: Sequence[str] = ()) -> None:
        """Judge a resource that keeps to R4 by its profiles."""
        meta = resource.get("meta")
        claimed = meta.get("profile", ()) if meta is not None else ()
        required = self._required.get(name, ())
        if not claimed and not required and not asked and not run.thorough:
            return
        places = {url: f"{path}.meta.profile[{at}]" for at, url in reversed(list(enumerate(claimed)))
                  if type(url) is str}
        places |= dict.fromkeys(required, path) | dict.fromkeys(asked, path)
        if run.thorough and name == "Observation":
            places = dict.fromkeys(vital_sign_profiles(resource), path) | places
        conformance = Conformance(self._judge, resource, run.root, run.bundle, thorough=run.thorough)
        judged = False
        for url, at in places.items():
            try:
                known = self._profiles.type_of(url) is not None
                judged = judged or (known and not url.startswith(CORE + name))
                if known:
                    self._as_claimed(resource, name, path, url, conformance)
                else:
                    run.report("error" if url in asked else "warning", "not-found",
                               "the profile is not known here, and was not judged by", at)
            except ProfileUnusableError as error:
                run.report("error" if url in asked else "warning", "not-supported",
                           f"the profile cannot be judged by: {error}", at)
        run.add(conformance.issues)
        if judged or run.thorough:
            conformance.issues.clear()
            self._survey.look(resource, path, conformance, conformance.issues.append, modifiers_known=judged,
                              thorough=run.thorough)
            run.add(conformance.issues)

    def _as_claimed(self, resource: Resource, name: str, path: str, url: str, conformance: Conformance) -> None:
        if self._profiles.get(url) is not None:
            conformance.judge(Place(resource, None, name, path), url)
        elif self._profiles.type_of(url) != name:
            conformance.issues.append(Issue("error", "invalid", f"the profile is of {self._profiles.type_of(url)}",
                                            f"{path}.meta.profile"))

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
        errors = run.errors
        self._structure.node(name)(value, path, run)
        if run.errors == errors:
            self._conform(value, name, path, run)
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
