"""Judging a resource by profiles, beyond what R4 itself asks of it.

Owns cardinality, types and their profiles, fixed values and patterns, bindings, invariants and slices, and the
references within the resource or bundle that those lead to. Presumes that the base validator found no error.
Refuses to fetch, and to repeat a value. https://hl7.org/fhir/R4/profiling.html
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gateway.errors import FHIRPathError, Issue
from gateway.fhir.definitions import Binding, Constraint
from gateway.fhir.fhirpath import Context, Expression, TypeModel, compile_expression
from gateway.fhir.profiles import ElementRule, Profiles, ProfileUnusableError, Slicing, TypeRule, default_slicing
from gateway.fhir.profiles_terms import Terms
from gateway.fhir.resource import reference_target
from gateway.fhir.run import MAX_ISSUES
from gateway.fhir.slicing import Matcher, Place, children, equal, fits, is_primitive, matcher

_SKIPPED_TYPES = frozenset({"BackboneElement", "Element", "Resource", "DomainResource"})


class Judge:
    """What judging needs that does not change: profiles, terms, model, and what was compiled of them."""

    def __init__(self, profiles: Profiles, terms: Terms, model: TypeModel) -> None:
        self.profiles = profiles
        self.terms = terms
        self.model = model
        self._matchers: dict[int, tuple[ElementRule, Matcher | None]] = {}
        self._expressions: dict[str, Expression | None] = {}

    def matcher(self, rule: ElementRule, slicing: Slicing) -> Matcher | None:
        """The matcher of a slice, made once; the rule is kept with it, so that its identity stays its own."""
        found = self._matchers.get(id(rule))
        if found is None:
            found = self._matchers[id(rule)] = (rule, matcher(rule, slicing, self.profiles, self.model))
        return found[1]

    def expression(self, text: str) -> Expression | None:
        """The compiled invariant; None where it is no FHIRPath."""
        if text not in self._expressions:
            try:
                self._expressions[text] = compile_expression(text, self.model)
            except FHIRPathError:
                self._expressions[text] = None
        return self._expressions[text]


class Conformance:
    """One resource judged: ``resource`` is %resource, ``root`` the resource whose contained ones can be referred to.

    ``bundle`` is the Bundle around it, where there is one. ``thorough``: extensible and preferred bindings are
    warned of.
    """

    def __init__(self, judge: Judge, resource: dict[str, Any], root: dict[str, Any], bundle: dict[str, Any] | None, *,
                 thorough: bool) -> None:
        self._judge = judge
        self._resource = resource
        self._root = root
        self._bundle = bundle if bundle is not None else root if root.get("resourceType") == "Bundle" else None
        self._thorough = thorough
        self._by_url: dict[str, dict[str, Any]] | None = None
        self._known: dict[tuple[int, str], bool | None] = {}
        self._profile = ""
        self.issues: list[Issue] = []

    def judge(self, place: Place, url: str) -> None:
        """Add the issues of one element or resource against a profile that is known. Raises ProfileUnusableError."""
        profile = self._judge.profiles.get(url)
        if profile is None:
            return
        outer, self._profile = self._profile, profile.url
        try:
            if profile.type != place.type and not self._judge.model.is_a(place.type, profile.type):
                self._error("invalid", f"is no {profile.type}", place.path)
            else:
                self._element(profile.root, place)
        finally:
            self._profile = outer

    # What slices and FHIRPath ask.

    def resolve(self, reference: str) -> Place | None:
        """See Resolver."""
        found = self._found(reference)
        if found is not None:
            return Place(found, None, found["resourceType"], found["resourceType"])
        type_ = reference_target(reference).type
        # Nothing but its type is known of what is elsewhere.
        return Place({"resourceType": type_}, None, type_, type_) if type_ else None

    def conforms(self, place: Place, profile: str) -> bool | None:
        """See Resolver."""
        type_ = self._judge.profiles.type_of(profile)
        if type_ is None:
            return None
        if place.type != type_ and not self._judge.model.is_a(place.type, type_):
            return False
        key = (id(place.value), profile)
        if key not in self._known:
            self._known[key] = True  # of what refers to itself: conforms, if the rest does
            self._known[key] = self._conforms(place, profile)
        return self._known[key]

    def _conforms(self, place: Place, profile: str) -> bool | None:
        if type(place.value) is dict and place.value.keys() == {"resourceType"}:
            return None
        resource = place.value if type(place.value) is dict and "resourceType" in place.value else None
        inner = Conformance(self._judge, resource or self._resource, resource or self._root, self._bundle,
                            thorough=False)
        inner._known = self._known
        try:
            if self._judge.profiles.get(profile) is None:
                return True  # R4's own type, which the base validator has judged
            inner.judge(place, profile)
        except ProfileUnusableError:
            return None
        return not any(issue.severity == "error" for issue in inner.issues)

    def bound(self, place: Place, value_set: str) -> bool | None:
        """See Resolver."""
        answers = [self._judge.terms.member(value_set, system, code) for system, code in codes_of(place)]
        if True in answers:
            return True
        return None if None in answers else False

    def _found(self, reference: str) -> dict[str, Any] | None:
        if reference.startswith("#"):
            contained = self._root.get("contained", ())
            return self._root if reference == "#" else next(
                (one for one in contained if one.get("id") == reference[1:]), None)
        if self._bundle is None:
            return None
        if self._by_url is None:
            self._by_url = {}
            for entry in self._bundle.get("entry", ()):
                resource, url = entry.get("resource"), entry.get("fullUrl")
                if type(resource) is dict and type(resource.get("resourceType")) is str:
                    if type(url) is str:
                        self._by_url[url] = resource
                    if "id" in resource:
                        self._by_url.setdefault(f"{resource['resourceType']}/{resource['id']}", resource)
        target = reference_target(reference)
        return self._by_url.get(reference) or self._by_url.get(f"{target.type}/{target.id}")

    # The rules.

    def _error(self, code: str, why: str, path: str) -> None:
        self._issue("error", code, why, path)

    def _issue(self, severity: Any, code: str, why: str, path: str) -> None:  # Any: one of Issue's own words
        if len(self.issues) < MAX_ISSUES:
            self.issues.append(Issue(severity, code, f"{why} (profile {self._profile})", path))

    def _element(self, rule: ElementRule, place: Place) -> None:
        if rule.types:
            self._types(rule, place)
        if rule.fixed and not equal(place.value, rule.fixed[0]):
            self._error("value", "must have the value the profile fixes", place.path)
        if rule.pattern and not fits(place.value, rule.pattern[0]):
            self._error("value", "must have what the profile's pattern has", place.path)
        if rule.binding is not None:
            self._binding(rule.binding, place)
        for constraint in rule.constraints:
            self._invariant(constraint, place)
        for name, child in rule.children.items():
            self._items(child, children(place, name, self._judge.model, choice=child.choice), place)

    def _items(self, rule: ElementRule, items: list[Place], owner: Place) -> None:
        path = f"{owner.path}.{rule.name}"
        if len(items) < rule.minimum:
            self._error("required", f"{rule.id.partition('.')[2] or rule.name} is required: minimum {rule.minimum}, "
                        f"found {len(items)}", path)
        if rule.maximum is not None and len(items) > rule.maximum:
            self._error("structure", f"{rule.id.partition('.')[2] or rule.name} is given {len(items)} times, maximum "
                        f"{rule.maximum}", path)
        for item in items:
            self._element(rule, item)
        if rule.slices:
            self._slices(rule, items, owner)

    def _slices(self, rule: ElementRule, items: list[Place], owner: Place) -> None:
        slicing = rule.slicing if rule.slicing is not None and rule.slicing.discriminators else default_slicing(rule)
        if slicing is None:
            return
        order = list(rule.slices.values())
        of: list[int | None] = []
        certain = True
        for item in items:
            of.append(None)
            for at, slice_ in enumerate(order):
                matches = self._judge.matcher(slice_, slicing)
                answer = None if matches is None else matches(item, self)
                certain = certain and answer is not None
                if answer:
                    of[-1] = at
                    break
        rules = rule.slicing.rules if rule.slicing is not None else "open"
        for at, slice_ in enumerate(order):
            mine = [item for item, index in zip(items, of, strict=True) if index == at]
            if certain or mine:
                # Where a slice could not be told, too few may be an item that was not known to be of it.
                self._items(slice_ if certain else _at_least_none(slice_), mine, owner)
        if not certain:
            return
        last = max((at for at, index in enumerate(of) if index is not None), default=-1)
        for at, (item, index) in enumerate(zip(items, of, strict=True)):
            if index is None and rules == "closed":
                self._error("structure", "is of no slice, and the slicing is closed", item.path)
            elif index is None and rules == "openAtEnd" and at < last:
                self._error("structure", "is of no slice and must come after those that are", item.path)
        if rule.slicing is not None and rule.slicing.ordered:
            indexes = [index for index in of if index is not None]
            if indexes != sorted(indexes):
                self._error("structure", f"{rule.name}: its slices must come in the profile's order",
                            f"{owner.path}.{rule.name}")

    def _types(self, rule: ElementRule, place: Place) -> None:
        model = self._judge.model
        fitting = [one for one in rule.types if one.code in _SKIPPED_TYPES or one.code == place.type
                   or one.code.startswith("http") or model.is_a(place.type, one.code)]
        if not fitting:
            if "." not in place.type and place.type:
                self._error("structure", f"must be {' or '.join(one.code for one in rule.types)}", place.path)
            return
        self._profiles(fitting, place)
        if place.type == "Reference":
            self._targets(fitting, place)

    def _profiles(self, types: list[TypeRule], place: Place) -> None:
        urls = [url for one in types for url in one.profiles]
        if not urls or not all(one.profiles for one in types) or place.value is None:
            return
        if len(urls) == 1:
            if self._judge.profiles.type_of(urls[0]) is None:
                return
            try:
                self.judge(place, urls[0])
            except ProfileUnusableError:
                return
        elif all(self.conforms(place, url) is False for url in urls):
            self._error("structure", f"conforms to none of {', '.join(urls)}", place.path)

    def _targets(self, types: list[TypeRule], place: Place) -> None:
        targets = [target for one in types for target in one.targets]
        if not targets or type(place.value) is not dict or not all(one.targets for one in types):
            return
        text = place.value.get("reference")
        found = self.resolve(text) if type(text) is str else None
        type_ = found.type if found is not None else place.value.get("type")
        if type(type_) is not str:
            return
        allowed = {self._judge.profiles.type_of(target) for target in targets}
        if None in allowed or "Resource" in allowed or type_ in allowed:
            return
        self._error("invalid", f"a reference to {type_[:64]} is not allowed here, only to "
                    f"{' or '.join(sorted(str(one) for one in allowed))}", place.path)

    def _binding(self, binding: Binding, place: Place) -> None:
        if binding.strength != "required" and not self._thorough:
            return
        codes = codes_of(place)
        if not codes:
            if binding.strength == "required" and place.type in ("CodeableConcept", "Coding") and type(
                    place.value) is dict and "extension" not in place.value:
                self._error("code-invalid", f"a code from the value set {binding.value_set} is required", place.path)
            return
        if self.bound(place, binding.value_set) is False:
            self._issue("error" if binding.strength == "required" else "warning", "code-invalid",
                        f"the code is not in the {binding.strength} value set {binding.value_set}", place.path)

    def _invariant(self, constraint: Constraint, place: Place) -> None:
        expression = self._judge.expression(constraint.expression)
        if expression is None:
            self._issue("warning", "not-supported", f"{constraint.key} cannot be evaluated here", place.path)
            return
        if place.value is None:
            return
        context = Context(resource=self._resource, root=self._root, type=place.type, model=self._judge.model,
                          resolve=self._found, member_of=self._member_of, conforms_to=self._conforms_to)
        try:
            holds = expression.is_true(place.value, context)
        except FHIRPathError:
            holds = False
        if not holds:
            self._issue(constraint.severity, "invariant", f"{constraint.key}: {constraint.human}", place.path)

    def _member_of(self, value: Any, value_set: str) -> bool | None:
        return self.bound(Place(value, None, "", ""), value_set)

    def _conforms_to(self, value: Any, profile: str) -> bool | None:
        type_ = value.get("resourceType") if type(value) is dict else None
        return self.conforms(Place(value, None, type_, type_), profile) if type(type_) is str else None


def _at_least_none(rule: ElementRule) -> ElementRule:
    return replace(rule, minimum=0)


def codes_of(place: Place) -> list[tuple[str | None, str]]:
    """(system, code) of a code, Coding, Quantity or CodeableConcept."""
    value = place.value
    if type(value) is str:
        return [(None, value)]
    if type(value) is not dict or is_primitive(place.type):
        return []
    codings = value.get("coding", [value])
    return [(one.get("system"), one["code"]) for one in codings if type(one) is dict and type(one.get("code")) is str]
