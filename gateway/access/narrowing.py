"""Narrowing: what an app asks as choices a person understands, and what they chose back as scopes.

Owns the offer (a line for each kind of record: see, change, single kinds of it, only since a date) and the way back;
refuses a choice that was not offered. What comes out is within what was asked, whatever is chosen. Narrowing is said
in granular scopes alone, so that token, introspection and decision mean the same.
https://hl7.org/fhir/smart-app-launch/STU2.2/scopes-and-launch-context.html
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from gateway.access.scopes import Context, Criterion, ResourceScope, ScopeSet
from gateway.access.words import Voice, Words, name_of, sentence, verbs
from gateway.errors import Unprocessable

HowLong = Literal["once", "online", "offline"]
"""One access token; refreshed while the person is signed in; refreshed until revoked or a date."""

READING: Final = "rs"
WRITING: Final = "cud"
_DATED: Final = "rsud"
"""Letters that a date limits: what is created is new whatever its date says."""
_REST: Final = "everything else: staff, places, code lists and the like"
_IDENTITY: Final = frozenset({"openid", "fhirUser", "profile"})
_LASTING: Final = frozenset({"online_access", "offline_access"})
_COMMA: Final = re.compile(r"(?<!\\),")
_DAY: Final = re.compile(r"\d{4}-\d\d-\d\d")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """One box: ``value`` is the scopes it stands for, between spaces, ``text`` what a person reads, ``criterion`` what
    a kind adds."""

    value: str
    text: str
    criterion: Criterion | None = None

    @property
    def words(self) -> frozenset[str]:
        return frozenset(self.value.split(" "))


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """The choices of one type: ``scopes`` are all of it that is asked, in each context that reads the same.

    ``rest``: for the line of everything without a heading, the types it stands for. ``date``: the parameter of "only
    since", None where the type has none. ``kinds``: to be chosen instead of the whole.
    """

    scopes: tuple[ResourceScope, ...]
    name: str
    group: str | None
    date: str | None
    read: Tick | None
    write: Tick | None
    kinds: tuple[Tick, ...] = ()
    rest: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Names the line in a form."""
        return " ".join(map(str, self.scopes))

    @property
    def type(self) -> str:
        return self.scopes[0].type


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """All that can be chosen of ``asked``. ``identity``: the box of who one is; ``others``: scopes without words."""

    asked: ScopeSet
    lines: tuple[Line, ...]
    identity: Tick | None
    others: tuple[Tick, ...]
    how_long: tuple[HowLong, ...]

    @property
    def everything(self) -> frozenset[str]:
        """The words of every box that stands for a whole, as it is ticked at first; kinds are not: one narrows."""
        ticks = [tick for line in self.lines for tick in (line.read, line.write) if tick is not None]
        ticks += [*self.others, *((self.identity,) if self.identity is not None else ())]
        return frozenset(word for tick in ticks for word in tick.words)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """What came back: the words ``ticked``, ``since`` a day for all, ``since_of`` a line's own by its key.

    Days are ISO 8601.
    """

    ticked: frozenset[str]
    how_long: HowLong
    since: str | None = None
    since_of: Mapping[str, str] | None = None


def offer(asked: ScopeSet, *, types: Container[str], voice: Voice, table: Words) -> Offer:
    """The choices for ``asked``; ``types`` are the resource types served."""
    lines = [_line(scopes, voice, table) for scopes in _alike(
        _lines(asked, types, table), apart=voice.patient != voice.user)]
    lines += _rests(_wildcards(asked), types, table)
    whole = frozenset(word for line in lines for tick in (line.read, line.write) if tick is not None
                      for word in tick.words)
    lines = [replace(line, kinds=_unasked(line.kinds, whole)) for line in lines]
    order = {group: number for number, group in enumerate(table.groups)}
    lines.sort(key=lambda line: (order.get(line.group or "", len(order)), line.scopes[0].context != "patient",
                                 line.name, line.scopes))
    identity = Tick(value="openid", text="Know who you are: your name and which account is yours") \
        if "openid" in asked.others else None
    others = tuple(Tick(value=scope, text=scope) for scope in sorted(asked.others)
                   if scope not in _IDENTITY | _LASTING and not scope.startswith("launch"))
    return Offer(asked=asked, lines=tuple(lines), identity=identity, others=others, how_long=_how_long(asked))


def narrowed(offered: Offer, chosen: Chosen) -> ScopeSet:
    """The scopes of what was chosen: always within what was asked; empty when nothing was.

    Raises Unprocessable for a choice that was not offered or a day that is none.
    """
    known = {word for line in offered.lines for tick in (line.read, line.write, *line.kinds) if tick is not None
             for word in tick.words}
    if chosen.ticked - known - offered.everything:
        raise Unprocessable("something was chosen that was not offered", code="value")
    if chosen.how_long not in offered.how_long:
        raise Unprocessable("the app may not have access for so long", code="value")
    since_of = dict(chosen.since_of or {})
    if since_of.keys() - {line.key for line in offered.lines if line.date is not None}:
        raise Unprocessable("a date was given for something that has none", code="value")
    found: list[ResourceScope] = []
    whole: set[tuple[ResourceScope, str]] = set()
    for line in offered.lines:
        since = max(_day(chosen.since), _day(since_of.get(line.key)))
        scopes = _of_line(line, chosen.ticked, since if line.date is not None else "")
        found += scopes
        whole |= {(asked, letter) for asked in line.scopes for scope in scopes for letter in scope.letters
                  if (scope.context, scope.criteria) == (asked.context, asked.criteria)}
    for wildcard in _wildcards(offered.asked):
        under = [asked for line in offered.lines for asked in line.scopes
                 if (asked.context, asked.criteria) == (wildcard.context, wildcard.criteria)]
        kept = "".join(letter for letter in wildcard.letters if all(
            (asked, letter) in whole for asked in under if letter in asked.letters))
        if kept:
            found.append(ResourceScope(wildcard.context, "*", kept, wildcard.criteria))
    return ScopeSet(tuple(found), _others(offered, chosen, tuple(found)))


def is_nothing(scopes: ScopeSet) -> bool:
    """Whether an app would get neither a record nor who someone is: an answer that is a refusal."""
    return not scopes.resources and "openid" not in scopes.others


def _lines(asked: ScopeSet, types: Container[str], table: Words) -> Iterable[ResourceScope]:
    """One scope for each type and criteria, wildcards spread over the types that have a heading."""
    letters: dict[tuple[Context, str, tuple[Criterion, ...]], set[str]] = {}
    for scope in asked.resources:
        spread = [name for name, row in table.types.items() if row.group is not None and name in types] \
            if scope.type == "*" else [scope.type]
        for type_ in spread:
            letters.setdefault((scope.context, type_, scope.criteria), set()).update(scope.letters)
    return [ResourceScope(context, type_, "".join(sorted(held, key="cruds".index)), criteria)
            for (context, type_, criteria), held in letters.items()]


def _wildcards(asked: ScopeSet) -> list[ResourceScope]:
    return [scope for scope in asked.resources if scope.type == "*"]


def _alike(scopes: Iterable[ResourceScope], *, apart: bool) -> list[tuple[ResourceScope, ...]]:
    """The scopes of a type together where a person reads the same of each context; ``apart``: they do not."""
    found: dict[tuple[object, ...], list[ResourceScope]] = {}
    for scope in scopes:
        found.setdefault((scope.type, scope.criteria, scope.context if apart else ""), []).append(scope)
    return [tuple(sorted(together)) for together in found.values()]


def _line(scopes: tuple[ResourceScope, ...], voice: Voice, table: Words) -> Line:
    first = scopes[0]
    row = table.types.get(first.type)
    return Line(scopes=scopes, name=name_of(first.type, first.criteria, table), group=row.group if row else None,
                date=row.date if row else None, read=_tick(scopes, READING, voice, table),
                write=_tick(scopes, WRITING, voice, table), kinds=_kinds(scopes, voice, table))


def _rests(wildcards: Iterable[ResourceScope], types: Container[str], table: Words) -> list[Line]:
    """Everything of wildcards that has no heading, as one line; named types keep lines of their own."""
    rest = tuple(name for name, row in table.types.items() if row.group is None and name in types)
    lines = []
    for scopes in _alike(wildcards, apart=False) if rest else ():
        name, ticks = name_of("*", scopes[0].criteria, table, every=_REST), {}
        for part in (READING, WRITING):
            if halves := _parts(scopes, part):
                letters = "".join(letter for letter in part if any(letter in half.letters for half in halves))
                ticks[part] = Tick(value=" ".join(map(str, halves)),
                                   text=f"{verbs(letters, table).capitalize()} {name}")
        lines.append(Line(scopes=scopes, name=name, group=None, date=None, read=ticks.get(READING),
                          write=ticks.get(WRITING), rest=rest))
    return lines


def _part(scope: ResourceScope, letters: str) -> ResourceScope | None:
    kept = "".join(letter for letter in scope.letters if letter in letters)
    return ResourceScope(scope.context, scope.type, kept, scope.criteria) if kept else None


def _parts(scopes: Iterable[ResourceScope], letters: str) -> list[ResourceScope]:
    return [part for scope in scopes if (part := _part(scope, letters)) is not None]


def _tick(scopes: Iterable[ResourceScope], letters: str, voice: Voice, table: Words) -> Tick | None:
    parts = _parts(scopes, letters)
    return Tick(value=" ".join(map(str, parts)), text=_sentence(parts, voice, table)) if parts else None


def _sentence(scopes: Sequence[ResourceScope], voice: Voice, table: Words) -> str:
    """One sentence for scopes that differ in context and letters alone."""
    letters = "".join(letter for letter in "cruds" if any(letter in scope.letters for scope in scopes))
    return sentence(ResourceScope(scopes[0].context, scopes[0].type, letters, scopes[0].criteria), voice, table)


def _several(scope: ResourceScope) -> Criterion | None:
    """A criterion that names several values already."""
    return next((criterion for criterion in scope.criteria if len(_COMMA.split(criterion[1])) > 1), None)


def _kinds(scopes: tuple[ResourceScope, ...], voice: Voice, table: Words) -> tuple[Tick, ...]:
    """The kinds of a type that can be read alone; of a scope that names several already, each of these."""
    reading = _parts(scopes, READING)
    if not reading:
        return ()
    first = reading[0]
    several = _several(first)
    if several is not None:
        criteria = [(several[0], value) for value in _COMMA.split(several[1]) if value]
    else:
        used = {name for name, _ in first.criteria}
        criteria = [kind.criterion for kind in table.kinds.get(first.type, ()) if kind.criterion[0] not in used]
    made = []
    for criterion in criteria:
        narrow = [_with(scope, criterion, instead_of=several) for scope in reading]
        made.append(Tick(value=" ".join(map(str, narrow)), text=_sentence(narrow, voice, table), criterion=criterion))
    return tuple(made)


def _unasked(kinds: Iterable[Tick], whole: frozenset[str]) -> tuple[Tick, ...]:
    """Kinds without what was asked by itself: that has a box of its own, and one word means one box."""
    kept = ((kind, [word for word in kind.value.split(" ") if word not in whole]) for kind in kinds)
    return tuple(replace(kind, value=" ".join(words)) for kind, words in kept if words)


def _with(scope: ResourceScope, criterion: Criterion, instead_of: Criterion | None = None) -> ResourceScope:
    kept = {*scope.criteria, criterion} - ({instead_of} if instead_of is not None else set())
    return ResourceScope(scope.context, scope.type, scope.letters, tuple(sorted(kept)))


def _of_line(line: Line, ticked: frozenset[str], since: str) -> list[ResourceScope]:
    """What was chosen of a line: where a kind is ticked, nothing of the type beyond the kinds that are."""
    kinds = [tick.criterion for tick in line.kinds if tick.words & ticked and tick.criterion is not None]
    found = []
    for asked in line.scopes:
        reading, writing = _part(asked, READING), _part(asked, WRITING)
        letters = reading.letters if reading is not None and (kinds or str(reading) in ticked) else ""
        letters += writing.letters if writing is not None and str(writing) in ticked else ""
        if not letters:
            continue
        whole = ResourceScope(asked.context, asked.type, "".join(sorted(letters, key="cruds".index)), asked.criteria)
        scopes = [_with(whole, kind, instead_of=_several(whole)) for kind in kinds] or [whole]
        if since and line.date is not None:
            scopes = [dated for scope in scopes for dated in _since(scope, (line.date, f"ge{since}"))]
        found += [ResourceScope(scope.context, type_, scope.letters, scope.criteria)
                  for scope in scopes for type_ in (line.rest or (scope.type,))]
    return found


def _since(scope: ResourceScope, criterion: Criterion) -> list[ResourceScope]:
    dated = _part(scope, _DATED)
    return [half for half in (_part(scope, "c"), None if dated is None else _with(dated, criterion))
            if half is not None]


def _others(offered: Offer, chosen: Chosen, found: tuple[ResourceScope, ...]) -> frozenset[str]:
    asked = offered.asked
    kept = {tick.value for tick in offered.others if tick.value in chosen.ticked}
    if "openid" in chosen.ticked:
        kept |= _IDENTITY
    if found or not asked.resources:
        # Without a record, the app has no business with whose records these would have been.
        kept |= {scope for scope in asked.others if scope.startswith("launch")}
    if chosen.how_long == "offline":
        kept |= _LASTING
    elif chosen.how_long == "online":
        kept.add("online_access")
    return frozenset(kept) & asked.others


def _how_long(asked: ScopeSet) -> tuple[HowLong, ...]:
    if "offline_access" in asked.others:
        return ("once", "online", "offline") if "online_access" in asked.others else ("once", "offline")
    return ("once", "online") if "online_access" in asked.others else ("once",)


def _day(text: str | None) -> str:
    """An ISO day, or nothing. Raises Unprocessable."""
    if not text:
        return ""
    try:
        if not _DAY.fullmatch(text):
            raise ValueError
        return datetime.date.fromisoformat(text).isoformat()
    except ValueError as error:
        raise Unprocessable("a date is written as year-month-day, such as 2024-01-31", code="value") from error
