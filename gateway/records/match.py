"""``Patient/$match``: the patients the caller may see who may be the one described, with their likelihood.

Owns the bound on candidates and the result's form; refuses to score, count or show anyone who may not be seen.
https://hl7.org/fhir/R4/patient-operation-match.html
"""

from __future__ import annotations

import asyncio
from itertools import islice
from typing import Any

import apsw
import orjson

from gateway.errors import BadSearch
from gateway.fhir.matching import GRADE_URL, Score, compare, keys, person
from gateway.fhir.resource import Resource
from gateway.records.gate import Caller
from gateway.records.gathering import Opened, Permitted, audit_rows, disclosed, open_all, searchset, walk
from gateway.records.node import Node
from gateway.store import journal

_KEYS_MAX = 40
_CANDIDATES_MAX = 200
"""Most candidates one search may bring."""


async def match(node: Node, caller: Caller, described: Resource, *, count: int, only_certain: bool) -> bytes:
    """A searchset, likeliest first. ``only_certain``: the one certain match, where there is but one.

    Raises BadSearch (nothing to match by), Forbidden.
    """
    searches = keys(described)[:_KEYS_MAX]
    if not searches:
        raise BadSearch("resource has no identifier, name, birth date or telecom to match by", code="required",
                        expression="http.resource")

    async def attempt(caller: Caller) -> bytes:
        scored, rows = await asyncio.to_thread(work, caller)
        await disclosed(node, caller, rows)
        return searchset(node, [], [(one, _search(score)) for one, score in scored], total=len(scored))

    def work(caller: Caller) -> tuple[list[tuple[Opened, Score]], Any]:
        wanted = person(described)
        with node.database.snapshot() as connection:
            candidates = open_all(node, connection, _candidates(node, caller, connection, searches))
            scored = [(one, compare(wanted, person(one.resource))) for one in candidates]
            likely = [pair for pair in scored if pair[1].grade != "certainly-not"]
            likely.sort(key=lambda pair: (-pair[1].probability, pair[0].found.row.seq))
            if only_certain:
                certain = [pair for pair in likely if pair[1].grade == "certain"]
                likely = certain if len(certain) == 1 else []
            taken = likely[:count]
            return taken, audit_rows(node, caller, connection, "match", [one.found for one, _ in taken], query="",
                                     about="Patient")

    return await node.decided(caller, attempt)


def _candidates(node: Node, caller: Caller, connection: apsw.Connection,
                searches: list[list[tuple[str, str]]]) -> list[Permitted]:
    snapshot = journal.head_seq(connection)
    found: dict[int, Permitted] = {}
    for pairs in searches:
        query = node.query("Patient", pairs, strict=True)
        for one in islice(walk(node, caller, connection, query, snapshot=snapshot), _CANDIDATES_MAX):
            found.setdefault(one.row.seq, one)
    return list(found.values())


def _search(score: Score) -> bytes:
    return orjson.dumps({"extension": [{"url": GRADE_URL, "valueCode": score.grade}], "mode": "match",
                         "score": round(score.probability, 4)})
