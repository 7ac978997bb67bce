"""What /healthz and /readyz say, from where the ranks of this node are at; pure functions.

Healthy is a node whose every rank got on within its limit: `stall_seconds`, or `start_seconds` while it starts. Ready
is one that trains, evaluates or saves. Both tell nothing but ranks, states, steps and seconds, since anybody may ask.
"""

from collections.abc import Sequence
from http import HTTPStatus
from typing import NamedTuple

from pydantic import Field

from nezha_ds.config import Settings
from nezha_ds.observe.pulse import Beat

READY = ("training", "evaluating", "saving")
"""States in which a run does what it is for."""


class HealthSettings(Settings):
    """When a run counts as one that hangs."""

    stall_seconds: float = Field(default=600, gt=0)
    """/healthz answers 503 once a rank of the node has made no step and begun nothing new for so long."""
    start_seconds: float = Field(default=3600, gt=0)
    """The same before the first step, when text is prepared, checkpoints are loaded and extensions are compiled."""


class Health(NamedTuple):
    """An HTTP status and one line that gives the reason."""

    status: int
    text: str


def healthz(rows: Sequence[Beat], settings: HealthSettings, now: float) -> Health:
    """200, or 503 where a rank failed or has not got on within its limit; `now` in seconds since 1970."""
    for beat in rows:
        if beat.state == "failed":
            return Health(HTTPStatus.SERVICE_UNAVAILABLE, f"rank {beat.rank} failed at step {beat.step}")
    late = [beat for beat in rows if beat.state != "done" and now - beat.time > _limit(beat, settings)]
    if late:
        # The rank that stopped first made the others wait.
        first = min(late, key=lambda beat: beat.time)
        name = "start_seconds" if first.state == "starting" else "stall_seconds"
        return Health(
            HTTPStatus.SERVICE_UNAVAILABLE,
            f"{_describe(first, now)}, above exporter.{name} {_limit(first, settings):g}"
            + (f"; {len(late)} of {len(rows)} ranks are late" if len(rows) > 1 else ""),
        )
    return Health(HTTPStatus.OK, f"ok {_describe(min(rows, key=lambda beat: beat.time), now)}" if rows else "ok")


def readyz(rows: Sequence[Beat], now: float) -> Health:
    """200 while every rank of the node trains, evaluates or saves; else 503 with the state of one that does not."""
    other = [beat for beat in rows if beat.state not in READY]
    if other or not rows:
        return Health(HTTPStatus.SERVICE_UNAVAILABLE, _describe(other[0], now) if other else "no rank has begun")
    return Health(HTTPStatus.OK, f"ok {_describe(min(rows, key=lambda beat: beat.time), now)}")


def _limit(beat: Beat, settings: HealthSettings) -> float:
    return settings.start_seconds if beat.state == "starting" else settings.stall_seconds


def _describe(beat: Beat, now: float) -> str:
    return f"rank {beat.rank}: {beat.state}, step {beat.step}, {max(0.0, now - beat.time):.0f} s ago"
