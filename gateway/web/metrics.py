"""Prometheus counters of the doors. https://prometheus.io/docs/practices/naming/"""

from __future__ import annotations

from prometheus_client import Counter, Histogram

REQUESTS = Counter("gateway_requests_total", "Requests answered", ("interaction", "status"))
SECONDS = Histogram("gateway_request_seconds", "Time to answer", ("interaction",),
                    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 5))
