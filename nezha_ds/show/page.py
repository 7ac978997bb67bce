"""`nezha-ds report`: one HTML file of one run, or of several in the same charts.

It fetches nothing; whatever came from a run is escaped; its one script only reads values off the charts, and a policy
in its head lets no other run. A run takes 100 to 400 kB, however long it was: curves are thinned to what can be seen,
without losing a spike of one step.
"""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from statistics import median

import nezha_ds
from nezha_ds.observe.log import accuracies, clock, short
from nezha_ds.pages.html import document, table, tiles
from nezha_ds.pages.lines import SCRIPT, told
from nezha_ds.show import figures
from nezha_ds.show.run import Run
from nezha_ds.show.settings import differences, papers
from nezha_ds.show.timeline import attempts_table, incidents_table, strip
from nezha_ds.show.words import clean, facts_of

STYLE = Path(__file__).with_name("report.css")


def page(runs: Sequence[Run]) -> str:
    """The whole page."""
    title = ", ".join(run.name for run in runs[:4]) + (f" and {len(runs) - 4} more" if len(runs) > 4 else "")
    keys = figures.legend((run.name, run.style(place)) for place, run in enumerate(runs)) if len(runs) > 1 else ""
    sections = [
        _section(
            "Learning",
            "Train is the mean between two records, held out is what the model never saw.",
            figures.learning(runs),
        ),
        _section("Held out, by text", "", _charts(figures.texts(runs))),
        _section(
            "Numbers",
            f"What keeps a run sound. A red mark at the upper edge: NaN or infinite. {keys}",
            _charts(figures.numerics(runs)),
        ),
        _section(
            "Trust ratios", f"How far LAMB lets each tensor's update go, by part of the model. {keys}", _trust(runs)
        ),
        _section("Where the time went", "On the rank that writes.", figures.phases(runs)),
        _section("Speed", keys, _charts(figures.speed(runs))),
        _section("Data", keys, figures.sources(runs) + _charts(figures.data(runs))),
        _section("Ranks", "At the last record.", "".join(_ranks(run, len(runs)) for run in runs)),
        _section("What happened", "", "".join(_happened(run, len(runs)) for run in runs)),
        _section("Settings that differ", "", differences(runs) if len(runs) > 1 else ""),
        _section("Settings", "", "".join(_papers(run, len(runs)) for run in runs)),
    ]
    foot = f'<footer class="soft"><small>Written by nezha-ds {escape(nezha_ds.__version__)} report.</small></footer>'
    body = "\n".join([_head(runs, title), *filter(None, sections), foot])
    return document(clean(title), body, STYLE.read_text(encoding="utf-8"), SCRIPT.read_text(encoding="utf-8"))


def _section(title: str, said: str, inner: str) -> str:
    """Nothing where there is nothing to show."""
    words = f'<p class="soft">{said}</p>\n' if said else ""
    return f"<section>\n<h2>{title}</h2>\n{words}{inner}</section>" if inner else ""


def _charts(drawn: str) -> str:
    return f'<div class="charts">\n{drawn}</div>' if drawn else ""


# ------------------------------------------------------------------------------------------------------------- the head


def _head(runs: Sequence[Run], title: str) -> str:
    warnings = "".join(f'<p class="warning">{escape(clean(line))}</p>' for run in runs for line in _warnings(run))
    if len(runs) == 1:
        (run,) = runs
        start = run.story.start
        said = " · ".join([f"{run.state.name} {run.state.detail}".strip(), *(facts_of(start) if start else ())])
        return (
            f'<header><h1>{escape(clean(title))}</h1>\n<p class="soft"><i class="dot {run.state.tone}"></i>'
            f"{escape(clean(said))}</p></header>\n{tiles(_tiles(run))}{warnings}"
        )
    names = list(dict.fromkeys(name for run in runs for name in _tiles(run)))
    rows = [
        (
            f'<i class="key {run.style(place)}"></i>{escape(run.name)}',
            *(_tiles(run).get(name, "-") for name in names),
        )
        for place, run in enumerate(runs)
    ]
    compared = table(("run", *names), rows, kind="compare", numbers=False)
    return f'<header><h1>{len(runs)} runs</h1></header>\n<div class="scroll" tabindex="0">{compared}</div>{warnings}'


def _tiles(run: Run) -> dict[str, str]:
    """The numbers of a run, each under its name; HTML."""
    story = run.story
    best, loss = story.best, story.records.last("loss")
    speeds = story.records.curve("tokens per second").finite.y
    return {
        "state": escape(clean(run.state.name)),
        "step": f"{story.step:,} of {story.target:,}" if story.target else f"{story.step:,}",
        "train loss": "-" if loss is None else told(loss),
        "best held-out loss": f"{told(best.loss)} at {best.step:,}" if best else "-",
        "accuracy there": escape(accuracies(best.accuracies)) if best else "-",
        "tokens": short(story.records.tokens[-1]) if len(story.records) else "-",
        "tokens/s, median": short(median(speeds.tolist())) if len(speeds) else "-",
        "time": clock(story.records.seconds[-1]) if len(story.records) else "-",
        "starts": f"{len(story.starts):,}",
        "checkpoints": f"{story.counts['save ok']:,}",
    }


def _warnings(run: Run) -> list[str]:
    """What a reader must know before believing a curve."""
    story, counts = run.story, run.story.counts
    last, left = story.records.curve("overflows"), run.torn
    lines = [
        (run.unreadable, f"{run.unreadable:,} lines of the journal are no events of this version and are left out"),
        (left, f"the journal's last line is torn; {left:,} bytes are left out"),
        (not story.starts, "the journal tells of no start"),
        (
            counts["loss"] + counts["gradient"],
            f"{counts['loss'] + counts['gradient']} steps had a loss or gradients that are no numbers",
        ),
        (
            counts["spike"] + counts["spike left out"],
            f"{counts['spike'] + counts['spike left out']:,} spikes of the loss, {counts['spike left out']:,} left out",
        ),
        (last.y.any(), f"{last.y.sum():,.0f} steps were dropped by an overflow"),
        (counts["save failed"], f"{counts['save failed']:,} saves failed"),
        (counts["copy failed"], f"{counts['copy failed']:,} copies failed"),
        (counts["undone"], f"{counts['undone']:,} records were undone by restarts, and are not drawn"),
    ]
    return [f"{run.name}: {line}." for there, line in lines if there]


# ------------------------------------------------------------------------------------------------------------- the rest


def _trust(runs: Sequence[Run]) -> str:
    ratios = figures.trust(runs, "trust_ratio")
    if not ratios:
        return ""
    folded = "".join(
        f"<details><summary>{title}</summary>{_charts(figures.trust(runs, measure))}</details>"
        for measure, title in (("weight_norm", "Norms of the weights"), ("update_norm", "Norms of the updates"))
    )
    return _charts(ratios) + folded


def _ranks(run: Run, count: int) -> str:
    """Speed and memory of every rank; of more than 64 the slowest ones."""
    record = run.story.record
    if record is None or not (record.rank_busy_seconds or record.rank_memory):
        return ""
    speeds, memory = record.relative_performance, record.rank_memory
    ranks = range(max(len(speeds), len(memory)))
    chosen = sorted(ranks, key=lambda rank: speeds[rank] if rank < len(speeds) else 1.0)[:64]
    rows = [
        (
            f"{rank}",
            f"{speeds[rank]:.1%}" if rank < len(speeds) else "-",
            f"{short(memory[rank].peak)}B" if rank < len(memory) else "-",
            f"{short(memory[rank].limit)}B" if rank < len(memory) else "-",
        )
        for rank in sorted(chosen)
    ]
    name = f"<h3>{escape(run.name)}</h3>" if count > 1 else ""
    cut = f'<p class="soft">The 64 slowest of {len(ranks):,}.</p>' if len(ranks) > 64 else ""
    head = ("rank", "speed, of the fastest", "peak memory", "limit")
    return f"{name}{cut}{table(head, rows, kind='narrow', numbers=False)}"


def _happened(run: Run, count: int) -> str:
    if not run.story.starts and not run.story.incidents:
        return ""
    name = f"<h3>{escape(run.name)}</h3>" if count > 1 else ""
    return f"<article>{name}{strip(run)}{attempts_table(run)}{incidents_table(run)}</article>"


def _papers(run: Run, count: int) -> str:
    inner = papers(run)
    name = f"<h3>{escape(run.name)}</h3>" if count > 1 and inner else ""
    return f"<article>{name}{inner}</article>" if inner else ""
