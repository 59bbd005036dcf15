"""SMART App Launch scopes, v1 and v2, as sets.

Owns the grammar, union, narrowing and the subset test; refuses modifiers, chains and result parameters in
granular scopes, and letters out of order. https://hl7.org/fhir/smart-app-launch/STU2.2/scopes-and-launch-context.html
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, cast
from urllib.parse import quote, unquote

from gateway.errors import OAuthError

Context = Literal["patient", "user", "system"]
Letter = Literal["c", "r", "u", "d", "s"]
Criterion = tuple[str, str]

LETTERS = "cruds"
_V1 = {"read": "rs", "write": "cud", "*": "cruds"}
_RESOURCE = re.compile(r"(patient|user|system)/(\*|[A-Z][A-Za-z]{1,63})\.([a-z]+|\*)(?:\?(.+))?")
_LETTERS = re.compile(r"(?=.)c?r?u?d?s?")
_PARAMETER = re.compile(r"[A-Za-z][A-Za-z0-9-]*|_(?:id|lastUpdated|profile|security|source|tag)")
_TOKEN = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+")  # RFC 6749 section 3.3
_LAUNCH = re.compile(r"launch(?:/[a-z]+(?:\?role=[\x21\x23-\x5b\x5d-\x7e]+)?)?")
_PLAIN = frozenset({"openid", "fhirUser", "profile", "online_access", "offline_access"})
_EXTENSION = re.compile(r"__[A-Za-z0-9_.-]+|https?://\S+")
_COMMA = re.compile(r"(?<!\\),")
MOST = 600
"""Words of one scope parameter; comparing them costs their square."""
GRANULAR_MOST = 100
"""... and of those, with criteria: they are also multiplied with those of a ceiling."""
_CRITERIA_MOST = 10


@dataclass(frozen=True, slots=True, order=True)
class ResourceScope:
    """``context/type.letters?criteria``; ``type`` may be ``*``; ``criteria`` are sorted (parameter, value), ANDed.

    ``letters`` stand in ``cruds`` order. A value may hold alternatives after commas, as in a search.
    """

    context: Context
    type: str
    letters: str
    criteria: tuple[Criterion, ...] = ()

    def __str__(self) -> str:
        query = "&".join(f"{name}={quote(value, safe=':/|,.~$@-_')}" for name, value in self.criteria)
        return f"{self.context}/{self.type}.{self.letters}" + (f"?{query}" if query else "")

    def covers(self, other: ResourceScope, letter: str) -> bool:
        """Whether every request ``other`` lets through with ``letter`` also passes here (sound, by syntax)."""
        return (self.context == other.context and self.type in ("*", other.type) and letter in self.letters
                and all(any(_implies(have, want) for have in other.criteria) for want in self.criteria))


def _implies(have: Criterion, want: Criterion) -> bool:
    return have[0] == want[0] and (have[1] == want[1] or _values(have[1]) <= _values(want[1]))


@lru_cache(maxsize=1_024)
def _values(text: str) -> frozenset[str]:
    return frozenset(_COMMA.split(text))


@dataclass(frozen=True, slots=True)
class ScopeSet:
    """A union of scopes in canonical form: no resource scope is implied by another, sorted, merged by letters.

    ``others`` are the scopes that grant no resource: ``openid``, ``launch/patient``, extensions ...
    """

    resources: tuple[ResourceScope, ...] = ()
    others: frozenset[str] = frozenset()
    _by_type: dict[str, tuple[ResourceScope, ...]] = field(
        init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "resources", _canonical(self.resources))
        by_type: dict[str, tuple[ResourceScope, ...]] = {}
        for scope in self.resources:
            by_type[scope.type] = (*by_type.get(scope.type, ()), scope)
        object.__setattr__(self, "_by_type", by_type)

    def of(self, type_: str) -> tuple[ResourceScope, ...]:
        """The resource scopes that speak of ``type_``, wildcards included."""
        return self._by_type.get(type_, ()) + self._by_type.get("*", ())

    def allows(self, type_: str, letter: str, context: Context | None = None) -> bool:
        """Whether any scope names ``type_`` and ``letter`` (perhaps only for some resources of the type)."""
        for scope in self.of(type_):
            if letter in scope.letters and (context is None or context == scope.context):
                return True
        return False

    def criteria(self, type_: str, letter: str, context: Context | None = None) -> tuple[tuple[Criterion, ...], ...]:
        """Alternatives of which a resource must meet one: the empty one is met by all; without any, nothing passes."""
        return tuple(scope.criteria for scope in self.of(type_)
                     if letter in scope.letters and context in (None, scope.context))

    def union(self, other: ScopeSet) -> ScopeSet:
        """What either grants."""
        return ScopeSet(self.resources + other.resources, self.others | other.others)

    def narrow(self, ceiling: ScopeSet) -> ScopeSet:
        """What both grant: a request cut down to a registration, a role or what the user chose."""
        met = []
        for mine in self.resources:
            for theirs in ceiling.resources:
                letters = "".join(letter for letter in mine.letters if letter in theirs.letters)
                if mine.context != theirs.context or not letters:
                    continue
                if "*" not in (mine.type, theirs.type) and mine.type != theirs.type:
                    continue
                met.append(ResourceScope(mine.context, theirs.type if mine.type == "*" else mine.type, letters,
                                         tuple(sorted({*mine.criteria, *theirs.criteria}))))
        return ScopeSet(tuple(met), self.others & ceiling.others)

    def within(self, ceiling: ScopeSet) -> bool:
        """Whether ``ceiling`` grants all of this (sound, by syntax: a yes is certain)."""
        return self.others <= ceiling.others and all(
            any(theirs.covers(mine, letter) for theirs in ceiling.resources)
            for mine in self.resources for letter in mine.letters)

    def __str__(self) -> str:
        return " ".join((*sorted(self.others), *map(str, self.resources)))

    def __bool__(self) -> bool:
        return bool(self.resources or self.others)


def _canonical(scopes: Iterable[ResourceScope]) -> tuple[ResourceScope, ...]:
    letters: dict[tuple[Context, str, tuple[Criterion, ...]], set[str]] = {}
    for scope in scopes:
        letters.setdefault((scope.context, scope.type, scope.criteria), set()).update(scope.letters)
    merged = [ResourceScope(context, type_, "".join(x for x in LETTERS if x in held), criteria)
              for (context, type_, criteria), held in letters.items()]
    near: dict[tuple[Context, str], list[ResourceScope]] = {}
    for scope in merged:
        near.setdefault((scope.context, scope.type), []).append(scope)
    kept = []
    for scope in merged:
        others = near[scope.context, scope.type] + (
            near.get((scope.context, "*"), []) if scope.type != "*" else [])
        # Two scopes that cover each other differ only in how their values are written; the lesser text stays.
        left = "".join(letter for letter in scope.letters if not any(
            other != scope and other.covers(scope, letter)
            and not (scope.covers(other, letter) and scope < other) for other in others))
        if left:
            kept.append(ResourceScope(scope.context, scope.type, left, scope.criteria))
    return tuple(sorted(kept))


def parse(text: str) -> ScopeSet:
    """The scopes of ``text`` that are well-formed; what is not is dropped (SMART: MAY be ignored)."""
    resources, others = [], set()
    for word in text.split(" "):
        found = _scope(word, None, None)
        if isinstance(found, ResourceScope):
            resources.append(found)
        elif found is None:
            others.add(word)
    return ScopeSet(tuple(resources), frozenset(others))


def parse_strict(text: str, *, types: Container[str] | None = None,
                 knows: Callable[[str, str], bool] | None = None) -> ScopeSet:
    """As ``parse``, but raises OAuthError ``invalid_scope`` naming the first scope that cannot be honoured.

    ``types`` are the resource types served; ``knows(type, parameter)`` says which parameters can be searched.
    """
    resources, others = [], set()
    for word in words_of(text):
        found = _scope(word, types, knows)
        if isinstance(found, str):
            raise OAuthError("invalid_scope", found)
        if found is None:
            others.add(word)
        else:
            resources.append(found)
    return ScopeSet(tuple(resources), frozenset(others))


def words_of(text: str) -> list[str]:
    """The scopes of a request, as they stand. Raises OAuthError ``invalid_scope`` for more than can be compared."""
    words = text.split()
    if len(words) > MOST or sum("?" in word for word in words) > GRANULAR_MOST:
        raise OAuthError("invalid_scope", f"at most {MOST} scopes, {GRANULAR_MOST} of them with parameters")
    return words


def _scope(word: str, types: Container[str] | None,
           knows: Callable[[str, str], bool] | None) -> ResourceScope | str | None:
    """A resource scope; None for a scope of another kind; a sentence for what is neither."""
    if not _TOKEN.fullmatch(word):
        return "a scope holds a character RFC 6749 does not allow"
    if word in _PLAIN or _LAUNCH.fullmatch(word) or _EXTENSION.fullmatch(word):
        return None
    match = _RESOURCE.fullmatch(word)
    if match is None:
        return f"{word}: not context/Type.letters"
    context, type_, action, query = match.groups()
    if type_ != "*" and types is not None and type_ not in types:
        return f"{word}: {type_} is not a resource type"
    if action in _V1:
        if query is not None:
            return f"{word}: a v1 scope has no parameters"
        return ResourceScope(cast(Context, context), type_, _V1[action])
    if not _LETTERS.fullmatch(action):
        return f"{word}: {action} is not made of c, r, u, d, s in this order"
    criteria = []
    pairs = query.split("&") if query is not None else []
    if len(pairs) > _CRITERIA_MOST:
        return f"a scope has at most {_CRITERIA_MOST} parameters"
    for pair in pairs:
        name, equals, value = pair.partition("=")
        name, value_text = unquote(name), unquote(value)
        if not equals or not value_text or "=" in value or "?" in value:
            return f"{word}: {pair} is not parameter=value"
        if not _PARAMETER.fullmatch(name):
            return f"{word}: {name} is a modifier, a chain or not a resource's own search parameter"
        if knows is not None and not knows("Resource" if type_ == "*" else type_, name):
            return f"{word}: {name} is not a search parameter of {type_}"
        criteria.append((name, value_text))
    return ResourceScope(cast(Context, context), type_, action, tuple(sorted(set(criteria))))


def as_v1(scopes: ScopeSet) -> str | None:
    """The set in v1 words for a client that asked in them, or None where v1 cannot say it."""
    words = sorted(scopes.others)
    for scope in scopes.resources:
        v1 = next((word for word, letters in _V1.items() if letters == scope.letters), None)
        if v1 is None or scope.criteria:
            return None
        words.append(f"{scope.context}/{scope.type}.{v1}")
    return " ".join(words)
