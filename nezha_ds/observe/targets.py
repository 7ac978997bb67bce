"""A file that tells Prometheus where a node's exporter is, for its file-based service discovery.

Each node keeps RUN-nodeN.json, see kept.py, in a folder that Prometheus watches, on the shared file system of a
cluster, from the opening of the exporter to its end. What a killed attempt left is replaced by the node's next one, and
removed by rank 0 for nodes that the run has no more. Runs of one name in one folder would take each other for such.
"""

import json
import logging
import re
import socket
from ipaddress import ip_address
from pathlib import Path

from nezha_ds.config import Settings
from nezha_ds.observe.kept import KeptFile
from nezha_ds.world import World

ELSEWHERE = ("192.0.2.1", 9)
"""An address on no network (RFC 5737), towards which the kernel would send by the card that leads outside."""

log = logging.getLogger(__name__)


class TargetsSettings(Settings):
    """How Prometheus finds the exporter."""

    targets: Path | None = None
    """Folder for RUN-nodeN.json, which Prometheus reads by file_sd_configs; made if need be."""
    announce: str = ""
    """Name or address under which Prometheus reaches this node, where it is not what the exporter finds: `{host}` in
    it is the node's host name, as in "{host}.cluster.example"."""


def announced(host: str, announce: str = "") -> str:
    """Under which name or address an exporter that is bound to `host` is reached.

    1. What the recipe says; 2. what is bound to; 3. where that is any address, this host name's; 4. where that leads to
    the loopback, as on Debian, the address of the card that leads outside; 5. the host name.
    """
    name = socket.gethostname()
    if announce:
        return announce.replace("{host}", name)
    if host not in ("0.0.0.0", "::", ""):  # noqa: S104 - compared, not bound to
        return host
    return next((address for address in (_resolved(name), _outside()) if address), name)


def target(host: str, port: int, labels: dict[str, str], tls: bool) -> str:
    """The content of a file of targets: https://prometheus.io/docs/prometheus/latest/configuration/configuration/#file_sd_config."""
    scheme = {"__scheme__": "https"} if tls else {}
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return json.dumps([{"targets": [where], "labels": {**labels, **scheme}}], indent=2, ensure_ascii=False) + "\n"


def keep_target(folder: Path, run: str, world: World, content: str) -> KeptFile:
    """The node's file, from now until it is closed; rank 0 removes those of nodes that the run has no more."""
    if world.is_main:
        _remove_beyond(folder, run, world.world_size // world.local_world_size)
    return KeptFile(folder / f"{run}-node{world.node}.json", content.encode)


def _remove_beyond(folder: Path, run: str, nodes: int) -> None:
    name = re.compile(rf"{re.escape(run)}-node(\d+)\.json")
    try:
        for path in folder.iterdir():
            found = name.fullmatch(path.name)
            if found and int(found[1]) >= nodes:
                path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("%s cannot be cleared of nodes that are gone (%s)", folder, error.strerror)


def _resolved(name: str) -> str:
    """The first address of a name that is not the loopback's; nothing where there is none."""
    try:
        found = socket.getaddrinfo(name, None, socket.AF_INET, socket.SOCK_STREAM)
    except OSError:
        return ""
    addresses = (str(address[0]) for *_, address in found)
    return next((address for address in addresses if not ip_address(address).is_loopback), "")


def _outside() -> str:
    """The address of the card by which packets leave; none is sent."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(ELSEWHERE)
            return str(probe.getsockname()[0])
    except OSError:
        return ""
