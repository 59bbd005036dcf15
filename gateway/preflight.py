"""``gateway check``: what would keep a gateway from working here, and how to mend each.

Owns the checks; refuses to change anything and to stop at the first fault. A *warning* does not keep it from starting.
Each check is a function of the settings (and of what it measures), so that each can be tested alone.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import socket
import stat
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import apsw
import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from gateway.config import Settings
from gateway.crypto.keys import KeyRing
from gateway.crypto.root import root_file
from gateway.errors import ChainUnavailable, GatewayError, Misconfigured
from gateway.ledger.deployment import Deployment, deployment_if_any
from gateway.ledger.keccak import keccak
from gateway.probes import Probe, quantity, rpc_of, serving
from gateway.store.ipfs_address import ApiAddress
from gateway.store.sql import Database

PYTHON: Final = (3, 11)
KUBO: Final = (0, 20)
DISK_LEAST_BYTES: Final = 256 << 20
DISK_LOW_BYTES: Final = 2 << 30
SKEW_S: Final = 120
STEP_S: Final = 0.5
LONG_AGO_S: Final = 1_700_000_000  # no gateway of this version ran before: a clock that says so was never set
IDLE_S: Final = 400 * 86_400
_OPERATOR_KEY: Final = re.compile(r"(?:0x)?([0-9a-fA-F]{64})\s*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """``what`` is wrong and how to ``mend`` it; a ``warning`` does not keep the gateway from starting."""

    what: str
    mend: str
    warning: bool = False


Found = Iterator[Problem]


def problems(settings: Settings, *, transport: httpx.BaseTransport | None = None) -> list[Problem]:
    """Everything that is wrong, most basic first; ``transport`` replaces the network in tests."""
    probe = Probe(transport=transport)
    try:
        now_s = time.time()
        runs = serving(settings)
        return [
            *python(sys.version_info[:2]),
            *workers(settings, os.cpu_count() or 1),
            *port(settings, runs=runs),
            *doors(settings),
            *folders(settings),
            *disk(settings, free_bytes(settings.data_dir)),
            *key_files(settings),
            *root_key(settings),
            *clock(now_s, newest_version_s(settings), wall_drift_s()),
            *chain(settings, probe, now_s=now_s, runs=runs),
            *kubo(settings, probe),
        ]
    finally:
        probe.close()


def python(version: tuple[int, ...]) -> Found:
    """The interpreter is one the gateway is written for."""
    if version < PYTHON:
        yield Problem(what=f"this is Python {'.'.join(map(str, version))}",
                      mend="use Python 3.11 or later: make clean && make run PYTHON=python3.11")


def workers(settings: Settings, cores: int) -> Found:
    """Not many more processes than cores."""
    if settings.workers > 2 * cores:
        yield Problem(what=f"{settings.workers} workers share {cores} cores", warning=True,
                      mend=f"set GATEWAY_WORKERS to {cores}: more only take memory and turns")


def port(settings: Settings, *, runs: bool) -> Found:
    """The gateway's own address can be listened on."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((settings.host, settings.port))
        except socket.gaierror:
            yield Problem(what=f"HOST {settings.host} is no address of this machine",
                          mend="set HOST to 127.0.0.1, or to an address `ip addr` shows")
        except (OSError, OverflowError) as error:
            yield _taken(settings, error, runs=runs)


def doors(settings: Settings) -> Found:
    """People can sign in, and are told apart by where they come from."""
    parts = urlsplit(settings.base_url)
    if parts.scheme == "https" and not settings.trusted_proxies:
        yield Problem(what="TLS ends at a proxy whose X-Forwarded-For is not believed: everybody counts as one address",
                      warning=True, mend="set GATEWAY_TRUSTED_PROXIES to the proxy's address")
    if parts.scheme == "http" and re.fullmatch(r"localhost|127(\.\d+){3}|::1", parts.hostname or "") is None:
        yield Problem(what="nobody can sign in, nor an app get a token, over plain http", warning=True,
                      mend="put a proxy with TLS before the gateway and set GATEWAY_BASE_URL to its https URL")


def _taken(settings: Settings, error: OSError | OverflowError, *, runs: bool) -> Problem:
    number = getattr(error, "errno", None)
    if number == errno.EADDRINUSE and runs:
        return Problem(what=f"this gateway runs on port {settings.port} already", warning=True,
                       mend="nothing to mend, unless a second one was meant: then set PORT and GATEWAY_DATA_DIR")
    if number == errno.EADDRINUSE:
        return Problem(what=f"port {settings.port} of {settings.host} is taken by another program",
                       mend=f"stop it (`ss -ltnp 'sport = :{settings.port}'` names it), or set PORT")
    if number == errno.EACCES:
        return Problem(what=f"port {settings.port} needs privileges",
                       mend="set PORT above 1023, and let a proxy listen on the privileged one")
    if number == errno.EADDRNOTAVAIL:
        return Problem(what=f"HOST {settings.host} is no address of this machine",
                       mend="set HOST to 127.0.0.1, or to an address `ip addr` shows")
    return Problem(what=f"port {settings.port} of {settings.host} cannot be listened on ({error})",
                   mend="set PORT to a number from 1 to 65535, and HOST to an address of this machine")


def folders(settings: Settings) -> Found:
    """The data and keys folders can be written, belong to this user, and the keys are nobody else's."""
    for path in dict.fromkeys((settings.data_dir, settings.keys_dir)):
        place = _nearest(path)
        if not place.is_dir():
            yield Problem(what=f"{place} is not a folder", mend=f"move it away, or set another place for {path}")
        elif not os.access(place, os.W_OK | os.X_OK):
            yield Problem(what=f"{place} cannot be written by this user", mend=f"chown it to this user ({_me()}), or "
                          "set GATEWAY_DATA_DIR (or GATEWAY_KEYS_DIR) to a folder of theirs")
        elif place == path and place.stat().st_uid != os.geteuid():
            yield Problem(what=f"{place} belongs to user {place.stat().st_uid}, not to {_me()}",
                          mend=f"run the gateway as its owner, or chown -R {os.geteuid()} {place}")
    if settings.keys_dir.is_dir() and settings.keys_dir.stat().st_mode & 0o077:
        yield Problem(what=f"others may enter the keys folder {settings.keys_dir}",
                      mend=f"chmod 700 {settings.keys_dir}")


def _nearest(path: Path) -> Path:
    """The path itself, or the folder it would be made in."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def _me() -> int:
    return os.geteuid()


def free_bytes(path: Path) -> int:
    """Free space where ``path`` is or would be."""
    return shutil.disk_usage(_nearest(path)).free


def disk(settings: Settings, free: int) -> Found:
    """Enough free space."""
    if free < DISK_LOW_BYTES:
        yield Problem(what=f"{free >> 20} MiB are free for {settings.data_dir}", warning=free >= DISK_LEAST_BYTES,
                      mend="free some space, or set GATEWAY_DATA_DIR to a larger disk: a full one stops every write")


def key_files(settings: Settings) -> Found:
    """Every file of keys is this user's alone."""
    files = [settings.chain_operator_key_file, *_files_in(settings.keys_dir)]
    for path in dict.fromkeys(files):
        try:
            status = path.lstat()
        except OSError:
            continue
        if stat.S_ISLNK(status.st_mode):
            yield Problem(what=f"{path} is a symbolic link", mend="put the file itself there, not a link to it")
        elif status.st_mode & 0o077:
            yield Problem(what=f"{path} has mode {stat.S_IMODE(status.st_mode):04o}: others may read it",
                          mend=f"chmod 600 {path}; if others use this machine, `gateway keys rotate root` afterwards")
        elif status.st_uid not in (os.geteuid(), 0):
            yield Problem(what=f"{path} belongs to user {status.st_uid}", mend=f"chown {os.geteuid()} {path}")


def _files_in(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_symlink() or path.is_file())
    except OSError:
        return []


def root_key(settings: Settings) -> Found:
    """A database or key store has the root key it was made with."""
    made = [path for path in (settings.database_path, settings.key_store_path) if path.exists()]
    if made and not settings.root_key_path.exists():
        yield Problem(what=f"{settings.root_key_path} is missing, and {made[0]} needs it",
                      mend="put its backup copy there (mode 0600); without it nothing stored here opens")
    elif settings.database_path.exists() and not settings.key_store_path.exists():
        yield Problem(what=f"{settings.key_store_path} is missing, and {settings.database_path} needs it",
                      mend="`gateway keys restore FILE --passphrase-file FILE` from the last backup")
    elif made:
        try:
            KeyRing(settings.key_store_path, root_file(settings.root_key_path)).close()
        except (GatewayError, apsw.Error, OSError) as error:
            yield Problem(what=f"the key store does not open: {error}",
                          mend=f"put the right root key at {settings.root_key_path} (mode 0600)")


def newest_version_s(settings: Settings) -> float | None:
    """When the newest stored version was written, epoch seconds; None when there is none or it cannot be read."""
    if not (settings.database_path.exists() and settings.root_key_path.exists() and settings.key_store_path.exists()):
        return None
    try:
        ring = KeyRing(settings.key_store_path, root_file(settings.root_key_path))
        try:
            database = Database(settings.database_path, ring.secret("page"))
            try:
                newest = database.reader.execute("SELECT max(updated_ms) FROM version").get
            finally:
                database.close()
        finally:
            ring.close()
    except (GatewayError, apsw.Error, OSError):
        return None
    return None if newest is None else float(str(newest)) / 1_000


def wall_drift_s() -> float:
    """How far the wall clock moves away from the monotonic one within a moment: above 0 it is being stepped."""
    wall, steady = time.time(), time.monotonic()
    time.sleep(0.05)
    return abs((time.time() - wall) - (time.monotonic() - steady))


def clock(now_s: float, newest_s: float | None, drift_s: float) -> Found:
    """The wall clock is set, steady, and not behind what is stored."""
    mend = "set the clock: systemctl status systemd-timesyncd (or chronyd); tokens and consents live by it"
    if now_s < LONG_AGO_S:
        yield Problem(what=f"the clock says {_day(now_s)}", mend=mend)
    if drift_s > STEP_S:
        yield Problem(what=f"the clock was stepped by {drift_s:.1f} s while it was looked at", mend=mend)
    if newest_s is not None and newest_s - now_s > SKEW_S:
        yield Problem(what=f"the clock is {newest_s - now_s:.0f} s behind the newest stored version", mend=mend)
    if newest_s is not None and now_s - newest_s > IDLE_S:
        yield Problem(what=f"the newest stored version is of {_day(newest_s)}, the clock says {_day(now_s)}",
                      mend=mend, warning=True)


def _day(epoch_s: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(epoch_s))


def chain(settings: Settings, probe: Probe, *, now_s: float, runs: bool) -> Found:
    """The chain answers, is the right one, holds the contracts, keeps time, and the operator can pay."""
    try:
        deployment = deployment_if_any(settings)
    except Misconfigured as error:
        yield Problem(what=str(error), mend=f"move {settings.deployment_path} away and start again")
        return
    if settings.chain_contracts and not settings.contracts_path.exists():
        yield Problem(what=f"the contracts file {settings.contracts_path} is not there",
                      mend="get it from the network's members, or unset GATEWAY_CHAIN_CONTRACTS to deploy new ones")
    rpc = rpc_of(settings)
    if not settings.chain_rpc and not runs:
        return  # the embedded chain starts with the gateway
    if rpc is None:
        yield Problem(what="the embedded chain has not said where it answers", warning=True,
                      mend="the gateway is starting, or its log says why not")
        return
    try:
        yield from _node(settings, probe, rpc, deployment, now_s)
    except ChainUnavailable as error:
        yield Problem(what=f"the chain is unreachable: {error}", mend="start the node, or set GATEWAY_CHAIN_RPC"
                      if settings.chain_rpc else "the gateway restarts its chain; its log says why it died")


def _node(settings: Settings, probe: Probe, rpc: str, deployment: Deployment | None, now_s: float) -> Found:
    chain_id = probe.number(rpc, "eth_chainId")
    expected = settings.chain_id or (chain_id if deployment is None else deployment.chain_id)
    if chain_id != expected:
        yield Problem(what=f"{rpc} is chain {chain_id}, not {expected}",
                      mend=f"point GATEWAY_CHAIN_RPC at a node of chain {expected}, or set GATEWAY_CHAIN_ID")
        return
    if deployment is not None and deployment.chain_id != chain_id:
        yield Problem(what=f"{settings.deployment_path} is of chain {deployment.chain_id}, not {chain_id}",
                      mend="this data folder belongs to another chain: set GATEWAY_DATA_DIR, or the right node")
        return
    head = probe.call(rpc, "eth_getBlockByNumber", "latest", False)
    head_s = quantity(head.get("timestamp") if isinstance(head, dict) else None)
    if head_s - now_s > SKEW_S:
        yield Problem(what=f"the clock is {head_s - now_s:.0f} s behind the chain's newest block",
                      mend="set the clock: systemctl status systemd-timesyncd (or chronyd)")
    # An idle embedded chain makes no blocks; an external one that makes none is stalled, or the clock runs ahead.
    if settings.chain_rpc and now_s - head_s > settings.chain_max_head_age_s:
        yield Problem(what=f"the chain's newest block is {now_s - head_s:.0f} s old: grants do not count meanwhile",
                      mend="look after the node (stalled, or still syncing), or set the clock if it runs ahead",
                      warning=True)
    yield from _contracts(settings, probe, rpc, deployment)
    if settings.chain_rpc:
        yield from _operator(settings, probe, rpc)


def _contracts(settings: Settings, probe: Probe, rpc: str, deployment: Deployment | None) -> Found:
    for name, address in _addresses(settings, deployment).items():
        if probe.call(rpc, "eth_getCode", address, "latest") in ("0x", "0x0", None):
            yield Problem(what=f"there is no {name} at {address} on this chain",
                          mend="the node is of another chain with the same id, or was reset: set GATEWAY_CHAIN_RPC to "
                               f"the right one; {settings.contracts_path} names the addresses")


def _addresses(settings: Settings, deployment: Deployment | None) -> Mapping[str, object]:
    if deployment is not None:
        return deployment.contracts
    try:
        loaded = json.loads(settings.contracts_path.read_text())
        # While "deploying" stands there, some may not be mined yet: the next start goes on with them.
        return {} if loaded.get("deploying") else dict(loaded["contracts"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _operator(settings: Settings, probe: Probe, rpc: str) -> Found:
    path = settings.chain_operator_key_file
    try:
        match = _OPERATOR_KEY.fullmatch(path.read_text())
        address = operator_address(bytes.fromhex(match[1])) if match else None
    except FileNotFoundError:
        yield Problem(what=f"there is no operator key at {path}", warning=True,
                      mend="the first start makes one and says which address to send ether to")
        return
    except (OSError, ValueError):
        address = None
    if address is None:
        yield Problem(what=f"{path} does not hold a private key", mend="put 64 hex digits there (mode 0600)")
    elif probe.number(rpc, "eth_getBalance", address, "latest") == 0:
        yield Problem(what=f"the operator {address} has no balance: it cannot anchor",
                      mend=f"send ether of this chain to {address}")


def operator_address(key: bytes) -> str:
    """The account of a 32-byte secp256k1 private key, lower-case. Raises ValueError for a key out of range."""
    public = ec.derive_private_key(int.from_bytes(key, "big"), ec.SECP256K1()).public_key()
    return "0x" + keccak(public.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)[1:])[12:].hex()


def kubo(settings: Settings, probe: Probe) -> Found:
    """A configured Kubo answers and is new enough."""
    if not settings.ipfs_api:
        return
    try:
        address = ApiAddress.parse(settings.ipfs_api, allow_remote=settings.ipfs_allow_remote)
        answer = probe.post(f"{address.url}/api/v0/version")
    except Misconfigured as error:
        yield Problem(what=str(error), mend="set GATEWAY_IPFS_API, or unset it to keep blocks in the data folder")
        return
    except ChainUnavailable as error:
        yield Problem(what=f"Kubo is unreachable: {error}",
                      mend="start it (`ipfs daemon`), or unset GATEWAY_IPFS_API to keep blocks in the data folder")
        return
    version = str(answer.get("Version", "")) if isinstance(answer, dict) else ""
    match = re.match(r"(\d{1,6})\.(\d{1,6})", version)
    if match is None:
        yield Problem(what=f"{address.url} is no Kubo RPC", mend="set GATEWAY_IPFS_API to its API, not its gateway")
    elif (int(match[1]), int(match[2])) < KUBO:
        yield Problem(what=f"Kubo {version} is older than {'.'.join(map(str, KUBO))}", mend="update Kubo")
