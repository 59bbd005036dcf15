"""Sends what schemathesis draws through a hospital's own client, and holds the answer to the document."""

from __future__ import annotations

import httpx
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.journeys.hospital import Hospital

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_headers_conformance,
          response_schema_conformance]


def hold(case: schemathesis.Case, hospital: Hospital, headers: dict[str, str]) -> None:
    """Send one drawn request with ``headers``; what no HTTP client could send is passed over."""
    drawn = case.as_transport_kwargs(base_url="http://127.0.0.1:8080", headers=headers)
    drawn = {"params" if name == "params" else "content" if name == "data" and isinstance(value, bytes) else name: value
             for name, value in drawn.items() if value is not None and name not in ("cookies", "timeout", "verify")}
    try:
        request = hospital.http.build_request(**drawn)
        request.read()  # a form is a stream until then
    except (httpx.InvalidURL, UnicodeEncodeError, TypeError, AttributeError):  # the last: a number as a form's file
        return
    response = hospital.run(hospital.http.send(request))
    response.read()
    case.validate_response(response, checks=CHECKS)
