"""``gateway client``: the operator lists, reads and decides about clients on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from gateway.cli import main
from tests.journeys.hospital import Hospital
from tests.journeys.test_registration import holder, path_of, registered, send

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(hospital: Hospital, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a command; its exit code and what it printed."""
    monkeypatch.setenv("GATEWAY_DATA_DIR", str(hospital.settings.data_dir))

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(["client", *arguments])
        printed = capsys.readouterr()
        return code, printed.out, printed.err
    return run


def lines(printed: str) -> dict[str, list[str]]:
    return {words[0]: words[1:] for line in printed.splitlines() if (words := line.split(None, 3))}


def test_the_operator_decides_about_who_waits(hospital: Hospital, command: Command) -> None:
    first, second = registered(hospital, client_name="First app"), registered(hospital)
    code, printed, _ = command("list", "--state", "pending")
    assert code == 0
    assert lines(printed)[first["client_id"]] == ["pending", "app", "First app"]
    code, printed, _ = command("show", first["client_id"])
    shown: dict[str, Any] = json.loads(printed)
    assert (code, shown["state"], shown["redirect_uris"]) == (0, "pending", first["redirect_uris"])
    assert first["client_secret"] not in printed
    assert command("approve", first["client_id"], "--revision", "0" * 32)[0] == 2
    assert command("approve", first["client_id"], "--revision", shown["revision"], "--scope",
                   "patient/Observation.rs") == (0, "", "")
    assert command("reject", second["client_id"], "--reason", "unknown") == (0, "rejected\n", "")
    assert [send(holder(hospital, told), "GET", path_of(told)).json()["status"] for told in (first, second)] == [
        "approved", "rejected"]
    deeds = {(entry.interaction, entry.operator) for entry in hospital.audited()
             if entry.what in ((f"Device/{first['client_id']}",), (f"Device/{second['client_id']}",))}
    assert deeds == {("client-registered", False), ("client-approved", True), ("client-rejected", True)}


def test_a_new_secret_is_printed_alone_and_ends_the_old_one(hospital: Hospital, command: Command) -> None:
    told = registered(hospital)
    code, printed, _ = command("rotate-secret", told["client_id"])
    assert (code, len(printed.split())) == (0, 1)
    stored = hospital.database.reader.execute("SELECT secret FROM client WHERE id=?", (told["client_id"],)).get
    assert stored == hospital.smart.tokens.hash(printed.strip())
    public = registered(hospital, token_endpoint_auth_method="none")
    code, printed, error = command("rotate-secret", public["client_id"])
    assert (code, printed) == (2, "")
    assert "no secret" in error


def test_a_closed_client_stays_closed(hospital: Hospital, command: Command) -> None:
    told = registered(hospital)
    revision = json.loads(command("show", told["client_id"])[1])["revision"]
    assert command("approve", told["client_id"], "--revision", revision)[0] == 0
    assert command("close", told["client_id"])[0] == 0
    assert command("approve", told["client_id"], "--revision", revision)[0] == 2
    assert lines(command("list", "--state", "closed")[1])[told["client_id"]][0] == "closed"
    assert send(holder(hospital, told), "GET", path_of(told)).status_code == 401


def test_what_cannot_be_done_is_said_in_a_line(hospital: Hospital, command: Command) -> None:
    for arguments in (("show", "nobody"), ("approve", "nobody", "--revision", "x"), ("close", "nobody"),
                      ("rotate-secret", "nobody"), ("reject", "nobody", "--reason", "x"),
                      ("reject", registered(hospital)["client_id"], "--reason", " ")):
        code, printed, error = command(*arguments)
        assert (code, printed) == (2, "")
        assert error.startswith("gateway: ")
