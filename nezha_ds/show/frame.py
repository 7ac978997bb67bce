"""One frame of `nezha-ds watch`: a pure function of a story, a time and a width, for rich to draw.

What matters most stands highest, because a low window cuts the frame off at its end. Below 100 columns everything is
in one column, from there on in two. All that a run names is put in as text, never as rich's markup, and without
control characters.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from statistics import median

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from nezha_ds.observe.events import Copy, Record, Save, Stop, Trouble
from nezha_ds.observe.log import clock, short
from nezha_ds.observe.metrics import PHASES
from nezha_ds.show.braille import Line, brief, chart, spark
from nezha_ds.show.state import State
from nezha_ds.show.story import HELDOUT, Incident, Story
from nezha_ds.show.words import clean, facts_of, incident_line

WIDE = 100
"""Columns from which on there are two of them."""
TONES = {"good": "green", "busy": "yellow", "bad": "bold red", "soft": "dim"}
TRAIN, HELD = "cyan", "yellow"
PHASE_STYLES = dict(zip(PHASES, ("red", "cyan", "blue", "magenta", "yellow", "green"), strict=True))
SPARK = 18
"""Letters of a line of blocks."""
NEWEST = 400
"""Records of which a line of blocks tells."""
SHOWN_SOURCES = 6


@dataclass(frozen=True)
class Look:
    """What is drawn."""

    story: Story
    name: str
    state: State
    now: float
    """Seconds since 1970."""
    width: int
    height: int
    notes: tuple[str, ...] = ()
    """What whoever reads the journal has to say of it."""


def frame(look: Look) -> RenderableType:
    """The whole frame."""
    story, record = look.story, look.story.record
    parts: list[RenderableType] = [*_head(look)]
    parts += [Text(clean(note), "yellow") for note in look.notes]
    if story.start:
        parts += ["", *_progress(look)]
    if record:
        parts += ["", _curve(look), *chart(_lines(story), look.width, _chart_height(look.height)), ""]
        left = Group(*_measures(story, _column(look)))
        right = Group(*_phases(record, _column(look)), "", *_ranks(record), *_texts(story, _column(look)))
        parts.append(_beside(left, right) if look.width >= WIDE else Group(left, "", right))
    if story.incidents:
        parts += ["", *_checkpoints(look), *_incidents(look)]
    return Group(*parts)


def _column(look: Look) -> int:
    return look.width // 2 - 2 if look.width >= WIDE else look.width


def _chart_height(height: int) -> int:
    return max(4, min(14, height // 4))


def _beside(left: RenderableType, right: RenderableType) -> Table:
    table = Table.grid(expand=True, padding=(0, 2))
    table.add_column(ratio=1)
    table.add_column(ratio=1)
    table.add_row(left, right)
    return table


def _head(look: Look) -> Iterator[Text]:
    start, story = look.story.start, look.story
    line = Text(no_wrap=True, overflow="ellipsis").append(clean(look.name), "bold")
    line.append("  ● ", TONES[look.state.tone]).append(look.state.name, TONES[look.state.tone])
    if look.state.detail:
        line.append(f" · {clean(look.state.detail)}", "dim")
    yield line
    if start:
        facts = [*facts_of(start)]
        facts += [f"job {start.job_id}"] if start.job_id else []
        facts += [f"start {len(story.starts)}"] if len(story.starts) > 1 else []
        facts += [f"{story.counts['undone']} records undone by restarts"] if story.counts["undone"] else []
        yield Text(clean(" · ".join(facts)), "dim")


def _progress(look: Look) -> Iterator[Text]:
    story, target = look.story, look.story.target or 1
    share = min(1.0, max(0.0, story.step / target))
    said = f"step {story.step:,} of {target:,}  {share:.0%}"
    left = story.seconds_left
    if left is not None and story.step < target:
        said += f"  {clock(left)} left"
        if look.state.tone == "good":
            said += f", done {_moment(look.now + left, look.now)}"
    wide = max(8, look.width - len(said) - 2) if look.width >= WIDE else look.width
    full = round(share * wide)
    bar = Text().append("━" * full, "green").append("━" * (wide - full), "bright_black")
    yield from [bar.append(f"  {said}")] if look.width >= WIDE else [Text(said), bar]


def _lines(story: Story) -> list[Line]:
    lines = [Line(story.records.curve("loss"), TRAIN)]
    if HELDOUT in story.evaluations:
        lines.append(Line(story.evaluations[HELDOUT].curve("loss"), HELD))
    return lines


def _curve(look: Look) -> Text:
    """What the chart's colours mean, with the newest numbers."""
    story = look.story
    line = Text(no_wrap=True, overflow="ellipsis").append("loss ", "bold")
    line.append("━ train ", TRAIN).append(brief(story.records.last("loss") or 0.0), f"bold {TRAIN}")
    if HELDOUT in story.evaluation:
        newest = story.evaluation[HELDOUT]
        line.append("  ━ held out ", HELD).append(brief(newest.loss), f"bold {HELD}")
        line.append(f" at {newest.step:,}", "dim")
    if story.best:
        line.append(f", best {brief(story.best.loss)} at {story.best.step:,}", "dim")
    return line


def _measures(story: Story, width: int) -> Iterator[Text]:
    """One line a number: its name, its value, its recent past."""
    record = story.record
    assert record is not None
    rows = [("loss " + name, "loss/" + name, brief(loss)) for name, loss in record.losses.items()]
    rows = rows if len(rows) > 1 else []
    rows += [(f"accuracy {name}", f"accuracy/{name}", f"{share:.1%}") for name, share in record.accuracies.items()]
    rows.append(("learning rate", "learning rate", brief(record.learning_rate)))
    if record.grad_norm is not None:
        rows.append(("gradient norm", "gradient norm", brief(record.grad_norm)))
    if record.loss_scale is not None:
        lost = round(story.records.total("overflows"))
        rows.append((f"loss scale, {lost} overflows", "loss scale", f"{record.loss_scale:g}"))
    rows.append(("tokens/s", "tokens per second", short(record.tokens_per_second)))
    if record.flops_utilization is not None:
        rows.append(("MFU", "utilization", f"{record.flops_utilization:.1%}"))
    rows.append(("mask rate", "mask rate", f"{record.masked_ratio:.2%}"))
    for split, evaluation in story.evaluation.items():
        for name, share in evaluation.accuracies.items():
            if split == HELDOUT:
                yield _measure(f"held out {name}", f"{share:.1%}", _past(story, split, f"accuracy/{name}"), width, HELD)
    for name, column, value in rows:
        yield _measure(name, value, story.records.columns[column][-NEWEST:].tolist(), width, TRAIN)


def _past(story: Story, split: str, column: str) -> list[float]:
    return story.evaluations[split].columns[column][-NEWEST:].tolist()


def _measure(name: str, value: str, past: list[float], width: int, style: str) -> Text:
    line = Text(no_wrap=True, overflow="ellipsis").append(f"{clean(name):<26.26}", "dim").append(f"{value:>9} ", "bold")
    return line.append(spark(past, min(SPARK, max(4, width - 38))), style)


def _phases(record: Record, width: int) -> Iterator[Text]:
    """Where the last interval's time went, as one bar and in words."""
    whole = max(record.seconds, sum(record.phase_seconds.values())) or 1.0
    shares = {name: seconds / whole for name, seconds in record.phase_seconds.items() if seconds > 0}
    shares["other"] = max(0.0, 1 - sum(shares.values()))
    bar, words = Text(), Text()
    for name, share in shares.items():
        style = PHASE_STYLES.get(name, "bright_black")
        bar.append("█" * round(share * min(width, 60)), style)
        if share >= 0.005:
            words.append("■ ", style).append(f"{name.replace('_', ' ')} {share:.0%}  ")
    steps = record.step_seconds
    middle = f"{median(steps):.3g} s, longest {max(steps):.3g} s" if steps else "-"
    yield Text().append("a step ", "dim").append(middle, "bold")
    yield bar
    yield words


def _ranks(record: Record) -> Iterator[Text]:
    """The slowest rank and the fullest one, where they are told."""
    speeds, memory = record.relative_performance, record.rank_memory
    if len(speeds) > 1:
        slowest = min(range(len(speeds)), key=speeds.__getitem__)
        line = Text().append("slowest of the ranks ", "dim").append(f"{slowest}", "bold")
        yield line.append(f", {speeds[slowest]:.0%} of the fastest one's speed", "red" if speeds[slowest] < 0.8 else "")
    if memory:
        fullest = max(range(len(memory)), key=lambda rank: memory[rank].peak)
        one = memory[fullest]
        line = Text().append("most memory rank ", "dim").append(f"{fullest}", "bold")
        yield line.append(f", {_size(one.peak)} of {_size(one.limit)}, now {_size(one.allocated)}")
    if record.stalled_steps:
        yield Text(f"{record.stalled_steps} steps waited for data", "yellow")


def _texts(story: Story, width: int) -> Iterator[Text]:
    """Tokens and held-out loss of each text, where there are several."""
    sources = [name for name in story.records.columns if name.startswith("source/")]
    if len(sources) < 2:
        return
    tokens = {name.removeprefix("source/"): story.records.total(name) for name in sources}
    whole = sum(tokens.values()) or 1.0
    for name, count in sorted(tokens.items(), key=lambda item: -item[1])[:SHOWN_SOURCES]:
        evaluation = story.evaluation.get(f"{HELDOUT}/{name}")
        told = f"{short(count)} tokens, {count / whole:.0%}" + (f", loss {evaluation.loss:.3f}" if evaluation else "")
        yield Text(no_wrap=True, overflow="ellipsis").append(f"{clean(name):<14.14} ", "dim").append(told)
    if len(sources) > SHOWN_SOURCES:
        yield Text(f"and {len(sources) - SHOWN_SOURCES} more texts", "dim")


def _checkpoints(look: Look) -> Iterator[Text]:
    story, counts = look.story, look.story.counts
    if story.save:
        said = f"step {story.save.step:,}, {_size(story.save.bytes)} in {story.save.seconds:.1f} s, "
        line = Text().append("checkpoint ", "dim").append(said + f"{clock(max(0.0, look.now - story.save.time))} ago")
        line.append(f"; {counts['save ok']} saved")
        if story.save.free_bytes is not None:
            line.append(f", {_size(story.save.free_bytes)} free", "dim")
        yield line
    if counts["save failed"]:
        yield Text(f"{counts['save failed']} saves failed", "bold red")
    if story.copy:
        line = Text().append("copies ", "dim").append(f"{counts['copy ok']} made, {counts['copy failed']} failed")
        yield line.append(f", newest of step {story.copy.step:,}", "dim")


def _incidents(look: Look) -> Iterator[Text]:
    """The newest of what happened, newest first; saves that went well are told above."""
    told = [one for one in look.story.incidents if not (isinstance(one, Save | Copy) and one.ok)]
    for one in reversed(told[-max(3, look.height // 6) :]):
        line = Text(no_wrap=True, overflow="ellipsis").append(f"{_moment(one.time, look.now)}  ", "dim")
        yield line.append(clean(incident_line(one)), _incident_style(one))


def _incident_style(one: Incident) -> str:
    """How grave it is, as a colour."""
    match one:
        case Trouble() | Save(ok=False) | Copy(ok=False):
            return "red"
        case Stop():
            return "yellow"
        case _:
            return ""


def _moment(when: float, now: float) -> str:
    """A time of day, with the date where it is another day's; `-` for one that no calendar has."""
    try:
        moment, today = datetime.fromtimestamp(when), datetime.fromtimestamp(now)
    except (ValueError, OverflowError, OSError):
        return "-"
    return f"{moment:%H:%M:%S}" if moment.date() == today.date() else f"{moment:%Y-%m-%d %H:%M}"


def _size(count: float) -> str:
    return f"{short(count)}B"
