"""The operations on records, patients and appointments: their rows of the table of routes, together."""

from __future__ import annotations

from gateway.web import (
    convert,
    documents,
    everything,
    graphql,
    meta,
    observation_operations,
    patient_operations,
    scheduling,
)

ROUTES = (*everything.ROUTES, *observation_operations.ROUTES, *meta.ROUTES, *patient_operations.ROUTES,
          *scheduling.ROUTES, *documents.ROUTES, *convert.ROUTES, *graphql.ROUTES)
