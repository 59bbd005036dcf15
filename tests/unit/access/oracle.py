"""The decision to read, written a second time and plainly, straight from the prose of the design's trust page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from gateway.access.facts import ResourceFacts
from gateway.access.grant import Grant
from gateway.access.provision import Provision
from gateway.access.roles import policy


def may_read(letter: str, version: ResourceFacts, grant: Grant, provisions: Sequence[Provision], now_ms: int,
             fresh: bool, matches) -> bool:  # type: ignore[no-untyped-def]  # a Matcher
    if now_ms >= grant.expires_ms or not in_scope(letter, version, grant, matches):
        return False
    if version.type == "Subscription":  # its maker's alone, whatever it says
        return (version.author_client, version.author_user) == (grant.client_id, grant.user) and not (
            version.home_patients)
    role = policy().roles[grant.role]
    unlabelled = version.confidentiality <= 3 and version.labels == 0
    feed = grant.client_kind == "feed" and grant.user is None and version.author_client == grant.client_id
    about_nobody = not version.home_patients and version.type in role.reads and unlabelled
    duty = grant.user is not None and any(
        (version.type in d.types or "*" in d.types) and letter in d.letters and d.purpose == grant.purpose
        and version.confidentiality <= d.confidentiality and version.labels & ~d.labels & (
            2**59 - 1 if d.marks else -1) == 0
        and (not d.marks or version.labels & d.marks) for d in role.duties)
    if version.labels & (3 << 61):  # not verified yet, or rejected: no data for anyone but who wrote it
        author = (version.author_user == grant.user if grant.user is not None
                  else (version.author_client, version.author_user) == (grant.client_id, None))
        if not author:
            return feed or duty
    version = replace(version, labels=version.labels & ~(7 << 60))
    patients = bool(version.home_patients) and all(
        one_patient(patient, version, grant, [p for p in provisions if p.patient == patient], now_ms, fresh)
        for patient in version.home_patients)
    return feed or about_nobody or duty or patients


def in_scope(letter: str, version: ResourceFacts, grant: Grant, matches) -> bool:  # type: ignore[no-untyped-def]
    ceiling = policy().roles[grant.role].ceiling
    launch = grant.patient or grant.self_patient
    for scope in grant.scopes.resources:
        if scope.type not in ("*", version.type) or letter not in scope.letters:
            continue
        if not ceiling.allows(version.type, letter, scope.context):
            continue
        if scope.context == "patient" and (
                launch is None or (version.home_patients and launch not in version.home_patients)):
            continue
        if (scope.context == "user" and grant.user is None) or (scope.context == "system" and grant.user is not None):
            continue
        if all(matches(version.type, name, value) for name, value in scope.criteria):
            return True
    return False


def one_patient(patient: str, version: ResourceFacts, grant: Grant, theirs: Sequence[Provision], now_ms: int,
                fresh: bool) -> bool:
    role = policy().roles[grant.role]
    concerning = [p for p in theirs if concerns(p, version, grant, now_ms)]
    private = version.type in ("Consent", "AuditEvent")
    own = patient if grant.user == patient or role.name == "delegate" else None
    lifting = [p for p in concerning if p.permit and p.exception and p.state == "final"] if (
        role.grant and fresh and not private) else []
    stopping = [p for p in concerning if not p.permit and p.state in ("pending", "final")]
    denies = [p for p in stopping if p.exception or not any(e.consent == p.consent for e in lifting)]
    own_denies = [p for p in stopping if p.exception or not any(
        e.consent == p.consent and e.grantee != own for e in lifting)]
    if role.name == "patient" and grant.user == patient and not any(
            p.grantee not in (None, patient) for p in own_denies):
        return True
    if role.name == "delegate" and grant.patient == patient and not version.labels & (1 | 1 << 15 | 1 << 8) and not any(
            p.grantee is not None and p.grantee != patient for p in own_denies):
        return True
    if role.grant and fresh and not private and not denies and any(
            p.permit and p.state == "final" and (grant.user is None or p.grantee != "Device/app") for p in concerning):
        return True
    return (role.name == "clinician" and grant.client_kind == "app" and grant.purpose in ("BTG", "ETREAT")
            and (grant.break_glass_reason or "").strip() != "" and grant.patient == patient and not private
            and version.labels & (1 | 1 << 59) == 0 and not any(p.purposes is not None for p in denies))


def concerns(p: Provision, version: ResourceFacts, grant: Grant, now_ms: int) -> bool:
    if not (p.valid_from_ms <= now_ms < p.valid_until_ms):
        return False
    if p.grantee not in grant.grantees and (p.permit or p.grantee is not None):
        return False
    if p.purposes is not None and grant.purpose not in p.purposes:
        return False
    if p.types is not None and version.type not in p.types:
        return False
    if p.categories is not None and not p.categories & version.categories:
        return False
    if p.data is not None and f"{version.type}/{version.id}" not in p.data and not p.data & version.categories:
        return False
    if p.permit:
        if version.confidentiality > p.confidentiality or version.labels & ~p.labels:
            return False
        return p.data_period is None or (version.period is not None and p.data_period[0] <= version.period[0]
                                         and version.period[1] <= p.data_period[1])
    if version.confidentiality < p.confidentiality and not version.labels & p.labels:
        return False
    return p.data_period is None or version.period is None or (
        version.period[0] < p.data_period[1] and version.period[1] > p.data_period[0])
