"""``make audit``: the locked requirements against the advisory database, by pip-audit.

Owns what its report means: 0 nothing known that has a fix, 1 a known vulnerability with a fix, 75 not run (the database
could not be asked, for all or for some of the packages). pip-audit itself says 0 to that. Refuses to call it passed:
with ``--or-say-so`` not run ends with 0 as well, and with a line that says so.
https://github.com/pypa/pip-audit
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, Final

from tests.running import REPOSITORY

PASSED, VULNERABLE, NOT_RUN = 0, 1, 75
_FILES: Final = ("requirements.txt", "requirements-dev.txt", "tests/real/clients/requirements.txt")
_LIMIT_S: Final = 300
_TOLD_MAX: Final = 5


def report(*files: str) -> Mapping[str, Any] | str:
    """pip-audit's own report, or why there is none."""
    wanted = [word for file in files if (REPOSITORY / file).exists() for word in ("-r", file)]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pip_audit", "--no-deps", "--disable-pip", "--require-hashes", *wanted, "-f", "json",
             "--progress-spinner", "off", "--timeout", "15"], cwd=REPOSITORY, capture_output=True, text=True,
            timeout=_LIMIT_S)
        found: Mapping[str, Any] = json.loads(done.stdout)
        return found
    except subprocess.TimeoutExpired:
        return f"no answer within {_LIMIT_S} s"
    except ValueError:
        return (done.stderr.strip().splitlines() or ["pip-audit said nothing"])[-1][:200]


def verdict(found: Mapping[str, Any] | str) -> tuple[int, list[str]]:
    """The exit code, and what to say."""
    if isinstance(found, str):
        return NOT_RUN, [f"NOT RUN, the advisory database was not asked: {found}"]
    packages = found.get("dependencies", [])
    skipped = [one["name"] for one in packages if "skip_reason" in one]
    lines, code = [], PASSED
    for one in packages:
        for known in one.get("vulns", []):
            fixes = known.get("fix_versions") or []
            code = VULNERABLE if fixes else code
            lines.append(f"{one['name']} {one['version']}: {known['id']}, "
                         + (f"fixed in {', '.join(fixes)}: pip-compile -P {one['name']}" if fixes else "no fix yet"))
    if code == VULNERABLE:
        return code, lines
    if skipped or not packages:
        return NOT_RUN, [*lines, f"NOT RUN for {len(skipped)} of {len(packages)} packages, which the advisory database "
                         f"did not answer for: {', '.join(skipped[:_TOLD_MAX])}{'...' if skipped[_TOLD_MAX:] else ''}"]
    return PASSED, [*lines, f"passed: {len(packages)} packages, nothing known that has a fix"]


def main(arguments: list[str]) -> int:
    """Audit, say, and answer."""
    code, lines = verdict(report(*_FILES))
    for line in lines:
        print(f"dependency audit: {line}", flush=True)
    return PASSED if code == NOT_RUN and "--or-say-so" in arguments else code


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
