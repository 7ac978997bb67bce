"""A real S3 store for tests: SeaweedFS (its binary comes from PyPI) on free ports of this machine, with keys."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pyarrow import fs

from tests.helpers.ranks import free_port

WEED = Path(sys.executable).with_name("weed")
KEY, SECRET, STRANGER = "reader", "secret", "stranger"
"""The access key that may do everything, the secret of every key, and a key that may read nothing here."""


@dataclass(frozen=True)
class Store:
    """A running store."""

    port: int

    @property
    def environment(self) -> dict[str, str]:
        """What AWS tools need to know of it."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            # Without it a client that finds no keys asks the cloud for them, which takes seconds.
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def system(self) -> fs.S3FileSystem:
        """A client with every right."""
        return fs.S3FileSystem(
            access_key=KEY,
            secret_key=SECRET,
            region="us-east-1",
            scheme="http",
            endpoint_override=f"127.0.0.1:{self.port}",
            allow_bucket_creation=True,
            connect_timeout=60,
            request_timeout=600,
        )

    def put(self, name: str, data: bytes) -> None:
        """Write the object `bucket/key`; the bucket is made if need be."""
        system = self.system()
        system.create_dir(name.split("/")[0])
        with system.open_output_stream(name, compression=None) as stream:
            stream.write(data)

    def upload(self, folder: Path, name: str) -> str:
        """Copy a folder to `bucket/prefix` as `aws s3 sync` does; its URI."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.put(f"{name}/{path.relative_to(folder)}", path.read_bytes())
        return f"s3://{name}"

    def remove(self, name: str) -> None:
        """Delete one object."""
        self.system().delete_file(name)


@contextmanager
def serve(folder: Path) -> Iterator[Store]:
    """A store that keeps its data in a folder, until the block ends; then the data are gone too."""
    folder.mkdir(parents=True)
    (folder / "keys.json").write_text(json.dumps({"identities": [_identity(KEY, "Admin"), _identity(STRANGER)]}))
    store = Store(free_port())
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(_command(folder, store), stdout=log, stderr=subprocess.STDOUT)
    try:
        _wait_for(store, process, folder / "log")
        yield store
    finally:
        # An orderly end takes it 25 seconds.
        process.send_signal(signal.SIGKILL)
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _identity(key: str, *actions: str) -> dict[str, object]:
    return {"name": key, "credentials": [{"accessKey": key, "secretKey": SECRET}], "actions": list(actions)}


def _command(folder: Path, store: Store) -> list[str]:
    ports = {
        f"{part}.port{kind}": free_port() for part in ("master", "volume", "filer", "s3") for kind in ("", ".grpc")
    }
    options = {
        **ports,
        "dir": folder,
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "master.telemetry": "false",
        "master.electionTimeout": "1s",
        "master.volumeSizeLimitMB": 64,
        "volume.max": 500,
        "filer.localSocket": folder / "socket",
        "s3.port": store.port,
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,  # 9101 otherwise, so that two stores cannot run at once
        "s3.config": folder / "keys.json",
    }
    # If the tests are killed, so is the store.
    return [
        *("setpriv", "--pdeathsig", "KILL", str(WEED), "-logtostderr=true", "server", "-s3"),
        *(f"-{name}={value}" for name, value in options.items()),
    ]


def _wait_for(store: Store, process: subprocess.Popen[bytes], log: Path) -> None:
    ends = time.monotonic() + 600
    while True:
        with suppress(OSError):
            store.put("ready/ready", os.urandom(8))
            return
        assert process.poll() is None and time.monotonic() < ends, log.read_text()[-3000:]
        time.sleep(0.1)
