"""Subscriptions: what one asks for, the topics there are, the states one goes through, and the bundles one is sent.

Owns reading a Subscription in R4's form (criteria as a search) and in the R5 backport's (criteria as a topic), and the
state machine of its delivery; refuses, with the place, what could never be delivered. No I/O; the time is an argument.
https://hl7.org/fhir/R4/subscription.html, https://hl7.org/fhir/uv/subscriptions-backport/STU1.1/

    requested -> active <-> error        any of them -> off, by the client or the server; off -> requested by the client
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, cast
from urllib.parse import parse_qsl

import orjson

from gateway.errors import Issue, Unprocessable
from gateway.fhir.resource import Resource, canonical, format_instant, parse_instant

State = Literal["requested", "active", "error", "off"]
Interaction = Literal["create", "update", "delete"]
Content = Literal["empty", "id-only", "full-resource"]
Kind = Literal["handshake", "heartbeat", "event-notification", "query-status", "query-event"]

BACKPORT: Final = "http://hl7.org/fhir/uv/subscriptions-backport/"
_EXTENSION: Final = f"{BACKPORT}StructureDefinition/backport-"
TOPIC: Final = "urn:fhir-gateway:topic:"
JSON: Final = "application/fhir+json"
XML: Final = "application/fhir+xml"
MAX_EVENTS: Final = 100
"""Most events of one notification."""
TIMEOUT_S: Final = 10
MAX_TIMEOUT_S: Final = 60
HEADERS_MAX: Final = 20

ERROR_AFTER: Final = 3
OFF_AFTER: Final = 16
HANDSHAKES: Final = 5
_FIRST_MS: Final = 1_000
_LONGEST_MS: Final = 600_000

_UNWATCHED: Final = frozenset({"AuditEvent", "Subscription", "Parameters"})
"""What tells of the deliveries themselves, or is never stored."""
_HEADER: Final = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}):[ \t]*([\x20-\x7e]{0,4096})")
_OURS: Final = frozenset({"host", "content-length", "content-type", "transfer-encoding", "connection", "upgrade", "te",
                          "trailer", "expect", "keep-alive", "content-encoding", "proxy-authorization",
                          "proxy-connection"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Topic:
    """What may happen to resources of one type. ``entering``: only when their status becomes this.

    ``general``: not one of the parts of another.
    """

    url: str
    type: str
    interactions: frozenset[Interaction]
    entering: str | None = None
    general: bool = True


def topics(types: Collection[str]) -> Mapping[str, Topic]:
    """The topics of a server of these types, by canonical URL."""
    found = []
    for type_ in sorted(frozenset(types) - _UNWATCHED):
        found.append(Topic(url=f"{TOPIC}{type_}", type=type_, interactions=frozenset({"create", "update", "delete"})))
        found += [Topic(url=f"{TOPIC}{type_}-{word}", type=type_, interactions=frozenset({one}), general=False)
                  for one, word in _WORDS.items()]
    for name, status in (("encounter-start", "in-progress"), ("encounter-end", "finished")):
        found.append(Topic(url=f"{TOPIC}{name}", type="Encounter", interactions=frozenset({"create", "update"}),
                           entering=status))
    return {topic.url: topic for topic in found}


_WORDS: Final[Mapping[Interaction, str]] = {"create": "created", "update": "updated", "delete": "deleted"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a Subscription asks for. ``topic`` None: R4's own form, where ``payload`` None means nothing is sent along.

    ``filters``: search parameters the resource must meet, all of them. ``header`` holds secrets.
    """

    topic: Topic | None
    type: str
    filters: tuple[tuple[str, str], ...]
    endpoint: str
    header: tuple[tuple[str, str], ...]
    payload: str | None
    content: Content
    heartbeat_s: int | None
    timeout_s: int
    max_count: int
    end_ms: int | None

    @property
    def interactions(self) -> frozenset[Interaction]:
        """What happens to a resource that it tells of; R4's criteria are about what is there."""
        return self.topic.interactions if self.topic is not None else frozenset({"create", "update"})


def wanted(resource: Resource, types: Collection[str], known: Mapping[str, Topic]) -> Wanted:
    """Read a valid Subscription. Raises Unprocessable naming the place."""
    channel = resource["channel"]
    if channel.get("type") != "rest-hook":
        raise _refused("only rest-hook is offered", "channel.type", "not-supported")
    if "endpoint" not in channel:
        raise _refused("a rest-hook needs an endpoint", "channel.endpoint", "required")
    criteria = str(resource["criteria"])
    topic = known.get(criteria.partition("|")[0])
    filters: list[tuple[str, str]] = []
    texts = [str(one) for one in _extensions(resource.get("_criteria"), "filter-criteria", "valueString")]
    if topic is None:
        name, mark, query = criteria.partition("?")
        if not mark and name not in types:
            raise _refused("it is neither a search such as Observation?code=… nor a topic offered here", "criteria",
                           "not-supported")
        type_ = _watched(name, types, "criteria")
        if texts:
            raise _refused("filters narrow a topic", "criteria.extension", "invalid")
        filters += _pairs(query, "criteria")
    else:
        type_ = topic.type
        for text in texts:
            name, mark, query = text.partition("?")
            if mark and name != type_:
                raise _refused("a filter is about the topic's own type", "criteria.extension", "invalid")
            filters += _pairs(query if mark else text, "criteria.extension")
    return Wanted(
        topic=topic, type=type_, filters=tuple(filters), endpoint=str(channel["endpoint"]), header=_header(channel),
        payload=_payload(channel, topic), content=_content(channel, topic),
        heartbeat_s=_number(channel, "heartbeat-period", "valueUnsignedInt", 1, 86_400) if topic else None,
        timeout_s=_number(channel, "timeout", "valueUnsignedInt", 1, MAX_TIMEOUT_S) or TIMEOUT_S,
        max_count=1 if topic is None else min(
            _number(channel, "max-count", "valuePositiveInt", 1, 2**31) or MAX_EVENTS, MAX_EVENTS),
        end_ms=_end(resource))


def _refused(why: str, place: str, code: str) -> Unprocessable:
    return Unprocessable([Issue("error", code, why, f"Subscription.{place}")])


def _watched(name: str, types: Collection[str], place: str) -> str:
    if name not in types:
        raise _refused("the criteria begin with a resource type", place, "value")
    if name in _UNWATCHED:
        raise _refused(f"{name} is not what can be subscribed to", place, "not-supported")
    return name


def _pairs(query: str, place: str) -> list[tuple[str, str]]:
    found = parse_qsl(query, keep_blank_values=True)
    for name, _ in found:
        # What shapes a result's form has no meaning for one resource at a time.
        if name.startswith("_") and name.partition(":")[0] not in _SYSTEM:
            raise _refused("only search parameters of the resource itself filter events", place, "not-supported")
    return found


_SYSTEM: Final = frozenset({"_id", "_tag", "_profile", "_security", "_lastUpdated", "_source"})


def _extensions(holder: Any, name: str, value: str) -> Iterator[Any]:
    for one in (holder or {}).get("extension", ()):
        if one.get("url") == f"{_EXTENSION}{name}" and value in one:
            yield one[value]


def _number(channel: Mapping[str, Any], name: str, value: str, low: int, high: int) -> int | None:
    found = next(_extensions(channel, name, value), None)
    if found is None:
        return None
    if not isinstance(found, int) or not low <= found <= high:
        raise _refused(f"it is from {low} to {high}", "channel.extension", "value")
    return found


def _header(channel: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    given = channel.get("header", [])
    if len(given) > HEADERS_MAX:
        raise _refused(f"at most {HEADERS_MAX} headers are sent", "channel.header", "too-costly")
    found = []
    for place, line in enumerate(given):
        match = _HEADER.fullmatch(str(line))
        if match is None or match[1].lower() in _OURS:
            raise _refused("it is no 'Name: value', or a header the gateway sets itself", f"channel.header[{place}]",
                           "value")
        found.append((match[1], match[2].rstrip()))
    return tuple(found)


def _payload(channel: Mapping[str, Any], topic: Topic | None) -> str | None:
    payload = channel.get("payload") or (None if topic is None else JSON)
    if payload not in (None, JSON, XML):
        raise _refused(f"it is {JSON} or {XML}", "channel.payload", "not-supported")
    return cast("str | None", payload)


def _content(channel: Mapping[str, Any], topic: Topic | None) -> Content:
    if topic is None:
        return "full-resource" if channel.get("payload") else "empty"
    found = next(_extensions(channel.get("_payload"), "payload-content", "valueCode"), "empty")
    if found not in ("empty", "id-only", "full-resource"):
        raise _refused("it is empty, id-only or full-resource", "channel.payload.extension", "value")
    return cast(Content, found)


def _end(resource: Resource) -> int | None:
    if "end" not in resource:
        return None
    try:
        return parse_instant(str(resource["end"]))
    except (ValueError, OverflowError) as error:
        raise _refused("it is no instant a calendar has", "end", "value") from error


def may_write(old: Resource | None, new: Resource) -> bool:
    """Whether a client may write ``new`` over ``old``: it asks or switches off; all else is the server's to say.

    What leaves the status as it is changes nothing but the record about it (``meta``).
    """
    status = new.get("status")
    if status in ("requested", "off"):
        return True
    return old is not None and old.get("status") == status and _substance(old) == _substance(new)


def _substance(resource: Resource) -> bytes:
    return canonical({name: value for name, value in resource.items() if name not in ("meta", "id", "text")})


@dataclass(frozen=True, slots=True)
class Step:
    """Where an attempt leads: the state, how many failed since the last success, and when the next may be."""

    state: State
    failures: int
    next_ms: int


def failed(state: State, failures: int, now_ms: int, jitter: float) -> Step:
    """One more attempt failed; ``jitter`` from 0 to 1 draws the pause from its lower half to its whole."""
    failures += 1
    if state == "off" or failures >= (HANDSHAKES if state == "requested" else OFF_AFTER):
        return Step("off", failures, now_ms)
    pause = min(_FIRST_MS << min(failures - 1, 20), _LONGEST_MS)
    following: State = "error" if state == "active" and failures >= ERROR_AFTER else state
    return Step(following, failures, now_ms + int(pause * (0.5 + jitter / 2)))


def delivered(state: State, now_ms: int) -> Step:
    """The endpoint acknowledged."""
    return Step("off" if state == "off" else "active", 0, now_ms)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One event as a notification tells it; ``stored``: the resource's bytes, where they go along."""

    number: int
    time_ms: int
    type: str
    id: str
    interaction: Interaction
    stored: bytes | None = None


_STATUS: Final[Mapping[Interaction, str]] = {"create": "201", "update": "200", "delete": "204"}
_METHOD: Final[Mapping[Interaction, str]] = {"create": "POST", "update": "PUT", "delete": "DELETE"}


def status_parameters(kind: Kind, *, base: str, id_: str, topic: Topic | None, state: State, count: int,
                      events: Sequence[Event] = (), content: Content = "empty",
                      error: str | None = None) -> dict[str, Any]:
    """The SubscriptionStatus as R4 carries it; ``count``: events since the Subscription began."""
    found: list[dict[str, Any]] = [
        {"name": "subscription", "valueReference": {"reference": f"{base}/Subscription/{id_}"}},
        *([{"name": "topic", "valueCanonical": topic.url}] if topic is not None else []),
        {"name": "status", "valueCode": state}, {"name": "type", "valueCode": kind},
        {"name": "events-since-subscription-start", "valueString": str(count)}]
    for event in events:
        part: list[dict[str, Any]] = [{"name": "event-number", "valueString": str(event.number)},
                                      {"name": "timestamp", "valueInstant": format_instant(event.time_ms)}]
        if content != "empty":
            part.append({"name": "focus", "valueReference": {"reference": f"{base}/{event.type}/{event.id}"}})
        found.append({"name": "notification-event", "part": part})
    if error is not None:
        found.append({"name": "error", "valueCodeableConcept": {"text": error}})
    return {"resourceType": "Parameters", "id": str(uuid.uuid4()), "meta": {
        "profile": [f"{_EXTENSION}subscription-status-r4"]}, "parameter": found}


def notification(kind: Kind, *, base: str, id_: str, topic: Topic | None, state: State, count: int, now_ms: int,
                 events: Sequence[Event] = (), content: Content = "empty") -> bytes:
    """A notification Bundle: the status first, then what the content asks for of each event."""
    status = status_parameters(kind, base=base, id_=id_, topic=topic, state=state, count=count, events=events,
                               content=content)
    entries: list[dict[str, Any]] = [{
        "fullUrl": f"urn:uuid:{status['id']}", "resource": status,
        "request": {"method": "GET", "url": f"{base}/Subscription/{id_}/$status"}, "response": {"status": "200"}}]
    for event in events if content != "empty" else ():
        name = f"{event.type}/{event.id}"
        entry: dict[str, Any] = {"fullUrl": f"{base}/{name}"}
        if content == "full-resource" and event.stored is not None:
            entry["resource"] = orjson.Fragment(event.stored)
        entries.append({**entry, "request": {"method": _METHOD[event.interaction],
                                             "url": event.type if event.interaction == "create" else name},
                        "response": {"status": _STATUS[event.interaction]}})
    return orjson.dumps({
        "resourceType": "Bundle", "id": str(uuid.uuid4()), "meta": {
            "lastUpdated": format_instant(now_ms), "profile": [f"{_EXTENSION}subscription-notification-r4"]},
        "type": "history", "timestamp": format_instant(now_ms), "entry": entries})


def told(resource: Resource, state: State, error: str | None) -> Resource:
    """The Subscription as the server has it now."""
    rest = {name: value for name, value in resource.items() if name not in ("error", "_error")}
    return {**rest, "status": state, **({"error": error} if error is not None else {})}
