"""``gateway verify``: a receipt checked by anybody, each step printed, the verdict as exit code.

Owns reading the two files and saying what was found; refuses to call a file it cannot read anything but false, so that
no script takes it for consistent. Exit codes: 0 verified; 1 false, or not a readable receipt; 2 consistent, but its
block is not trusted yet (no node was asked, none answered, or it is not deep enough). Needs no gateway, settings or
data folder.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from gateway.ledger.receipt import RUN_MAX, SIZE_MAX
from gateway.ledger.verify import ReceiptChain, Verdict, verify

TIMEOUT_S: Final = 10.0
RESOURCE_MAX: Final = 256 << 20
_LAST: Final = {
    0: "VERIFIED: this {subject} was anchored, and its block is final",
    1: "FALSE: {failed}",
    2: "CONSISTENT, NOT TRUSTED YET: {unknown}",
}


def run(receipt: Path, *, resource: Path | None, rpc: str | None, confirmations: int, contract: str | None = None,
        custodian: str | None = None) -> int:
    """Check the document ``receipt`` and print each step; the exit code.

    ``resource``: the exact bytes of a vread; an audit row's receipt takes none. ``rpc``: a node the checker trusts.
    ``contract`` and ``custodian``: addresses the checker trusts; without them the receipt's own are believed, and the
    output says so.
    """
    try:
        document = _read(receipt, SIZE_MAX + RUN_MAX + 1)
        content = None if resource is None else _read(resource, RESOURCE_MAX)
    except OSError as error:
        return _unreadable(error)
    if rpc is None:
        verdict = _check(document, content, None, confirmations, contract, custodian)
    else:
        from gateway.ledger.verify_rpc import RpcReceiptChain  # its HTTP client is only paid for where it is used

        with RpcReceiptChain(rpc, timeout_s=TIMEOUT_S) as chain:
            verdict = _check(document, content, chain, confirmations, contract, custodian)
    _show(verdict)
    if verdict.code == 0:
        _show_trusted(document, contract, custodian)
    return verdict.code


def _check(document: bytes, content: bytes | None, chain: ReceiptChain | None, confirmations: int,
           contract: str | None, custodian: str | None) -> Verdict:
    return verify(document, resource=content, chain=chain, confirmations=confirmations, contract=contract,
                  custodian=custodian)


def _read(path: Path, most: int) -> bytes:
    with path.open("rb") as file:
        return file.read(most)


def _unreadable(error: OSError) -> int:
    print(f"FALSE: {error.filename} cannot be read: {error.strerror}")
    return 1


def _show(verdict: Verdict) -> None:
    for step in verdict.steps:
        print(f"{step.number}  {step.name:<9} {step.status:<8} {_plain(step.detail)}")
    failed = verdict.first_failed
    # Step 2 may stay unknown in a version's verified receipt: what kept the code at 2 is the last unknown's reason.
    unknown = [step.detail for step in verdict.steps if step.status == "unknown"]
    print(_LAST[verdict.code].format(
        subject=verdict.subject,
        failed=_plain(f"step {failed.number} ({failed.name}): {failed.detail}") if failed else "",
        unknown=_plain(unknown[-1]) if unknown else ""))


def _plain(text: str) -> str:
    """A detail may quote the receipt: nothing in it may steer the terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _show_trusted(document: bytes, contract: str | None, custodian: str | None) -> None:
    anchor = json.loads(document)["anchor"]
    believed = [f"{name} {anchor[name]}" for name, given in (("contract", contract), ("custodian", custodian))
                if given is None]
    if believed:
        print(f"believed from the receipt: {', '.join(believed)}; compare with what the hospital published, or give "
              f"{' and '.join('--' + name.split()[0] for name in believed)}")
