"""The Kubo adapter against a node that is old, slow, lying, gone or elsewhere (loopback simulator only)."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator

import dag_cbor
import httpx
import ipfshttpclient
import ipfshttpclient.exceptions
import pytest
import requests
import urllib3.exceptions

from gateway.errors import BlobUnavailable, BlockCorrupt, GatewayError, Misconfigured
from gateway.store import ipfs
from gateway.store.cid import cid, digest_block
from gateway.store.ipfs import KuboBlobs
from tests.behaviours.test_blobs import Block, manifest_of, sealed
from tests.simulators.ipfs import FakeKubo


@pytest.fixture
def node() -> Iterator[FakeKubo]:
    with FakeKubo() as node:
        yield node


@pytest.fixture
def kubo(node: FakeKubo) -> Iterator[KuboBlobs]:
    kubo = KuboBlobs(node.api, allow_remote=False, timeout_s=0.6)
    yield kubo
    kubo.close()


@pytest.fixture
def batch(kubo: KuboBlobs) -> tuple[bytes, list[Block]]:
    blocks = sealed(3)
    digest, manifest = manifest_of(blocks)
    kubo.push(manifest, digest, blocks)
    return digest, blocks


def commands(node: FakeKubo) -> list[str]:
    return [command for command, _ in node.calls if command != "version"]


EVERY_CALL: dict[str, tuple[str, Callable[[KuboBlobs], object]]] = {
    "get": ("block/get", lambda kubo: kubo.get(bytes(32), timeout_s=0.6)),
    "get_many": ("block/get", lambda kubo: list(kubo.get_many([bytes(32)], timeout_s=0.6))),
    "has": ("block/stat", lambda kubo: kubo.has(bytes(32))),
    "push": ("dag/import", lambda kubo: _push(kubo, 2)),
    "push of a manifest alone": ("block/put", lambda kubo: _push(kubo, 0)),
    "pin": ("pin/add", lambda kubo: kubo.pin(bytes(32), timeout_s=0.6)),
    "pins": ("pin/ls", lambda kubo: list(kubo.pins())),
    "unpin": ("pin/rm", lambda kubo: kubo.unpin(bytes(32))),
    "collect_garbage": ("repo/gc", lambda kubo: kubo.collect_garbage()),
    "status": ("repo/stat", lambda kubo: kubo.status()),
}
each_call = pytest.mark.parametrize(("command", "call"), EVERY_CALL.values(), ids=EVERY_CALL)


def _push(kubo: KuboBlobs, count: int) -> None:
    blocks = sealed(count)
    digest, manifest = manifest_of(blocks)
    kubo.push(manifest, digest, blocks)


# The version check of ipfshttpclient, knowingly stepped around

@pytest.mark.filterwarnings("ignore:The 'strict' parameter:FutureWarning")
def test_connect_refuses_todays_kubo_which_is_why_it_is_not_used(node: FakeKubo) -> None:
    with pytest.raises(ipfshttpclient.exceptions.VersionMismatch):
        ipfshttpclient.connect(f"/ip4/127.0.0.1/tcp/{node.port}/http")


@pytest.mark.parametrize("version", ["0.20.0", "0.43.0", "0.44.0-dev", "0.100.1", "1.0.0"])
def test_the_daemons_own_version_is_read_and_a_later_one_accepted(version: str) -> None:
    with FakeKubo(version=version) as node:
        status = KuboBlobs(node.api, allow_remote=False, timeout_s=5).status()
    assert (status.backend, status.version) == ("kubo", version)


@pytest.mark.parametrize("version", ["0.4.23", "0.7.0", "0.19.2", "0.19.0-rc1"])
def test_a_kubo_before_0_20_is_refused_before_anything_is_sent(version: str) -> None:
    with FakeKubo(version=version) as node:
        kubo = KuboBlobs(node.api, allow_remote=False, timeout_s=5)
        for _, call in EVERY_CALL.values():
            with pytest.raises(Misconfigured, match="too old"):
                call(kubo)
        assert commands(node) == []


def test_a_daemon_replaced_by_an_older_one_is_noticed(node: FakeKubo, kubo: KuboBlobs) -> None:
    kubo.status()
    node.version = "0.18.0"
    node.dropping.add("pin/ls")
    with pytest.raises(BlobUnavailable):
        list(kubo.pins())
    node.dropping.clear()
    with pytest.raises(Misconfigured):
        list(kubo.pins())


@pytest.mark.parametrize("version", ["", "kubo", "v0.43", "0", None])
def test_a_version_that_cannot_be_read_is_unavailable(node: FakeKubo, kubo: KuboBlobs, version: str) -> None:
    node.version = version
    with pytest.raises(BlobUnavailable):
        kubo.status()


# What is sent

def test_hash_and_codec_are_named_and_never_left_to_the_nodes_settings(node: FakeKubo, kubo: KuboBlobs) -> None:
    _push(kubo, 0)
    [options] = [options for command, options in node.calls if command == "block/put"]
    assert (options["mhtype"], options["cid-codec"]) == ("sha2-256", "dag-cbor")
    assert "pin" not in options


def test_a_batch_is_one_import_with_the_manifest_as_its_only_pinned_root(node: FakeKubo, kubo: KuboBlobs) -> None:
    _push(kubo, 40)
    assert commands(node) == ["dag/import"]
    assert len(node.recursive) == 1


def test_a_large_batch_goes_in_parts_and_is_pinned_with_the_last(
        node: FakeKubo, kubo: KuboBlobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ipfs, "PART_BYTES", 10_000)
    blocks = sealed(12, size=4_000)
    digest, manifest = manifest_of(blocks)
    kubo.push(manifest, digest, iter(blocks))
    pins = [options["pin-roots"] for command, options in node.calls if command == "dag/import"]
    assert pins == ["false"] * 5 + ["true"]
    assert list(kubo.get_many([name for name, _ in blocks], timeout_s=5)) == blocks
    assert list(kubo.pins()) == [digest]


def test_a_part_collected_meanwhile_fails_the_push_and_its_repetition_heals(
        node: FakeKubo, kubo: KuboBlobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ipfs, "PART_BYTES", 10_000)
    blocks = sealed(6, size=4_000)
    digest, manifest = manifest_of(blocks)

    def collected() -> Iterator[Block]:
        yield from blocks[:5]
        node.lose(blocks[0][0])
        yield blocks[5]
    with pytest.raises(BlobUnavailable):
        kubo.push(manifest, digest, collected())
    kubo.push(manifest, digest, blocks)
    assert list(kubo.pins()) == [digest]


def test_a_block_over_two_mebibytes_is_sent_as_meant(node: FakeKubo, kubo: KuboBlobs) -> None:
    """Kubo refuses it otherwise; a stored Version must be able to leave the outbox."""
    blocks = sealed(1, size=(2 << 20) + 1)
    digest, manifest = manifest_of(blocks)
    kubo.push(manifest, digest, blocks)
    assert kubo.get(blocks[0][0], timeout_s=5) == blocks[0][1]
    assert list(kubo.pins()) == [digest]


def test_a_link_neither_given_nor_held_fails_at_once_and_takes_no_pin_lock(node: FakeKubo, kubo: KuboBlobs) -> None:
    """Kubo's pinner would wait for it until the time limit, ``offline`` or not."""
    blocks = sealed(3)
    digest, manifest = manifest_of(blocks)
    with pytest.raises(BlobUnavailable, match="1 links"):
        kubo.push(manifest, digest, blocks[:2])
    assert commands(node) == ["block/stat"]


def test_a_manifest_alone_over_two_mebibytes_is_sent_as_meant(kubo: KuboBlobs) -> None:
    manifest = dag_cbor.encode({"sealed": bytes(2 << 20)})
    kubo.push(manifest, digest_block(manifest), ())
    assert list(kubo.pins()) == [digest_block(manifest)]


def test_has_asks_this_node_alone(node: FakeKubo, kubo: KuboBlobs) -> None:
    assert not kubo.has(bytes(32))
    [options] = [options for command, options in node.calls if command == "block/stat"]
    assert options["offline"] == "true"


def test_a_receiver_pins_the_manifest_and_reads_everything_under_it(node: FakeKubo, kubo: KuboBlobs,
                                                                    batch: tuple[bytes, list[Block]]) -> None:
    digest, blocks = batch
    with FakeKubo(peers=(node,)) as other:
        receiver = KuboBlobs(other.api, allow_remote=False, timeout_s=5)
        assert not receiver.has(blocks[0][0])
        receiver.pin(digest, timeout_s=5)
        assert list(receiver.pins()) == [digest]
        assert list(receiver.get_many([name for name, _ in blocks], timeout_s=5)) == blocks


def test_pins_of_other_users_of_the_node_are_passed_over(node: FakeKubo, kubo: KuboBlobs,
                                                         batch: tuple[bytes, list[Block]]) -> None:
    node.foreign_pins |= {"QmUNLLsPACCz1vLxQVkXqqLX5R1X345qqfHbsf67hvA3Nn",
                          "bafybeiczsscdsbs7ffqz55asqdf3smv6klcw3gofszvwlyarci47bgf354", cid(bytes(32))}
    assert list(kubo.pins()) == [batch[0]]


def test_sessions_are_kept_alive_and_never_shared_by_two_threads(node: FakeKubo, kubo: KuboBlobs,
                                                                 batch: tuple[bytes, list[Block]]) -> None:
    _, blocks = batch
    errors: list[BaseException] = []

    def read() -> None:
        try:
            for name, block in blocks * 5:
                assert kubo.get(name, timeout_s=5) == block
        except BaseException as error:
            errors.append(error)
    before = sum(command == "version" for command, _ in node.calls)
    threads = [threading.Thread(target=read) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert sum(command == "version" for command, _ in node.calls) - before <= 6


# Weather

@each_call
def test_a_daemon_that_hangs_is_unavailable_in_time(node: FakeKubo, command: str,
                                                    call: Callable[[KuboBlobs], object],
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ipfs, "_GC_TIMEOUT_S", 0.6)
    kubo = KuboBlobs(node.api, allow_remote=False, timeout_s=0.6)
    node.hanging.add(command)
    started = time.monotonic()
    with pytest.raises(BlobUnavailable):
        call(kubo)
    assert time.monotonic() - started < 2.5


@pytest.mark.parametrize("call", ["get", "push"])
def test_a_daemon_that_dribbles_is_cut_off(node: FakeKubo, kubo: KuboBlobs, call: str) -> None:
    """No single read times out, the whole does: where blocks travel, a peer may set the pace."""
    command, act = EVERY_CALL[call]
    node.dribbling.add(command)
    started = time.monotonic()
    with pytest.raises(BlobUnavailable):
        act(kubo)
    assert time.monotonic() - started < 2.5


def test_a_collection_that_goes_on_for_ever_is_given_up(node: FakeKubo, kubo: KuboBlobs,
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    node.answers["repo/gc"] = (200, "application/json", b'{"Key":{"/":"x"}}\n' * 20)
    monkeypatch.setattr(ipfs, "_GC_TIMEOUT_S", -1.0)
    monkeypatch.setattr(ipfs, "_limit", lambda _: {"timeout": (1.0, 1.0), "opts": {}})
    with pytest.raises(BlobUnavailable, match="in time"):
        kubo.collect_garbage()


def test_a_block_that_cannot_be_removed_stops_the_collection(node: FakeKubo, kubo: KuboBlobs) -> None:
    node.answers["repo/gc"] = (200, "application/json", b'{"Key":{"/":"x"}}\n{"Error":"unlink: denied"}\n')
    with pytest.raises(BlobUnavailable):
        kubo.collect_garbage()


@each_call
def test_a_closed_connection_is_unavailable_and_the_next_call_works(
        node: FakeKubo, kubo: KuboBlobs, command: str, call: Callable[[KuboBlobs], object]) -> None:
    node.dropping.add(command)
    with pytest.raises(BlobUnavailable):
        call(kubo)
    node.dropping.clear()
    _push(kubo, 1)
    assert len(list(kubo.pins())) == 1


LIES = {
    "an empty answer": (200, "application/json", b""),
    "no JSON": (200, "application/json", b"<html>a proxy's login</html>"),
    "two items": (200, "application/json", b'{"Pins":[]}\n{"Pins":[]}\n'),
    "another shape": (200, "application/json", b'{"Unexpected":true}'),
    "a list": (200, "application/json", b"[1,2]"),
    "null": (200, "application/json", b"null"),
    "a number for an object": (200, "application/json", b'{"Root":3,"Stats":4,"Keys":5,"Key":6,"Error":7}'),
    "an error": (500, "application/json", b'{"Message":"boom","Code":0,"Type":"error"}'),
    "an error of another shape": (500, "text/plain", b"boom"),
    "a refusal": (403, "text/plain", b"403 - Forbidden\n"),
    "an error after a line": (200, "application/json", b'{"Type":"error","Message":"late"}'),
    "half a JSON line": (200, "application/json", b'{"Pins": ["ba'),
    "bytes that are not UTF-8": (200, "application/json", b"\xff\xfe\x00"),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
@each_call
def test_an_answer_of_another_shape_is_never_success_nor_a_foreign_error(
        node: FakeKubo, kubo: KuboBlobs, command: str, call: Callable[[KuboBlobs], object],
        lie: tuple[int, str, bytes]) -> None:
    node.answers[command] = lie
    quiet = command in {"pin/ls", "repo/gc"}
    try:
        answer = call(kubo)
    except (BlobUnavailable, BlockCorrupt):
        return
    assert quiet
    assert not answer or command == "repo/gc"


def test_a_block_served_without_end_is_cut_off(node: FakeKubo, kubo: KuboBlobs,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ipfs, "LARGEST_BLOCK_BYTES", 1000)
    node.answers["block/get"] = (200, "application/vnd.ipld.raw", bytes(200_000))
    with pytest.raises(BlockCorrupt):
        kubo.get(bytes(32), timeout_s=5)


def test_another_block_than_asked_is_corrupt(node: FakeKubo, kubo: KuboBlobs,
                                             batch: tuple[bytes, list[Block]]) -> None:
    """Invariant 3: a true block in another's place."""
    _, [first, second, _] = batch
    node.blocks[first[0]] = second[1]
    with pytest.raises(BlockCorrupt):
        kubo.get(first[0], timeout_s=5)


def test_damage_the_node_finds_itself_is_corrupt(node: FakeKubo, kubo: KuboBlobs) -> None:
    message = json.dumps({"Message": "block in storage has different hash than requested", "Type": "error"})
    node.answers["block/get"] = (500, "application/json", message.encode())
    with pytest.raises(BlockCorrupt):
        kubo.get(bytes(32), timeout_s=5)


def test_a_manifest_stored_under_another_cid_is_corrupt(node: FakeKubo, kubo: KuboBlobs) -> None:
    node.answers["block/put"] = (200, "application/json", json.dumps({"Key": cid(bytes(32)), "Size": 1}).encode())
    with pytest.raises(BlockCorrupt):
        _push(kubo, 0)


@pytest.mark.parametrize("answer", [
    [{"Stats": {"BlockCount": 3, "BlockBytesCount": 1}}],
    [{"Root": {"Cid": {"/": "ROOT"}, "PinErrorMsg": ""}}],
    [{"Root": {"Cid": {"/": "ROOT"}, "PinErrorMsg": "no"}}, {"Stats": {"BlockCount": 3, "BlockBytesCount": 1}}],
    [{"Root": {"Cid": {"/": "ROOT"}, "PinErrorMsg": ""}}, {"Stats": {"BlockCount": 2, "BlockBytesCount": 1}}],
    [{"Root": {"Cid": {"/": cid(bytes(32))}, "PinErrorMsg": ""}}, {"Stats": {"BlockCount": 3, "BlockBytesCount": 1}}],
], ids=["not pinned", "not counted", "pin failed", "a block short", "another root"])
def test_an_import_counts_only_with_every_block_and_its_root_pinned(
        node: FakeKubo, kubo: KuboBlobs, answer: list[dict[str, object]]) -> None:
    """Kubo answers 200 also when the pin failed: the reason stands in the line of the root."""
    blocks = sealed(2)
    digest, manifest = manifest_of(blocks)
    lines = "\n".join(json.dumps(line) for line in answer).replace("ROOT", cid(digest, "dag-cbor"))
    node.answers["dag/import"] = (200, "application/json", lines.encode())
    with pytest.raises(BlobUnavailable):
        kubo.push(manifest, digest, blocks)


def test_nobody_listening_is_unavailable() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        api = f"http://127.0.0.1:{free.getsockname()[1]}"
    kubo = KuboBlobs(api, allow_remote=False, timeout_s=1)
    for _, call in EVERY_CALL.values():
        with pytest.raises(BlobUnavailable):
            call(kubo)


def test_a_node_that_comes_back_is_used_again(node: FakeKubo, kubo: KuboBlobs,
                                              batch: tuple[bytes, list[Block]]) -> None:
    digest, blocks = batch
    node.lose(blocks[1][0])
    with pytest.raises(BlobUnavailable):
        kubo.get(blocks[1][0], timeout_s=0.3)
    kubo.push(manifest_of(blocks)[1], digest, blocks)
    assert kubo.get(blocks[1][0], timeout_s=5) == blocks[1][1]


@each_call
def test_a_redirect_is_not_followed(node: FakeKubo, kubo: KuboBlobs, command: str,
                                    call: Callable[[KuboBlobs], object]) -> None:
    """Sealed blocks and the power over pins go to the address configured, nowhere else."""
    with FakeKubo() as elsewhere:
        node.redirects[command] = f"{elsewhere.api}/api/v0/{command}"
        with pytest.raises(BlobUnavailable):
            call(kubo)
        assert elsewhere.calls == []


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
def test_a_proxy_of_the_environment_is_not_used(node: FakeKubo, variable: str,
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeKubo() as proxy:
        monkeypatch.setenv(variable, proxy.api)
        kubo = KuboBlobs(node.api, allow_remote=False, timeout_s=5)
        _push(kubo, 2)
        _push(kubo, 0)
        assert proxy.proxied == []


def test_the_other_transport_of_ipfshttpclient_is_refused(node: FakeKubo, monkeypatch: pytest.MonkeyPatch) -> None:
    class ClientSync:
        __module__ = "ipfshttpclient.http_httpx"
    monkeypatch.setattr("ipfshttpclient.http.ClientSync", ClientSync)
    with pytest.raises(Misconfigured):
        KuboBlobs(node.api, allow_remote=False, timeout_s=5)


# Every error of the libraries, as ours

def below(*roots: type[BaseException]) -> list[type[BaseException]]:
    """The classes and all they have below them."""
    found: dict[type[BaseException], None] = {}
    waiting = list(roots)
    while waiting:
        error = waiting.pop()
        if error not in found:
            found[error] = None
            waiting += error.__subclasses__()
    return sorted(found, key=lambda error: f"{error.__module__}.{error.__qualname__}")


LIBRARY_ERRORS = [error for error in below(
    ipfshttpclient.exceptions.Error, requests.exceptions.RequestException, urllib3.exceptions.HTTPError,
    httpx.HTTPError, httpx.InvalidURL, httpx.CookieConflict, httpx.StreamError)
    if error.__module__.split(".")[0] in {"ipfshttpclient", "requests", "urllib3", "httpx"}]


@pytest.mark.parametrize("error", [*LIBRARY_ERRORS, AssertionError, json.JSONDecodeError, UnicodeDecodeError, KeyError,
                                   IndexError, TypeError, AttributeError, OSError, ConnectionResetError, TimeoutError],
                         ids=lambda error: f"{error.__module__}.{error.__name__}")
def test_every_error_of_the_libraries_becomes_one_of_ours(error: type[BaseException]) -> None:
    raised = error.__new__(error)
    raised.args = ("secret of the library",)
    with pytest.raises((BlobUnavailable, BlockCorrupt)) as caught, ipfs._translated("block/get of x"):
        raise raised
    assert caught.value.__cause__ is raised
    assert "secret" not in str(caught.value)


def test_our_own_errors_and_a_cancellation_pass_unchanged() -> None:
    for error in (BlockCorrupt("x"), Misconfigured("x"), GatewayError("x"), KeyboardInterrupt(),
                  asyncio.CancelledError()):
        with pytest.raises(type(error)) as caught, ipfs._translated("x"):
            raise error
        assert caught.value is error
