"""`make demo-monitoring`: a run, Prometheus and Alertmanager on one machine, by the rules of docker/prometheus.

The run is the demo's, on two CPU ranks, five to ten minutes. It says where it is by a file of targets, as it would on a
cluster; Prometheus finds it there, and tells Alertmanager what goes wrong. Everything is on the loopback and lies in
build/monitoring. It ends by Ctrl-C: the run saves and stops first. With --once it ends with the run, and tells which
alerts fired.
"""

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import ProxyHandler, build_opener

from rich.console import Console

from nezha_ds.errors import LaunchError, NezhaError

REPOSITORY = Path(__file__).parents[1]
RULES, CONFIG, ROUTES = (
    REPOSITORY / "docker" / name
    for name in ("prometheus/rules.yml", "prometheus/prometheus.yml", "alertmanager/alertmanager.yml")
)
IN_COMPOSE = "alertmanager:9093"
"""Alertmanager's address in the configuration, which is compose.yaml's."""
SERVERS = ("prometheus", "prometheus-alertmanager")
PORTS = (9090, 9093)
QUERIES = (
    'nezha_train_loss{objective="total"}',
    "run:nezha_train_tokens:rate5m",
    "run_phase:nezha_train_phase_seconds:ratio_rate10m",
    "nezha_rank_relative_performance_ratio",
    'ALERTS{alertstate="firing"}',
)
EXAMPLES = """examples:
  make demo-monitoring
  python launch/demo_monitoring.py --once                       until the run is done; 1 if an alert fired
  python launch/demo_monitoring.py --set train.steps=50         a shorter run
  python launch/demo_monitoring.py --recipe my.toml --deepspeed_config my.json --ranks 4
"""

console = Console(soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code of the run; with --once 1 if it is done and alerts fired. 2 with one line for what is missing."""
    given = _parser().parse_args(arguments)
    # As Ctrl-C, so that everything is taken down.
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with ExitStack() as running:
            return _watch(given, running)
    except KeyboardInterrupt:
        console.print("ended")
        return 0
    except NezhaError as error:
        console.print(f"[red]{error}")
        return error.exit_code


def _watch(given: argparse.Namespace, running: ExitStack) -> int:
    folder = given.folder.absolute()
    programs = [_program(name) for name in SERVERS]
    ports = [_free(port) for port in PORTS]
    targets = _configure(folder, ports[1])
    prometheus, alertmanager = (f"http://127.0.0.1:{port}" for port in ports)
    running.enter_context(_server(folder, _alertmanager(programs[1], folder, ports[1]), f"{alertmanager}/-/ready"))
    running.enter_context(_server(folder, _prometheus(programs[0], folder, ports[0]), f"{prometheus}/-/ready"))
    run = folder / "run"
    console.print(_where_to_look(prometheus, alertmanager, run))
    code = running.enter_context(_training(given, run, targets)).wait()
    fired = _fired(prometheus)
    console.print(f"the run ended with exit code {code}; alerts that fired: {', '.join(fired) or 'none'}")
    if given.once:
        return code or int(bool(fired))
    console.print("Prometheus and Alertmanager stay until Ctrl-C")
    while True:
        time.sleep(3600)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="demo_monitoring.py",
        description="A training run, Prometheus and Alertmanager on this machine, until Ctrl-C.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--folder", type=Path, default=Path("build/monitoring"), help="of run, configuration and data (%(default)s)"
    )
    parser.add_argument("--once", action="store_true", help="end with the run")
    parser.add_argument("--ranks", type=int, default=2, help="of the run (%(default)s)")
    parser.add_argument("--recipe", default="launch/recipes/demo.toml", help="of the run (%(default)s)")
    parser.add_argument("--deepspeed_config", default="ds_configs/demo.json", help="of the run (%(default)s)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the recipe; repeatable")
    return parser


def _program(name: str) -> str:
    """Debian's name, or upstream's; LaunchError where there is neither."""
    found = shutil.which(name) or shutil.which(name.removeprefix("prometheus-"))
    if not found:
        raise LaunchError(
            f"{name} is not on PATH; `apt-get install prometheus prometheus-alertmanager`, or use docker/compose.yaml, "
            "which brings its own"
        )
    return found


def _free(port: int) -> int:
    """The port, or any where that is taken."""
    for wanted in (port, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", wanted))
            except OSError:
                continue
            return probe.getsockname()[1]
    raise LaunchError("no port of 127.0.0.1 is free; end what listens there")


def _configure(folder: Path, alertmanager: int) -> Path:
    """Write what Prometheus reads, the shipped files with another Alertmanager; the folder for targets."""
    # What an earlier demo left is of no use: its run is done, and its alerts are not this one's.
    for name in ("run", "targets", "prometheus", "alertmanager"):
        shutil.rmtree(folder / name, ignore_errors=True)
    targets = folder / "targets"
    targets.mkdir(parents=True)
    (folder / "prometheus.yml").write_text(CONFIG.read_text().replace(IN_COMPOSE, f"127.0.0.1:{alertmanager}"))
    shutil.copy(RULES, folder)
    return targets


def _prometheus(program: str, folder: Path, port: int) -> list[str]:
    url = f"--web.external-url=http://127.0.0.1:{port}"
    own = [f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'prometheus'}", url]
    return [program, *own, f"--web.listen-address=127.0.0.1:{port}"]


def _alertmanager(program: str, folder: Path, port: int) -> list[str]:
    own = [f"--config.file={ROUTES}", f"--storage.path={folder / 'alertmanager'}", "--cluster.listen-address="]
    return [program, *own, f"--web.listen-address=127.0.0.1:{port}"]


@contextmanager
def _server(folder: Path, command: list[str], ready: str) -> Iterator[None]:
    """A server, up; ended afterwards. LaunchError when it does not come up."""
    log = folder / f"{Path(command[0]).name}.log"
    with log.open("wb") as output, _child(command, output) as process:
        while not _answers(ready):
            if process.poll() is not None:
                raise LaunchError(f"{command[0]} ended with exit code {process.returncode}; {log} says why")
            time.sleep(0.1)
        yield


@contextmanager
def _training(given: argparse.Namespace, run: Path, targets: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """The run, begun; stopped afterwards, which saves it."""
    settings = [f"run.folder={run}", f"exporter.targets={targets}", *given.set]
    command = [
        *(sys.executable, "-m", "nezha_ds.cli", "launch", "--ranks", str(given.ranks), "--"),
        *("--recipe", given.recipe, "--deepspeed_config", given.deepspeed_config),
        *(part for setting in settings for part in ("--set", setting)),
    ]
    with _child(command) as process:
        yield process


@contextmanager
def _child(command: list[str], output: Any = None) -> Iterator["subprocess.Popen[bytes]"]:
    """A process that hears of Ctrl-C from us alone: it is told to end when the block does, and waited for."""
    # ninja, which compiles DeepSpeed's communication at first use, lies beside this Python.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    process = subprocess.Popen(
        command,
        env=os.environ | {"PATH": path},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        process_group=0,
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def _answers(url: str) -> bool:
    try:
        with _opener.open(url, timeout=10):
            return True
    except (URLError, ConnectionError, TimeoutError):
        return False


def _fired(prometheus: str) -> list[str]:
    """Names of the alerts that have fired in the last day."""
    query = urlencode({"query": 'count by (alertname) (last_over_time(ALERTS{alertstate="firing"}[1d]))'})
    with _opener.open(f"{prometheus}/api/v1/query?{query}", timeout=60) as answer:
        found = json.load(answer)["data"]["result"]
    return sorted(one["metric"]["alertname"] for one in found)


# Whatever proxy the environment names is not for the loopback.
_opener = build_opener(ProxyHandler({}))


def _where_to_look(prometheus: str, alertmanager: str, run: Path) -> str:
    queries = "\n".join(f"  {prometheus}/graph?{urlencode({'g0.expr': query, 'g0.tab': '0'})}" for query in QUERIES)
    return (
        f"Prometheus    {prometheus}/targets   what is scraped: the run, once it has begun\n"
        f"              {prometheus}/alerts    what is wrong; docs/runbook.md has a heading for each\n"
        f"Alertmanager  {alertmanager}           who would hear of it\n"
        f"In a terminal nezha-ds watch {os.path.relpath(run)}\n"
        f"Queries\n{queries}\n"
        "Ctrl-C ends all of it; the run saves first."
    )


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
