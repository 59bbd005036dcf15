"""``$lastn`` and ``$stats`` of Observation over HTTP.

https://hl7.org/fhir/R4/observation-operations.html
"""

from __future__ import annotations

from gateway.access.period import MAX_MS, MIN_MS
from gateway.fhir.search_dates import Range, period_range
from gateway.fhir.statistics import OFFERED, SYSTEM
from gateway.records import lastn as records
from gateway.records.answer import Answer
from gateway.store.sql import now_ms
from gateway.web.ask import Ask
from gateway.web.door import Door, Route
from gateway.web.operations import Input, Inputs, inputs, refused

_LASTN = {"max": Input("positiveInt")}
_STATS = {
    "subject": Input("uri", required=True), "code": Input("string", many=True), "system": Input("uri"),
    "coding": Input("Coding", many=True), "duration": Input("decimal"), "period": Input("Period"),
    "statistic": Input("code", many=True, required=True), "include": Input("boolean"), "limit": Input("positiveInt")}
_MAX = 100
_LIMIT = 100
_CODES_MAX = 20
_HOUR_MS = 3_600_000
_NOT_HERE = frozenset({"_sort", "_count", "_page", "_summary", "_total", "_include", "_revinclude", "_elements"})


async def lastn(door: Door, ask: Ask) -> Answer:
    """The newest observations of each code; the rest of the parameters are those of a search."""
    given = await inputs(door, ask, _LASTN, operation="lastn", search=True)
    most = given.whole("max", 1)
    if not 1 <= most <= _MAX:
        raise refused("max", f"is from 1 to {_MAX}")
    for name, _ in given.rest:
        if name.partition(":")[0] in _NOT_HERE:
            raise refused(name, "is no parameter of $lastn", code="not-supported")
    if not any(name.partition(":")[0] in ("patient", "subject") for name, _ in given.rest):
        raise refused("patient", "or subject is required by $lastn", code="required")
    return Answer(200, await records.lastn(door.node, ask.caller, given.rest, most, strict=ask.strict))


async def stats(door: Door, ask: Ask) -> Answer:
    """Statistics of one subject's values, by code."""
    given = await inputs(door, ask, _STATS, operation="stats")
    wanted = tuple(dict.fromkeys(name.removeprefix(f"{SYSTEM}|") for name in given.texts("statistic")))
    if not set(wanted) <= OFFERED:
        raise refused("statistic", f"is one of {', '.join(sorted(OFFERED))}", code="not-supported")
    codes = tuple(dict.fromkeys(_codes(given)))
    if not 1 <= len(codes) <= _CODES_MAX:
        raise refused("code", f"or coding is given 1 to {_CODES_MAX} times", code="required")
    limit = given.whole("limit", _LIMIT)
    subject = str(given.text("subject")).removeprefix(f"{door.base}/")
    return Answer(200, await records.stats(door.node, ask.caller, records.Stats(
        subject=subject, codes=codes, statistics=wanted, period=_period(given), include=given.flag("include"),
        limit=min(limit, records.MOST))))


def _codes(given: Inputs) -> list[tuple[str | None, str]]:
    system = given.text("system")
    found: list[tuple[str | None, str]] = []
    for text in given.texts("code"):
        before, bar, after = text.partition("|")
        found.append((before, after) if bar and system is None else (system, text))
    for coding in given.objects("coding"):
        code = coding.get("code")
        if not isinstance(code, str):
            raise refused("coding", "has no code")
        of = coding.get("system")
        found.append((of if isinstance(of, str) else None, code))
    return found


def _period(given: Inputs) -> Range | None:
    duration, periods = given.text("duration"), given.objects("period")
    if duration is not None and periods:
        raise refused("duration", "and period exclude each other", code="invalid")
    if duration is not None:
        now = now_ms()
        return max(MIN_MS, now - int(float(duration) * _HOUR_MS)), now
    if not periods:
        return None
    found = period_range(periods[0])
    if found is None:
        raise refused("period", "has no date")
    return max(MIN_MS, found[0]), min(MAX_MS, found[1])


_OBSERVATION = frozenset({"Observation"})
ROUTES = tuple(
    Route(method=method, shape=f"T/${name}", name=name, handler=handler, kind="operation", types=_OBSERVATION,
          definition=f"http://hl7.org/fhir/OperationDefinition/Observation-{name}")
    for name, handler in (("lastn", lastn), ("stats", stats)) for method in ("GET", "POST"))
