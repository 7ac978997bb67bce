"""What can happen to a run: each kind does it to one start of a scene, and says how that went.

A kind draws everything from the scene's generator, so that a seed tells which faults come; at which instruction they
hit is up to the machine, but for those inside a save.
"""

import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nezha_ds.train.checkpoint import damage
from tests.helpers import faults
from tests.helpers.processes import parent_of
from tests.torture.scene import SAVE_EVERY, STEPS, Scene, send


@dataclass
class Suffered:
    """How a start of a run went under a fault."""

    kind: str
    detail: str
    hit: bool
    """Whether it came before the run was done."""
    code: int | None = None
    """The launcher's exit code; None where nothing was started, or where it says nothing."""
    outlived: int = 0
    """Processes that lived on without their launcher, and that we ended."""


def kill_rank(scene: Scene) -> Suffered:
    """kill -9 of one rank; its launcher has to end the others."""
    return _signal_at_a_moment(scene, "kill -9 of a rank", _a_rank(scene), signal.SIGKILL)


def kill_launcher(scene: Scene) -> Suffered:
    """kill -9 of the parent of the ranks: `nezha-ds launch`, or launch.py under deepspeed."""

    def parent() -> int | None:
        rank = scene.rank(0)
        above = parent_of(rank) if rank else None
        return above if above in scene.living else None

    suffered = _signal_at_a_moment(scene, "kill -9 of the ranks' parent", parent, signal.SIGKILL)
    if scene.setup.launcher == "deepspeed" and suffered.hit:
        # It answers 0 then, which is its own fault and known; that the ranks save and stop is not.
        suffered.code = None
    return suffered


def kill_runner(scene: Scene) -> Suffered:
    """kill -9 of what the user called: `nezha-ds launch`, or `deepspeed`, above the parent of the ranks."""

    def called() -> int | None:
        return scene.process.pid if scene.process else None

    return _signal_at_a_moment(scene, "kill -9 of what was called", called, signal.SIGKILL)


def kill_all(scene: Scene) -> Suffered:
    """kill -9 of everything at once, as a node that goes."""
    scene.start()
    moment, came = _moment(scene)
    scene.kill()
    code, _ = scene.end()
    return Suffered("kill -9 of all", moment, came, code)


def kill_in_a_save(scene: Scene) -> Suffered:
    """kill -9 of a rank inside a named phase of a save."""
    phase = scene.rng.choice([*faults.PHASES])
    rank = scene.rng.randrange(scene.setup.world_size) if phase == "moments" else 0
    new = _a_save(scene)
    own = faults.at(phase, "kill", new=new, rank=rank)
    if phase in ("prune", "removal"):
        own = [*faults.at("rename", "go_on", new=new), *own]
    scene.start(own, rank=rank)
    code, outlived = scene.end()
    return Suffered(f"kill -9 in a save: {phase}", f"step {new}, rank {rank}", not _done(scene), code, outlived)


def terminate_rank(scene: Scene) -> Suffered:
    """SIGTERM to one rank: all save and stop."""
    return _signal_at_a_moment(scene, "SIGTERM to a rank", _a_rank(scene), signal.SIGTERM)


def damage_newest(scene: Scene) -> Suffered:
    """A file of the newest checkpoint torn, flipped, emptied or gone, while an older one is whole."""
    how = scene.rng.choice([*DAMAGES])
    sound = [path for path in scene.checkpoints() if not damage(path)]
    if len(sound) < 2:
        return Suffered(f"a file {how}", "there was no second checkpoint", hit=False)
    victim = scene.rng.choice(sorted(path for path in sound[-1].iterdir() if path.stat().st_size))
    DAMAGES[how](victim, scene.rng)
    scene.damaged.add(sound[-1])
    return Suffered(f"a file {how}", f"{sound[-1].name}/{victim.name}", hit=True)


def full_while_saving(scene: Scene) -> Suffered:
    """No room for a file of a save, from a named phase on."""
    phase = scene.rng.choice(["begin", "moments", "weights", "state", "rename"])
    new = _a_save(scene)
    scene.start(faults.at(phase, "limit", 1000, new=new))
    code, outlived = scene.end()
    return Suffered("full disk in a save", f"{phase} of step {new}", not _done(scene), code, outlived)


def full_while_logging(scene: Scene) -> Suffered:
    """No room for the log and the ledger between two saves; then kill -9 in a later save."""
    new = _a_save(scene)
    own = [*faults.at("rename", "limit", 1, new=new), *faults.at("begin", "unlimit", new=new + SAVE_EVERY)]
    scene.start([*own, *faults.at("manifest", "kill", new=new + 2 * SAVE_EVERY)])
    code, outlived = scene.end()
    hit = not _done(scene) or "metrics.jsonl cannot be written" in scene.output.read_text(errors="replace")
    return Suffered("full disk in the log", f"after step {new}", hit, code, outlived)


def full_disk(scene: Scene) -> Suffered:
    """A disk that somebody else fills up at a moment."""
    ballast = scene.run.folder.parent / "ballast"
    scene.start()
    moment, came = _moment(scene)
    room = os.statvfs(ballast.parent)
    left = scene.rng.randrange(8 << 20)
    try:
        with ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(1, room.f_bavail * room.f_bsize - left))
        code, outlived = scene.end()
    finally:
        ballast.unlink(missing_ok=True)
    return Suffered("full disk", f"{moment}, {left / 1e6:.1f} MB left", came and not _done(scene), code, outlived)


def read_only(scene: Scene) -> Suffered:
    """Nothing new can be made in the folder of checkpoints, from a moment on."""
    folder = scene.run.folder / "checkpoints"
    scene.start()
    moment, came = _moment(scene)
    if folder.exists():
        folder.chmod(0o555)
    code, outlived = scene.end()
    if folder.exists():
        folder.chmod(0o755)
    return Suffered("read-only folder", moment, came and not _done(scene), code, outlived)


def jumping_clock(scene: Scene) -> Suffered:
    """A clock that is years off with every look; then kill -9 of everything."""
    scene.start(clock="jumping")
    moment, came = _moment(scene)
    scene.kill()
    code, _ = scene.end()
    return Suffered("jumping clock, then kill -9 of all", moment, came, code)


KINDS: dict[str, tuple[int, Callable[[Scene], Suffered]]] = {
    # With their weights.
    "rank": (4, kill_rank),
    "launcher": (2, kill_launcher),
    "runner": (2, kill_runner),
    "all": (3, kill_all),
    "save": (6, kill_in_a_save),
    "term": (2, terminate_rank),
    "damage": (4, damage_newest),
    "full-save": (2, full_while_saving),
    "full-log": (1, full_while_logging),
    "full-disk": (2, full_disk),
    "read-only": (1, read_only),
    "clock": (1, jumping_clock),
}


def draw(names: list[str], rng: random.Random, count: int) -> list[str]:
    """Kinds for a round, by their weights."""
    return rng.choices(names, [KINDS[name][0] for name in names], k=count)


# ------------------------------------------------------------------------------------------------------------- damages


def _tear(path: Path, rng: random.Random) -> None:
    os.truncate(path, rng.randrange(1, max(2, path.stat().st_size)))


def _flip(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


DAMAGES: dict[str, Callable[[Path, random.Random], object]] = {
    "torn": _tear,
    "flipped": _flip,
    "emptied": lambda path, _: path.write_bytes(b""),
    "gone": lambda path, _: path.unlink(),
}


# ------------------------------------------------------------------------------------------------------------- moments


def _moment(scene: Scene) -> tuple[str, bool]:
    """Wait for a moment of this start, in its start-up or some steps on; which, and whether the run lived to see it."""
    rng, begin = scene.rng, scene.steps()
    if rng.random() < 0.25:
        delay = rng.uniform(0, 8)
        scene.wait(lambda: False, delay)
        return f"{delay:.2f} s after the start", scene.process is not None and scene.process.poll() is None
    attempts, jitter = _attempts(scene), rng.uniform(0, 0.3)
    # Steps beyond the newest checkpoint are in the log already: count from this attempt's first on.
    target = rng.randrange(max(1, STEPS - scene.newest())) + scene.newest()
    came = scene.wait(lambda: _attempts(scene) > attempts and _own_steps(scene) >= target)
    time.sleep(jitter)
    assert scene.process
    return f"{jitter:.2f} s after step {target} (at {begin} before)", came and scene.process.poll() is None


def _attempts(scene: Scene) -> int:
    return sum(event.kind == "start" for event in scene.run.events())


def _own_steps(scene: Scene) -> int:
    """Steps in the log since the last start."""
    step = 0
    for event in scene.run.events():
        step = event.step
    return step


def _a_rank(scene: Scene) -> Callable[[], int | None]:
    number = scene.rng.randrange(scene.setup.world_size)
    return lambda: scene.rank(number)


def _signal_at_a_moment(scene: Scene, kind: str, victim: Callable[[], int | None], number: signal.Signals) -> Suffered:
    scene.start()
    moment, came = _moment(scene)
    # In start-up there may be nobody yet.
    came = scene.wait(lambda: victim() is not None) and send(victim(), number) and came
    code, outlived = scene.end()
    return Suffered(kind, moment, came and not _done(scene), code, outlived)


def _a_save(scene: Scene) -> int:
    """A step that will be saved: the next one or the one after."""
    return min(STEPS, scene.newest() + SAVE_EVERY * scene.rng.randint(1, 2))


def _done(scene: Scene) -> bool:
    """Whether the run stands at its last step."""
    return scene.newest() == STEPS
