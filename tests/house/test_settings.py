"""Settings: one table, in the code and in ``gateway/README.md``; read once; nothing unknown is let pass."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from gateway.config import SETTINGS, Settings, load_settings
from gateway.errors import Misconfigured
from tests.running import REPOSITORY

README = REPOSITORY / "gateway" / "README.md"


def test_the_table_in_the_readme_is_the_table_in_the_code() -> None:
    rows = {}
    for line in README.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split(" | ")]
        name = cells[0].strip("`").removeprefix("GATEWAY_").lower()
        if len(cells) == 3 and name in {setting.name for setting in SETTINGS}:
            rows[name] = (cells[1].strip("`").strip(), cells[2])
    assert rows == {setting.name: (setting.default, setting.meaning) for setting in SETTINGS}


def test_every_setting_is_a_field_and_every_field_a_setting() -> None:
    assert [setting.name for setting in SETTINGS] == [field.name for field in fields(Settings)]
    assert all(setting.meaning for setting in SETTINGS)


def test_defaults_make_a_loopback_gateway() -> None:
    settings = load_settings({})
    assert settings.base_url == "http://127.0.0.1:8080/fhir"
    assert settings.data_dir == Path("data").resolve()
    assert settings.keys_dir == settings.data_dir / "keys"


def test_host_and_port_are_short_names_and_the_long_ones_win() -> None:
    settings = load_settings({"HOST": "0.0.0.0", "PORT": "9", "GATEWAY_PORT": "10"})  # noqa: S104  # a value to read
    assert (settings.host, settings.port, settings.base_url) == ("0.0.0.0", 10, "http://0.0.0.0:10/fhir")  # noqa: S104


def test_a_file_is_read_and_the_environment_wins(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text('port = 81\nhospital_name = "St. Elsewhere"\nupdate_creates = false\n')
    settings = load_settings({"GATEWAY_CONFIG": str(file), "GATEWAY_PORT": "82"})
    assert (settings.port, settings.hospital_name, settings.update_creates) == (82, "St. Elsewhere", False)


@pytest.mark.parametrize(("environment", "named"), [
    ({"GATEWAY_PROT": "1"}, "GATEWAY_PROT"), ({"GATEWAY_PORT": "x"}, "GATEWAY_PORT"),
    ({"GATEWAY_PORT": "-1"}, "GATEWAY_PORT"), ({"GATEWAY_WORKERS": "0"}, "GATEWAY_WORKERS"),
    ({"GATEWAY_HANDLING": "loose"}, "GATEWAY_HANDLING"), ({"GATEWAY_LOG_LEVEL": "all"}, "GATEWAY_LOG_LEVEL"),
    ({"GATEWAY_UPDATE_CREATES": "maybe"}, "GATEWAY_UPDATE_CREATES"),
    ({"GATEWAY_TOKEN_TTL_S": "301"}, "GATEWAY_TOKEN_TTL_S"),
    ({"GATEWAY_CHAIN_RPC": "http://127.0.0.1:1"}, "GATEWAY_CHAIN_ID"), ({"GATEWAY_CONFIG": "/nowhere"}, "/nowhere")])
def test_a_setting_that_cannot_be_is_refused_by_name(environment: dict[str, str], named: str) -> None:
    with pytest.raises(Misconfigured, match=re.escape(named)):
        load_settings(environment)


def test_an_unknown_name_in_a_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text("prot = 81\n")
    with pytest.raises(Misconfigured, match="prot"):
        load_settings({"GATEWAY_CONFIG": str(file)})


def test_the_environment_is_read_in_one_place() -> None:
    """The environment else says where Prometheus' workers meet and how libuv accepts: both are read by libraries."""
    pattern = re.compile(r"""(?:getenv\(|environ\.get\(|environ\[)\s*["']?(\w+)""")
    readers = {(str(file.relative_to(REPOSITORY)), name) for file in (REPOSITORY / "gateway").rglob("*.py")
               for name in pattern.findall(file.read_text())}
    assert {name for file, name in readers if file != "gateway/config.py"} <= {
        "PROMETHEUS_MULTIPROC_DIR", "UV_TCP_SINGLE_ACCEPT"}


def test_no_setting_is_a_secret_and_none_turns_a_check_off() -> None:
    for setting in SETTINGS:
        # A file is named, never what is in it.
        name = setting.name.removesuffix("_secret_file")
        assert not re.search(r"secret|password|token$|private_key$|insecure|skip|verify|disable", name)
