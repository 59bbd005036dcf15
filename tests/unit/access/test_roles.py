"""The shipped tables of mappings/access, and what is refused of others."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.access.roles import load, policy
from gateway.errors import Misconfigured
from gateway.fhir.definitions import Definitions, mappings_folder

NAMES = {"patient", "delegate", "clinician", "records-office", "privacy-officer", "administrator", "system"}


def test_every_role_is_there_and_only_clinicians_break_the_glass() -> None:
    roles = policy().roles
    assert set(roles) == NAMES
    assert {name for name, role in roles.items() if role.break_glass} == {"clinician"}
    assert {name for name, role in roles.items() if role.write_grant} == {"clinician"}
    assert {name for name, role in roles.items() if role.grant} == {"patient", "delegate", "clinician", "system"}


def test_only_the_system_role_has_system_scopes() -> None:
    for name, role in policy().roles.items():
        assert any(scope.context == "system" for scope in role.ceiling.resources) == (name == "system")


def test_types_are_real_and_the_public_ones_are_nobodys_record() -> None:
    """A type with a row in home_patients.toml may be about a patient; Schedule alone usually is not."""
    definitions = Definitions.load()
    table = policy()
    named = table.public | table.append_only | table.patient_only | table.patient_owned | {
        type_ for role in table.roles.values() for duty in role.duties for type_ in duty.types} | {
        scope.type for role in table.roles.values() for scope in role.ceiling.resources} - {"*"}
    assert named - {"*"} <= definitions.resource_types
    assert table.public & definitions.home_paths.keys() == {"Schedule"}


@pytest.mark.parametrize(("file", "find", "put"), [
    ("roles.toml", 'purpose = "HOPERAT"', 'purpose = "FUN"'),
    ("roles.toml", 'confidentiality = "R"', 'confidentiality = "X"'),
    ("roles.toml", "patient/*.crus user/*.crus", "patient/*.suck"),
    ("labels.toml", "SUD = 2", "SUD = 1"),
    ("labels.toml", "ETH = 1", "ETH = 0"),
    ("purposes.toml", 'includes = ["COC"]', 'includes = ["FUN"]'),
    ("purposes.toml", "[purpose.TREAT]", "[purpose.TREAT"),
])
def test_a_table_that_names_what_is_not_there_is_refused(tmp_path: Path, file: str, find: str, put: str) -> None:
    for name in ("roles.toml", "labels.toml", "purposes.toml"):
        text = (mappings_folder() / "access" / name).read_text("utf-8")
        assert name != file or find in text
        (tmp_path / name).write_text(text.replace(find, put) if name == file else text, "utf-8")
    with pytest.raises(Misconfigured):
        load(tmp_path)


def test_a_folder_without_tables_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured):
        load(tmp_path)
