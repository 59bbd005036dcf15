"""What consent costs a reader: the same questions by the feed, and by a clinician whom grants let in.

Provisions are put where the follower would put them, beside a running gateway: signing ten thousand is not what is
measured here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import apsw

from gateway.access.provision import Provision
from gateway.app import build_node, open_database, open_ring
from gateway.config import load_settings
from gateway.fhir.definitions import Definitions
from gateway.store import provisions

if TYPE_CHECKING:
    from tests.bench.__main__ import Bench

ORGANIZATION = "Organization/bench"
CLIENTS, SECONDS = 8, 3.0
SIZES = (1, 100, 10_000)
TYPES = tuple(sorted(set(Definitions.load().resource_types) - {"Observation"}))


def grants(bench: Bench, patients: list[str], observations: dict[str, list[str]]) -> None:
    """Print reads and searches a second without grants in play, and with so many provisions on the organisation.

    ``observations``: ids of each patient's.
    """
    gateway = bench.gateway
    gateway.run("user", "add", "--user", "Practitioner/grants", "--role", "clinician", "--name", "Bench",
                "--organization", ORGANIZATION)
    doctor = gateway.token("--user", "Practitioner/grants", "--ttl", "7200")
    print(f"\n{'8 clients, per second':<46}{'reads':>10}{'p50 ms':>8}{'searches':>10}{'p50 ms':>8}")
    _row("no grants: the feed reads what it wrote", *_rates(bench, bench.token, patients, observations))
    before = 0
    for size in SIZES:
        # Each patient permits the organisation; the first of them permits it in so many ways.
        _put(gateway, _more(patients, before, size))
        before = size
        _row(f"{size:,} provisions of a patient for it", *_rates(bench, doctor, patients[:1], observations))
    _row(f"{len(patients):,} patients permit it", *_rates(bench, doctor, patients, observations))


def _rates(bench: Bench, token: str, patients: list[str], observations: dict[str, list[str]]) -> tuple[Any, Any]:
    read = [bench.raw("GET", f"Observation/{id_}", token=token)
            for patient in patients for id_ in observations[patient]]
    found = [bench.raw("GET", f"Observation?subject=Patient/{patient}&code=8867-4", token=token)
             for patient in patients]
    return bench.load(read, CLIENTS, seconds=SECONDS), bench.load(found, CLIENTS, seconds=SECONDS)


def _row(name: str, read: dict[str, Any], search: dict[str, Any]) -> None:
    wrong = read["wrong"] or search["wrong"]
    print(f"{name:<46}{read['per_s']:>10.0f}{read['p50_ms']:>8.2f}{search['per_s']:>10.0f}{search['p50_ms']:>8.2f}"
          f"{f'  WRONG {wrong}' if wrong else ''}", flush=True)


def _more(patients: list[str], before: int, size: int) -> Iterable[Provision]:
    if not before:
        for patient in patients[1:]:
            yield _permit(patient, "bench", None)
    for number in range(before, size):
        # Grants of single types, renewed again and again; what the measured questions need stands last among them.
        yield _permit(patients[0], f"bench-{number}", None if number in (0, size - 1) else TYPES[number % len(TYPES)])


def _permit(patient: str, name: str, type_: str | None) -> Provision:
    return Provision(id=f"{name}-{patient}/0", patient=f"Patient/{patient}", grantee=ORGANIZATION, permit=True,
                     types=None if type_ is None else frozenset({type_}), state="final")


def _put(gateway: Any, made: Iterable[Provision]) -> None:
    settings = load_settings({"GATEWAY_DATA_DIR": str(gateway.data)})
    ring = open_ring(settings)
    database = open_database(settings, ring)
    node = build_node(settings, ring, database)

    def work(connection: apsw.Connection) -> None:
        for one in made:
            provisions.put(connection, one, consent=one.id.partition("/")[0], address=None,
                           grantee_hash=node.index.grantee, category_hash=node.index.category)
    database.transact(work)
    node.disclosures.close()
    database.close()
    ring.close()
