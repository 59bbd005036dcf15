"""``gateway status``: where the gateway is, and how far anchoring has come.

Owns one reading of the data folder, of the running gateway's health and of the chain's head; refuses to make or change
anything, so that it says the same of a stopped gateway and starts none.
"""

from __future__ import annotations

from typing import Any

import apsw
import httpx

from gateway.config import Settings
from gateway.crypto.keys import KeyRing
from gateway.crypto.root import root_file
from gateway.errors import ChainUnavailable, Misconfigured
from gateway.ledger.deployment import deployment_if_any
from gateway.probes import Probe, rpc_of, serving
from gateway.store.sql import Database


def status(settings: Settings, *, transport: httpx.BaseTransport | None = None) -> dict[str, Any]:  # Any: JSON
    """FHIR base, data folder, whether it runs, counts of entries, batches, audit rows and signed acts, the chain.

    ``chain.head`` is None when its node does not answer. Raises Misconfigured before the first start.
    """
    found = _stored(settings)
    probe = Probe(transport=transport)
    try:
        # The answer alone could be another gateway's; the lock alone, one that is still starting.
        running = probe.answers(settings) and serving(settings)
        return {"fhir_base": settings.base_url, "data_dir": str(settings.data_dir), "running": running, **found,
                "chain": _chain(settings, probe)}
    finally:
        probe.close()


def _stored(settings: Settings) -> dict[str, Any]:
    for path in (settings.database_path, settings.root_key_path, settings.key_store_path):
        if not path.exists():
            raise Misconfigured(f"no gateway was started on {settings.data_dir} yet ({path.name} is not there): "
                                "start one with `gateway serve`")
    ring = KeyRing(settings.key_store_path, root_file(settings.root_key_path))
    try:
        database = Database(settings.database_path, ring.secret("page"))
        try:
            with database.snapshot() as connection:
                return _counts(connection)
        finally:
            database.close()
    except apsw.SQLError as error:
        raise Misconfigured(f"the first start on {settings.data_dir} was not finished: start it again") from error
    finally:
        ring.close()


def _counts(connection: apsw.Connection) -> dict[str, Any]:
    def number(sql: str) -> int:
        return int(str(connection.execute(sql).get))

    # An Entry is a Version or a run of audit rows; it is anchored once its batch's block is final.
    waiting = number("SELECT count(*) FROM version WHERE batch IS NULL")
    batches = {str(state): (int(str(count)), int(str(entries))) for state, count, entries in connection.execute(
        "SELECT state, count(*), coalesce(sum(entries),0) FROM batch GROUP BY state")}
    return {
        "entries": {
            "pending": waiting + sum(entries for state, (_, entries) in batches.items() if state != "final"),
            "anchored": batches.get("final", (0, 0))[1],
            "batches": {state: count for state, (count, _) in sorted(batches.items())}},
        "audit": {
            "rows": number("SELECT coalesce(max(seq),0) FROM audit"),
            "waiting": number("SELECT count(*) FROM audit WHERE seq > (SELECT coalesce(max(last),0) FROM audit_run)")},
        # What patients signed: on its way to the chain, and refused there, by kind and the contract's error.
        "acts": {
            "waiting": number("SELECT count(*) FROM intent WHERE state NOT IN ('final','failed')"),
            "refused": {f"{kind}: {error}": int(str(count)) for kind, error, count in connection.execute(
                "SELECT kind, error, count(*) FROM intent WHERE state='failed' GROUP BY kind, error ORDER BY 1, 2")}},
    }


def _chain(settings: Settings, probe: Probe) -> dict[str, Any]:
    rpc, deployment = rpc_of(settings), deployment_if_any(settings)
    head = None
    if rpc is not None:
        try:
            head = probe.number(rpc, "eth_blockNumber")
        except ChainUnavailable:
            head = None
    return {"rpc": rpc, "chain_id": deployment.chain_id if deployment else settings.chain_id or None, "head": head,
            "contracts": deployment.contracts if deployment else None}
