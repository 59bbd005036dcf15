"""``_containedType=contained``: of containers that were found and may be seen, what they contain is told alone.

Owns which of a container's resources are the matches of a page, and their places; refuses to tell one whose container
was not decided on: it stands and falls with it. https://hl7.org/fhir/R4/search.html#contained
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import apsw

from gateway.fhir.query import Query
from gateway.fhir.resource import serialise
from gateway.records.gate import Caller
from gateway.records.gathering import Opened, Permitted
from gateway.records.node import Node
from gateway.store.index import Sight

Places = Mapping[int, Sequence[int]]
"""By ``seq``: places in ``contained`` from 1 on; 0 is the resource itself."""


def places(node: Node, caller: Caller, connection: apsw.Connection, asking: Sequence[Query],
           found: Sequence[Permitted], snapshot: int, sight: Sight) -> Places:
    """What of each found resource is a match. Raises as the search that found them."""
    by_type: dict[str, list[int]] = defaultdict(list)
    for one in found:
        by_type[one.row.type].append(one.row.seq)
    known: dict[int, Sequence[int]] = {}
    for query in asking:
        seqs = by_type.get(query.type, [])
        if query.parts is None:
            known.update(dict.fromkeys(seqs, (0,)))
        elif seqs:
            bound = node.gate.bound(connection, caller, query.type)
            known.update(node.index.places(connection, query, bound, seqs, snapshot=snapshot, sight=sight))
    return known


def taken(found: Sequence[Permitted], parts: Places, count: int) -> int:
    """How many of ``found`` fit on a page of ``count`` entries: those of one resource are never parted."""
    left = count
    for number, one in enumerate(found):
        left -= len(parts[one.row.seq])
        if left < 0:
            return max(number, 1)
    return min(len(found), count)


def told(opened: Sequence[Opened], parts: Places) -> list[Opened]:
    """Each match by itself, a contained one with its id as the fragment of its container's URL."""
    found = []
    for one in opened:
        inside = None
        for place in parts[one.found.row.seq]:
            if not place:
                found.append(one)
                continue
            inside = one.resource["contained"] if inside is None else inside
            resource = inside[place - 1]
            found.append(replace(one, stored=serialise(resource), fragment=f"#{resource.get('id', '')}"))
    return found
