"""R4 Consent to Provisions, and the life of a Consent.

Owns reading ``Consent.provision`` (a root rule and one level of exceptions) and who may move ``status`` where;
refuses, with the place, every part that this gateway would store but not enforce: a patient must not be told that
something is forbidden which is not. https://hl7.org/fhir/R4/consent.html, https://profiles.ihe.net/ITI/PCF

An exception says what it says, and for the rest what its root says. A deny inside a permit is a deny; a permit inside
a permit adds to it; a permit inside a deny lifts that deny, where it certainly covers what is asked.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from gateway.access.facts import ABOUT, AUTHOR, UNTOLD
from gateway.access.labels import label_of
from gateway.access.period import MAX_MS, MIN_MS, Range, period_range
from gateway.access.provision import (
    DENY_ANY_LABEL,
    DENY_NO_RANK,
    Failure,
    Outcome,
    Provision,
    State,
    Success,
)
from gateway.access.roles import NORMAL, UNKNOWN_LABEL, policy
from gateway.errors import Issue, Unprocessable

__all__ = ["Actor", "Provision", "provisions_of", "same_terms", "transition"]

Actor = Literal["patient", "office", "feed", "gateway"]
"""Who moves a Consent: the patient or a delegate, the records office, the feed, or the chain through this gateway."""

_RESOURCE_TYPES = "http://hl7.org/fhir/resource-types"
_PARTICIPATION = ("http://terminology.hl7.org/CodeSystem/v3-ParticipationType",
                  "http://hl7.org/fhir/v3/ParticipationType")
_RECIPIENTS = frozenset({"PRCP", "IRCP"})
_ACTIONS = "http://terminology.hl7.org/CodeSystem/consentaction"
_READING = frozenset({"access", "use", "disclose"})
_WRITING = frozenset({"collect", "correct"})
_SCOPES = ("http://terminology.hl7.org/CodeSystem/consentscope", "patient-privacy")
_REFERENCE = re.compile(
    r"((?:Practitioner|Organization|Device|RelatedPerson|Patient)/[A-Za-z0-9\-.]{1,64})(?:/_history/.+)?")
_TYPE = re.compile(r"[A-Z][A-Za-z]+")
_RECORD = re.compile(r"([A-Z][A-Za-z]+)/[A-Za-z0-9\-.]{1,64}")
_AUTHORS = frozenset({"Practitioner", "PractitionerRole", "Organization", "CareTeam", "Device", "Patient",
                      "RelatedPerson"})
_CARE = frozenset({"Encounter", "EpisodeOfCare", "CarePlan"})
_KNOWN = frozenset({"type", "period", "actor", "action", "securityLabel", "purpose", "class", "code", "dataPeriod",
                    "data", "provision", "id", "extension"})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Surroundings:
    patient: str
    custodian: str | None
    base: str
    types: Container[str] | None
    state: State
    grant_id: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rule:
    """One provision element, read; None where the element says nothing."""

    permit: bool
    grantees: tuple[str, ...]
    types: frozenset[str] | None
    categories: frozenset[str] | None
    rank: int | None
    labels: int | None
    purposes: frozenset[str] | None
    data_period: Range | None
    data: frozenset[str] | None
    validity: Range | None
    writes: bool | None


def provisions_of(consent: Mapping[str, Any], *, custodian: str | None, base: str | None = None,
                  types: Container[str] | None = None, state: State = "pending",
                  grant_id: bytes = b"") -> tuple[Provision, ...]:
    """The flat provisions of a Consent: one per grantee of the root rule, then those of its exceptions.

    ``custodian`` is this hospital's ``Organization/id`` or None, ``base`` its FHIR base URL, ``types`` the resource
    types served. Raises Unprocessable with every part that cannot be enforced.
    """
    issues: list[Issue] = []
    place = "Consent.provision"
    patient = _reference(consent.get("patient"), base or "")
    if patient is None or not patient.startswith("Patient/"):
        issues.append(_issue("names no patient of this hospital", "Consent.patient"))
    if (system_code := _SCOPES) not in set(_pairs(consent.get("scope"))):
        issues.append(_issue(f"only consents of scope {system_code[1]} are enforced", "Consent.scope"))
    if "modifierExtension" in consent:
        issues.append(_issue("a modifier extension is not understood", "Consent.modifierExtension"))
    around = _Surroundings(patient=patient or "", custodian=custodian, base=base or "", types=types, state=state,
                           grant_id=grant_id)
    element = consent.get("provision")
    if not isinstance(element, dict) or not element:
        issues.append(_issue("says nothing that could be enforced", place))
        raise Unprocessable(issues)
    root = _rule(element, place, around, issues, permit=_root_permits(consent, element, issues))
    exceptions = []
    for number, inner in _items(element.get("provision"), f"{place}.provision", issues):
        at = f"{place}.provision[{number}]"
        if inner.get("type") not in ("permit", "deny"):
            issues.append(_issue("an exception says permit or deny", f"{at}.type"))
            continue
        if "provision" in inner:
            issues.append(_issue("exceptions of exceptions are not enforced", f"{at}.provision"))
        if not inner.keys() - {"type", "id", "extension"}:
            issues.append(_issue("an exception says to what", at))
        exception = _within(_rule(inner, at, around, issues, permit=inner["type"] == "permit"), root, at, issues)
        if exception.permit and not exception.grantees and "actor" not in inner:
            issues.append(_issue("a permit names who may: a recipient (PRCP or IRCP)", f"{at}.actor"))
        exceptions.append(exception)
    if root.permit and not root.grantees:
        issues.append(_issue("a permit names who may: a recipient (PRCP or IRCP)", f"{place}.actor"))
    if issues:
        raise Unprocessable(issues)
    return tuple(_flatten(str(consent.get("id", "")), around, root, exceptions))


def _root_permits(consent: Mapping[str, Any], root: Mapping[str, Any], issues: list[Issue]) -> bool:
    """R4 has no type at the root (it is the exception to policyRule), IHE PCF puts one there: both are read."""
    stated = root.get("type")
    if stated in ("permit", "deny"):
        return bool(stated == "permit")
    base = {code for _, code in _pairs(consent.get("policyRule"))}
    if stated is not None or base != {"OPTOUT"}:
        issues.append(_issue("state permit or deny: with this policyRule either could be meant",
                             "Consent.provision.type"))
    return True


def _rule(element: Mapping[str, Any], at: str, around: _Surroundings, issues: list[Issue], *, permit: bool) -> _Rule:
    for name in element:
        if name not in _KNOWN:
            issues.append(_issue("is not enforced here", f"{at}.{name}"))
    rank, labels = _labels(element.get("securityLabel"), f"{at}.securityLabel", issues, permit=permit)
    return _Rule(
        permit=permit, grantees=_grantees(element.get("actor"), f"{at}.actor", around, issues),
        types=_types(element.get("class"), f"{at}.class", around, issues),
        categories=_categories(element.get("code"), f"{at}.code", issues), rank=rank, labels=labels,
        purposes=_purposes(element.get("purpose"), f"{at}.purpose", issues),
        data_period=_period(element.get("dataPeriod"), f"{at}.dataPeriod", issues),
        data=_data(element.get("data"), f"{at}.data", around, issues, permit=permit),
        validity=_period(element.get("period"), f"{at}.period", issues),
        writes=_writes(element.get("action"), f"{at}.action", issues, permit=permit))


def _within(inner: _Rule, root: _Rule, at: str, issues: list[Issue]) -> _Rule:
    """An exception with what it leaves to its root. What both speak of is the exception's to say, but not the time:
    a permit inside a rule that is over permits nothing."""
    validity = inner.validity or root.validity
    if inner.permit and inner.validity is not None and root.validity is not None:
        validity = max(inner.validity[0], root.validity[0]), min(inner.validity[1], root.validity[1])
        if validity[0] >= validity[1]:
            issues.append(_issue("lies outside the period it is an exception to", f"{at}.period"))
    rank, labels, writes = inner.rank, inner.labels, inner.writes
    if inner.permit and root.permit:
        rank = root.rank if rank is None else rank
        labels = root.labels if labels is None else labels
        writes = root.writes if writes is None else writes
    return replace(
        inner, grantees=inner.grantees or root.grantees, rank=rank, labels=labels, writes=writes, validity=validity,
        types=root.types if inner.types is None else inner.types,
        categories=root.categories if inner.categories is None else inner.categories,
        purposes=root.purposes if inner.purposes is None else inner.purposes,
        data_period=inner.data_period or root.data_period, data=root.data if inner.data is None else inner.data)


def _grantees(actors: Any, at: str, around: _Surroundings, issues: list[Issue]) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for number, actor in _items(actors, at, issues):
        role = {code for system, code in _pairs(actor.get("role")) if system in _PARTICIPATION}
        reference = _reference(actor.get("reference"), around.base)
        if role == {"CST"} and reference is not None and reference == around.custodian:
            continue  # says what is so anyway: the custodian of what is granted here is this hospital
        if not role or not role <= _RECIPIENTS:
            issues.append(_issue("only recipients (PRCP, IRCP), and this hospital as custodian, are enforced",
                                 f"{at}[{number}].role"))
        elif reference is None:
            issues.append(_issue("a recipient is a Practitioner, Organization, Device, RelatedPerson or Patient, "
                                 "named by a reference of this server", f"{at}[{number}].reference"))
        else:
            found[reference] = None
    if actors and not found and not issues:
        issues.append(_issue("names no recipient", at))
    return tuple(sorted(found))


def _types(codings: Any, at: str, around: _Surroundings, issues: list[Issue]) -> frozenset[str] | None:
    found: set[str] = set()
    for number, coding in _items(codings, at, issues):
        code = coding.get("code")
        if (coding.get("system") != _RESOURCE_TYPES or not isinstance(code, str) or not _TYPE.fullmatch(code)
                or (around.types is not None and code not in around.types)):
            issues.append(_issue(f"only resource types of {_RESOURCE_TYPES} are enforced", f"{at}[{number}]"))
        else:
            found.add(code)
    return frozenset(found) if codings else None


def _categories(concepts: Any, at: str, issues: list[Issue]) -> frozenset[str] | None:
    found: set[str] = set()
    for number, concept in _items(concepts, at, issues):
        pairs = list(_pairs(concept))
        if not pairs or len(pairs) != len(concept["coding"]):
            issues.append(_issue("has no code, and text is not enforced", f"{at}[{number}]"))
        tokens = {f"{system}|{code}" for system, code in pairs}
        if not all(token.isprintable() and '"' not in token and " ".join(token.split()) == token for token in tokens):
            issues.append(_issue("has a code that cannot be shown to who signs", f"{at}[{number}]"))
        found |= tokens
    return frozenset(found) if concepts else None


def _data(items: Any, at: str, around: _Surroundings, issues: list[Issue], *, permit: bool) -> frozenset[str] | None:
    """R4 consent-data-meaning. ``related`` is read as IHE PCF profiles it: a piece of care and what refers to it, which
    R4 itself calls ``dependents``; what a record refers to is no property of that record, and is not enforced."""
    found: set[str] = set()
    for number, item in _items(items, at, issues):
        meaning, reference = item.get("meaning"), item.get("reference")
        text = reference.get("reference") if isinstance(reference, dict) else None
        match = _RECORD.fullmatch(_relative(text, around.base)) if isinstance(text, str) else None
        if item.keys() - {"meaning", "reference", "id"}:
            issues.append(_issue("is more than a meaning and a reference", f"{at}[{number}]"))
        elif match is None or (around.types is not None and match[1] not in around.types):
            issues.append(_issue("names no record of this server, without a version", f"{at}[{number}].reference"))
        elif meaning == "instance":
            found.add(match[0])
        elif meaning in ("related", "dependents") and match[1] in _CARE:
            found |= {match[0], ABOUT + match[0]} | (set() if permit else {ABOUT + UNTOLD})
        elif meaning == "authoredby" and match[1] in _AUTHORS:
            found |= {AUTHOR + match[0]} | (set() if permit else {AUTHOR + UNTOLD})
        else:
            issues.append(_issue("only a record itself (instance), what refers to an Encounter, EpisodeOfCare or "
                                 "CarePlan (related, dependents), or what somebody authored (authoredby) is enforced",
                                 f"{at}[{number}].meaning"))
    return frozenset(found) if items is not None else None


def _labels(codings: Any, at: str, issues: list[Issue], *, permit: bool) -> tuple[int | None, int | None]:
    ranks, mask = [], 0
    for number, coding in _items(codings, at, issues):
        rank, bits = label_of(coding, policy().labels)
        if rank is None and bits in (0, UNKNOWN_LABEL):
            issues.append(_issue("is not a security label this gateway enforces", f"{at}[{number}]"))
        elif rank is not None:
            ranks.append(rank)
        mask |= bits
    if permit:
        return (max(ranks) if ranks else None), (mask if codings else None)
    if ranks:
        return min(ranks), mask
    return (DENY_NO_RANK if codings else DENY_ANY_LABEL), mask


def _purposes(codings: Any, at: str, issues: list[Issue]) -> frozenset[str] | None:
    table = policy()
    found: set[str] = set()
    for number, coding in _items(codings, at, issues):
        code = coding.get("code")
        if coding.get("system") != table.purpose_system or not isinstance(code, str) or code not in table.purposes:
            issues.append(_issue("is not a purpose of use this gateway enforces", f"{at}[{number}]"))
        else:
            found |= table.purposes[code].includes
    return frozenset(found) if codings else None


def _period(period: Any, at: str, issues: list[Issue]) -> Range | None:
    if period is None:
        return None
    try:
        # A start that is absent for a reason (``_start``) is not an open one.
        if not isinstance(period, dict) or not period.keys() <= {"start", "end", "id"}:
            raise ValueError("is more than a start and an end")
        if not any(isinstance(period.get(name), str) for name in ("start", "end")):
            raise ValueError("has neither start nor end")
        return period_range(period)
    except (ValueError, TypeError, OverflowError) as error:
        issues.append(_issue(f"cannot be enforced: {error}", at))
        return None


def _writes(actions: Any, at: str, issues: list[Issue], *, permit: bool) -> bool | None:
    named: set[str] = set()
    for number, concept in _items(actions, at, issues):
        codes = {code for system, code in _pairs(concept) if system == _ACTIONS}
        if not codes or not codes <= _READING | _WRITING:
            issues.append(_issue("is not an action this gateway enforces", f"{at}[{number}]"))
        named |= codes
    if actions and not named & _READING:
        issues.append(_issue("reading is what is permitted or denied: name access, use or disclose", at))
    return (bool(named & _WRITING) if actions else None) if permit else True


def _flatten(consent_id: str, around: _Surroundings, root: _Rule, exceptions: list[_Rule]) -> Iterator[Provision]:
    number = 0
    for rule in (root, *exceptions):
        for grantee in rule.grantees or (None,):
            yield _provision(f"{consent_id}/{number}", around, rule, grantee, exception=rule is not root)
            number += 1


def _provision(id_: str, around: _Surroundings, rule: _Rule, grantee: str | None, *, exception: bool) -> Provision:
    low, high = rule.validity or (MIN_MS, MAX_MS)
    return Provision(
        id=id_, patient=around.patient, grantee=grantee, permit=rule.permit, types=rule.types,
        categories=rule.categories, confidentiality=NORMAL if rule.rank is None else rule.rank,
        labels=rule.labels or 0, purposes=rule.purposes, data_period=rule.data_period, data=rule.data,
        valid_from_ms=low, valid_until_ms=high, writes=rule.writes is not False, state=around.state,
        grant_id=around.grant_id, exception=exception)


def _items(value: Any, at: str, issues: list[Issue]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The elements of a list of objects; anything else, an empty list too, would be a restriction silently lost."""
    if value is None:
        return
    if not isinstance(value, list) or not value:
        issues.append(_issue("must be a list with something in it", at))
        return
    for number, item in enumerate(value):
        if isinstance(item, dict):
            yield number, item
        else:
            issues.append(_issue("must be an object", f"{at}[{number}]"))


def _reference(reference: Any, base: str) -> str | None:
    text = reference.get("reference") if isinstance(reference, dict) else None
    if not isinstance(text, str):
        return None
    match = _REFERENCE.fullmatch(_relative(text, base))
    return match[1] if match else None


def _relative(text: str, base: str) -> str:
    prefix = base.rstrip("/") + "/"
    return text[len(prefix):] if base and text.startswith(prefix) else text


def _pairs(concept: Any) -> Iterator[tuple[str, str]]:
    codings = concept.get("coding") if isinstance(concept, dict) else None
    for coding in codings if isinstance(codings, list) else ():
        if isinstance(coding, dict) and isinstance(coding.get("code"), str):
            yield str(coding.get("system", "")), coding["code"]


def _issue(what: str, expression: str) -> Issue:
    return Issue("error", "not-supported", f"{expression}: {what}", expression)


_OPEN = frozenset({"draft", "proposed"})
_ENDED = frozenset({"rejected", "inactive", "entered-in-error"})


def transition(old: str | None, new: str, by: Actor) -> Outcome:
    """Whether ``by`` may take a Consent from status ``old`` (None: it is being created) to ``new``.

    Only the chain makes a Consent active, once its grant is final; ending one is always allowed, and is final.
    """
    if new not in _OPEN | _ENDED | {"active"}:
        return Failure(1, f"{new} is not a Consent status")
    if old == new and (old in _OPEN or by == "gateway"):
        return Success()
    if new == "active":
        if by != "gateway":
            return Failure(2, "a Consent becomes active when its signed grant is final: use $sign")
        return Success() if old == "proposed" else Failure(3, f"{old or 'nothing'} cannot become active")
    if old is None:
        return Success() if new in _OPEN else Failure(4, "a new Consent is draft or proposed")
    if old in _ENDED:
        return Failure(5, f"{old} is the end: make a new Consent")
    if old == "active":
        if new in ("inactive", "entered-in-error"):
            return Success() if by != "feed" else Failure(6, "the patient or the records office revokes, not the feed")
        return Failure(7, f"a signed Consent can only be revoked, not become {new}")
    return Success()


_STATUS_ONLY = frozenset({"meta", "status", "statusReason", "text", "verification", "extension"})


def same_terms(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether two versions say the same in all that was, or is to be, signed."""
    return ({name: value for name, value in old.items() if name not in _STATUS_ONLY}
            == {name: value for name, value in new.items() if name not in _STATUS_ONLY})
