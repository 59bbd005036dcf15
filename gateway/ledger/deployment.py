"""``deployment.json``: where the contracts are and whom this gateway acts for.

Owns the file, which the ledger process writes once the chain is ready and every other process reads; refuses one that
lacks something.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from gateway.config import Settings
from gateway.crypto.root import write_over
from gateway.errors import Misconfigured


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """Where the contracts are and whom this gateway acts for: ``deployment.json``, written by the ledger process."""

    chain_id: int
    custodian: str
    record_anchor: str
    consent_registry: str
    hospital_registry: str


def read_deployment(settings: Settings) -> Deployment:
    """Read ``deployment.json``. Raises Misconfigured when it is not there or cannot be read."""
    try:
        table = json.loads(settings.deployment_path.read_text())
        return Deployment(**{name: table[name] for name in (
            "chain_id", "custodian", "record_anchor", "consent_registry", "hospital_registry")})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Misconfigured(f"{settings.deployment_path} cannot be read ({type(error).__name__}): start the gateway "
                            "once with `gateway serve`") from error


def write_deployment(settings: Settings, deployed: Deployment) -> None:
    """Put ``deployed`` in the file's place, durably."""
    # Where the contracts file is elsewhere, nothing made the folder before.
    settings.deployment_path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_over(settings.deployment_path, json.dumps(asdict(deployed), indent=1).encode())
