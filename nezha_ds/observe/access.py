"""Who may read the metrics: TLS, client certificates, bearer tokens, passwords; what is set is asked for.

    certificate, key     TLS 1.2 or newer
    client_ca            mutual TLS: /metrics needs a client certificate that it signed
    token_file           /metrics needs `Authorization: Bearer` with a token of the file …
    users_file           … or `Authorization: Basic` with a user of the file

Secrets come from files, never from the recipe, which a run writes into its folder. The files are read again when they
change. /healthz and /readyz are for everybody: a handshake without a client certificate is taken, as the probes of
Kubernetes have none, and /metrics is then refused.

A right password is remembered as a keyed hash, so that scrypt is paid once. Guesses are checked one at a time, in a
thread without Python's lock, and not more often than one in `GUESS_SECONDS`.
"""

import asyncio
import base64
import binascii
import hmac
import logging
import os
import ssl
import stat
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from ipaddress import ip_address
from pathlib import Path

from nezha_ds.config import Settings
from nezha_ds.errors import ConfigError, LaunchError
from nezha_ds.observe.passwords import DECOY, Hash, read_users
from nezha_ds.observe.request import Reply, Request, say
from nezha_ds.observe.watched import Watched

GUESS_SECONDS = 5.0
"""Least time between two checks of passwords after a wrong one: guesses take a sixth of a core at most."""

log = logging.getLogger(__name__)


class AccessSettings(Settings):
    """Who may read the metrics, and whether others on the network can read along."""

    certificate: Path | None = None
    """PEM file with the certificate, and those between it and the root: serve HTTPS."""
    key: Path | None = None
    """PEM file with the certificate's private key, not encrypted."""
    client_ca: Path | None = None
    """PEM file with the authorities whose clients may read /metrics (mutual TLS)."""
    token_file: Path | None = None
    """File with bearer tokens, one a line: two while one replaces the other."""
    users_file: Path | None = None
    """File with users and hashed passwords, one a line as `nezha-ds hash-password NAME` prints it."""


def check_access(settings: AccessSettings) -> None:
    """ConfigError for settings that contradict each other, LaunchError for a file that is not what it must be."""
    for name, other in (("certificate", "key"), ("key", "certificate"), ("client_ca", "certificate")):
        if getattr(settings, name) and not getattr(settings, other):
            raise ConfigError(f"exporter.{name} is set and exporter.{other} is not; set both, or neither")
    _context(settings)
    _tokens(settings.token_file)
    _users(settings.users_file)


def warn_of_exposure(settings: AccessSettings, host: str) -> None:
    """Say what others could read: metrics that are open to the network, secrets that cross it, files open to all."""
    guarded = bool(settings.token_file or settings.users_file)
    if not is_loopback(host) and not (guarded or settings.client_ca):
        log.warning(
            "anybody who reaches %s can read the metrics; set exporter.token_file, exporter.users_file or "
            "exporter.client_ca, or exporter.host to 127.0.0.1",
            host,
        )
    if not is_loopback(host) and guarded and not settings.certificate:
        log.warning(
            "tokens and passwords cross the network as they are; set exporter.certificate and exporter.key, so that "
            "they are encrypted"
        )
    for name in ("key", "token_file", "users_file"):
        path = getattr(settings, name)
        if path and path.stat().st_mode & stat.S_IROTH:
            log.warning("exporter.%s %s is readable by everybody on this machine; chmod o-r it", name, path)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Access:
    """Tells requests that may read the metrics from those that may not. For one event loop."""

    def __init__(self, settings: AccessSettings) -> None:
        """Reads the files; errors as `check_access`."""
        check_access(settings)
        files = [path for path in (settings.certificate, settings.key, settings.client_ca) if path]
        self._certified = settings.client_ca is not None
        self._context = Watched(files, lambda: _context(settings))
        self._tokens = Watched(_given(settings.token_file), lambda: _tokens(settings.token_file))
        self._users = Watched(_given(settings.users_file), lambda: _users(settings.users_file))
        self._passwords = _Passwords()

    def context(self) -> ssl.SSLContext | None:
        """What the next connection is encrypted with; None for plain HTTP."""
        return self._context.get()

    async def refusal(self, request: Request, certified: bool) -> Reply | None:
        """None for a request that may read the metrics, otherwise what to answer."""
        if self._certified and not certified:
            return say(HTTPStatus.FORBIDDEN, "a client certificate is needed")
        tokens, users = self._tokens.get(), self._users.get()
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if not tokens and not users:
            return None
        if scheme.lower() == "bearer" and _holds(tokens, given.strip().encode("latin-1")):
            return None
        if scheme.lower() == "basic" and users:
            name, password = _name_and_password(given.strip())
            if name and await self._passwords.fits(users, name, password):
                return None
        offers = [*(["Bearer"] if tokens else []), *(['Basic realm="metrics", charset="UTF-8"'] if users else [])]
        return say(HTTPStatus.UNAUTHORIZED, WWW_Authenticate=", ".join(offers))

    def close(self) -> None:
        """End the thread that checks passwords."""
        self._passwords.close()


class _Passwords:
    """Checks passwords slowly, and remembers the right ones."""

    def __init__(self) -> None:
        self._key = os.urandom(32)
        self._right: dict[str, bytes] = {}
        """User -> keyed hash of the last right password, and of the line that it fits."""
        self._one, self._thread = asyncio.Lock(), ThreadPoolExecutor(1, "exporter-passwords")
        self._not_before = 0.0

    async def fits(self, users: dict[str, Hash], name: str, password: bytes) -> bool:
        """Whether it is the user's password. The time tells neither how near it is nor whether the user exists."""
        kept = users.get(name, DECOY)
        proof = hmac.digest(self._key, f"{kept}\n".encode() + password, "sha256")
        if self._known(name, proof):
            return True
        async with self._one:
            if self._known(name, proof):
                return True
            loop = asyncio.get_running_loop()
            await asyncio.sleep(self._not_before - loop.time())
            # Before the check, as whoever guesses may not wait for its end.
            self._not_before = loop.time() + GUESS_SECONDS
            right = await loop.run_in_executor(self._thread, kept.fits, password) and name in users
            if right:
                self._right[name], self._not_before = proof, 0.0
            return right

    def _known(self, name: str, proof: bytes) -> bool:
        return hmac.compare_digest(self._right.get(name, b""), proof)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)


def _context(settings: AccessSettings) -> ssl.SSLContext | None:
    if not settings.certificate or not settings.key:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    for name, path in (("certificate", settings.certificate), ("key", settings.key), ("client_ca", settings.client_ca)):
        if path:
            _read_bytes(name, path)
    try:
        # Without a password of ours, OpenSSL would ask the terminal for one.
        context.load_cert_chain(settings.certificate, settings.key, password=lambda: b"")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise LaunchError(
                f"exporter.key {settings.key} is not the key of exporter.certificate {settings.certificate}; name the "
                "pair that was made together"
            ) from None
        raise LaunchError(
            f"exporter.certificate {settings.certificate} and exporter.key {settings.key} cannot be used "
            f"({error.reason or error}); both must be PEM files, the key without a password"
        ) from None
    if settings.client_ca:
        try:
            context.load_verify_locations(settings.client_ca)
        except ssl.SSLError as error:
            raise LaunchError(
                f"exporter.client_ca {settings.client_ca} holds no certificates ({error.reason or error}); "
                "name a PEM file"
            ) from None
        context.verify_mode = ssl.CERT_OPTIONAL
    return context


def _tokens(path: Path | None) -> tuple[bytes, ...]:
    if not path:
        return ()
    tokens = tuple(filter(None, (line.strip() for line in _read_bytes("token_file", path).splitlines())))
    if not tokens:
        raise LaunchError(
            f"exporter.token_file {path} is empty; write a token into it, as `openssl rand -hex 32` makes"
        )
    return tokens


def _users(path: Path | None) -> dict[str, Hash]:
    return read_users(path) if path else {}


def _read_bytes(name: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise LaunchError(
            f"exporter.{name} {path} cannot be read ({error.strerror}); name a file that every node's user may read"
        ) from None


def _given(path: Path | None) -> list[Path]:
    return [path] if path else []


def _holds(tokens: tuple[bytes, ...], given: bytes) -> bool:
    # All are compared, so that the time does not tell which one is near.
    return sum(hmac.compare_digest(token, given) for token in tokens) > 0


def _name_and_password(given: str) -> tuple[str, bytes]:
    """What `Authorization: Basic` holds; empty where it holds nothing."""
    try:
        name, _, password = base64.b64decode(given, validate=True).partition(b":")
        return name.decode(), password
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return "", b""
