"""Settings: the environment, read once, as one frozen object.

Every setting is read from ``EKOYKA_<NAME>``; only the database's address is ``DATABASE_URL``, the name
that hosting services give it. Units are part of the names: ``_s`` seconds, ``_bytes`` bytes.
"""

from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AliasChoices, Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict


class Mode(StrEnum):
    """What a missing secret means: ``demo`` generates and keeps one, ``production`` refuses to start."""

    PRODUCTION = "production"
    DEMO = "demo"


class LogFormat(StrEnum):
    """``json`` for machines, ``console`` for a person at a terminal."""

    JSON = "json"
    CONSOLE = "console"


# Where a provider may be tried out without TLS.
_THIS_MACHINE = {("http", "127.0.0.1"), ("http", "localhost"), ("http", "::1")}


class ProxyHeader(StrEnum):
    """Where proxies say whom a request came from; another field than theirs is anybody's to write."""

    X_FORWARDED_FOR = "x-forwarded-for"
    FORWARDED = "forwarded"


Network = IPv4Network | IPv6Network
_Networks = Annotated[tuple[Network, ...], NoDecode]


class Settings(BaseSettings):
    """Everything that a deployment may change."""

    model_config = SettingsConfigDict(
        env_prefix="EKOYKA_", frozen=True, extra="ignore", hide_input_in_errors=True
    )

    mode: Mode = Field(Mode.PRODUCTION, description="production, or demo (generates what is missing).")
    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=1, le=65535, description="TCP port to listen on.")
    public_url: str | None = Field(
        None, description="Address under which clients reach the server; in certificates and links."
    )
    trusted_proxies: _Networks = Field(
        (),
        description="Addresses or networks of the proxies in front, comma-separated: what they say of where a request "
        "comes from is believed.",
    )
    proxy_header: ProxyHeader = Field(
        ProxyHeader.X_FORWARDED_FOR,
        description="The field in which they say so: x-forwarded-for, or forwarded (RFC 7239).",
    )
    metrics_token: SecretStr | None = Field(
        None,
        min_length=32,
        description="Bearer token for `/metrics` and the details of `/readyz`, at least 32 characters; with one, "
        "nothing else opens them.",
    )
    metrics_networks: _Networks = Field(
        (IPv4Network("127.0.0.0/8"), IPv6Network("::1/128")),
        description="Networks that see them without a token, comma-separated.",
    )
    workers: int = Field(1, ge=1, le=64, description="Server processes.")
    data_dir: Path = Field(
        Path(".data"), description="Folder of the embedded PostgreSQL and of generated secrets."
    )
    database_url: SecretStr | None = Field(
        None,
        validation_alias=AliasChoices("DATABASE_URL", "database_url"),
        description="postgresql://… of PostgreSQL 16 or newer; without it the embedded one is started.",
    )
    read_pool_size: int = Field(10, ge=1, le=500, description="Connections for reading, per process.")
    write_pool_size: int = Field(10, ge=1, le=500, description="Connections for changes, per process.")
    pool_timeout_s: float = Field(5.0, gt=0, description="Longest wait for a free connection.")
    connect_timeout_s: float = Field(
        3.0, gt=0, description="Longest wait for the database to answer a connect."
    )
    statement_timeout_s: float = Field(10.0, gt=0, description="Longest run of one SQL statement.")
    operation_timeout_s: float = Field(15.0, gt=0, description="Longest run of one operation.")
    token_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (),
        description="Signing keys of tokens and download links, at least 32 bytes each, comma-separated; "
        "the first signs, all verify.",
    )
    token_issuer: str = Field("ekoyka", description="The issuer that access tokens name.")
    access_token_ttl_s: int = Field(600, ge=30, le=3600, description="Life of an access token.")
    refresh_token_ttl_s: int = Field(30 * 86400, ge=60, description="Life of a refresh token.")
    registration_open: bool = Field(
        True,
        description="Anybody may register; where not, administrators make accounts and nobody else learns who has one.",
    )
    sessions_keep_address: bool = Field(
        False, description="A session is renewed from the network address of its last use alone."
    )
    oidc_issuer: str | None = Field(
        None, description="https://… of an OpenID Connect provider with which people may sign in."
    )
    oidc_client_id: str | None = Field(
        None,
        validate_default=True,
        description="This server's name there; its callback is /auth/oidc/callback.",
    )
    oidc_client_secret: SecretStr | None = Field(
        None, description="Its secret there; none for a public client."
    )
    oidc_scopes: str = Field("openid email profile", description="What the provider is asked to tell.")
    oidc_links_accounts: bool = Field(
        False,
        description="At the first sign-in a verified e-mail address makes somebody the account that has it; its "
        "password ends.",
    )
    oidc_creates_accounts: bool = Field(
        False, description="At the first sign-in somebody with a verified e-mail address gets an account."
    )
    oidc_timeout_s: float = Field(5.0, gt=0, description="Longest wait for the provider.")
    cost_per_minute: int = Field(
        500_000,
        ge=0,
        le=10_000_000,
        description="Cost of expensive operations that one account may ask for in a minute; an address ten times, all "
        "together two hundred times as much; 0: no limit.",
    )
    download_ttl_s: int = Field(300, ge=10, le=3600, description="Life of a certificate's download address.")
    password_hash_rounds: int = Field(12, ge=4, le=16, description="bcrypt cost (2 to the power of it).")
    render_timeout_s: float = Field(5.0, gt=0, description="Longest rendering of one certificate.")
    feed_retention_s: int = Field(
        7 * 86400, ge=60, description="How long a feed's events can be asked again."
    )
    lapse_interval_s: float = Field(1.0, gt=0, description="Pause between looks for lapsed reservations.")
    appointments_per_patient: int = Field(
        5, ge=1, le=1000, description="How many appointments ahead one patient may have."
    )
    cancel_before_s: int = Field(
        7200, ge=0, description="Until so long before a visit patients cancel or move it themselves."
    )
    hold_s: int = Field(
        300, ge=10, le=3600, description="How long a slot is held for somebody who fills in a form."
    )
    offer_s: int = Field(
        3600,
        ge=10,
        le=7 * 86400,
        description="How long a freed slot is offered to one who waits, before the next.",
    )
    worker_inside: bool = Field(
        True, description="`ekoyka serve` does the work of `ekoyka worker`, too: for a small installation."
    )
    subscriptions_per_socket: int = Field(20, ge=1, description="Operations under way on one WebSocket.")
    sockets_per_account: int = Field(50, ge=1, description="WebSockets of one account, in all processes.")
    sockets_per_address: int = Field(
        2000, ge=1, description="WebSockets from one network address, in all processes."
    )
    feed_buffer_bytes: int = Field(
        1 << 20, ge=1 << 16, description="How much a subscriber may leave unread before it is dropped."
    )
    trusted_documents_only: bool = Field(
        False,
        description="Only documents registered by `ekoyka documents` are answered; then the explorer is not.",
    )
    log_format: LogFormat = Field(LogFormat.JSON, description="json, or console.")
    log_level: str = Field("INFO", description="DEBUG, INFO, WARNING or ERROR.")

    @field_validator("trusted_proxies", "metrics_networks", mode="before")
    @classmethod
    def _split_networks(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        try:
            return tuple(ip_network(part.strip()) for part in value.split(",") if part.strip())
        except ValueError as error:
            raise ValueError(f"addresses or networks such as 192.0.2.7, 10.0.0.0/8: {error}") from None

    @field_validator("token_keys", mode="before")
    @classmethod
    def _split_keys(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(SecretStr(part.strip()) for part in value.split(",") if part.strip())
        return value

    @field_validator("token_keys")
    @classmethod
    def _long_enough(cls, keys: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        if any(len(key.get_secret_value().encode()) < 32 for key in keys):
            raise ValueError("each key of EKOYKA_TOKEN_KEYS needs at least 32 bytes")
        return keys

    @field_validator("public_url")
    @classmethod
    def _an_address(cls, url: str | None) -> str | None:
        parts = urlsplit(url or "https://none")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("the public address must begin with https:// (or http://) and name a host")
        return url

    @field_validator("oidc_issuer")
    @classmethod
    def _over_tls(cls, issuer: str | None) -> str | None:
        parts = urlsplit(issuer or "https://none")
        if parts.scheme != "https" and (parts.scheme, parts.hostname) not in _THIS_MACHINE:
            raise ValueError("the issuer must begin with https://")
        return issuer

    @field_validator("oidc_client_id")
    @classmethod
    def _with_issuer(cls, client_id: str | None, info: ValidationInfo) -> str | None:
        if info.data.get("oidc_issuer") and not client_id:
            raise ValueError("the provider of EKOYKA_OIDC_ISSUER knows this server by a client id")
        return client_id

    @field_validator("database_url")
    @classmethod
    def _postgresql(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None and urlsplit(url.get_secret_value()).scheme not in ("postgresql", "postgres"):
            raise ValueError("DATABASE_URL must begin with postgresql://")
        return url

    @property
    def base_url(self) -> str:
        """The address that clients use, without a slash at its end."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return (self.public_url or f"http://{host}:{self.port}").rstrip("/")
