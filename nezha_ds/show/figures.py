"""The curves of a report: what was learned, how the numbers behaved, how fast it went, what the data gave."""

from collections.abc import Iterable, Iterator, Sequence
from html import escape

import numpy as np

from nezha_ds.observe.metrics import PARTS, PHASES
from nezha_ds.pages.curve import Curve
from nezha_ds.pages.html import figure
from nezha_ds.pages.lines import Frame, Trace, line_chart, told
from nezha_ds.show.columns import Columns
from nezha_ds.show.run import Run
from nezha_ds.show.story import HELDOUT

AXES = {"steps": "steps", "tokens": "tokens", "time": "time"}
"""What the first curves can be drawn over; the last in minutes, hours or days of training."""
UNITS = ((172_800.0, 86_400.0, "days"), (7200.0, 3600.0, "hours"), (120.0, 60.0, "minutes"), (0.0, 1.0, "seconds"))
SPREAD = 40.0
"""From so many times the median on, a loss is drawn logarithmically at first."""


def learning(runs: Sequence[Run]) -> str:
    """Loss and accuracy, each objective's too where there are several, with what chooses axis and scale."""
    losses = [name for name in columns_of(runs, "loss/") if len(columns_of(runs, "loss/")) > 1]
    parts = [_viewed("Loss", "nats", runs, "loss", logs=True)]
    parts += [_viewed(f"Loss: {plain(name)}", "nats", runs, name, logs=True) for name in losses]
    for name in columns_of(runs, "accuracy/"):
        parts.append(_viewed(f"Accuracy: {plain(name)}", "right", runs, name, logs=False))
    return f'{_choice(runs)}<div class="charts wide">\n{"".join(parts)}</div>'


def numerics(runs: Sequence[Run]) -> str:
    """Rate, gradients, loss scale, overflows."""
    return "".join(
        [
            curve_figure("Learning rate", "", runs, "learning rate"),
            curve_figure("Gradient norm", "Before clipping.", runs, "gradient norm", log=None),
            curve_figure("Loss scale", "Dynamic, of fp16.", runs, "loss scale", log=True),
            curve_figure(
                "Overflows", "Steps between two records whose update was dropped.", runs, "overflows", idle=True
            ),
        ]
    )


def speed(runs: Sequence[Run]) -> str:
    """Tokens, step time, utilization, waits."""
    return "".join(
        [
            curve_figure("Tokens per second", "Real tokens of all ranks, in steps.", runs, "tokens per second"),
            curve_figure("Seconds a step", "Mean between two records.", runs, "step seconds"),
            curve_figure("Longest step", "In seconds, between two records.", runs, "longest step"),
            curve_figure("MFU", "Share of the devices' peak.", runs, "utilization", percent=True),
            curve_figure("Waiting for data", "Share of the time.", runs, "data wait", percent=True),
            curve_figure(
                "Slowest rank", "Its speed as a share of the fastest one's.", runs, "slowest rank", percent=True
            ),
            curve_figure("Memory", "Peak of the fullest rank, as a share of its limit.", runs, "memory", percent=True),
        ]
    )


def data(runs: Sequence[Run]) -> str:
    """What masking and padding came to."""
    return "".join(
        [
            curve_figure("Mask rate", "Of text tokens, since each start.", runs, "mask rate", percent=True),
            curve_figure("Padding", "Share of all places.", runs, "padding", percent=True),
            curve_figure("Stalled steps", "Waited for data for over a tenth.", runs, "stalled steps", idle=True),
        ]
    )


def texts(runs: Sequence[Run]) -> str:
    """Held-out loss of each text, a figure for each run that has several."""
    drawn: list[str] = []
    for run in runs:
        splits = [name for name in run.story.evaluations if name.startswith(f"{HELDOUT}/")]
        traces = [
            Trace(name.removeprefix(f"{HELDOUT}/"), f"s{place % 8} held", run.story.evaluations[name].curve("loss"))
            for place, name in enumerate(splits)
        ]
        if traces:
            title = f"Held-out loss by text{f': {run.name}' if len(runs) > 1 else ''}"
            drawn.append(_drawn(title, legend((one.name, one.style) for one in traces), traces, Frame("steps", "nats")))
    return "".join(drawn)


def trust(runs: Sequence[Run], measure: str) -> str:
    """One of LAMB's measures, a figure for each part of the model: the median of its tensors, of one run with the
    smallest and the largest.
    """
    drawn: list[str] = []
    for part in PARTS:
        traces = [_spread(run, place, f"{measure}/{part}", len(runs) == 1) for place, run in enumerate(runs)]
        traces = [one for one in traces if len(one.curve.x)]
        if traces:
            said = "Median of the tensors" + (", smallest to largest shaded." if len(runs) == 1 else ".")
            values = np.concatenate([one.curve.finite.y for one in traces])
            log = bool(len(values) and (values > 0).all())
            drawn.append(_drawn(part.replace("_", " ").capitalize(), said, traces, Frame("steps", "", log)))
    return "".join(drawn)


def shares(runs: Sequence[Run], kind: str, names: Sequence[str], unit: str) -> str:
    """One bar a run of how the sums of columns share a whole, with a legend."""
    bars: list[str] = []
    for run in runs:
        sums = {name: run.story.records.total(f"{kind}/{name}") for name in names}
        if kind == "phase":
            sums["other"] = max(0.0, run.story.records.total("seconds") - sum(sums.values()))
        whole = sum(sums.values())
        if whole <= 0:
            continue
        spans = "".join(
            f'<span class="s{place % 8}{" dashed" * (place >= 8)}" style="width:{100 * count / whole:.2f}%" '
            f'title="{escape(name.replace("_", " "))}: {told(count)} {unit}, {count / whole:.1%}"></span>'
            for place, (name, count) in enumerate(sums.items())
            if count > 0
        )
        words = legend(
            (f"{name.replace('_', ' ')} {count / whole:.1%}", f"s{place % 8}")
            for place, (name, count) in enumerate(sums.items())
            if count > 0
        )
        name = f"<h3>{escape(run.name)}</h3>" if len(runs) > 1 else ""
        bars.append(f'<div class="sharing">{name}<div class="share">{spans}</div><p class="soft">{words}</p></div>')
    return "".join(bars)


def phases(runs: Sequence[Run]) -> str:
    """Where the time went."""
    return shares(runs, "phase", PHASES, "seconds")


def sources(runs: Sequence[Run]) -> str:
    """Tokens of each text, where a run has several."""
    names = [plain(name) for name in columns_of(runs, "source/")]
    return shares(runs, "source", names, "tokens") if len(names) > 1 else ""


def columns_of(runs: Sequence[Run], kind: str) -> list[str]:
    """Columns of a kind that any run has, in order."""
    every = (name for run in runs for name in run.story.records.columns if name.startswith(kind))
    return list(dict.fromkeys(every))


def plain(name: str) -> str:
    """The second part of a column's name."""
    return name.partition("/")[2]


def legend(entries: Iterable[tuple[str, str]]) -> str:
    """Names beside their colours."""
    return " ".join(f'<span class="entry"><i class="key {style}"></i>{escape(name)}</span>' for name, style in entries)


def curve_figure(
    title: str,
    said: str,
    runs: Sequence[Run],
    column: str,
    log: bool | None = False,
    percent: bool = False,
    idle: bool = False,
) -> str:
    """One column of every run that has it, over steps. `log` None: where it spans more than a hundredfold. `idle`: not
    drawn where it is 0 throughout.
    """
    traces = [Trace(run.name, run.style(place), run.story.records.curve(column)) for place, run in enumerate(runs)]
    traces = [one for one in traces if len(one.curve.x) and not (idle and not one.curve.y.any())]
    if not traces:
        return ""
    values = np.concatenate([one.curve.finite.y for one in traces])
    wide = bool(len(values) and values.min() > 0 and values.max() / values.min() > 100)
    return _drawn(title, said, traces, Frame("steps", "", wide if log is None else log, percent))


def _drawn(title: str, said: str, traces: Sequence[Trace], frame: Frame) -> str:
    return figure(escape(title), said, line_chart(title, traces, frame))


def _spread(run: Run, place: int, name: str, banded: bool) -> Trace:
    records = run.story.records
    middle, low, high = (records.curve(f"{name}/{quantile}") for quantile in ("median", "min", "max"))
    if not banded:
        return Trace(run.name, run.style(place), middle)
    # A band has four points in each part of the width too, those of its own extremes.
    return Trace(run.name, run.style(place), middle, (low.y, high.y))


def _viewed(title: str, unit: str, runs: Sequence[Run], column: str, logs: bool) -> str:
    """One chart for each axis and scale, of which the page shows one."""
    drawings = [
        f'<div class="view x-{axis} {scale}">{line_chart(title, traces, Frame(x_name, unit, log, not logs))}</div>'
        for axis in AXES
        for traces, x_name in [_over(runs, column, axis)]
        for scale, log in (("linear", False), ("log", True))[: 2 if logs else 1]
    ]
    if not logs:
        drawings = [drawing.replace(" linear", " linear log", 1) for drawing in drawings]
    keys = [
        (f"{name}", style)
        for run, place in zip(runs, range(len(runs)), strict=True)
        for name, style in _keys(run, place, len(runs))
    ]
    return figure(escape(title), legend(keys), "".join(drawings))


def _keys(run: Run, place: int, count: int) -> Iterator[tuple[str, str]]:
    """How a run's two lines look: of one run each has a colour, of several each run has."""
    held = HELDOUT in run.story.evaluations
    if count == 1:
        yield "train", "s0"
        if held:
            yield "held out", "s1 held"
    else:
        yield run.name, f"{run.style(place)} faint"
        if held:
            yield f"{run.name}, held out", f"{run.style(place)} held"


def _over(runs: Sequence[Run], column: str, axis: str) -> tuple[list[Trace], str]:
    """The lines of all runs over an axis, and what the axis is called."""
    traces: list[Trace] = []
    for place, run in enumerate(runs):
        sides: list[Columns] = [run.story.records, *filter(None, [run.story.evaluations.get(HELDOUT)])]
        for (name, style), rows in zip(_keys(run, place, len(runs)), sides, strict=True):
            traces.append(Trace(name, style, rows.curve(column, "seconds" if axis == "time" else axis)))
    if axis != "time":
        return traces, AXES[axis]
    longest = max((float(one.curve.x.max()) for one in traces if len(one.curve.x)), default=0.0)
    size, unit = next((size, unit) for least, size, unit in UNITS if longest >= least)
    return [Trace(one.name, one.style, Curve(one.curve.x / size, one.curve.y)) for one in traces], unit


def _choice(runs: Sequence[Run]) -> str:
    """Radio buttons, by which the page's style shows the charts of an axis and a scale: no script."""
    values = np.concatenate([run.story.records.curve("loss").finite.y for run in runs] or [np.zeros(0)])
    middle = float(np.median(values)) if len(values) else 0.0
    log = bool(len(values) and values.min() > 0 and values.max() > SPREAD * middle)
    across = _radios("x", "across", {f"x-{axis}": axis for axis in AXES}, "x-steps")
    upwards = _radios("y", "loss", {"linear": "linear", "log": "log"}, "log" if log else "linear")
    return f'<div class="choice">{across}{upwards}</div>'


def _radios(group: str, title: str, options: dict[str, str], chosen: str) -> str:
    inner = "".join(
        f'<label><input type="radio" name="{group}" id="choose-{key}"{" checked" * (key == chosen)}>{word}</label>'
        for key, word in options.items()
    )
    return f"<fieldset><legend>{title}</legend>{inner}</fieldset>"
