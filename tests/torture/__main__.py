"""Real runs under random faults, for as long as one likes: what comes out must be what would have come out.

  make torture MINUTES=15
  .venv/bin/python -m tests.torture --minutes 15 --seed 7      the faults of that seed, at moments of this machine's
  .venv/bin/python -m tests.torture --kinds save,damage        some kinds only

A round takes one run (two ranks, dropout on) through four to seven faults and then to its end. Then its weights and
moments must have the bytes of an undisturbed run's, its ledger must prove every sample, every checkpoint must be whole,
and nothing half-named may be left: in the run folder, in /dev/shm, among the extensions. The setups take turns.

Writes build/torture/report.txt and report.json; keeps the folders of rounds that went wrong. Exit code 0, 1 when
anything was wrong, 130 after Ctrl-C.
"""

import argparse
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from nezha_ds.corpus.prepare import prepare
from nezha_ds.corpus.settings import PrepareSettings
from nezha_ds.errors import NezhaError
from nezha_ds.files import write_atomically
from nezha_ds.train.ledger import audit_run
from tests.helpers import ranks, runs
from tests.torture.kinds import KINDS, Suffered, draw
from tests.torture.report import Report, Round, to_json, to_text
from tests.torture.scene import SETTINGS, SETUPS, STEPS, Scene, can_mount, disk

FOLDER = Path(__file__).parents[2] / "build" / "torture"
NEEDS_A_DISK = "full-disk"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m tests.torture", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=15, help="no round begins later (default: 15)")
    parser.add_argument("--seed", type=int, help="of the faults; a new one when left out")
    parser.add_argument("--kinds", default=",".join(KINDS), help=f"of {', '.join(KINDS)}; all when left out")
    chosen = parser.parse_args(arguments)
    kinds = chosen.kinds.split(",")
    if strange := [kind for kind in kinds if kind not in KINDS]:
        parser.error(f"no kind {', '.join(strange)}; there are {', '.join(KINDS)}")
    seed = secrets.randbelow(10**6) if chosen.seed is None else chosen.seed
    report = Report(f"python -m tests.torture --minutes {chosen.minutes:g} --seed {seed}", seed)
    for old in [*FOLDER.glob("round-*"), *FOLDER.glob("report.*")]:
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    # A scheduler's end is as clean as Ctrl-C, which a shell's background jobs do not hear by themselves.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.default_int_handler)
    mounted = can_mount(FOLDER / "disk")
    if not mounted:
        kinds = [kind for kind in kinds if kind != NEEDS_A_DISK]
    _tell(f"seed {seed}; {FOLDER}; {'a disk of its own' if mounted else 'no disk can be mounted: none is filled up'}")
    began = time.monotonic()
    try:
        with disk(FOLDER / "disk", mounted) as place:
            _torture(report, kinds, place, began + 60 * chosen.minutes)
    except KeyboardInterrupt:
        report.stopped = True
    report.seconds = time.monotonic() - began
    write_atomically(FOLDER / "report.json", to_json(report))
    write_atomically(FOLDER / "report.txt", to_text(report))
    print(f"\n{to_text(report)}\n{FOLDER / 'report.txt'}")
    return 1 if report.wrongs or not report.finished else 130 if report.stopped else 0


def _torture(report: Report, kinds: list[str], place: Path, end: float) -> None:
    shards = _prepare()
    undisturbed: dict[str, dict[str, bytes]] = {}
    while not report.rounds or time.monotonic() < end:
        number = len(report.rounds) + 1
        name = [*SETUPS][(number - 1) % len(SETUPS)]
        if name not in undisturbed:
            undisturbed[name] = _undisturbed(name, shards, place)
        own = Round(number, name)
        report.rounds.append(own)
        began = time.monotonic()
        scene = Scene(
            run=runs.make(place / f"round-{number:03}", shards, *SETTINGS, **SETUPS[name].deepspeed),
            setup=SETUPS[name],
            rng=random.Random(f"{report.seed}/{number}"),
            output=FOLDER / f"round-{number:03}.log",
        )
        try:
            _round(own, scene, kinds, undisturbed[name])
        finally:
            scene.kill()
            own.seconds = time.monotonic() - began
        if own.wrongs:
            shutil.copytree(scene.run.folder.parent, FOLDER / f"round-{number:03}", dirs_exist_ok=True)
        shutil.rmtree(scene.run.folder.parent)
        _tell(f"round {number} ({name}): {'; '.join(own.wrongs) or 'as undisturbed'}, {own.seconds:.0f} s")


def _round(own: Round, scene: Scene, kinds: list[str], expected: dict[str, bytes]) -> None:
    """Through the faults, to the end, and is it right?"""
    for kind in draw(kinds, scene.rng, scene.rng.randint(4, 7)):
        suffered = KINDS[kind][1](scene)
        own.suffered.append(suffered)
        own.wrongs += _judge(suffered, scene)
        _tell(
            f"round {own.number}: {suffered.kind}, {suffered.detail}{'' if suffered.hit else ': too late'}; "
            f"exit code {suffered.code}, newest checkpoint {scene.newest()}"
        )
        if suffered.code == 0:  # it is done; nothing more can happen to it
            break
    scene.start()
    code, _ = scene.end()
    if code or scene.newest() != STEPS:
        own.wrongs.append(f"did not come to its end: exit code {code}, see {scene.output}")
        return
    own.bitwise_equal = scene.run.tensors(STEPS) == expected
    if not own.bitwise_equal:
        own.wrongs.append(f"other bytes than undisturbed in step {STEPS}")
    try:
        proven = audit_run(scene.run.folder, STEPS)
    except NezhaError as error:
        own.wrongs.append(str(error))
    else:
        own.wrongs += proven.faults
        own.samples, own.repeated_steps = proven.samples, proven.repeated
    scene.damaged.clear()
    own.wrongs += [*scene.wrongs(), *scene.leftovers()]


def _judge(suffered: Suffered, scene: Scene) -> list[str]:
    """What is wrong after a start, whatever it suffered."""
    wrongs = [f"after {suffered.kind}, {suffered.detail}: {wrong}" for wrong in scene.wrongs()]
    if suffered.code == 0 and scene.newest() != STEPS:
        wrongs.append(f"{suffered.kind}, {suffered.detail}: exit code 0, and the run is at step {scene.newest()}")
    if suffered.outlived:
        wrongs.append(f"{suffered.kind}, {suffered.detail}: {suffered.outlived} processes outlived their launcher")
    return wrongs


def _prepare() -> Path:
    """The shipped corpus, and DeepSpeed's communication compiled in a folder of the torture's own; once."""
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(FOLDER / "extensions"))
    os.environ["OMP_NUM_THREADS"] = "1"
    shards = FOLDER / "shards"
    prepare(PrepareSettings(out=shards), progress=False)
    code = "from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder; ShareMemCommBuilder().load(verbose=False)"
    subprocess.run([sys.executable, "-c", code], env=ranks.environment(), check=True, capture_output=True)
    return shards


def _undisturbed(name: str, shards: Path, place: Path) -> dict[str, bytes]:
    """The tensors of the last checkpoint of a run that nobody disturbs."""
    run = runs.make(place / "undisturbed", shards, *SETTINGS, **SETUPS[name].deepspeed)
    run.finish(world_size=SETUPS[name].world_size)
    tensors = run.tensors(STEPS)
    shutil.rmtree(run.folder.parent)
    return tensors


def _tell(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
