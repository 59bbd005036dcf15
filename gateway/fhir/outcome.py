"""OperationOutcome as bytes. https://hl7.org/fhir/R4/operationoutcome.html"""

from __future__ import annotations

import orjson

from gateway.errors import Issue


def operation_outcome(issues: tuple[Issue, ...]) -> bytes:
    """An OperationOutcome resource as JSON bytes."""
    rendered = []
    for issue in issues:
        item: dict[str, object] = {"severity": issue.severity, "code": issue.code, "diagnostics": issue.diagnostics}
        if issue.expression:
            item["expression"] = [issue.expression]
        rendered.append(item)
    return orjson.dumps({"resourceType": "OperationOutcome", "issue": rendered})
