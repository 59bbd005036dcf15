"""Every setting of the gateway, read once into a frozen value.

Owns names, defaults and parsing; refuses unknown names and values that cannot be read. A setting is an
environment variable ``GATEWAY_*`` or a key of the TOML file named by ``GATEWAY_CONFIG``; the environment
wins. Secrets are never settings: they are files in the keys folder. The table in README.md is checked
against ``SETTINGS`` by tests/house.
"""

from __future__ import annotations

import ipaddress
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gateway.errors import Misconfigured


def _positive(text: str) -> int:
    value = int(text)
    if value <= 0:
        raise ValueError("must be above zero")
    return value


def _flag(text: str) -> bool:
    if text.lower() in {"1", "true", "yes", "on"}:
        return True
    if text.lower() in {"0", "false", "no", "off"}:
        return False
    raise ValueError("must be true or false")


def _natural(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError("must not be negative")
    return value


def _port(text: str) -> int:
    value = int(text)
    if not 1 <= value <= 65_535:
        raise ValueError("must be from 1 to 65535")
    return value


def _port_or_none(text: str) -> int:
    return _port(text) if int(text) else 0


def _urls(text: str) -> tuple[str, ...]:
    for url in text.split():
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
            raise ValueError("each must be an http or https URL without user and query")
    return tuple(text.split())


def _types_or_flag(text: str) -> str:
    """``on``, ``off``, or type names joined by commas."""
    names = re.findall(r"[A-Za-z]+", text)
    if not names or (len(names) > 1 and {"on", "off"} & set(names)):
        raise ValueError("must be on, off or a list of resource types")
    return ",".join(names)


def _types_or_none(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"[A-Za-z]+", text))


def origin_of(url: str) -> str:
    """``scheme://host:port`` of an http or https URL, lower case, addresses in their one form. Raises ValueError."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or not re.fullmatch(r"[\x21-\x7e]+", url):
        raise ValueError("must be an http or https URL with a host")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    host = parts.hostname
    if ":" in host:
        host = f"[{ipaddress.IPv6Address(host).compressed}]"
    elif re.fullmatch(r"[a-z0-9._-]+", host) is None:
        raise ValueError("has a host that is no name")
    return f"{parts.scheme}://{host}:{port}"


def _hosts(text: str) -> tuple[str, ...]:
    """Origins; a bare ``host`` or ``host:port`` is https."""
    return tuple(origin_of(part if "://" in part else f"https://{part}")
                 for part in map(str.strip, text.split(",")) if part)


def _origins(text: str) -> tuple[str, ...]:
    found = tuple(part.strip() for part in text.split(",") if part.strip())
    for origin in found:
        if origin != "*" and re.fullmatch(r"[a-z][a-z0-9+.-]*://[a-z0-9.\-\[\]:]+", origin) is None:
            raise ValueError(f"{origin!r} is not an origin: scheme://host[:port], in lower case, without a path")
    return found


def _networks(text: str) -> tuple[Network, ...]:
    return tuple(ipaddress.ip_network(part.strip()) for part in text.split(",") if part.strip())


def _paths(text: str) -> tuple[Path, ...]:
    return tuple(Path(part.strip()) for part in text.split(",") if part.strip())


def _profiles(text: str) -> tuple[tuple[str, str], ...]:
    found = []
    for part in text.split(","):
        name, _, canonical = part.strip().partition("=")
        if name or canonical:
            if not name or ":" not in canonical:
                raise ValueError("each must be Type=canonical URL of a profile")
            found.append((name, canonical))
    return tuple(found)


Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of the settings table: environment name, default text, parser and meaning."""

    name: str
    default: str
    parse: Callable[[str], Any]
    meaning: str


SETTINGS: tuple[Setting, ...] = (
    Setting("host", "127.0.0.1", str, "address the gateway listens on"),
    Setting("port", "8080", _port, "port the gateway listens on"),
    Setting("data_dir", "./data", Path, "folder of everything the gateway keeps"),
    Setting("keys_dir", "", str, "folder of the root key and the key store; `<data_dir>/keys` when empty"),
    Setting("workers", "2", _positive, "web worker processes"),
    Setting("base_url", "", str, "the FHIR base as clients see it; `http://HOST:PORT/fhir` when empty"),
    Setting("hospital_name", "Demonstration Hospital", str, "this hospital, as consent terms name it"),
    Setting("hospital_reference", "Organization/this-hospital", str, "reference of this hospital's Organization"),
    Setting("max_body_bytes", "16777216", _positive, "largest request body"),
    Setting("max_bundle_entries", "20000", _positive, "most entries in one batch or transaction"),
    Setting("max_page", "1000", _positive, "largest `_count`"),
    Setting("update_creates", "true", _flag, "whether a PUT to an unknown id creates it"),
    Setting("conditional_delete", "single", str, "`single`: a conditional delete of several is refused; `multiple`"),
    Setting("reference_integrity", "on", _types_or_flag,
            "`on`, `off`, or the types whose references must lead to what is there"),
    Setting("handling", "strict", str, "`strict` or `lenient` for unknown search parameters without `Prefer`"),
    Setting("text_search", "text", str,
            "what is indexed by its words: `off`, `text` (narratives), `content` (everything)"),
    Setting("cors_origins", "", _origins, "origins whose pages may ask, `https://app.example` by commas; `*` is any"),
    Setting("page_link_ttl_s", "3600", _positive, "how long a page link lives"),
    Setting("job_ttl_s", "86400", _positive, "how long an export, an import or an asynchronous answer is kept"),
    Setting("import_sources", "", _urls, "URLs below which `$import` may read, between spaces; none when empty"),
    Setting("subscription_hosts", "", _hosts,
            "hosts notifications may go to, `host`, `host:port` or `http://host` by commas; none when empty"),
    Setting("token_ttl_s", "300", _positive, "life of a client_credentials token, at most 300"),
    Setting("registration", "queue", str,
            "`queue`: clients may register themselves and wait for `gateway client approve`; `closed`"),
    Setting("chain_rpc", "", str, "JSON-RPC URL of the hospitals' chain; the embedded chain when empty"),
    Setting("chain_id", "0", _natural, "chain id expected of `chain_rpc`; required with it"),
    Setting("chain_port", "0", _port_or_none, "loopback port of the embedded chain; chosen at first start when 0"),
    Setting("chain_contracts", "", str, "JSON file with the addresses of contracts already deployed"),
    Setting("chain_operator_key_file", "", str, "operator's private key; `<keys_dir>/operator.key` when empty"),
    Setting("chain_confirmations", "0", _natural, "blocks on top of one before it counts as final"),
    Setting("chain_max_head_age_s", "900", _positive, "an external chain's head older than this is stalled"),
    Setting("operator_tokens", "true", _flag, "whether `gateway token` mints; say false in production"),
    Setting("batch_interval_s", "5", _positive, "cadence at which a Batch is closed and anchored"),
    Setting("batch_max", "4096", _positive, "most Entries in one Batch"),
    Setting("ipfs_api", "", str, "Kubo RPC multiaddr or URL, loopback or allowed; embedded blocks when empty"),
    Setting("ipfs_allow_remote", "false", _flag, "whether `ipfs_api` may be an address other than loopback"),
    Setting("ipfs_timeout_s", "30", _positive, "time limit of one call to Kubo"),
    Setting("packages", "", _paths, "FHIR packages to take profiles from: `.tgz` files or unpacked folders, by commas"),
    Setting("required_profiles", "", _profiles, "profiles each resource of a type must have: `Type=URL`, by commas"),
    Setting("client_requests_per_s", "2000", _natural, "requests a second of one client, all its users together, but "
            "of this hospital's own feeds; here and below: counted by each worker, ten seconds' worth at once, an "
            "entry of a Bundle as one, 0: no limit"),
    Setting("account_requests_per_s", "200", _natural, "requests a second of one person"),
    Setting("address_requests_per_s", "100", _natural, "requests a second of one address without a token"),
    Setting("address_failures", "300", _natural, "failed sign-ins and token requests of one address within five "
            "minutes, counted by all workers together, before it has to wait; 0: no limit"),
    Setting("trusted_proxies", "", _networks, "addresses or networks whose X-Forwarded-For is believed, by commas"),
    Setting("max_connections", "1000", _positive, "open connections of one worker; more are answered 503"),
    Setting("slow_timeout_s", "10", _positive, "time for a request's head; and the time in which a body's sender and "
            "an answer's reader must move `slow_bytes_per_s` on average, or are cut off"),
    Setting("slow_bytes_per_s", "1024", _positive, "see `slow_timeout_s`"),
    Setting("read_timeout_s", "120", _positive, "longest work for one GET; 503 beyond"),
    Setting("notice_window_s", "900", _positive,
            "refusals of one requester and patient within so long are told as one, and their number when it is over"),
    Setting("notice_webhook", "", str, "URL that is told that there is a notice for the head, never whose; its host is "
            "one of `subscription_hosts`"),
    Setting("verified_types", "", _types_or_none, "types whose records by patients and foreign systems are no data "
            "before the head verified them, by commas; others are marked unverified"),
    Setting("oidc_issuer", "", str, "issuer of the hospital's own identity provider, by which people may sign in"),
    Setting("oidc_client_id", "", str, "this gateway's client id at `oidc_issuer`"),
    Setting("oidc_client_secret_file", "", str, "file with the client secret at `oidc_issuer`; none: PKCE alone"),
    Setting("log_level", "info", str, "`debug`, `info`, `warning` or `error`"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings; see ``SETTINGS`` for meaning and units."""

    host: str
    port: int
    data_dir: Path
    keys_dir: Path
    workers: int
    base_url: str
    hospital_name: str
    hospital_reference: str
    max_body_bytes: int
    max_bundle_entries: int
    max_page: int
    update_creates: bool
    conditional_delete: str
    reference_integrity: str
    handling: str
    text_search: str
    cors_origins: tuple[str, ...]
    page_link_ttl_s: int
    job_ttl_s: int
    import_sources: tuple[str, ...]
    subscription_hosts: tuple[str, ...]
    token_ttl_s: int
    registration: str
    chain_rpc: str
    chain_id: int
    chain_port: int
    chain_contracts: str
    chain_operator_key_file: Path
    chain_confirmations: int
    chain_max_head_age_s: int
    operator_tokens: bool
    batch_interval_s: int
    batch_max: int
    ipfs_api: str
    ipfs_allow_remote: bool
    ipfs_timeout_s: int
    packages: tuple[Path, ...]
    required_profiles: tuple[tuple[str, str], ...]
    client_requests_per_s: int
    account_requests_per_s: int
    address_requests_per_s: int
    address_failures: int
    trusted_proxies: tuple[Network, ...]
    max_connections: int
    slow_timeout_s: int
    slow_bytes_per_s: int
    read_timeout_s: int
    notice_window_s: int
    notice_webhook: str
    verified_types: tuple[str, ...]
    oidc_issuer: str
    oidc_client_id: str
    oidc_client_secret_file: str
    log_level: str

    @property
    def database_path(self) -> Path:
        return self.data_dir / "store" / "gateway.db"

    @property
    def spool_dir(self) -> Path:
        return self.data_dir / "store" / "spool"

    @property
    def root_key_path(self) -> Path:
        return self.keys_dir / "root.key"

    @property
    def key_store_path(self) -> Path:
        return self.keys_dir / "keystore.db"

    @property
    def chain_path(self) -> Path:
        return self.data_dir / "chain"

    @property
    def rpc_path(self) -> Path:
        return self.chain_path / "rpc.json"

    @property
    def deployment_path(self) -> Path:
        return self.chain_path / "deployment.json"

    @property
    def contracts_path(self) -> Path:
        return Path(self.chain_contracts) if self.chain_contracts else self.chain_path / "contracts.json"


def _raw(environment: Mapping[str, str]) -> dict[str, str]:
    names = {setting.name for setting in SETTINGS}
    values: dict[str, str] = {}
    file = environment.get("GATEWAY_CONFIG")
    if file:
        try:
            table = tomllib.loads(Path(file).read_text())
        except (OSError, tomllib.TOMLDecodeError) as error:
            raise Misconfigured(f"GATEWAY_CONFIG={file} cannot be read: {error}") from error
        unknown = sorted(set(table) - names)
        if unknown:
            raise Misconfigured(f"{file} has settings nobody reads: {', '.join(unknown)}")
        values.update({name: ",".join(map(str, value)) if isinstance(value, list) else str(value)
                       for name, value in table.items()})
    for short in ("HOST", "PORT"):
        if environment.get(short):
            values[short.lower()] = environment[short]
    for name, value in environment.items():
        if name.startswith("GATEWAY_") and name != "GATEWAY_CONFIG" and not name.startswith("GATEWAY_TEST_"):
            key = name.removeprefix("GATEWAY_").lower()
            if key not in names:
                raise Misconfigured(f"{name} is not a setting; see the table in gateway/README.md")
            values[key] = value
    return values


def load_settings(environment: Mapping[str, str] | None = None) -> Settings:
    """Read the environment (and the TOML file it names) once. Raises Misconfigured, naming the setting."""
    raw = _raw(os.environ if environment is None else environment)
    values: dict[str, Any] = {}
    for setting in SETTINGS:
        text = raw.get(setting.name, setting.default)
        try:
            values[setting.name] = setting.parse(text)
        except ValueError as error:
            raise Misconfigured(f"GATEWAY_{setting.name.upper()}={text!r}: {error}") from error
    values["data_dir"] = values["data_dir"].resolve()
    values["keys_dir"] = Path(values["keys_dir"]).resolve() if values["keys_dir"] else values["data_dir"] / "keys"
    operator = values["chain_operator_key_file"]
    values["chain_operator_key_file"] = Path(operator) if operator else values["keys_dir"] / "operator.key"
    values["base_url"] = values["base_url"].rstrip("/") or f"http://{values['host']}:{values['port']}/fhir"
    choices = {"handling": {"strict", "lenient"}, "conditional_delete": {"single", "multiple"},
               "text_search": {"off", "text", "content"}, "registration": {"closed", "queue"},
               "log_level": {"debug", "info", "warning", "error"}}
    for name, allowed in choices.items():
        if values[name] not in allowed:
            raise Misconfigured(f"GATEWAY_{name.upper()} must be one of {', '.join(sorted(allowed))}")
    if values["chain_rpc"] and not values["chain_id"]:
        raise Misconfigured("GATEWAY_CHAIN_RPC needs GATEWAY_CHAIN_ID: say which chain it must be")
    if values["token_ttl_s"] > 300:
        raise Misconfigured("GATEWAY_TOKEN_TTL_S: backend service tokens live 300 s at most")
    return Settings(**{field.name: values[field.name] for field in fields(Settings)})
