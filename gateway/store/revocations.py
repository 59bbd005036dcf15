"""How often a patient ended everything they granted here.

Owns the rows of ``revoked_all``; refuses to know what it ended. What is asked to be signed is made from the number, so
that a signature from before the last time fits nothing any more, whatever the chain has heard. Invariant 6.
"""

from __future__ import annotations

import apsw


def times_of(connection: apsw.Connection, patient: str) -> int:
    """How often so far; ``patient`` is a logical id."""
    found = connection.execute("SELECT r.times FROM patient h JOIN revoked_all r ON r.patient=h.pk WHERE h.id=?",
                               (patient,)).get
    return 0 if found is None else int(str(found))


def once_more(connection: apsw.Connection, patient: str) -> None:
    """Inside the open transaction of a revoke-all."""
    connection.execute("INSERT INTO revoked_all (patient,times) SELECT pk,1 FROM patient WHERE id=? "
                       "ON CONFLICT (patient) DO UPDATE SET times=times+1", (patient,))
