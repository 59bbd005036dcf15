"""What an import has brought in, so that one that was killed goes on and doubles nothing.

Owns the rows of ``import_file``: one for each line that landed, written in the commit that stored what the line held; a
refused line has none and is tried again. Files are known by a keyed hash of their bytes, not by name; line 0 stands for
a whole JSON file.
"""

from __future__ import annotations

from collections.abc import Iterable

import apsw

Mark = tuple[bytes, int]
"""The file's keyed hash, and a line of it."""


def landed(connection: apsw.Connection, file: bytes, first: int, last: int) -> set[int]:
    """Which of the lines from ``first`` to ``last`` are stored already."""
    return {int(str(line)) for (line,) in connection.execute(
        "SELECT line FROM import_file WHERE digest=? AND line BETWEEN ? AND ?", (file, first, last))}


def mark(connection: apsw.Connection, marks: Iterable[Mark]) -> None:
    """Say inside the open transaction that these lines landed with it."""
    connection.executemany("INSERT OR IGNORE INTO import_file VALUES (?,?)", tuple(marks))
