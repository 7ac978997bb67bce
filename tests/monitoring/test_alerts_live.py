"""A real Prometheus and a real Alertmanager watch real runs of two ranks in which things go wrong.

The rules are those of docker/prometheus/rules.yml with all times a sixtieth as long, see rules.py; Alertmanager has the
configuration of docker/alertmanager. One run after the other, each until its alerts have arrived:

    well      nothing goes wrong, and it ends
    nan       a gradient is NaN
    stalled   both ranks stand still in a step; then rank 1 is killed
    slow      rank 1 computes slower than rank 0, and a checkpoint finds no room; then all of it is killed

Nothing here depends on how fast the machine is: of alerts about pace, which a busy machine may raise by right when two
minutes are two seconds, only the expected ones are asked for; of all others, that they stay silent.
"""

import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml

from nezha_ds.errors import Exit
from tests.helpers import faults, ranks, runs
from tests.helpers.processes import wait_for
from tests.helpers.prometheus import Alertmanager, Prometheus, alertmanager, prometheus
from tests.helpers.runs import Run
from tests.monitoring import rules
from tests.train.poison import SCRIPT as POISONED

pytestmark = [pytest.mark.ranks, pytest.mark.usefixtures("warm")]

FACTOR = 60
SLOWED = "tests/train/scripts/slowed_pretrain.py"
NEVER = 10**9
SAVE_EVERY = 20

PACE = {
    *("NezhaExporterDown", "NezhaRunVanished", "NezhaStepStalled", "NezhaRunStalled", "NezhaStartStuck"),
    *("NezhaRanksUnseen", "NezhaNoProgress", "NezhaLossRising", "NezhaGradientNormHigh", "NezhaThroughputDrop"),
    *("NezhaRankSlow", "NezhaOverheadHigh", "NezhaDataStarved", "NezhaCheckpointStale", "NezhaExporterSlow"),
}
"""Alerts that seconds decide on, or the noise of a few steps."""


@dataclass
class Watch:
    """The two servers, and what has arrived so far."""

    server: Prometheus
    pager: Alertmanager
    targets: Path
    arrived: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    """(run, alert) -> the alert as Alertmanager had it."""

    def wait_for(self, run: str, alert: str) -> None:
        """Until it has reached Alertmanager; others that did are noted as well."""

        def came() -> bool:
            for one in self.pager.alerts():
                self.arrived[one["labels"]["run"], one["labels"]["alertname"]] = one
            return (run, alert) in self.arrived

        wait_for(came)

    def wait_until_it_trains(self, run: str) -> None:
        """Until Prometheus has scraped it training often enough for its exporter to expect a last scrape."""
        state = f'nezha_run_state{{run="{run}",state="training"}}'
        wait_for(lambda: (self.server.number(f"sum by (run) (sum_over_time({state}[1h]))") or 0) >= 3)

    def fired(self, run: str) -> set[str]:
        """Every alert of a run that ever fired."""
        found = self.server.query(f'max_over_time(ALERTS{{alertstate="firing",run="{run}"}}[1h])')
        return {one["metric"]["alertname"] for one in found}

    def seen_at(self, run: str, state: str) -> bool:
        """Whether a run was ever seen at a state."""
        return (
            self.server.number(f'max by (run) (max_over_time(nezha_run_state{{run="{run}",state="{state}"}}[1h]))') == 1
        )


@pytest.fixture(scope="module")
def watch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watch]:
    folder = tmp_path_factory.mktemp("watch")
    (folder / "targets").mkdir()
    own = rules.write(rules.faster(FACTOR), folder / "rules.yml")
    config = yaml.safe_load((ranks.REPOSITORY / "docker/alertmanager/alertmanager.yml").read_text())
    with (
        alertmanager(folder / "alertmanager", config) as pager,
        prometheus(
            folder / "prometheus",
            targets=[folder / "targets"],
            rules=[own],
            alertmanagers=[pager],
            interval="500ms",
        ) as server,
    ):
        yield Watch(server, pager, folder / "targets")


@pytest.fixture(scope="module")
def ended(watch: Watch, tmp_path_factory: pytest.TempPathFactory, embedded: Path) -> dict[str, list[int]]:
    """Each rank's exit code of each run, after all of them."""
    folder = tmp_path_factory.mktemp("runs")

    def make(name: str, *settings: str) -> Run:
        # Exporters stay for a last scrape however late it comes.
        watching = (f"exporter.targets={watch.targets}", "exporter.linger_seconds=600")
        own = folder / name / name  # a run is called as its folder is
        run = runs.make(own.parent, embedded, *watching, f"run.folder={own}", *settings)
        run.folder = own
        return run

    return {
        "well": _well(make("well"), watch),
        "nan": _nan(make("nan", "train.save_every=2"), watch),
        "stalled": _stalled(make("stalled"), watch),
        "slow": _slow(make("slow", f"train.steps={NEVER}", f"train.save_every={SAVE_EVERY}"), watch),
    }


def _well(run: Run, watch: Watch) -> list[int]:
    with started(run, 3) as processes:
        watch.wait_until_it_trains("well")
        run.open_gate()
        return codes(processes)


def _nan(run: Run, watch: Watch) -> list[int]:
    run.script = POISONED
    with started(run, 3, POISON="gradient:5") as processes:
        watch.wait_until_it_trains("nan")
        run.open_gate()
        watch.wait_for("nan", "NezhaLossNotFinite")
        ended = codes(processes)
        watch.wait_for("nan", "NezhaRunFailed")
        return ended


def _stalled(run: Run, watch: Watch) -> list[int]:
    with started(run, 3) as processes:
        watch.wait_for("stalled", "NezhaStepStalled")
        processes[1].kill()
        run.open_gate()
        ended = codes(processes)
        watch.wait_for("stalled", "NezhaRunFailed")
        return ended


def _slow(run: Run, watch: Watch) -> list[int]:
    run.script = SLOWED
    no_room = faults.at("begin", "limit", 1000, new=SAVE_EVERY)
    room_again = faults.at("begin", "unlimit", new=2 * SAVE_EVERY)
    env = faults.environment([*no_room, *room_again])
    with started(run, 3, **{name: env[name] for name in ("FAULTS", "FAULT_RANK", "PYTHONPATH")}) as processes:
        watch.wait_until_it_trains("slow")
        run.open_gate()
        watch.wait_for("slow", "NezhaCheckpointFailing")
        watch.wait_for("slow", "NezhaRankSlow")
        for process in processes:
            process.kill()
        ended = codes(processes)
        watch.wait_for("slow", "NezhaExporterDown")
        watch.wait_for("slow", "NezhaRunVanished")
        return ended


@contextmanager
def started(run: Run, last_step: int, **variables: str) -> Iterator[list["subprocess.Popen[str]"]]:
    """Two ranks with some variables, which are gone afterwards whatever happened."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        processes = run.start_ranks(2, last_step)
    with ExitStack() as killed:
        for process in processes:
            killed.callback(process.wait)
            killed.callback(process.kill)
            # A run whose lines nobody reads stands still once the pipe is full.
            Thread(target=process.communicate, daemon=True).start()
        yield processes


def codes(processes: list["subprocess.Popen[str]"]) -> list[int]:
    """The exit codes, once all have ended."""
    return [process.wait(600) for process in processes]


def test_the_runs_ended_as_they_should(ended: dict[str, list[int]]) -> None:
    assert ended["well"] == [Exit.DONE, Exit.DONE]
    assert ended["nan"] == [Exit.DIVERGED, Exit.DIVERGED]
    assert ended["stalled"] == [1, -signal.SIGKILL]
    assert ended["slow"] == [-signal.SIGKILL, -signal.SIGKILL]


EXPECTED = {
    "well": set[str](),
    "nan": {"NezhaLossNotFinite", "NezhaRunFailed"},
    "stalled": {"NezhaStepStalled", "NezhaRunFailed"},
    "slow": {"NezhaRankSlow", "NezhaCheckpointFailing", "NezhaExporterDown", "NezhaRunVanished"},
}


@pytest.mark.parametrize("run", EXPECTED)
def test_the_right_alerts_reach_alertmanager_and_the_others_stay_silent(ended, watch: Watch, run: str) -> None:
    fired = watch.fired(run)
    assert fired >= EXPECTED[run]
    assert fired - PACE == EXPECTED[run] - PACE
    assert {alert for name, alert in watch.arrived if name == run} >= EXPECTED[run]


def test_a_run_that_ended_well_was_seen_to_and_is_not_missed(ended, watch: Watch) -> None:
    """Three other runs have come and gone since."""
    assert watch.seen_at("well", "done")
    assert not watch.server.query('ALERTS{run="well"}')
    assert not [*watch.targets.glob("well-*")]


def test_a_run_that_was_killed_leaves_its_target_and_one_that_failed_does_not(ended, watch: Watch) -> None:
    assert sorted(path.name for path in watch.targets.iterdir()) == ["slow-node0.json"]


def test_an_alert_says_what_is_wrong_and_where_to_read_on(ended, watch: Watch) -> None:
    for (run, alert), arrived in watch.arrived.items():
        notes = arrived["annotations"]
        assert run in notes["summary"]
        assert run in notes["description"]
        assert "<no value>" not in "".join(notes.values())
        assert "error" not in "".join(notes.values()).replace("ended with an error", "")
        page, _, heading = notes["runbook_url"].partition("#")
        assert heading == alert.lower()
        assert (ranks.REPOSITORY / page).exists()
    assert watch.arrived["slow", "NezhaRankSlow"]["labels"]["rank"] == "1"


def test_alertmanager_tells_the_cause_and_mutes_what_follows(ended, watch: Watch) -> None:
    now = {(one["labels"]["run"], one["labels"]["alertname"]): one["status"] for one in watch.pager.alerts()}
    assert not now["slow", "NezhaExporterDown"]["inhibitedBy"]
    assert now["slow", "NezhaRunVanished"]["inhibitedBy"]


def test_every_rule_is_sound_where_there_is_data(ended, watch: Watch) -> None:
    assert {rule["health"] for rule in watch.server.rules()} == {"ok"}
    assert rules.records().keys() <= watch.server.metrics() | {
        # No peak is known of a CPU.
        "run:nezha_train_model_flops_per_peak_flops:ratio_rate5m"
    }
