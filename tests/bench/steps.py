"""What each step of a write costs by itself, in one quiet process."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable

from gateway.access.grant import Grant
from gateway.access.scopes import parse as parse_scopes
from gateway.app import build_node, open_database, open_ring
from gateway.config import load_settings
from gateway.fhir.resource import parse
from gateway.records import drafting, preparing
from gateway.records.gate import Caller
from gateway.store.sql import now_ms

BODY = json.dumps({
    "resourceType": "Observation", "status": "final",
    "category": [{"coding": [{"system": "http://terminology.hl7.org/CodeSystem/observation-category",
                              "code": "vital-signs"}]}],
    "code": {"coding": [{"system": "http://loinc.org", "code": "8867-4", "display": "Heart rate"}]},
    "subject": {"reference": "Patient/steps"}, "effectiveDateTime": "2024-03-01T08:30:00Z",
    "valueQuantity": {"value": 62, "unit": "/min", "system": "http://unitsofmeasure.org", "code": "/min"}}).encode()


def _median_us(work: Callable[[], object], times: int = 400) -> float:
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        taken.append((time.perf_counter() - started) * 1e6)
    return statistics.median(taken)


def step_costs() -> dict[str, float]:
    """Median microseconds of parse, validate, extract, decide, seal, commit (alone and in a group of 8)."""
    with tempfile.TemporaryDirectory(prefix="gateway-steps-") as folder:
        settings = load_settings({"GATEWAY_DATA_DIR": folder})
        settings.deployment_path.parent.mkdir(parents=True)
        nowhere = "0x" + "00" * 20
        settings.deployment_path.write_text(json.dumps({
            "chain_id": 1, "custodian": nowhere, "record_anchor": nowhere, "consent_registry": nowhere,
            "hospital_registry": nowhere}))
        ring = open_ring(settings)
        database = open_database(settings, ring)
        node = build_node(settings, ring, database)
        grant = Grant(token_id="t", client_id="feed", client_kind="feed", user=None, role="system",
                      scopes=parse_scopes("system/*.cruds"), patient=None, purpose="TREAT", grantees=(),
                      expires_ms=now_ms() + 3_600_000)
        caller = Caller(grant=grant, seq=1, again=lambda: caller)
        subject = drafting.draft(node, caller, {"resourceType": "Patient"}, "steps")
        database.transact(lambda c: preparing.commit_prepared(
            c, preparing.prepare_create(node, caller, database.reader, subject, "steps")))
        resource = parse(BODY)
        made = drafting.draft(node, caller, resource, "x")
        reader = database.reader
        numbers = iter(range(10**9))

        def prepared() -> preparing.Prepared:
            return preparing.prepare_create(node, caller, reader, made, f"o{next(numbers)}")

        costs = {
            "parse": _median_us(lambda: parse(BODY)),
            "validate": _median_us(lambda: drafting.validated(node, resource, "Observation")),
            "extract": _median_us(lambda: drafting.draft(node, caller, resource, "x")),
            "decide": _median_us(lambda: node.gate.decide(reader, caller, "c", proposed=made.access)),
            "index": _median_us(lambda: node.index.rows(made.search, categories=())),
            "seal+audit": _median_us(prepared),
        }
        alone = [prepared() for _ in range(200)]
        group = [[prepared() for _ in range(8)] for _ in range(50)]
        turns, groups = iter(alone), iter(group)
        costs["commit"] = _median_us(
            lambda: database.transact(lambda c: preparing.commit_prepared(c, next(turns))), len(alone))

        def of_eight() -> None:
            batch = next(groups)
            database.transact(lambda c: [preparing.commit_prepared(c, one) for one in batch])

        costs["commit / 8"] = _median_us(of_eight, len(group)) / 8
        database.close()
        ring.close()
        return costs
