"""Prometheus counters of the doors. https://prometheus.io/docs/practices/naming/"""

from __future__ import annotations

from functools import lru_cache

from prometheus_client import Counter, Histogram

REQUESTS = Counter("gateway_requests_total", "Requests answered", ("interaction", "status"))
SECONDS = Histogram("gateway_request_seconds", "Time to answer", ("interaction",),
                    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 5))


@lru_cache(maxsize=1024)
def of(interaction: str, status: int) -> tuple[Counter, Histogram]:
    """The two of one kind of answer: looked up by their labels they cost as much again."""
    return REQUESTS.labels(interaction, str(status)), SECONDS.labels(interaction)
