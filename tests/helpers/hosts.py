"""Two hosts on one machine: network namespaces with a cable between them, each with a host name, a hosts file and
further cards of its own. As root; Debian: `apt-get install iproute2`.

    with two_hosts(tmp_path) as (left, right):
        left.popen("python", "rank.py", env=...)

`left` is 10.77.0.1 and `right` 10.77.0.2 on `front0`. To each, its own name leads to its second card, `back0` with
10.78.0.1 and 10.79.0.1, which no cable joins: the wrong first card.
"""

import os
import secrets
import shutil
import subprocess
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.helpers.ranks import REPOSITORY

FRONT, BACK = ("10.77.0.1", "10.77.0.2"), ("10.78.0.1", "10.79.0.1")
# Private mounts for the process alone: its own hosts file, and what `mounts` says.
_ENTER = 'hostname "$1"; mount --bind "$2" /etc/hosts; eval "$3"; shift 3; exec "$@"'


@dataclass(frozen=True)
class Host:
    """One of them."""

    name: str
    namespace: str
    hosts: Path
    """Its hosts file."""

    def popen(self, *command: str, env: Mapping[str, str], mounts: str = "true") -> "subprocess.Popen[str]":
        """Start a program there; `mounts` is a command of the shell before it, whose mounts it alone sees."""
        enter = ["ip", "netns", "exec", self.namespace, "unshare", "--mount", "--uts", "sh", "-c", _ENTER, "sh"]
        return subprocess.Popen(
            [*enter, self.name, str(self.hosts), mounts, *command],
            env=dict(env),
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


@contextmanager
def two_hosts(folder: Path) -> Generator[tuple[Host, Host]]:
    """Two hosts for as long as it lasts. The test is skipped, which fails in CI, without root or iproute2."""
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("needs root and Debian's iproute2")
    key = secrets.token_hex(3)
    names = ("left", "right")
    hosts = [Host(name, f"nezha-{key}-{name}", folder / f"hosts-{name}") for name in names]
    try:
        for host in hosts:
            _ip("netns", "add", host.namespace)
        _ip("link", "add", f"f{key}", "netns", hosts[0].namespace, "type", "veth", "peer", f"f{key}", "netns",
            hosts[1].namespace)  # fmt: skip
        for host, front, back in zip(hosts, FRONT, BACK, strict=True):
            host.hosts.write_text(f"127.0.0.1 localhost\n{back} {host.name}\n")
            inside = ("-n", host.namespace)
            _ip(*inside, "link", "set", f"f{key}", "name", "front0")
            _ip(*inside, "link", "add", "back0", "type", "veth", "peer", "back1")
            for card, address in (("front0", front), ("back0", back)):
                _ip(*inside, "address", "add", f"{address}/24", "dev", card)
            for card in ("front0", "back0", "back1", "lo"):
                _ip(*inside, "link", "set", card, "up")
        yield hosts[0], hosts[1]
    finally:
        for host in hosts:
            subprocess.run(["ip", "netns", "del", host.namespace], capture_output=True, check=False)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
