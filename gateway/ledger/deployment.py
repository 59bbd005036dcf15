"""``deployment.json``: where the contracts are and whom this gateway acts for.

Owns the file, which the ledger process writes once the chain is ready and every other process reads; refuses one that
lacks something, and to act for another member than everything here is sealed for.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Final

from gateway.config import Settings
from gateway.crypto.root import write_over
from gateway.errors import Misconfigured

_ADDRESSES: Final = ("custodian", "record_anchor", "consent_registry", "hospital_registry")


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """Where the contracts are and whom this gateway acts for: ``deployment.json``, written by the ledger process."""

    chain_id: int
    custodian: str
    record_anchor: str
    consent_registry: str
    hospital_registry: str

    @property
    def contracts(self) -> dict[str, str]:
        """Addresses by the contracts' own names."""
        return {"RecordAnchor": self.record_anchor, "ConsentRegistry": self.consent_registry,
                "HospitalRegistry": self.hospital_registry}


def read_deployment(settings: Settings) -> Deployment:
    """Read ``deployment.json``. Raises Misconfigured when it is not there or cannot be read."""
    found = deployment_if_any(settings)
    if found is None:
        raise Misconfigured(f"{settings.deployment_path} is not there: start the gateway once with `gateway serve`")
    return found


def deployment_if_any(settings: Settings) -> Deployment | None:
    """The same, None before the first start was through. Raises Misconfigured when it cannot be read."""
    try:
        table = json.loads(settings.deployment_path.read_text())
        chain_id, addresses = table["chain_id"], {name: table[name] for name in _ADDRESSES}
        if type(chain_id) is not int or not all(isinstance(address, str) for address in addresses.values()):
            raise TypeError("a member is of another type")
        return Deployment(chain_id=chain_id, **addresses)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Misconfigured(f"{settings.deployment_path} cannot be read ({type(error).__name__}): start the gateway "
                            "once with `gateway serve`") from error


def write_deployment(settings: Settings, deployed: Deployment) -> None:
    """Put ``deployed`` in the file's place, durably. Raises Misconfigured where that names another custodian: what is
    sealed here opens under its address alone."""
    try:
        before = deployment_if_any(settings)
    except Misconfigured:
        before = None  # a damaged file says nothing, and is written anew
    if before is not None and before.custodian != deployed.custodian:
        raise Misconfigured(
            f"everything in {settings.data_dir} is sealed for the custodian {before.custodian}, and the operator acts "
            f"for {deployed.custodian} now: give the operator's key of before, or have {before.custodian} add this "
            "one with addOperator")
    # Where the contracts file is elsewhere, nothing made the folder before.
    settings.deployment_path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_over(settings.deployment_path, json.dumps(asdict(deployed), indent=1).encode())
