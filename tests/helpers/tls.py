"""Certificates by openssl: an authority, and what it signs; keys of elliptic curves, made in milliseconds."""

import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, as PEM files."""

    certificate: Path
    key: Path


def authority(folder: Path, name: str = "authority") -> Pair:
    """One that signs itself."""
    return _make(folder, name, "basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign")


def issue(folder: Path, name: str, signer: Pair) -> Pair:
    """A certificate for 127.0.0.1 and localhost, of a server or a client."""
    by = ("-CA", str(signer.certificate), "-CAkey", str(signer.key))
    return _make(folder, name, "basicConstraints=CA:FALSE", "subjectAltName=IP:127.0.0.1,DNS:localhost", by=by)


def _make(folder: Path, name: str, *extensions: str, by: tuple[str, ...] = ()) -> Pair:
    pair = Pair(folder / f"{name}.pem", folder / f"{name}.key")
    added = [part for extension in extensions for part in ("-addext", extension)]
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    files = ("-keyout", str(pair.key), "-out", str(pair.certificate))
    subprocess.run(
        ["openssl", "req", "-x509", "-days", "30", "-subj", f"/CN={name}", *curve, *files, *by, *added],
        check=True,
        capture_output=True,
    )
    return pair
