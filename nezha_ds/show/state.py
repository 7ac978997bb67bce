"""In which state a run is, as far as its journal and its attempts tell; it may be elsewhere, or long over."""

from dataclasses import dataclass
from itertools import pairwise
from math import isfinite
from statistics import median

from nezha_ds.errors import Exit
from nezha_ds.observe.events import Evaluation, Save, Stop, Trouble
from nezha_ds.observe.log import clock
from nezha_ds.show.story import Story

SILENT_RECORDS, SILENT_SECONDS = 5, 60
"""A run is silent that has told nothing for so many of its usual intervals, and for so long at least."""


@dataclass(frozen=True)
class State:
    """What a run is at."""

    name: str
    tone: str
    """`good`, `busy`, `bad` or `soft`: how it is coloured."""
    detail: str = ""


def state_of(story: Story, now: float, exit_code: int | None = None) -> State:
    """`exit_code` is the one with which its last attempt ended, where it has and that is known."""
    last, start = story.last, story.start
    if last is None or start is None:
        return State("no step yet", "soft")
    if exit_code is not None and exit_code != Exit.DONE:
        name, tone = ENDS.get(exit_code, (f"ended with exit code {exit_code}", "bad"))
        return State(name, tone, f"at step {story.step:,}")
    if story.step >= start.target_steps and (isinstance(last, Save) or exit_code == Exit.DONE):
        return State("done", "good", _ago(now - last.time))
    stops = [one for one in story.incidents if isinstance(one, Stop) and one.time >= start.time]
    if stops:
        saved = story.save is not None and story.save.time >= stops[-1].time
        return State("stopped" if saved else "stopping", "busy", f"by {stops[-1].signal}, {_ago(now - last.time)}")
    if isinstance(last, Trouble) and last.what != "spike":
        return State("diverged", "bad", f"at step {last.step:,}")
    silent = now - last.time
    if silent > max(SILENT_SECONDS, SILENT_RECORDS * _interval(story)):
        return State("silent", "bad", f"nothing told for {clock(silent)}")
    if story.pending:
        return State("saving", "busy", "while it trains")
    if isinstance(last, Evaluation):
        return State("training", "good", "after an evaluation")
    return State("training", "good")


ENDS: dict[int, tuple[str, str]] = {
    Exit.REFUSED: ("refused", "bad"),
    Exit.STOPPED: ("stopped and saved", "busy"),
    Exit.DIVERGED: ("diverged", "bad"),
    Exit.NO_PROGRESS: ("no progress", "bad"),
    Exit.HUNG: ("hung", "bad"),
    1: ("crashed", "bad"),
}
"""What an attempt's exit code means, and how it is coloured."""


def _interval(story: Story) -> float:
    """Seconds from one record to the next, as they usually are."""
    heard = list(story.heard)
    gaps = [after - before for before, after in pairwise(heard)]
    usual = median(gaps) if gaps else story.record.seconds if story.record else 0.0
    return usual if isfinite(usual) else 0.0


def _ago(seconds: float) -> str:
    return f"{clock(max(0.0, seconds))} ago"
