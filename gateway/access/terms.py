"""What a patient signs, in words: the readable Terms.

Owns the words: the same provisions and names always give the same words, and provisions that differ in anything that
is enforced give others, so a signature over the words binds the rules. Refuses characters that could make the words
look like others. The messages around the Terms are in ``typed_data.py``.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gateway.access.facts import ABOUT, AUTHOR, UNTOLD
from gateway.access.period import MAX_MS, MIN_MS, Range, instant_text
from gateway.access.provision import DENY_ANY_LABEL, DENY_NO_RANK, Provision
from gateway.access.roles import policy


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """The struct a wallet shows. ``salt`` is 32 random bytes: without it the hash on chain could be guessed."""

    statement: str
    hospital: str
    grantee: str
    purposes: str
    records: str
    period: str
    salt: bytes

    def __post_init__(self) -> None:
        if len(self.salt) != 32:
            raise ValueError("the salt is 32 bytes")


def terms_of(provisions: Sequence[Provision], *, hospital: str, names: Mapping[str, str], salt: bytes) -> Terms:
    """The Terms of one Consent's provisions; ``names`` gives people's words for references, where there are any.

    Every rule that is enforced is in the words, with its code or reference, so that a signature binds them all.
    """
    root = provisions[0]
    roots = [p for p in provisions if not p.exception]
    exceptions = [p for p in provisions if p.exception]
    grantee = _list([_who(p.grantee, names) for p in roots])
    purposes = _purposes(root)
    records = "; ".join((_records(root), *(_exception(root, p, names) for p in exceptions)))
    period = _when(root)
    statement = f"{grantee} {_may(root)} {records}, for {purposes}, {period}. You can revoke this at any time."
    return Terms(statement=statement,
                 hospital=_plain(hospital), grantee=grantee, purposes=purposes, records=records, period=period,
                 salt=salt)


def _may(provision: Provision) -> str:
    if not provision.permit:
        return "may not read"
    return "may read, and when working for this hospital also write," if provision.writes else "may read"


def _exception(root: Provision, exception: Provision, names: Mapping[str, str]) -> str:
    who, purposes, when = _who(exception.grantee, names), _purposes(exception), _when(exception)
    if exception.permit:
        return (f"{'and' if root.permit else 'but'} {who} {_may(exception)} {_records(exception)}, for {purposes}, "
                f"{when}")
    return f"except, for {who}, for {purposes}, {when}: {_records(exception)}"


def grantee_text(provisions: Sequence[Provision]) -> str:
    """What ``grantee_hash`` is taken over: whom any rule permits, or, where none does, whom the root denies; each once,
    sorted, one space between; ``*`` is everyone."""
    permits = [p for p in provisions if p.permit]
    return " ".join(sorted({p.grantee or "*" for p in permits or provisions if p.permit or not p.exception}))


def _plain(text: str) -> str:
    """One line, no invisible or direction-changing character, no quote that would end the quoting around it."""
    return " ".join("".join(" " if c.isspace() else c for c in unicodedata.normalize("NFC", text)
                            if c.isspace() or unicodedata.category(c)[0] != "C").replace('"', "'").split())


def _who(reference: str | None, names: Mapping[str, str]) -> str:
    if reference is None:
        return "anyone"
    name = _plain(names.get(reference, ""))
    return f'"{name}" ({reference})' if name else reference


def _list(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _purposes(provision: Provision) -> str:
    if provision.purposes is None:
        return "any purpose"
    table = policy().purposes
    return _list([f"{table[code].text} ({code})" if code in table else _plain(code)
                  for code in sorted(provision.purposes)])


def _records(provision: Provision) -> str:
    types = "all records" if provision.types is None else f"{_list(sorted(provision.types))} records"
    kinds = "" if provision.categories is None else f" of the kinds {_list(_quoted(provision.categories))}"
    dated = "" if provision.data_period is None else f" dated {_range(provision.data_period, 'at any time')}"
    named = "" if provision.data is None else f", only {_named(provision.data)}"
    return types + kinds + dated + named + (_ceiling(provision) if provision.permit else _floor(provision))


def _named(data: frozenset[str]) -> str:
    """The records a provision names; whom or what cannot be told is always denied with those that can."""
    care = {name[len(ABOUT):] for name in data if name.startswith(ABOUT)}
    people = sorted(name[len(AUTHOR):] for name in data if name.startswith(AUTHOR))
    parts = sorted(name for name in data if ":" not in name and name not in care)
    parts += [f"{name} and what refers to it" for name in sorted(care - {UNTOLD})]
    parts += [f"what {name} authored, recorded, requested, performed or asserted" for name in people if name != UNTOLD]
    return _list(parts or ["none"])


def _quoted(tokens: frozenset[str]) -> list[str]:
    return [f'"{_plain(token)}"' for token in sorted(tokens)]


def _ceiling(provision: Provision) -> str:
    table = policy().labels
    rank = table.rank_texts[provision.confidentiality]
    codes = table.codes(provision.labels)
    named = f", including those labelled {_list([f'{table.bit_texts[c]} ({c})' for c in codes])}" if codes else (
        ", without those labelled sensitive")
    return f", up to {rank} confidentiality{named}"


def _floor(provision: Provision) -> str:
    if provision.confidentiality == DENY_ANY_LABEL:
        return ""
    table = policy().labels
    parts = [f"labelled {table.bit_texts[code]} ({code})" for code in table.codes(provision.labels)]
    if provision.confidentiality < DENY_NO_RANK:
        parts.insert(0, f"of {table.rank_texts[provision.confidentiality]} confidentiality or higher")
    return f" {' or '.join(parts)}"


def _when(provision: Provision) -> str:
    return _range((provision.valid_from_ms, provision.valid_until_ms), "without end")


def _range(range_: Range, always: str) -> str:
    low, high = range_
    parts = ([f"from {instant_text(low)}"] if low > MIN_MS else []) + (
        [f"until {instant_text(high)}"] if high < MAX_MS else [])
    return " ".join(parts) or always
