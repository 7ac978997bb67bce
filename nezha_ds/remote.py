"""Files behind a URI: s3://, gs://, hdfs://, abfss:// and whatever else Arrow's file systems open.

    list_files("s3://bucket/corpus")             every file below it, in the order of their names
    open_file("s3://bucket/corpus/a.jsonl.gz")   a binary file to read and to seek in, 8 MB a request
    read_bytes("s3://bucket/prepared/manifest.json")
    upload(Path("manifest.json"), "s3://bucket/prepared/manifest.json")

Endpoint, region and credentials are what AWS tools take: AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, ~/.aws, the role of the machine; or parameters of the URI, such as
s3://bucket/x?endpoint_override=host:9000&scheme=http&region=eu-north-1. A request that fails for a reason that may pass
is made again, up to TRIES times and about half a minute in all; then it is a DataError. A file that is not there or may
not be read is one at once. Arrow's threads do not survive a fork: a worker that was forked must open its own files.
"""

import io
import logging
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit, urlunsplit

import pyarrow as pa
from pyarrow import fs

from nezha_ds.config import nearest
from nezha_ds.errors import DataError
from nezha_ds.world import variable

TRIES = 7
"""How often a request is made before its failure is final."""
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
"""Seconds between the first two tries, doubled from try to try, and the limit of that."""
CONNECT_SECONDS, STALL_SECONDS = 5.0, 20.0
"""How long one request waits for a connection, and for the next byte."""
BLOCK = 8 << 20
"""Bytes of one request: fewer cost a round trip each (20 to 100 ms), more cost memory."""

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
# Everything that may stand in a URI but "#", which begins nothing here and may be part of an object's name.
_URI_CHARACTERS = "%:/?[]@!$&'()*+,;=~"
_S3_PARAMETERS = {"endpoint_override", "scheme", "region", "tls_ca_file_path"}
_DENIED = ("ACCESS_DENIED", "SIGNATURE_DOES_NOT_MATCH", "INVALID_ACCESS_KEY_ID", "PERMISSION_DENIED", "UNAUTHENTICATED")
_UNREACHABLE = ("NETWORK_CONNECTION", "UNAVAILABLE", "Could not connect", "Could not resolve")

_log = logging.getLogger(__name__)
T = TypeVar("T")
OnRetry = Callable[[], None]
"""Called before a request is made again."""


class NotThereError(DataError):
    """The store answers, and has nothing of that name."""


@dataclass(frozen=True)
class RemoteFile:
    """One file of a listing."""

    uri: str
    size: int
    """Bytes."""
    modified: datetime | None
    """When it was written, in UTC; None where the store does not tell."""


def is_remote(location: str) -> bool:
    """Whether it is a URI rather than a path."""
    return _SCHEME.match(location) is not None


def shown(uri: str) -> str:
    """The URI as messages name it: without its parameters, and without keys that somebody put into it."""
    parts = urlsplit(_encoded(uri))
    return unquote(urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="")))


def child(uri: str, name: str) -> str:
    """The URI of what is called `name` (which may hold slashes) below the folder `uri`."""
    parts = urlsplit(_encoded(uri))
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{quote(name)}"))


def list_files(uri: str) -> list[RemoteFile]:
    """All files below a folder, by name; the file itself when `uri` is one. DataError when nothing is there."""

    def listed() -> list[RemoteFile]:
        system, path = _open_system(_encoded(uri))
        root = system.get_file_info(path)
        if root.type == fs.FileType.File:
            return [RemoteFile(_encoded(uri), root.size, root.mtime)]
        below = system.get_file_info(fs.FileSelector(path, recursive=True))
        # Objects of 0 bytes whose names end with a slash are how some tools keep empty folders.
        files = [info for info in below if info.type == fs.FileType.File and not info.path.endswith("/")]
        start = len(path.rstrip("/")) + 1
        return [RemoteFile(child(uri, info.path[start:]), info.size, info.mtime) for info in files]

    found = retried(uri, listed)
    if not found:
        raise NotThereError(f"{shown(uri)} holds no files; check the bucket and the path")
    return sorted(found, key=lambda file: file.uri)


def read_bytes(uri: str) -> bytes:
    """The whole file; DataError when it cannot be had."""
    with open_file(uri) as file:
        return file.read()


def open_file(uri: str, on_retry: OnRetry | None = None) -> BinaryIO:
    """The file to read from and to seek in. DataError, here or while reading, when it cannot be had."""
    file = retried(uri, lambda: _open_input(uri), on_retry)
    return io.BufferedReader(_Reader(uri, file, on_retry), BLOCK)


def upload(path: Path, uri: str) -> None:
    """Copy a local file there, whatever was there before; DataError when that cannot be done.

    A reader may see a part of it while it comes or when it broke off: what vouches for it is to be uploaded after it.
    """

    def copy() -> None:
        system, target = _open_system(_encoded(uri))
        with path.open("rb") as source, system.open_output_stream(target, compression=None) as sink:
            while block := source.read(BLOCK):
                sink.write(block)

    retried(uri, copy, doing="written")


def retried(uri: str, action: Callable[[], T], on_retry: OnRetry | None = None, doing: str = "read") -> T:
    """What `action` returns, tried again after failures that may pass, the waits growing and never quite the same.

    DataError names the URI, the reason, the cure and the tries; `doing` is what it says cannot be done.
    """
    for attempt in range(1, TRIES + 1):
        try:
            return action()
        except (OSError, ValueError, NotImplementedError, pa.ArrowException) as error:
            if attempt == TRIES or _is_final(error):
                raise _explain(uri, error, attempt, doing) from None
            # Ranks that failed together must not come back together.
            wait = min(LONGEST_WAIT, FIRST_WAIT * 2 ** (attempt - 1)) * (0.5 + secrets.randbelow(1000) / 2000)
            reason = _reason(error)
            _log.warning("%s: %s; try %d of %d in %.1f s", shown(uri), reason, attempt + 1, TRIES, wait)
            if on_retry:
                on_retry()
            time.sleep(wait)
    raise AssertionError


class _Reader(io.RawIOBase):
    """A remote file as Python's buffered readers take it: each read is one request, and one that fails is repeated."""

    def __init__(self, uri: str, file: Any, on_retry: OnRetry | None) -> None:
        self._uri, self._file, self._on_retry = uri, file, on_retry
        self._at, self._size = 0, int(file.size())

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        data = self._read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:
        return self._read(self._size - self._at)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()

    def _read(self, count: int) -> bytes:
        count = max(0, min(count, self._size - self._at))
        data = retried(self._uri, lambda: self._whole(count), self._on_retry) if count else b""
        self._at += count
        return data

    def _whole(self, count: int) -> bytes:
        data = self._file.read_at(count, self._at)
        if len(data) != count:
            raise OSError(f"{len(data)} bytes came instead of {count}")
        return data


# ------------------------------------------------------------------------------------------------------- file systems


def _open_input(uri: str) -> Any:
    # One file system a folder: each has its own connections, and finding a bucket's region takes a request.
    parts = urlsplit(_encoded(uri))
    folder, _, name = parts.path.rpartition("/")
    system, path = _open_system(urlunsplit(parts._replace(path=folder or "/")))
    return system.open_input_file(f"{path.rstrip('/')}/{unquote(name)}")


@lru_cache(maxsize=64)
def _open_system(uri: str) -> tuple[Any, str]:
    """The file system and the path in it."""
    parts = urlsplit(uri)
    if parts.scheme != "s3":
        return fs.FileSystem.from_uri(uri)
    return _open_s3(parts), unquote(f"{parts.netloc.rpartition('@')[2]}{parts.path}").rstrip("/")


def _open_s3(parts: SplitResult) -> fs.S3FileSystem:
    """Amazon's store or one that speaks its language. Arrow's own reading of a URI sets no limits of time."""
    options = dict(parse_qsl(parts.query))
    if unknown := set(options) - _S3_PARAMETERS:
        raise ValueError(f"unknown parameter {min(unknown)!r}{nearest(min(unknown), _S3_PARAMETERS)}")
    if not parts.hostname:
        raise ValueError("it names no bucket")
    endpoint = options.pop("endpoint_override", "") or variable("AWS_ENDPOINT_URL_S3") or variable("AWS_ENDPOINT_URL")
    region = options.pop("region", "") or variable("AWS_REGION") or variable("AWS_DEFAULT_REGION")
    if not region and not endpoint:
        region = fs.resolve_s3_region(parts.hostname)
    return fs.S3FileSystem(
        access_key=unquote(parts.username) if parts.username else None,
        secret_key=unquote(parts.password) if parts.password else None,
        endpoint_override=endpoint or None,
        region=region or None,
        connect_timeout=CONNECT_SECONDS,
        request_timeout=STALL_SECONDS,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=1),
        **options,
    )


def _encoded(uri: str) -> str:
    """The URI with spaces, Chinese and lone per cent signs escaped, which people write as they are."""
    return quote(re.sub(r"%(?![0-9A-Fa-f]{2})", "%25", uri), safe=_URI_CHARACTERS)


# ------------------------------------------------------------------------------------------------------------- failures


def _is_final(error: Exception) -> bool:
    """Whether the same request would fail in the same way."""
    # Arrow's errors of a wrong URI are ValueErrors, and those of a missing library name it.
    final = isinstance(error, (FileNotFoundError, PermissionError, IsADirectoryError, ValueError, NotImplementedError))
    return final or any(
        word in str(error) for word in (*_DENIED, "NO_SUCH_BUCKET", "Unable to load", "HTTP status 301")
    )


def _reason(error: Exception) -> str:
    """Arrow's message in one line, without the request's number."""
    return re.sub(r"\s*\(Request ID: [^)]*\)", "", " ".join(str(error).split())).rstrip(". ")


def _explain(uri: str, error: Exception, tries: int, doing: str) -> DataError:
    reason, name = _reason(error), shown(uri)
    if isinstance(error, (FileNotFoundError, IsADirectoryError)) or "NO_SUCH_BUCKET" in reason:
        return NotThereError(
            f"{name} is not there; check the bucket and the path, and AWS_ENDPOINT_URL if the store is not Amazon's"
        )
    if isinstance(error, ValueError):
        return DataError(f"{name} cannot be opened ({reason}); give a URI such as s3://bucket/folder")
    if isinstance(error, PermissionError) or any(word in reason for word in _DENIED):
        return DataError(
            f"{name} may not be {doing} ({reason}); check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY and what the "
            "bucket allows them"
        )
    cure = "try again later"
    if any(word in reason for word in _UNREACHABLE):
        cure = "check AWS_ENDPOINT_URL, its http or https, AWS_REGION and the network"
    return DataError(f"{name} cannot be {doing} after {tries} tries ({reason}); {cure}")
