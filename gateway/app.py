"""The composition root: the one place that picks adapters and puts the rooms together.

Owns which process runs what: ``worker`` answers HTTP, ``ledger`` anchors, relays and follows, ``chain`` is the
embedded node. Refuses to start on settings that cannot work.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from gateway import audit
from gateway.access.typed_data import Domain
from gateway.audit import Audit, AuditEntry, Disclosures
from gateway.config import Settings, load_settings
from gateway.crypto.index_hash import IndexHasher
from gateway.crypto.key_rotation import settle_root_file
from gateway.crypto.keys import KeyRing
from gateway.crypto.root import load_or_create_root, root_file
from gateway.errors import GatewayError, KeyDestroyed, Misconfigured
from gateway.fhir.definitions import Definitions
from gateway.fhir.packages import Packages
from gateway.fhir.search import SearchExtractor
from gateway.fhir.search_words import CONTENT, TEXT
from gateway.fhir.terminology_core import Library
from gateway.fhir.validate import Validator
from gateway.ledger.deployment import read_deployment
from gateway.ledger.receipts import Proofs
from gateway.logs import set_up_logging
from gateway.records import consents, directory, finality, scheduling, search_parameters, subscriptions, verifying
from gateway.records.deliveries import Deliveries
from gateway.records.gate import Caller, Gate
from gateway.records.jobs import Authority
from gateway.records.node import Node, TypeRules
from gateway.records.notices import Notices
from gateway.records.paging import PageLinks
from gateway.records.parameters import Parameters
from gateway.records.versions import Versions
from gateway.smart import ceremonies, lockout, logins, sessions
from gateway.smart.clients import is_app_origin
from gateway.smart.discovery import oauth_urls
from gateway.smart.failures import Failures, sweep_failures
from gateway.smart.issuer import Smart, open_smart
from gateway.smart.launches import sweep_launches
from gateway.smart.registration import sweep_registrations
from gateway.smart.sweeping import sweep_authorizations
from gateway.smart.tokens import bearer, sweep
from gateway.store import index_upkeep, jobs, journal
from gateway.store import search_parameters as stored_parameters
from gateway.store.blobs import BlobBackend, EmbeddedBlobs
from gateway.store.index import Index
from gateway.store.sql import Database, GroupCommit, now_ms

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp

LOG = logging.getLogger("gateway")
_JOIN_S = 10.0
_WORDS = {"off": (), "text": (TEXT,), "content": (TEXT, CONTENT)}
_JOB_GRANT_MS = 60_000
"""For how long a job's caller counts once read; each slice of its work reads it anew."""


def open_ring(settings: Settings) -> KeyRing:
    """The key ring; root key and key store are made at the first start."""
    settings.keys_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = settings.root_key_path
    if not path.exists() and settings.database_path.exists():
        raise Misconfigured(f"{path} is missing but {settings.database_path} exists: restore the key from its backup")
    load_or_create_root(path)
    ring = KeyRing(settings.key_store_path, root_file(path))
    settle_root_file(ring, path)  # a rotation that was cut short
    return ring


def open_database(settings: Settings, ring: KeyRing) -> Database:
    """The journal and index, migrated."""
    database = Database(settings.database_path, ring.secret("page"))
    database.migrate()
    return database


def open_blobs(settings: Settings, database: Database) -> BlobBackend:
    """Kubo where one is configured, else the embedded store."""
    if not settings.ipfs_api:
        return EmbeddedBlobs(database)
    from gateway.store.ipfs import KuboBlobs  # its client library is only paid for where it is used

    return KuboBlobs(settings.ipfs_api, allow_remote=settings.ipfs_allow_remote, timeout_s=settings.ipfs_timeout_s)


def build_validator(settings: Settings, definitions: Definitions) -> Validator:
    """The validator with the packages' profiles. Raises Misconfigured."""
    required: dict[str, list[str]] = {}
    for type_, canonical in settings.required_profiles:
        if type_ not in definitions.resource_types:
            raise Misconfigured(f"required_profiles: {type_[:64]!r} is no R4 resource type")
        required.setdefault(type_, []).append(canonical)
    return Validator(definitions, packages=Packages.load(settings.packages), required=required, library=Library())


def build_node(settings: Settings, ring: KeyRing, database: Database, *, whole: bool = True) -> Node:
    """Everything the interactions need, for one process.

    Raises Misconfigured where a rebuild of the index was left unfinished, unless it need not be ``whole``.
    """
    deployed = read_deployment(settings)
    if whole and index_upkeep.rebuilt_to(database.reader) is not None:
        raise Misconfigured("a rebuild of the index was left unfinished: finish it with `gateway rebuild`")
    definitions = Definitions.load()
    validator = build_validator(settings, definitions)
    extractor = SearchExtractor(definitions, (settings.base_url,), model=validator.model,
                                words=_WORDS[settings.text_search])
    index = Index(IndexHasher(ring.secret("index")))
    blobs = open_blobs(settings, database)
    node = Node(
        settings=settings, definitions=definitions, validator=validator,
        extractor=extractor, ring=ring,
        database=database, commits=GroupCommit(database),
        disclosures=Disclosures(database, settings.spool_dir, ring.secret("audit")), index=index,
        versions=Versions(ring=ring, custodian=deployed.custodian, index=index, blobs=blobs,
                          blob_timeout_s=settings.ipfs_timeout_s),
        gate=Gate(index=index, audit=Audit(ring, deployed.custodian), plans=extractor.plans,
                  base_url=settings.base_url),
        pages=PageLinks(ring.secret("page-link")),
        domain=Domain(chain_id=deployed.chain_id, contract=deployed.consent_registry),
        rules={"Consent": consents.RULES, "Patient": directory.PATIENT_RULES, "Appointment": scheduling.RULES,
               "Subscription": subscriptions.RULES,
               "Task": verifying.RULES,
               "SearchParameter": TypeRules(check_write=search_parameters.check_write,
                                            check_deletion=search_parameters.check_deletion)},
        proofs=Proofs(ring=ring, blobs=blobs, custodian=deployed.custodian, chain_id=deployed.chain_id,
                      contract=deployed.record_anchor),
        parameters=Parameters(database=database, extractor=extractor, definitions=definitions, ring=ring))
    if stored_parameters.words(database.reader) != extractor.kinds:
        database.transact(lambda tx: stored_parameters.settle_words(tx, extractor.kinds))
    node.parameters.follow(journal.decision_seq(database.reader))
    return node


def build_smart(settings: Settings, ring: KeyRing, database: Database, definitions: Definitions,
                custodian: str) -> Smart:
    """The authorisation server's state."""
    rows = Audit(ring, custodian)

    def append(connection: Any, entry: AuditEntry, patient: str | None) -> None:  # Any: an apsw connection
        own = entry.user == f"Patient/{patient}"
        if patient is not None and not own and journal.patient_pk(connection, patient) is None:
            patient = None  # whom an app or another system named may be nobody: no key is made for nobody
        try:
            row = rows.seal(entry, patient)
        except KeyDestroyed:  # erased: told to the hospital alone, and done as for anybody else
            row = rows.seal(entry, None)
        audit.append(connection, (row,))
    return open_smart(database=database, settings=settings, token_key=ring.secret("token-hash"),
                      definitions=definitions, audit=append, allow_loopback_jwks=settings.host in ("127.0.0.1", "::1"),
                      secrets=ring.secrets)


def opened_smart(settings: Settings) -> Smart:
    """The authorisation server's state for a command, beside a running gateway or without one."""
    ring = open_ring(settings)
    database = open_database(settings, ring)
    return build_smart(settings, ring, database, Definitions.load(), read_deployment(settings).custodian)


def authenticator(node: Node, smart: Smart) -> Callable[[str | None], Caller]:
    """Looks the bearer token up anew on every request."""
    database, tokens = node.database, smart.tokens

    def caller(secret: str) -> Caller:
        grant, seq = tokens.lookup(database.reader, secret, now_ms())
        node.parameters.follow(seq)
        return Caller(grant=grant, seq=seq, again=lambda: caller(secret))

    return lambda header: caller(bearer(header))


def authority(node: Node, smart: Smart) -> Authority:
    """The caller behind a job: its token looked up anew, by its id."""
    database, tokens = node.database, smart.tokens

    def caller(token_id: str, *, outlives: bool) -> Caller:
        grant, seq = tokens.lookup_id(database.reader, token_id, now_ms(), work_ms=_JOB_GRANT_MS if outlives else 0)
        node.parameters.follow(seq)
        return Caller(grant=grant, seq=seq, again=lambda: caller(token_id, outlives=outlives))

    return caller


def build_app(settings: Settings) -> ASGIApp:
    """The ASGI application of one worker."""
    from fastapi import FastAPI

    from gateway.records.residuals import extensions
    from gateway.web import clients, health, launches, registration
    from gateway.web import smart as smart_web
    from gateway.web import verifying as verifying_web
    from gateway.web.doors import Doors
    from gateway.web.fhir import FhirDoor
    from gateway.web.portal import account, apps, authorize, people, proofing
    from gateway.web.portal import consents as portal_consents
    from gateway.web.portal.pages import missing_router, static_router

    ring = open_ring(settings)
    database = open_database(settings, ring)
    node = build_node(settings, ring, database)
    smart = build_smart(settings, ring, database, node.definitions, read_deployment(settings).custodian)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        database.close()
        ring.close()

    app = FastAPI(title="FHIR gateway", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.state.smart = smart
    app.include_router(smart_web.router(smart, lambda grant, consent: extensions(node, grant, consent)))
    app.include_router(launches.router(smart))
    app.include_router(registration.router(smart))
    app.include_router(clients.router(smart))
    app.include_router(static_router())
    for portal in (people, account, proofing):
        app.include_router(portal.router(smart))
    app.include_router(authorize.router(node, smart))
    app.include_router(apps.router(node, smart))
    app.include_router(portal_consents.router(node))
    app.include_router(health.router(node))
    app.include_router(verifying_web.router(node))
    app.include_router(missing_router())

    @app.exception_handler(Exception)
    async def unexpected(_: Request, error: Exception) -> Response:
        from gateway.web.errors import fhir_response

        return fhir_response(error)

    door = FhirDoor(node, authenticator(node, smart), oauth_urls=oauth_urls(smart),
                    is_app_origin=lambda origin: is_app_origin(database.reader, origin))
    app.state.limits = door.limits
    return Doors(fhir=door, others=app, limits=door.limits, failures=Failures(smart), settings=settings)


def run_worker(settings: Settings, descriptor: int) -> None:
    """Answer HTTP on the listening socket ``descriptor`` until SIGTERM."""
    import socket

    import uvicorn

    from gateway.web.connection import bounded

    # A thread that comes back from an fsync waits for the loop's thread this long at most, by default 5 ms.
    sys.setswitchinterval(0.0005)
    # Given as a socket, not as a descriptor: uvicorn takes a bare descriptor for a unix socket and leaves Nagle's
    # algorithm on, which holds every small answer back by 40 ms.
    listener = socket.socket(fileno=descriptor)
    app = build_app(settings)
    # The tables of R4 stay for good: looked through at each full collection they hold every request up for 200 ms.
    gc.collect()
    gc.freeze()
    server = uvicorn.Server(uvicorn.Config(
        app, loop="uvloop", http=bounded(settings), ws="none", log_config=None, access_log=False, server_header=False,
        proxy_headers=False, timeout_graceful_shutdown=10, lifespan="off"))
    server.run(sockets=[listener])


def run_jobs(settings: Settings, ring: KeyRing, database: Database, stop: threading.Event) -> None:
    """Carry out jobs, serve Subscriptions and write notices until ``stop``: the contracts' addresses are enough."""
    import asyncio

    from gateway.web.asynchronous import runner
    from gateway.web.fhir import open_door

    while not settings.deployment_path.exists():
        if stop.wait(0.2):
            return
    node = build_node(settings, ring, database)
    smart = build_smart(settings, ring, database, node.definitions, read_deployment(settings).custodian)

    async def together() -> None:
        acts_for = authority(node, smart)
        await asyncio.gather(runner(open_door(node), acts_for).run(stop), Deliveries(node, acts_for).run(stop),
                             Notices(node, verifying.step).run(stop))

    asyncio.run(together())


def run_ledger(settings: Settings) -> None:
    """Deploy where needed, then anchor, relay and follow until SIGTERM."""
    from gateway.ledger.connect import connect_chain
    from gateway.ledger.loops import run_loops

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    ring = open_ring(settings)
    database = open_database(settings, ring)
    carrying_out = threading.Thread(target=run_jobs, args=(settings, ring, database, stop), name="jobs", daemon=True)
    carrying_out.start()
    chain = connect_chain(settings, stop)
    if chain is None:
        return
    node = build_node(settings, ring, database)

    _every(0.15, stop, "consents", lambda: finality.turn(node))
    _every(0.25, stop, "access-requests", lambda: directory.deliver(node))
    _every(0.5, stop, "audit", node.disclosures.settle)
    run_loops(settings=settings, database=database, ring=ring, blobs=open_blobs(settings, database), chain=chain,
              custodian=read_deployment(settings).custodian, stop=stop,
              sweeps=(sweep, sweep_authorizations, sweep_launches, sweep_registrations, sweep_failures,
                      sessions.sweep, logins.sweep, ceremonies.sweep, lockout.sweep, jobs.sweep, directory.sweep,
                      finality.sweep),
              ended=finality.ended)
    carrying_out.join(_JOIN_S)


def _every(seconds: float, stop: threading.Event, name: str, work: Callable[[], object]) -> None:
    """Do ``work`` in a thread of its own again and again until ``stop``; a failure is logged and it goes on."""
    def run() -> None:
        while not stop.wait(seconds):
            try:
                work()
            except Exception:
                LOG.exception("a background task failed", extra={"task": name})
                stop.wait(2)

    threading.Thread(target=run, daemon=True, name=name).start()


def main(arguments: list[str]) -> int:
    """``worker PARENT FD`` or ``ledger PARENT``: what the supervisor, process id PARENT, starts; its exit code.

    2: it was refused, and a line on stderr says why, so that starting it again helps nothing.
    """
    name, parent = arguments[0], int(arguments[1])

    def die_with_parent() -> None:
        # Told, not asked: by now the parent may be gone, and another have taken us in.
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
        os._exit(1)

    threading.Thread(target=die_with_parent, daemon=True, name="parent-watch").start()
    try:
        settings = load_settings()
        set_up_logging(settings)
        if name == "worker":
            run_worker(settings, int(arguments[2]))
        else:
            run_ledger(settings)
    except GatewayError as error:
        print(f"gateway {name}: {error}", file=sys.stderr, flush=True)
        return 2 if isinstance(error, Misconfigured) else 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
