"""``$validate`` of a type and of an instance: 200 with an OperationOutcome, whatever it finds.

Owns reading its parameters, from the query or from Parameters, and the outcome; refuses a body that is none.
https://hl7.org/fhir/R4/resource-operation-validate.html
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gateway.errors import (
    BadSearch,
    Conflict,
    Forbidden,
    Gone,
    InputRefused,
    Issue,
    Malformed,
    MethodNotAllowed,
    NotFound,
    PreconditionFailed,
)
from gateway.fhir.outcome import operation_outcome
from gateway.fhir.resource import Resource, parse
from gateway.records import audit_events, read, validation
from gateway.records.answer import Answer
from gateway.records.validation import MODES, Mode
from gateway.web.ask import Ask
from gateway.web.door import Door, Route
from gateway.web.errors import rendered

_KNOWN = frozenset({"mode", "profile"})
_PROFILES_MAX = 20
_WRITE_REFUSALS = (InputRefused, NotFound, Gone, MethodNotAllowed, Conflict, PreconditionFailed, Forbidden)
_VALID = Issue("information", "informational", "no issue was found")


@dataclass(frozen=True, slots=True)
class _Asked:
    resource: Resource | None
    mode: Mode | None
    profiles: tuple[str, ...]


async def validate_type(door: Door, ask: Ask) -> Answer:
    """POST to a type: what was sent, as it stands or in Parameters."""
    asked = await _asked(ask)
    id_ = asked.resource.get("id") if asked.resource is not None else None
    if asked.resource is None and asked.mode != "delete":
        raise Malformed("$validate takes a resource", code="required", expression="Parameters.parameter")
    return await _outcome(door, ask, asked, id_ if type(id_) is str else None)


async def validate_instance(door: Door, ask: Ask) -> Answer:
    """GET or POST of an id: what was sent for it, else what is stored there (which must be readable)."""
    asked = await _asked(ask)
    if asked.resource is None and asked.mode != "delete":
        if ask.type == "AuditEvent" and audit_events.is_ours(ask.id):
            stored = await audit_events.read(door.node, ask.caller, ask.id, None)
        else:
            stored = (await read.read(door.node, ask.caller, ask.type, ask.id)).stored
        ask = ask.again()
        asked = _Asked(parse(stored), asked.mode, asked.profiles)
    return await _outcome(door, ask, asked, ask.id)


async def _outcome(door: Door, ask: Ask, asked: _Asked, id_: str | None) -> Answer:
    issues: list[Issue] = []
    if asked.resource is not None and asked.mode != "delete":
        issues += await validation.issues_of(door.node, asked.resource, ask.type, asked.profiles,
                                             thorough=asked.mode not in ("create", "update"))
    if asked.mode is not None and not any(issue.severity in ("error", "fatal") for issue in issues):
        try:
            await validation.would_write(door.node, ask.caller, asked.mode, ask.type, id_, asked.resource)
        except _WRITE_REFUSALS as error:
            issues += rendered(error)[1]
    return Answer(200, operation_outcome(tuple(issues) or (_VALID,)))


async def _asked(ask: Ask) -> _Asked:
    """The operation's parameters. Raises BadSearch, Malformed."""
    ask.only_known(_KNOWN, "$validate")
    given: list[tuple[str, Any]] = [pair for pair in ask.pairs if pair[0] in _KNOWN]  # Any: JSON of a parameter
    resource: Resource | None = None
    if ask.method == "POST" and ask.has_body:
        body = await ask.resource()
        if _is_call(body, ask.type):
            found = _parameters(body)
            given += [pair for pair in found if pair[0] != "resource"]
            resources = [value for name, value in found if name == "resource"]
            if len(resources) > 1:
                raise _refused("resource", "is given more than once")
            resource = resources[0] if resources else None
        else:
            resource = body
    modes = [value for name, value in given if name == "mode"]
    profiles = [value for name, value in given if name == "profile"]
    unknown = sorted({name for name, _ in given} - _KNOWN)
    if unknown and ask.strict:
        raise _refused(unknown[0], "is not taken by $validate", code="not-supported")
    if len(modes) > 1 or (modes and modes[0] not in MODES):
        raise _refused("mode", "is one of create, update, delete and profile")
    if len(profiles) > _PROFILES_MAX or not all(type(one) is str and one for one in profiles):
        raise _refused("profile", f"is a canonical URL, given {_PROFILES_MAX} times at most")
    if modes == ["profile"] and not profiles:
        raise _refused("profile", "is required with mode=profile", code="required")
    return _Asked(resource, modes[0] if modes else None, tuple(profiles))


def _is_call(body: Resource, type_: str) -> bool:
    """Whether a body is the operation's Parameters: also on Parameters itself, where it has one of theirs."""
    if body["resourceType"] != "Parameters":
        return False
    names = {one.get("name") for one in _rows(body) if type(one) is dict}
    return type_ != "Parameters" or "resource" in names


def _rows(body: Resource) -> list[Any]:  # Any: what stands there is judged by the caller
    rows = body.get("parameter", [])
    return rows if type(rows) is list else [None]


def _parameters(body: Resource) -> list[tuple[str, Any]]:  # Any: JSON of a parameter
    """Name and value of each parameter; the resource as it came, since judging it is what is asked for."""
    found: list[tuple[str, Any]] = []
    for place, row in enumerate(_rows(body)):
        at = f"Parameters.parameter[{place}]"
        name = row.get("name") if type(row) is dict else None
        if type(name) is not str:
            raise Malformed("a parameter is an object with a name", code="structure", expression=at)
        if "resource" in row:
            value = row["resource"]
            if type(value) is not dict or type(value.get("resourceType")) is not str:
                raise Malformed("must be a resource", code="structure", expression=f"{at}.resource")
        else:
            value = next((held for key, held in row.items() if key.startswith("value")), None)
        found.append((name, value))
    return found


def _refused(name: str, why: str, *, code: str = "value") -> BadSearch:
    return BadSearch(f"{name[:64]} {why}", code=code, expression=f"http.{name[:64]}")


_DEFINITION = "http://hl7.org/fhir/OperationDefinition/Resource-validate"
ROUTES = (
    Route(method="POST", shape="T/$validate", name="validate", handler=validate_type, kind="operation",
          definition=_DEFINITION),
    Route(method="POST", shape="T/I/$validate", name="validate", handler=validate_instance, kind="operation",
          definition=_DEFINITION),
    Route(method="GET", shape="T/I/$validate", name="validate", handler=validate_instance, kind="operation",
          definition=_DEFINITION),
)
