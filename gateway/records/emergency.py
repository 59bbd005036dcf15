"""Who is before a clinician in an emergency: one patient, found by what is known of them for certain.

Owns the look-up that comes before a broken glass; refuses anything but one exact match, and tells of it only through
the broken glass itself, so that whoever looks is in the patient's audit. ``README.md``, Decisions: labels.
"""

from __future__ import annotations

from collections.abc import Callable

from gateway import audit
from gateway.errors import Forbidden, Gone, NotFound, Unprocessable
from gateway.records.gate import Caller
from gateway.records.node import Node
from gateway.records.read import Reading, read
from gateway.store import journal
from gateway.store.index import SqlBound

_NOBODY = "no one patient is known by that"


async def identified(node: Node, breaking: Callable[[str | None], Caller], *, identifier: str, name: str,
                     birth_date: str) -> Reading:
    """The one patient with this identifier, or with this name and birth date, read through the broken glass.

    ``breaking(patient)``: the caller with the glass of ``Patient/ID`` broken, or with nobody's yet. Raises
    Unprocessable, or NotFound, the same for none, for several, and for one who is beyond an emergency's reach.
    """
    if identifier:
        pairs = [("identifier", identifier)]
    elif name and birth_date:
        pairs = [("name", name), ("birthdate", birth_date)]
    else:
        raise Unprocessable("give the identifier, or the name and the birth date", code="required")
    query = node.query("Patient", [*pairs, ("_count", "2")], strict=True)
    connection = node.database.reader
    found = node.index.search(connection, query, SqlBound("1"), snapshot=journal.head_seq(connection), limit=2)
    if len(found) == 1:
        try:
            return await read(node, breaking(f"Patient/{found[0].row.id}"), "Patient", found[0].row.id)
        except (NotFound, Gone, Forbidden) as error:  # in the patient's audit by now, and not said to who asked
            raise NotFound(_NOBODY) from error
    rows = node.gate.entries(breaking(None), "s", "emergency-look-up", None, what=("Patient",), patients=(),
                             outcome="4")
    await node.commits.commit(lambda tx: audit.append(tx, rows))
    raise NotFound(_NOBODY)
