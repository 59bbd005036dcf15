"""Liveness, readiness and metrics.

Owns ``/health/live``, ``/health/ready`` and ``/metrics``; refuses to say anything about records.
"""

from __future__ import annotations

import os

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest, multiprocess
from starlette.responses import JSONResponse, Response

from gateway.records.node import Node
from gateway.store import followed
from gateway.store.sql import now_ms


def router(node: Node) -> APIRouter:
    """The routes, with full paths."""
    routes = APIRouter()

    @routes.get("/health/live")
    async def live() -> Response:
        return JSONResponse({"status": "live"})

    @routes.get("/health/ready")
    async def ready() -> Response:
        """Ready when the database answers and its key fits; a stalled chain is said, and stops grants alone."""
        fresh = node.gate.chain_fresh(node.database.reader)
        return JSONResponse({"status": "ready", "chain": "following" if fresh else "stalled", "time": now_ms(),
                             "chain_seen": followed.seen_ms(node.database.reader)})

    @routes.get("/metrics")
    async def metrics() -> Response:
        registry = CollectorRegistry()
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]  # untyped library
            return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    return routes
