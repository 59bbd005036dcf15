"""Random worlds for the decision: grants, versions and provisions over few names, so that they meet often.

A world is a pure function of a seed: hypothesis draws seeds. Drawn value by value, its bias to small and repeated
choices leaves nine worlds in ten denied before any rule of interest is reached.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random
from typing import Any

from hypothesis import strategies as st

from gateway.access.decision import Request
from gateway.access.facts import Matcher, ResourceFacts
from gateway.access.grant import Grant
from gateway.access.provision import Provision
from gateway.access.scopes import ResourceScope, ScopeSet

NOW = 1_000
PATIENTS = ("Patient/1", "Patient/2", "Patient/3")
TYPES = ("Observation", "Patient", "Consent", "AuditEvent", "Organization", "Task", "Medication", "Subscription")
OFTEN = ("Observation",) * 6 + TYPES
GRANTEES = ("Practitioner/1", "Practitioner/2", "Organization/h", "Organization/ward", "Device/app", "Patient/1",
            "RelatedPerson/1")
PURPOSES = ("TREAT", "HRESCH", "BTG", "ETREAT", "HOPERAT", "PATRQT")
TOKENS = ("http://loinc.org|1", "http://loinc.org|2", "|x")
NAMES = ("author:Practitioner/1", "author:?", "about:Encounter/1", "about:?")
RECORDS = ("Observation/1", "Observation/2", "Observation/3", "Observation/4", "Patient/1", "Task/2")
CRITERIA = (("code", "1"), ("status", "final"))
PRIVATE = 1 << 16
MASKS = (0, 0, 0, 0, 1 << 5, 1 << 15, (1 << 5) | (1 << 15), PRIVATE, PRIVATE | 1 << 5)
MARKED = (1 << 59, 1 << 60, 1 << 61, 1 << 62, (1 << 59) | (1 << 62))
HOLDERS = (
    ("feed", None, "system", "system"), ("backend", None, "system", "system"),
    ("app", "Practitioner/1", "clinician", "user"), ("app", "Practitioner/1", "clinician", "user"),
    ("app", "Practitioner/1", "clinician", "patient"), ("app", "Patient/1", "patient", "patient"),
    ("app", "RelatedPerson/1", "delegate", "patient"), ("app", "Practitioner/2", "privacy-officer", "user"),
    ("app", "Practitioner/2", "records-office", "user"), ("app", "Practitioner/2", "administrator", "user"),
    ("feed", "Practitioner/1", "clinician", "user"))


class World(Random):
    """A source of choices."""

    def often(self, *some: Any) -> Any:
        """The first two times in three, else one of the rest."""
        return some[0] if self.random() < 0.67 else self.choice(some[1:])

    def some(self, of: tuple[Any, ...], least: int = 0) -> frozenset[Any]:
        return frozenset(self.sample(of, self.randint(least, len(of) - 1)))

    def range(self) -> tuple[int, int]:
        low = self.randint(0, 8)
        return low, low + self.randint(1, 6)

    def provision(self) -> Provision:
        permit = self.random() < 0.7
        rank, labels = ((self.often(3, 4, 5, 0), self.choice(MASKS)) if permit
                        else self.choice(((0, 0), (6, 1 << 5), (4, 0), (4, 1 << 15), (6, PRIVATE))))
        window = self.often((0, 2_000), (0, NOW), (NOW, NOW + 1), (NOW + 1, 2_000))
        rarely = self.random
        return Provision(
            id=f"c/{self.randint(0, 999)}", patient=self.often(*PATIENTS),
            grantee=self.often("Organization/h", *GRANTEES) if permit else self.choice((*GRANTEES, None)),
            permit=permit, types=self.some(OFTEN, 1) if rarely() < 0.25 else None,
            categories=self.some(TOKENS, 1) if rarely() < 0.25 else None, confidentiality=rank, labels=labels,
            purposes=self.some(PURPOSES, 1) if rarely() < 0.3 else None,
            data_period=self.range() if rarely() < 0.25 else None, data=self.data(permit) if rarely() < 0.25 else None,
            valid_from_ms=window[0], valid_until_ms=window[1], writes=not permit or rarely() < 0.7,
            state=self.often("final", "final", "pending", "revoked"))

    def data(self, permit: bool) -> frozenset[str]:
        """As Consents name data: a deny concerns whom and what cannot be told as well."""
        author, care = frozenset(NAMES[:1 if permit else 2]), frozenset(NAMES[2:3 if permit else 4])
        return self.choice((self.some(RECORDS, 1), self.some(RECORDS, 1), author, care | {"Encounter/1"},
                            self.some(RECORDS, 1) | author))

    def consents(self) -> list[Provision]:
        """Provisions as Consents hold them: a root rule for some grantees, and exceptions within."""
        found = []
        for consent in range(self.randint(0, 4)):
            root, rules = self.provision(), []
            if self.random() < 0.3:
                root = replace(root, permit=False, confidentiality=0, grantee=self.choice((None, "Organization/h")))
            for grantee in sorted({root.grantee or "", *self.sample(GRANTEES, self.choice((0, 0, 1)))}):
                rules.append(replace(root, grantee=grantee or None))
            for _ in range(self.choice((0, 1, 1, 2))):
                exception = replace(self.provision(), patient=root.patient, exception=True)
                rules.append(replace(exception, types=root.types, purposes=self.choice((None, root.purposes)),
                                     valid_from_ms=root.valid_from_ms, valid_until_ms=root.valid_until_ms))
            found += [replace(rule, id=f"c{consent}/{number}") for number, rule in enumerate(rules)
                      if rule.grantee is not None or not rule.permit]
        return found

    def facts(self) -> ResourceFacts:
        type_, id_ = self.choice(OFTEN), self.choice("12")
        nobody = type_ in ("Organization", "Medication")
        homes = self.often(("Patient/1",), ("Patient/2",), PATIENTS[:2], PATIENTS, ())
        return ResourceFacts(
            type=type_, id=id_,
            home_patients=(f"Patient/{id_}",) if type_ == "Patient" else () if nobody else homes,
            author_client=self.choice(("feed", "other", "app")),
            author_user=self.choice((None, "Practitioner/1", "Patient/1", "RelatedPerson/1")),
            confidentiality=self.often(3, 0, 4, 5), labels=self.often(0, 1, *MASKS) | self.often(0, 0, *MARKED),
            period=self.range() if self.random() < 0.6 else None,
            categories=self.some(TOKENS) | self.often(frozenset(), self.some(NAMES, 1)))

    def records(self, count: int) -> list[ResourceFacts]:
        """Versions of different resources."""
        return [replace(one, id=str(number), home_patients=(
            (f"Patient/{number}",) if one.type == "Patient" else one.home_patients))
            for number, one in enumerate((self.facts() for _ in range(count)), 1)]

    def grant(self) -> Grant:
        kind, user, role, context = self.choice(HOLDERS)
        scopes = ScopeSet((ResourceScope(context, "*", "cruds"),))  # type: ignore[arg-type]  # of three words
        if self.random() < 0.25:
            scopes = ScopeSet(tuple(ResourceScope(
                self.choice(("patient", "user", "system")), self.choice(("*", *OFTEN)),
                self.choice(("rs", "r", "cruds", "cud", "s")), self.choice(((), (), CRITERIA[:1], CRITERIA)))
                for _ in range(self.randint(0, 3))))
        emergency = self.random() < 0.3
        purpose = "BTG" if emergency else "HOPERAT" if role in ("privacy-officer", "records-office") else "TREAT"
        return Grant(
            token_id="t", client_id=self.choice(("feed", "app")), client_kind=kind,  # type: ignore[arg-type]
            user=user, role=role, scopes=scopes, patient=self.often("Patient/1", "Patient/2", None),
            purpose=purpose if self.random() < 0.8 else self.choice(PURPOSES),
            grantees=self.often((user or "Device/app", "Organization/h"), (), ("Organization/ward", "Organization/h"),
                                tuple(sorted(self.some(GRANTEES)))),
            break_glass_reason=self.often("unconscious", None, " ") if emergency else None,
            expires_ms=NOW if self.random() < 0.03 else 5_000, minted_by_operator=self.random() < 0.2)

    def request(self, letters: str = "cruds") -> Request:
        letter = self.choice(letters)
        stored = self.facts()
        proposed = self.facts() if self.random() < 0.4 else stored
        proposed = replace(proposed, type=stored.type)
        has_stored = letter in "rsd" or (letter == "u" and self.random() < 0.8)
        return Request(
            interaction=letter, stored=stored if has_stored else None,  # type: ignore[arg-type]  # of five letters
            proposed=proposed if letter in "cu" else None, chain_fresh=self.random() < 0.8,
            stored_matcher=matcher_of(stored), proposed_matcher=matcher_of(proposed),
            only_labels=has_stored and self.random() < 0.2)

    def provisions(self) -> list[Provision]:
        return self.consents() if self.random() < 0.5 else [self.provision() for _ in range(self.randint(0, 5))]


worlds = st.integers(0, 2**48).map(World)


def matcher_of(version: ResourceFacts) -> Matcher:
    """Stands in for the search engine: code=1 by token, status=final by even id."""
    def matches(type_: str, parameter: str, value: str) -> bool:
        assert type_ == version.type
        if parameter == "code":
            return any(token.endswith(f"|{value}") for token in version.categories)
        return int(version.id) % 2 == 0
    return matches


def smallest(parts: Sequence[Any], fails: Callable[[Sequence[Any]], bool]) -> list[Any]:
    """What is left of ``parts`` when everything that can go has gone and it still fails."""
    left = list(parts)
    for one in list(left):
        fewer = [other for other in left if other is not one]
        if fails(fewer):
            left = fewer
    return left
