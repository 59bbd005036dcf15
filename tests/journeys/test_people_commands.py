"""``gateway user``: the operator makes the first head, and decides who waits, on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from eth_account import Account

from gateway.cli import main
from gateway.records import notices
from gateway.smart import logins, passwords, upstream
from gateway.smart.accounts import find_account
from tests.consent import consent
from tests.journeys.authenticator import Passkey, registered
from tests.journeys.hospital import Client, Hospital
from tests.journeys.test_consents import by_wallet, signed
from tests.journeys.visitors import PASSWORD, Browser

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(hospital: Hospital, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a command; its exit code and what it printed."""
    monkeypatch.setenv("GATEWAY_DATA_DIR", str(hospital.settings.data_dir))
    monkeypatch.setattr(passwords, "MEMORY_KIB", 1_024)

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(["user", *arguments])
        printed = capsys.readouterr()
        return code, printed.out, printed.err
    return run


def test_the_first_head_gets_a_login_and_codes(hospital: Hospital, command: Command, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text(PASSWORD + "\n")
    who = ("add", "--user", "Practitioner/first-head", "--role", "privacy-officer", "--name", "Dr First")
    code, printed, _ = command(*who, "--login", "first-head", "--password-file", str(file))
    assert code == 0
    assert "otpauth://totp/" in printed
    assert PASSWORD not in printed
    login = logins.find_by_name(hospital.database.reader, "first-head")
    assert login is not None
    assert (login.state, login.fhir_user, login.totp_on) == ("verified", "Practitioner/first-head", True)
    file.write_text("short")
    code, _, error = command(*who, "--login", "first-head", "--password-file", str(file))
    assert (code, "at least 12" in error) == (2, True)
    assert logins.find_by_name(hospital.database.reader, "first-head") == login
    file.write_text(PASSWORD)
    code, _, error = command("add", "--user", "Practitioner/other", "--role", "clinician", "--name", "Dr Other",
                             "--login", "first-head", "--password-file", str(file))
    assert (code, "another person's" in error) == (2, True)


def test_a_reset_ends_every_way_in_but_one_and_all_that_came_of_them(hospital: Hospital, command: Command,
                                                                     tmp_path: Path) -> None:
    """After a theft: passkeys, the identity provider's link, other logins, sessions, apps; audited with the patient."""
    id_ = hospital.new_patient()
    user, file = f"Patient/{id_}", tmp_path / "password"
    file.write_text(PASSWORD)
    add = ("add", "--user", user, "--role", "patient", "--name", "Anna", "--password-file", str(file), "--login")
    browsers = []
    for name in ("anna-one", "anna-two"):
        assert command(*add, name)[0] == 0
    for name in ("anna-one", "anna-two"):
        browser = Browser(hospital, origin=hospital.base.removesuffix("/fhir"))
        assert browser.sign_in(name).status_code == 303
        browsers.append(browser)
    two = logins.find_by_name(hospital.database.reader, "anna-two")
    assert two is not None
    hospital.database.transact(lambda tx: upstream.link(
        tx, issuer="https://idp.example", subject="anna", login=two.id, now_ms=hospital.smart.now_ms()))
    registered(hospital, user, Passkey())  # of a third login
    token = hospital.token(user=user)
    assert Client(hospital, token).get(user).status_code == 200
    file.write_text("another long password")
    assert command("reset", user, "--login", "anna-one", "--password-file", str(file)) == (
        0, "ended: 2 other logins, 1 passkeys, 1 links to the identity provider, every session, every app's access\n",
        "")
    assert Client(hospital, token).get(user).status_code == 401
    for browser, name in zip(browsers, ("anna-one", "anna-two"), strict=True):
        assert browser.get("/portal/account").status_code == 303
        assert browser.sign_in(name).status_code == 403
    assert browsers[1].sign_in("anna-two", password="another long password").status_code == 403
    assert browsers[0].sign_in("anna-one", password="another long password").status_code == 303
    reader = hospital.database.reader
    for table in ("passkey", "upstream_identity"):
        assert not reader.execute(f"SELECT 1 FROM {table} t JOIN login l ON l.id=t.login WHERE l.fhir_user=?",
                                  (user,)).fetchall()
    told = next(one for one in hospital.audited(id_) if one.interaction == "login-reset")
    assert (told.what, told.operator, told.outcome) == ((user,), True, "0")


def test_a_reset_is_of_an_open_account_and_its_own_login(hospital: Hospital, command: Command, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text(PASSWORD)
    end = ("--password-file", str(file), "--login")
    for user in ("Practitioner/reset-1", "Practitioner/reset-2"):
        assert command("add", "--user", user, "--role", "clinician", "--name", "Dr Reset", *end, user[-7:])[0] == 0
    code, printed, _ = command("reset", "Practitioner/reset-1", *end, "reset-1")
    assert (code, "otpauth://totp/" in printed) == (0, True)
    assert command("reset", "Practitioner/reset-1", *end, "reset-2")[0] == 2
    assert command("reset", "Practitioner/nobody", *end, "nobody")[0] == 2
    assert command("close", "Practitioner/reset-2")[0] == 0
    code, _, error = command("reset", "Practitioner/reset-2", *end, "reset-2")
    assert (code, "closed" in error) == (2, True)


def test_a_password_is_asked_for_twice_and_never_an_argument(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    said = iter([PASSWORD, PASSWORD + "x"])
    monkeypatch.setattr("getpass.getpass", lambda _: next(said))
    code, _, error = command("add", "--user", "Practitioner/asked", "--role", "administrator", "--name", "Root",
                             "--login", "asked")
    assert (code, "differ" in error) == (2, True)
    said = iter([PASSWORD, PASSWORD])
    assert command("add", "--user", "Practitioner/asked", "--role", "administrator", "--name", "Root", "--login",
                   "asked")[0] == 0
    with pytest.raises(SystemExit) as ended:
        command("add", "--user", "Practitioner/asked", "--role", "administrator", "--name", "Root", "--login", "asked",
                "--password", PASSWORD)
    assert ended.value.code == 64


def test_the_operator_lists_verifies_and_rejects(hospital: Hospital, command: Command) -> None:
    origin = hospital.base.removesuffix("/fhir")
    for name in ("cli-1", "cli-2"):
        Browser(hospital, origin=origin).sign_up(name)
    code, printed, _ = command("waiting", "--json")
    found = {one["name"]: one["id"] for one in json.loads(printed)}
    assert (code, {"cli-1", "cli-2"} <= found.keys()) == (0, True)
    assert found["cli-1"] in command("waiting")[1]
    patient = hospital.new_patient()
    assert command("verify", found["cli-1"], "--user", "Patient/unknown-here")[0] == 2
    assert command("verify", found["cli-1"], "--user", f"Patient/{patient}") == (0, "", "")
    assert command("reject", found["cli-2"], "--reason", "not known here") == (0, "", "")
    assert command("reject", found["cli-2"], "--reason", "again")[0] == 2
    states = {name: login.state for name in found if (login := logins.find_by_name(hospital.database.reader, name))}
    assert (states["cli-1"], states["cli-2"]) == ("verified", "rejected")
    deeds = {(entry.interaction, entry.operator) for entry in hospital.audited(patient)}
    assert ("proofing-verify", True) in deeds


def test_a_delegate_is_added_with_whom_they_represent_and_until_when(hospital: Hospital, command: Command) -> None:
    who = ("add", "--user", "RelatedPerson/mother", "--role", "delegate", "--name", "Mother", "--represents",
           "Patient/child")
    assert command(*who, "--until", "2030-12-31")[0] == 0
    account = find_account(hospital.database.reader, "RelatedPerson/mother")
    assert account is not None
    assert (account.represents, account.mandate_until_ms) == ("Patient/child", 1_924_992_000_000)
    assert command(*who, "--until", "soon")[0] == 2
    assert command(*who)[0] == 2


def test_a_registered_wallet_is_changed_by_its_own_command_alone(hospital: Hospital, command: Command) -> None:
    """A registered wallet ends the kept key's signing: nothing the operator does later gives that back."""
    patient, old, new = hospital.new_patient(), Account.create(), Account.create()
    user = f"Patient/{patient}"
    who = ("add", "--user", user, "--role", "patient", "--name", "Wendy Wallet")
    assert command(*who, "--wallet", old.address.lower())[0] == 0
    assert command(*who)[0] == 0, "a new standing"
    assert command(*who, "--wallet", old.address)[0] == 0
    account = find_account(hospital.database.reader, user)
    assert account is not None
    assert account.wallet == old.address, "as it was"
    code, _, error = command(*who, "--wallet", new.address)
    assert (code, f"{user} has the wallet {old.address} registered: change it with `gateway user wallet {user} "
            f"{new.address}`" in error) == (2, True)
    granted, held = (hospital.feed.post("Consent", consent(patient, f"Practitioner/{number}")).json()["id"]
                     for number in (1, 2))
    own = hospital.patient(patient)
    assert signed(own, granted, signature=by_wallet(old, own.get(f"Consent/{granted}/$typed-data").json())
                  ).status_code == 200
    unsent = by_wallet(old, own.get(f"Consent/{held}/$typed-data").json())

    code, printed, _ = command("wallet", user, new.address.lower())
    assert (code, printed) == (0, f"registered: {new.address}, in place of {old.address}\ngrants signed by "
                               f"{old.address} that go on: 1. Revoked here they let nobody in from that moment; "
                               "on the chain its own signature alone ends them\n")
    assert own.get(user).status_code == 401, "sessions and tokens end"
    own = hospital.patient(patient)
    typed = own.get(f"Consent/{held}/$typed-data").json()
    assert typed["message"]["patient"] == new.address.lower()
    for given in ({"signature": unsent}, {"signature": unsent, "wallet": old.address}, {"kind": "custodial"}):
        assert signed(own, held, **given).status_code == 422
    assert signed(own, held, signature=by_wallet(new, typed)).status_code == 200
    # The old one still ends what it granted.
    end = own.get(f"Consent/{granted}/$typed-data").json()
    assert end["message"]["patient"] == old.address.lower()
    assert own.post(f"Consent/{granted}/$revoke", {"resourceType": "Parameters", "parameter": [
        {"name": "signature", "valueString": by_wallet(old, end)}]}).status_code == 200
    row = next(one for one in hospital.audited(patient) if one.interaction == "wallet-changed")
    assert (row.operator, row.reason) == (True, f"from {old.address} to {new.address}")
    while notices.step(hospital.node):
        pass
    found = [entry["resource"] for entry in own.get(f"Communication?recipient={user}").json()["entry"]]
    [notice] = [one for one in found if one["topic"]["coding"][0]["code"] == "wallet"]
    assert "registered another wallet as yours, at the word of this hospital's operator" in notice["payload"][0][
        "contentString"]
    assert command("wallet", user, new.address) == (
        0, f"{new.address} is registered already: nothing was changed\n", "")


def test_a_wallet_is_of_one_open_patients_account(hospital: Hospital, command: Command) -> None:
    one, two = (f"Patient/{hospital.new_patient()}" for _ in range(2))
    key = Account.create()
    for user in (one, two):
        assert command("add", "--user", user, "--role", "patient", "--name", "Pat")[0] == 0
    assert command("wallet", one, key.address) == (0, f"registered: {key.address}\n", "")
    code, _, error = command("wallet", two, key.address)
    assert (code, "registered with another account" in error) == (2, True)
    assert command("wallet", two, key.address[:-1])[0] == 2
    assert command("wallet", "Patient/nobody-here", key.address)[0] == 2
    assert command("add", "--user", "Practitioner/walletless", "--role", "clinician", "--name", "Dr W")[0] == 0
    code, _, error = command("wallet", "Practitioner/walletless", Account.create().address)
    assert (code, "a wallet signs for a patient" in error) == (2, True)
    assert command("close", two)[0] == 0
    code, _, error = command("wallet", two, Account.create().address)
    assert (code, "the account is closed" in error) == (2, True)
