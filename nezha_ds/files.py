"""Files that exist whole or not at all, whatever happens while they are written."""

import contextlib
import hashlib
import os
import secrets
from pathlib import Path

from nezha_ds.errors import LaunchError


def write_atomically(path: Path, *parts: bytes | memoryview | str, mode: int | None = None) -> None:
    """Write the parts, one after another, under a temporary name beside `path`, sync, rename, sync the folder.

    `mode` are its rights from the first moment on, where they are not the umask's.

    A reader sees the old file, the new one, or none; so does the next start after a power cut. LaunchError when the
    disk is full or the folder cannot be written; then nothing is left behind.
    """
    # Process ids repeat between the containers that share a folder.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("wb") as file:
            for part in parts:
                file.write(part.encode() if isinstance(part, str) else part)
            if mode is not None:
                os.fchmod(file.fileno(), mode)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise unwritable(path, error) from None


def make_folder(path: Path) -> Path:
    """The folder, made with its parents if need be; LaunchError when it cannot be, or is a file."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        raise unwritable(path, error) from None
    return path


def unwritable(path: Path, error: OSError) -> LaunchError:
    """What a failed write means to the user."""
    return LaunchError(f"cannot write {path} ({error.strerror}); free space on its disk, or choose another folder")


def sync_folder(folder: Path) -> None:
    """Make renames and removals in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """The file's SHA-256 in hexadecimal, at about 2 GB/s."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
