"""A real Prometheus and a real Alertmanager on the loopback, for as long as a `with` lasts.

Each has a folder of its own for its configuration, its data and its log, and a free port, so that it meets no other
server. Alertmanager is up in 0.2 s, Prometheus in 5 s where it has one to find. They talk to nobody but the addresses
that they are given, and end with this process at the latest. Debian: `apt-get install prometheus
prometheus-alertmanager`.

    with alertmanager(tmp_path / "alertmanager") as pager, prometheus(
        tmp_path / "prometheus", targets=[folder_of_target_files], rules=[RULES], alertmanagers=[pager]
    ) as server:
        server.query("up")          # [{"metric": {...}, "value": [time, "1"]}]
        pager.alerts()              # [{"labels": {...}, "annotations": {...}, ...}]
"""

import json
import shutil
import subprocess
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import ProxyHandler, build_opener

import pytest

from tests.helpers.processes import wait_for
from tests.helpers.ranks import free_port

PROMETHEUS = "prometheus"
ALERTMANAGER = "prometheus-alertmanager"
"""As Debian calls it; amtool and promtool come with the two."""
JOB = "nezha"
S = TypeVar("S", bound="Server")

# A receiver that tells nobody: what arrived is asked for. Groups are sent at once, not after half a minute.
QUIET = {
    "route": {"receiver": "nobody", "group_by": ["..."], "group_wait": "0s"},
    "receivers": [{"name": "nobody"}],
}

# Whatever proxy the environment names is not for the loopback.
_opener = build_opener(ProxyHandler({}))


@dataclass(frozen=True)
class Server:
    """A running server: where it answers, where its files are, and its process."""

    url: str
    folder: Path
    process: "subprocess.Popen[bytes]"

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return self.url.removeprefix("http://")

    def get(self, path: str, **parameters: str) -> Any:
        """What it answers to a path, parsed; an answer that is no success fails with what it says."""
        url = f"{self.url}{path}?{urlencode(parameters)}"
        try:
            with _opener.open(url, timeout=600) as answer:
                return json.load(answer)
        except HTTPError as error:
            raise AssertionError(f"{url}: {error.code} {error.read().decode(errors='replace')}") from None

    def log(self) -> str:
        """The end of what it has to say."""
        return (self.folder / "log").read_text(errors="replace")[-3000:]


class Prometheus(Server):
    """A running Prometheus. Series, rules, targets and alerts are as its HTTP API tells them."""

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The value of an expression now: `metric`, its labels, and `value`, a time and a number as text, each."""
        return self._data("/api/v1/query", query=expression)["result"]

    def query_range(self, expression: str, start: float, end: float, step: float) -> list[dict[str, Any]]:
        """The values of an expression from a time to another, each so many seconds: `metric` and `values`."""
        span = {"start": str(start), "end": str(end), "step": str(step)}
        return self._data("/api/v1/query_range", query=expression, **span)["result"]

    def number(self, expression: str) -> float | None:
        """The value of an expression with one series; None where there is none."""
        found = self.query(expression)
        assert len(found) <= 1, found
        return float(found[0]["value"][1]) if found else None

    def metrics(self) -> set[str]:
        """The names of all metrics that it has."""
        return set(self._data("/api/v1/label/__name__/values"))

    def rules(self) -> list[dict[str, Any]]:
        """All rules of all groups, with their `health` and their `lastError`."""
        return [rule for group in self._data("/api/v1/rules")["groups"] for rule in group["rules"]]

    def targets(self) -> list[dict[str, Any]]:
        """What it scrapes: `labels`, `scrapeUrl`, `health`, `lastError` each."""
        return self._data("/api/v1/targets", state="active")["activeTargets"]

    def alerts(self) -> list[dict[str, Any]]:
        """Alerts that are pending or firing: `labels`, `annotations`, `state`, `value` each."""
        return self._data("/api/v1/alerts")["alerts"]

    def _data(self, path: str, **parameters: str) -> Any:
        return self.get(path, **parameters)["data"]


class Alertmanager(Server):
    """A running Alertmanager."""

    def alerts(self, **parameters: str) -> list[dict[str, Any]]:
        """Alerts that have reached it and have not ended: `labels`, `annotations`, `status` each."""
        return self.get("/api/v2/alerts", **parameters)


@contextmanager
def prometheus(
    folder: Path,
    *,
    targets: Iterable[str | Path] = (),
    rules: Sequence[Path] = (),
    alertmanagers: Sequence[Alertmanager] = (),
    interval: str = "1s",
    labels: Mapping[str, str] | None = None,
    config: Mapping[str, Any] | None = None,
) -> Generator[Prometheus]:
    """A Prometheus that scrapes some targets as job `nezha` and looks at rules, both each `interval`.

    A target is `HOST:PORT`, with `labels`, or a folder of JSON files for file-based discovery. `config` replaces keys
    of the configuration that follows from all that. The test is skipped, which fails in CI, without Prometheus.
    """
    targets = list(targets)
    fixed = [{"targets": [target for target in targets if isinstance(target, str)], "labels": dict(labels or {})}]
    files = [str(target / "*.json") for target in targets if isinstance(target, Path)]
    discovered = [{"files": files, "refresh_interval": "1s"}] if files else []
    # A target says its run as its series do; without this theirs would be called exported_run.
    job = {"job_name": JOB, "honor_labels": True, "static_configs": fixed, "file_sd_configs": discovered}
    pagers = [{"static_configs": [{"targets": [pager.address for pager in alertmanagers]}]}]
    written = {
        "global": {"scrape_interval": interval, "evaluation_interval": interval, "scrape_timeout": interval},
        "rule_files": [str(path.resolve()) for path in rules],
        "scrape_configs": [job],
        "alerting": {"alertmanagers": pagers},
        **(config or {}),
    }
    port = free_port()
    command = [
        PROMETHEUS,
        f"--config.file={folder / 'config.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        f"--web.external-url=http://127.0.0.1:{port}",
        # An alert that is not sent again for four times as long has ended for Alertmanager.
        "--rules.alert.resend-delay=10s",
    ]
    with _serving(folder, command, written) as process:
        server = _up(Prometheus(f"http://127.0.0.1:{port}", folder, process))
        # It looks for them once in five seconds, and forgets what fires before.
        wait_for(lambda: len(server.get("/api/v1/alertmanagers")["data"]["activeAlertmanagers"]) == len(alertmanagers))
        yield server


@contextmanager
def alertmanager(folder: Path, config: Mapping[str, Any] | None = None) -> Generator[Alertmanager]:
    """An Alertmanager, by default with a receiver that tells nobody. Skipped, which fails in CI, without one."""
    port = free_port()
    command = [
        ALERTMANAGER,
        f"--config.file={folder / 'config.yml'}",
        f"--storage.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--cluster.listen-address=",  # no gossip: it would bind to all addresses
    ]
    with _serving(folder, command, config or QUIET) as process:
        yield _up(Alertmanager(f"http://127.0.0.1:{port}", folder, process))


@contextmanager
def _serving(folder: Path, command: list[str], config: Mapping[str, Any]) -> Generator["subprocess.Popen[bytes]"]:
    """A server with this configuration; YAML reads JSON. It dies with this process, and is killed before that."""
    if not shutil.which(command[0]):
        pytest.skip("needs Debian's prometheus and prometheus-alertmanager")
    folder.mkdir(parents=True)
    (folder / "config.yml").write_text(json.dumps(config, indent=2))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *command], cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _up(server: S) -> S:
    """The server, once it is ready."""

    def ready() -> bool:
        assert server.process.poll() is None, server.log()
        try:
            with _opener.open(f"{server.url}/-/ready", timeout=600):
                return True
        except (URLError, ConnectionError):
            return False

    wait_for(ready)
    return server
