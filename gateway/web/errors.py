"""What a client sees of an error: the only place where the tree meets HTTP.

Owns status codes, OperationOutcome bodies and headers; refuses to show anything of an error it does not
know: an id is all (invariant 12). https://hl7.org/fhir/R4/operationoutcome.html
"""

from __future__ import annotations

import logging
import math
import secrets
from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import Response

from gateway import errors
from gateway.errors import GatewayError, InputRefused, Issue
from gateway.fhir.outcome import operation_outcome
from gateway.records.answer import FHIR_JSON, Answer

LOG = logging.getLogger("gateway.errors")

_STATUS: tuple[tuple[type[GatewayError], int, str], ...] = (
    (errors.Malformed, 400, "structure"),
    (errors.BadSearch, 400, "invalid"),
    (errors.Invalid, 422, "invalid"),
    (errors.Unprocessable, 422, "invalid"),
    (errors.TooCostly, 400, "too-costly"),
    (errors.TooLarge, 413, "too-long"),
    (errors.UnsupportedMedia, 415, "not-supported"),
    (errors.NotAcceptable, 406, "not-supported"),
    (errors.InputRefused, 400, "invalid"),
    (errors.NotFound, 404, "not-found"),
    (errors.Gone, 410, "deleted"),
    (errors.MethodNotAllowed, 405, "not-supported"),
    (errors.Conflict, 409, "conflict"),
    (errors.PreconditionFailed, 412, "conflict"),
    (errors.Unauthenticated, 401, "login"),
    (errors.Forbidden, 403, "forbidden"),
    (errors.Throttled, 429, "throttled"),
    (errors.OAuthError, 400, "invalid"),
    (errors.KeyDestroyed, 410, "deleted"),
    (errors.IntegrityBroken, 500, "exception"),
    (errors.TookTooLong, 503, "timeout"),
    (errors.Unavailable, 503, "transient"),
)


def rendered(error: BaseException) -> tuple[int, tuple[Issue, ...], Mapping[str, str]]:
    """Status, issues and extra headers of any error; one that is not ours becomes a 500 with an id."""
    for kind, status, code in _STATUS:
        if isinstance(error, kind):
            if isinstance(error, InputRefused):
                return _refused_status(error, status), error.issues, {}
            headers: dict[str, str] = {}
            if isinstance(error, errors.Gone) and error.version_id:
                headers["ETag"] = f'W/"{error.version_id}"'
            if isinstance(error, errors.Unauthenticated):
                detail = f', error="{error.error}"' if error.error else ""
                headers["WWW-Authenticate"] = f'Bearer realm="FHIR"{detail}'
            if isinstance(error, errors.MethodNotAllowed):
                headers["Allow"] = ", ".join(error.allowed)
            if isinstance(error, errors.Unavailable):
                headers["Retry-After"] = "2"
            if isinstance(error, errors.Throttled):
                headers["Retry-After"] = str(math.ceil(error.retry_s))
            if isinstance(error, errors.IntegrityBroken):
                LOG.error("integrity broken", extra={"kind": type(error).__name__}, exc_info=error)
            return status, (Issue("error", code, str(error), error.expression),), headers
    number = secrets.token_hex(8)
    LOG.error("unexpected error", extra={"error_id": number}, exc_info=error)
    return 500, (Issue("fatal", "exception", f"unexpected error {number}; the log has it under this id"),), {}


def _refused_status(error: InputRefused, status: int) -> int:
    """Structural faults are 400; a resource that parses and breaks a rule is 422."""
    if isinstance(error, errors.Invalid) and all(issue.code == "structure" for issue in error.issues
                                                 if issue.severity in ("error", "fatal")):
        return 400
    return status


def refusal(error: BaseException) -> Answer:
    """The FHIR door's error face: OperationOutcome."""
    status, issues, headers = rendered(error)
    return Answer(status, operation_outcome(issues), headers)


def fhir_response(error: BaseException) -> Response:
    """The same for what Starlette asks."""
    answer = refusal(error)
    return Response(answer.body, answer.status, dict(answer.headers), FHIR_JSON)


async def on_error(_: Request, error: Exception) -> Response:
    """Starlette's exception handler for the FHIR door."""
    return fhir_response(error)
