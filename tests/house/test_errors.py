"""One tree of errors, one place that renders it. Invariant 12: what is not ours shows an id and nothing else."""

from __future__ import annotations

import inspect
import logging
import re
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway import errors
from gateway.errors import GatewayError, InputRefused, Issue
from gateway.logs import JsonLines
from gateway.web.errors import fhir_response, rendered
from tests.running import REPOSITORY

TREE = sorted((cls for cls in vars(errors).values() if inspect.isclass(cls) and issubclass(cls, GatewayError)),
              key=lambda cls: cls.__name__)
INSIDE = {errors.ChainReverted, errors.TransactionRefused, errors.Misconfigured, GatewayError}
"""Never a client's business: raised in commands and loops."""
SECRET = "Oberbrunner 1970-02-03"


def made(cls: type[GatewayError]) -> GatewayError:
    values: dict[str, Any] = {"message": "said", "issues": "said", "version_id": 3, "error": "invalid_request",
                              "description": "said", "name": "Error", "reason": "other"}
    if "__init__" not in {name for base in cls.__mro__[:-3] for name in vars(base)}:
        return cls("said")
    parameters = inspect.signature(cls).parameters.values()
    return cls(**{one.name: values[one.name] for one in parameters
                  if one.default is one.empty and one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)})


@pytest.mark.parametrize("cls", [cls for cls in TREE if cls not in INSIDE], ids=lambda cls: cls.__name__)
def test_every_error_a_door_can_meet_has_a_status_of_its_kind(cls: type[GatewayError]) -> None:
    status, issues, headers = rendered(made(cls))
    assert issues
    if issubclass(cls, errors.KeyDestroyed):
        assert status == 410  # erased on purpose: what is gone is no fault
    elif issubclass(cls, errors.IntegrityBroken):
        assert status == 500
    elif issubclass(cls, errors.Unavailable):
        assert (status, headers["Retry-After"]) == (503, "2")
    else:
        assert 400 <= status < 500
    if issubclass(cls, errors.Unauthenticated):
        assert headers["WWW-Authenticate"].startswith("Bearer")


def test_the_tree_drawn_in_the_module_is_the_tree() -> None:
    drawn = set(re.findall(r"[├└]── (\w+)", str(errors.__doc__)))
    assert drawn == {cls.__name__ for cls in TREE} - {"GatewayError"}


def test_every_error_raised_on_purpose_is_of_the_tree() -> None:
    """Other classes are control flow (an underscore, or a comment that says so), a node's own JSON-RPC errors, or
    those of the embedded node, a program of its own."""
    strays = []
    for file in sorted((REPOSITORY / "gateway").rglob("*.py")):
        for match in re.finditer(r"^class (\w+)\(Exception\):(.*)$", file.read_text(), re.MULTILINE):
            internal = match[1].startswith("_") or "control flow" in match[2] or match[1] == "RpcFault"
            if file.name != "errors.py" and not internal and file.parent.name != "devchain":
                strays.append(f"{file.name}: {match[1]}")
    assert strays == []


def test_status_codes_are_known_in_web_alone() -> None:
    pattern = re.compile(r"HTTPException|status_code\s*=\s*[45]\d\d")
    strays = [str(file.relative_to(REPOSITORY)) for file in sorted((REPOSITORY / "gateway").rglob("*.py"))
              if "web" not in Path(file).parts and pattern.search(file.read_text())]
    assert strays == []


def test_an_unknown_error_shows_an_id_which_the_log_has_and_nothing_of_itself(caplog: pytest.LogCaptureFixture) -> None:
    try:
        raise KeyError(SECRET)
    except KeyError as error:
        response = fhir_response(error)
    assert response.status_code == 500
    outcome = orjson.loads(response.body)
    assert SECRET not in str(outcome)
    assert "KeyError" not in str(outcome)
    [record] = caplog.records
    assert str(vars(record)["error_id"]) in outcome["issue"][0]["diagnostics"]


def test_a_log_line_has_the_places_of_an_error_not_its_words() -> None:
    try:
        raise ValueError(SECRET)
    except ValueError as error:
        record = logging.getLogger("gateway").makeRecord(
            "gateway", logging.ERROR, __file__, 1, "unexpected error", (), (ValueError, error, error.__traceback__))
    line = orjson.loads(JsonLines().format(record))
    assert line["exception"] == "ValueError"
    assert line["places"][0].startswith("test_errors.py:")
    assert SECRET not in str(line)
    assert not any("traceback" in str(value).lower() for value in line.values())


def test_an_issue_keeps_its_place() -> None:
    refused = errors.Invalid([Issue("error", "required", "needed", "Patient.x"), Issue("warning", "value", "odd")])
    outcome = orjson.loads(fhir_response(refused).body)
    assert outcome["issue"][0] == {"severity": "error", "code": "required", "diagnostics": "needed",
                                   "expression": ["Patient.x"]}
    assert "expression" not in outcome["issue"][1]
    placed = errors.PreconditionFailed("no")
    placed.expression = "Bundle.entry[1]"
    assert orjson.loads(fhir_response(placed).body)["issue"][0]["expression"] == ["Bundle.entry[1]"]


def test_input_that_is_refused_always_says_why() -> None:
    for cls in TREE:
        if issubclass(cls, InputRefused):
            error = cls("because", code="value", expression="Patient.id")
            assert error.issues == (Issue("error", "value", "because", "Patient.id"),)
            assert str(error) == "because"
