"""What a token's scopes promise and consents take back: IHE PCF's ``residual``, for other resource servers.

Owns the wording of provisions as ``forbid`` and ``permit``. There a permit overrides a forbid, no forbid means allowed,
and labels, a data period and named records are all that can be said; so what cannot be said is left out of a permit's
place and out of a forbid's conditions: the residual may let through less than this server does, never more. Read as the
provisions are: a permit's labels are all a resource may carry, and undated data is within any forbid's period. What it
has no words for, a label unknown here and the types that no grant opens, who reads it withholds without being told.
https://profiles.ihe.net/ITI/PCF/other.html#updates-to-iti-71
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from gateway.access.bound import EveryPatient, patient_door
from gateway.access.grant import Grant
from gateway.access.period import MAX_MS, MIN_MS
from gateway.access.provision import DENY_ANY_LABEL, Provision
from gateway.access.roles import policy
from gateway.fhir.resource import format_instant

CONFIDENTIALITY: Final = "http://terminology.hl7.org/CodeSystem/v3-Confidentiality"
SENSITIVITY: Final = "http://terminology.hl7.org/CodeSystem/v3-ActCode"
NOTHING: Final[Mapping[str, Any]] = {"type": "forbid"}
"""The rule that forbids all there is."""
Rules = tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Residual:
    """``rules`` in the words of PCF, and the Consents (logical ids) they and the permits come from."""

    rules: Rules
    consents: tuple[str, ...]


def door_of(grant: Grant, now_ms: int) -> EveryPatient | None:
    """The doors a patient could open for this holder, were the chain fresh; None where consents decide nothing."""
    table = policy()
    role = table.roles.get(grant.role)
    if role is None:
        return None
    return patient_door(grant, role, table, "Patient", now_ms, chain_fresh=True, writing=False)


def residual(grant: Grant, provisions: Sequence[Provision], now_ms: int, *, chain_fresh: bool,
             base: str) -> Residual | None:
    """The residual of a token about its launch patient; None where it is about none, or consents decide nothing.

    ``provisions``: all of the patient's that name the holder or everyone; ``base``: the FHIR base that named records
    are on.
    """
    door, patient = door_of(grant, now_ms), grant.launch_patient
    if door is None or patient is None:
        return None
    live = [one for one in provisions if one.patient == patient and one.valid_from_ms <= now_ms < one.valid_until_ms
            and one.state != "revoked" and (one.purposes is None or grant.purpose in one.purposes)]
    denies = [one for one in live if not one.permit and (one.grantee is None or one.grantee in door.grantees)]
    if patient == door.own_patient:
        named = [one for one in denies if one.grantee in door.own_grantees]
        hidden = _labels(0, door.hidden)
        return Residual(rules=(*(({"type": "forbid", "securityLabel": hidden},) if hidden else ()),
                               *(_forbid(one, base) for one in named)), consents=_consents(named))
    if patient == door.emergency_patient:
        meant = [one for one in denies if one.purposes is not None]
        return Residual(rules=tuple(_forbid(one, base) for one in meant), consents=_consents(meant))
    permits = [one for one in live if one.permit and one.state == "final" and one.grantee in door.permitted_as
               ] if chain_fresh and door.grants else []
    whole = [one for one in permits if one.types is None and one.categories is None and one.data is None
             and one.data_period is None]
    if whole:
        widest = max(whole, key=lambda one: (one.confidentiality, one.labels.bit_count()))
        beyond = _labels(widest.confidentiality + 1, policy().labels.known & ~widest.labels)
        return Residual(rules=(*(({"type": "forbid", "securityLabel": beyond},) if beyond else ()),
                               *(_forbid(one, base) for one in denies)), consents=_consents([*permits, *denies]))
    # A permit would override the forbid of a deny: where one stands beside it, it is not said.
    said = [] if denies else [rule for one in permits if (rule := _permit(one, base)) is not None]
    return Residual(rules=(NOTHING, *said), consents=_consents([*permits, *denies]))


def _permit(one: Provision, base: str) -> Mapping[str, Any] | None:
    if one.types is not None or one.categories is not None:
        return None
    data = _data(one, base)
    if one.data is not None and not data:
        return None
    ranks = [{"system": CONFIDENTIALITY, "code": code} for code, rank in policy().labels.ranks.items()
             if rank <= one.confidentiality]
    return {"type": "permit", "securityLabel": [*ranks, *_codes(one.labels)], **_period(one),
            **({"data": data} if data else {})}


def _forbid(one: Provision, base: str) -> Mapping[str, Any]:
    data = _data(one, base)
    labels = [] if one.confidentiality == DENY_ANY_LABEL else _labels(one.confidentiality, one.labels)
    whole = one.data is None or data is None or len(data) < len(one.data)  # a name that cannot be said widens it
    return {"type": "forbid", **({"securityLabel": labels} if labels else {}), **_period(one),
            **({} if whole else {"data": data})}


def _labels(from_rank: int, mask: int) -> list[dict[str, str]]:
    """Confidentiality from a rank on (0: none), and the sensitivity codes of a mask."""
    ranks = policy().labels.ranks.items() if from_rank else ()
    return [*({"system": CONFIDENTIALITY, "code": code} for code, rank in ranks if rank >= from_rank), *_codes(mask)]


def _codes(mask: int) -> list[dict[str, str]]:
    return [{"system": SENSITIVITY, "code": code} for code in policy().labels.codes(mask)]


def _period(one: Provision) -> dict[str, Any]:
    if one.data_period is None:
        return {}
    low_ms, high_ms = one.data_period
    return {"dataPeriod": {**({"start": format_instant(low_ms)} if low_ms > MIN_MS else {}),
                           **({"end": format_instant(high_ms - 1)} if high_ms < MAX_MS else {})}}


def _data(one: Provision, base: str) -> list[dict[str, Any]] | None:
    """The records it names by their own ids; authors and pieces of care are known by keyed hashes alone."""
    if one.data is None:
        return None
    return [{"meaning": "instance", "reference": {"reference": f"{base}/{name}"}}
            for name in sorted(one.data) if "/" in name and ":" not in name]


def _consents(found: Iterable[Provision]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(one.consent for one in found))
