"""When what happened to a run: a strip of its attempts, saves, copies, signals and troubles, and tables of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape

from nezha_ds.errors import Exit
from nezha_ds.observe.events import Copy, Save, Start, Stop, Trouble
from nezha_ds.observe.log import clock
from nezha_ds.pages.html import table
from nezha_ds.show.run import Run
from nezha_ds.show.story import Incident
from nezha_ds.show.words import clean, incident_line

LANES = ("starts", "saves", "copies", "signals", "troubles")
LANE = 26
"""Height of a lane, in pixels."""
SHOWN = 60
"""Incidents and attempts that a table names; the rest is counted."""
PLACES = 500
"""Of a strip: what falls on the same place is one mark, which tells of the first and of how many."""


@dataclass
class _Mark:
    """What lies at one place of a lane."""

    hint: str
    bad: bool
    count: int = 1


def strip(run: Run) -> str:
    """A run's time line as SVG; empty where nothing happened."""
    incidents = list(run.story.incidents)
    times = [one.time for one in incidents if abs(one.time) < 1e12]
    if not times or run.story.last is None:
        return ""
    if abs(run.story.last.time) < 1e12:
        times.append(run.story.last.time)
    begin, end = min(times), max(times)
    span = (end - begin) or 1.0
    lanes = [lane for lane in LANES if lane == "starts" or any(_lane(one) == lane for one in incidents)]
    parts = list(_bars(run, begin, span))
    for row, lane in enumerate(lanes):
        y = row * LANE
        parts.append(f'<text class="axis" x="-8" y="{y + 17}" text-anchor="end">{lane}</text>')
        if lane != "starts":
            parts += _marks([one for one in incidents if _lane(one) == lane], begin, span, y)
    height = len(lanes) * LANE
    for share, anchor, when in ((0, "start", begin), (100, "end", end)):
        parts.append(f'<text class="axis" x="{share}%" y="{height + 17}" text-anchor="{anchor}">{moment(when)}</text>')
    return (
        f'<div class="plot strip"><svg role="img" aria-label="time line of {escape(run.name)}" width="100%" '
        f'height="{height}">{"".join(parts)}</svg></div>'
    )


def attempts_table(run: Run) -> str:
    """Every start, and how it ended as far as is known."""
    starts = run.story.starts
    noted = run.papers.attempts
    ends = [end.exit_code for end in noted] if len(noted) == len(starts) else [None] * len(starts)
    rows: list[tuple[str, ...]] = []
    for number, (start, code) in enumerate(zip(starts, ends, strict=True), 1):
        begins = starts[number] if number < len(starts) else None
        rows.append(
            (
                f"{number}",
                moment(start.time),
                f"{start.step:,}",
                escape(_ended(run, start, begins, code)),
                f"{start.world_size} · {start.precision} · ZeRO {start.zero_stage}",
                escape(clean(start.job_id)) or "-",
            )
        )
    shown = rows[-SHOWN:]
    cut = f'<p class="soft">The last {SHOWN} of {len(rows):,}.</p>' if len(rows) > SHOWN else ""
    return cut + table(("start", "when, UTC", "from step", "ended", "ranks", "job"), shown, more=(4, 5), numbers=False)


def incidents_table(run: Run) -> str:
    """Signals, troubles, failed saves and copies, the newest; empty where there were none."""
    told = [one for one in run.story.incidents if isinstance(one, Stop | Trouble) or getattr(one, "ok", True) is False]
    if not told:
        return ""
    rows = [(moment(one.time), escape(incident_line(one))) for one in told[-SHOWN:]]
    cut = f'<p class="soft">The last {SHOWN} of {len(told):,}.</p>' if len(told) > SHOWN else ""
    return cut + table(("when, UTC", "what"), rows, numbers=False)


def moment(when: float) -> str:
    """A time in UTC, the same wherever the page is written; `-` for one that no calendar has."""
    try:
        return f"{datetime.fromtimestamp(when, UTC):%Y-%m-%d %H:%M:%S}"
    except (ValueError, OverflowError, OSError):
        return "-"


def _ended(run: Run, start: Start, following: Start | None, code: int | None) -> str:
    if code is not None:
        named = {one.value: one.name.lower().replace("_", " ") for one in Exit}
        return f"{named.get(code, 'crashed')} ({code})"
    until = following.time if following else float("inf")
    stops = [one for one in run.story.incidents if isinstance(one, Stop) and start.time <= one.time < until]
    if stops:
        return f"stopped by {stops[-1].signal}"
    return "killed or crashed" if following else run.state.name


def _lane(one: Incident) -> str:
    match one:
        case Save():
            return "saves"
        case Copy():
            return "copies"
        case Stop():
            return "signals"
        case Trouble():
            return "troubles"
        case Start():
            return "starts"


def _bars(run: Run, begin: float, span: float) -> Iterator[str]:
    """One bar an attempt, from its start to the last that it told."""
    ends = list(zip(run.story.starts, run.story.heard_until, strict=True))[-PLACES:]
    for start, until in ends:
        x, wide = 100 * (start.time - begin) / span, max(0.4, 100 * (until - start.time) / span)
        if 0 <= x <= 100:
            yield (
                f'<rect class="attempt" x="{x:.2f}%" y="4" width="{min(wide, 100.4 - x):.2f}%" height="16" rx="3">'
                f"<title>from step {start.step:,}, {moment(start.time)} UTC, {clock(max(0.0, until - start.time))}"
                "</title></rect>"
            )


def _marks(incidents: Sequence[Incident], begin: float, span: float, y: int) -> Iterator[str]:
    marks: dict[tuple[int, bool], _Mark] = {}
    for one in incidents:
        bad = not getattr(one, "ok", not isinstance(one, Trouble))
        place = (round(PLACES * (one.time - begin) / span), bad)
        if place in marks:
            marks[place].count += 1
        elif 0 <= place[0] <= PLACES:
            marks[place] = _Mark(incident_line(one), bad)
    for (place, _), mark in marks.items():
        x, more = 100 * place / PLACES, f" (and {mark.count - 1:,} more)" if mark.count > 1 else ""
        yield (
            f'<line class="mark{" bad" * mark.bad}" x1="{x:.1f}%" x2="{x:.1f}%" y1="{y + 4}" y2="{y + 20}">'
            f"<title>{escape(mark.hint)}{more}</title></line>"
        )
