"""A verdict for people, with the bad nodes in its last line; and for programs."""

import dataclasses
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nezha_ds.train.cluster.columns import COLUMNS
from nezha_ds.train.cluster.verdict import Cell, Note, Verdict, few, rate_text
from nezha_ds.train.doctor import Status

STYLES: dict[Status, str] = {"ok": "", "warning": "yellow", "failure": "bold red"}
MARKS: dict[Status, str] = {"ok": "", "warning": " ?", "failure": " ✗"}
WIDTH = 160
"""Columns at least: a terminal that has fewer breaks lines, where a narrower table would lose what is in it."""
MOST_NAMES = 16


def show(verdict: Verdict, console: Console | None = None) -> None:
    """The table, what is wrong under it with its cure, and one line to end with."""
    console = console or Console()
    console = Console(file=console.file, width=max(console.width, WIDTH), force_terminal=console.is_terminal)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    shown = [name for name in COLUMNS if any(row.cells[name].text != "-" for row in verdict.rows)]
    for name in ("node", *shown):
        table.add_column(name, no_wrap=True)
    for row in verdict.rows:
        table.add_row(_text(Cell(row.node.name), row.status), *(_text(row.cells[name]) for name in shown))
    console.print(table)
    for who, note in told(verdict):
        line = Text(f"{note.status:<8}", style=STYLES[note.status])
        line.append(f" {who}: {note.what}", style="default")
        console.print(line, soft_wrap=True)
        console.print(Text(f"{'':<9}→ {note.cure}"), soft_wrap=True)
    if text := bandwidth(verdict):
        console.print(text, soft_wrap=True)
    console.print(Text(outcome(verdict), style="green" if verdict.fit else "bold red"), soft_wrap=True)


def told(verdict: Verdict) -> list[tuple[str, Note]]:
    """What is wrong, and where, by node."""
    nodes = [(row.node.name, note) for row in verdict.rows for cell in row.cells.values() for note in cell.notes]
    return [*nodes, *(("all", note) for note in verdict.notes)]


def bandwidth(verdict: Verdict) -> str:
    """All-reduce of all ranks: the slowest rank's, as all wait for it."""
    traffics = [*verdict.survey.traffics.values()]
    if not traffics or verdict.survey.world_size < 2:
        return ""
    rates = [
        f"{one.bytes / 1e6:.0f} MB at {rate_text(min(t.reductions[place].rate for t in traffics), 'B/s')}"
        for place, one in enumerate(traffics[0].reductions)
    ]
    return f"all-reduce among {verdict.survey.world_size} ranks, bus bandwidth: {', '.join(rates)}"


def outcome(verdict: Verdict) -> str:
    """The last line."""
    survey, bad = verdict.survey, verdict.bad
    if verdict.fit:
        return f"all {len(verdict.rows)} nodes with {survey.world_size} ranks are fit for a run"
    parts = [f"{len(bad)} of {len(verdict.rows)} nodes are not fit: {few(bad, MOST_NAMES)}"] if bad else []
    parts += [note.what for note in verdict.notes if note.status == "failure"]
    return "; ".join(parts)


def to_dict(verdict: Verdict) -> dict[str, Any]:
    """For `--json`."""
    return {
        "fit": verdict.fit,
        "bad": verdict.bad,
        "missing": verdict.survey.missing,
        "outcome": outcome(verdict),
        "nodes": [
            {
                "name": row.node.name,
                "ranks": list(row.node.ranks),
                "status": row.status,
                "cells": {name: {"text": cell.text, "status": cell.status} for name, cell in row.cells.items()},
            }
            for row in verdict.rows
        ],
        "notes": [{"node": who, **dataclasses.asdict(note)} for who, note in told(verdict)],
        "measured": dataclasses.asdict(verdict.survey),
    }


def _text(cell: Cell, status: Status | None = None) -> Text:
    status = status or cell.status
    return Text(f"{cell.text}{MARKS[status]}", style=STYLES[status])
