"""Search parameters in use that clients brought, and the number that changes with them.

Owns their rows, the claims on codes, and the generation; refuses a code of a type that another one holds. A change also
bumps ``decision_seq``: whoever extracted by what stood before does it again, and every worker learns of it with the
token it looks up anyway.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import apsw

from gateway.errors import Conflict
from gateway.store import journal

_GENERATION = "search_parameters"
_WORDS = "search_words"


@dataclass(frozen=True, slots=True)
class ParameterRow:
    """One parameter in use; ``body`` is sealed."""

    id: str
    body: bytes
    made: int
    ready: bool


def generation(connection: apsw.Connection) -> int:
    """Changes with every row here."""
    return int(str(connection.execute("SELECT value FROM setting WHERE name=?", (_GENERATION,)).get))


def rows(connection: apsw.Connection) -> list[ParameterRow]:
    """Every parameter in use."""
    return [ParameterRow(id_, body, made, bool(ready)) for id_, body, made, ready in connection.execute(
        "SELECT id, body, made, ready FROM search_parameter ORDER BY id")]


def put(connection: apsw.Connection, id_: str, body: bytes, codes: Iterable[int], *, ready: bool) -> None:
    """Use a parameter from this commit on; ``codes`` are keyed hashes of the type and code of each it adds.

    ``ready``: it finds as one that is in use already did. Raises Conflict.
    """
    connection.execute("DELETE FROM search_parameter_code WHERE id=?", (id_,))
    for code in codes:
        if connection.execute("SELECT 1 FROM search_parameter_code WHERE hash=?", (code,)).get is not None:
            raise Conflict("another SearchParameter has this code on one of these types: retire it first")
        connection.execute("INSERT INTO search_parameter_code VALUES (?,?)", (code, id_))
    connection.execute("INSERT OR REPLACE INTO search_parameter VALUES (?,?,?,?)",
                       (id_, body, _moved(connection), ready))


def drop(connection: apsw.Connection, id_: str) -> None:
    """Use a parameter no more."""
    connection.execute("DELETE FROM search_parameter_code WHERE id=?", (id_,))
    connection.execute("DELETE FROM search_parameter WHERE id=?", (id_,))
    if connection.changes():
        _moved(connection)


def indexed(connection: apsw.Connection, ids: Iterable[str], *, made: int) -> None:
    """The index holds what these find, if they are what they were at generation ``made``."""
    for id_ in ids:
        connection.execute("UPDATE search_parameter SET ready=1 WHERE id=? AND made<=?", (id_, made))
    _moved(connection)


def words(connection: apsw.Connection) -> frozenset[str]:
    """Which kinds of rows the index holds of every resource: words of ``_text`` and ``_content``, what came later."""
    found = connection.execute("SELECT value FROM setting WHERE name=?", (_WORDS,)).get
    return frozenset(str(found).split()) if found else frozenset()


def settle_words(connection: apsw.Connection, kept: frozenset[str], *, whole: bool = False) -> None:
    """This process keeps the rows of ``kept`` from now on; ``whole``: and a pass has kept them of all there is.

    What was not kept all along is answered by the index only after a pass.
    """
    empty = connection.execute("SELECT 1 FROM version LIMIT 1").get is None
    now = kept if whole or empty else kept & words(connection)
    if now != words(connection):
        connection.execute("INSERT OR REPLACE INTO setting VALUES (?,?)", (_WORDS, " ".join(sorted(now))))
        _moved(connection)


def _moved(connection: apsw.Connection) -> int:
    now = generation(connection) + 1
    connection.execute("UPDATE setting SET value=? WHERE name=?", (now, _GENERATION))
    journal.bump_decision_seq(connection)
    return now
