"""The settings of runs: all of one, and what differs between several."""

from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from nezha_ds.pages.html import table
from nezha_ds.show.run import Run
from nezha_ds.show.words import clean

LONGEST = 300
"""Letters of a value in a table."""
LONGEST_TEXT = 20_000
"""Letters of what has several lines, such as the changes since the last commit."""
MOST = 2000
"""Settings of a file that are shown."""


def flat(tree: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every leaf of nested tables under its dotted name, as text."""
    if isinstance(tree, dict) and tree:
        for name, value in tree.items():
            yield from flat(value, f"{path}.{name}" if path else str(name))
    elif isinstance(tree, list):
        yield path, " ".join(str(one) for one in tree)
    else:
        yield path, str(tree).lower() if isinstance(tree, bool) else str(tree)


def all_settings(run: Run) -> dict[tuple[str, str], str]:
    """(file, dotted name) -> value."""
    return {
        (file, name): value
        for file, tree in run.papers.settings.items()
        if tree
        for name, value in list(flat(tree))[:MOST]
    }


def differences(runs: Sequence[Run]) -> str:
    """A table of the settings that are not the same in all runs; a sentence where all are."""
    settings = [all_settings(run) for run in runs]
    names = dict.fromkeys(name for one in settings for name in one)
    rows = [
        (
            f"<code>{escape(clean(name))}</code><br><small>{escape(file)}</small>",
            *(_cell(one.get((file, name))) for one in settings),
        )
        for file, name in names
        if len({one.get((file, name)) for one in settings}) > 1
    ]
    if not rows:
        return '<p class="soft">No setting differs.</p>'
    head = ("setting", *(escape(run.name) for run in runs))
    return f'<div class="scroll" tabindex="0">{table(head, rows, numbers=False)}</div>'


def papers(run: Run) -> str:
    """Every file's settings, folded up."""
    folded: list[str] = []
    for file, tree in run.papers.settings.items():
        if not tree:
            continue
        leaves = list(flat(tree))
        rows = [
            (f"<code>{escape(clean(name))}</code>", _cell(value)) for name, value in leaves[:MOST] if "\n" not in value
        ]
        texts = "".join(
            f"<h3>{escape(clean(name))}</h3><pre>{escape(value[:LONGEST_TEXT])}</pre>"
            + (
                f'<p class="soft">The first {LONGEST_TEXT:,} of {len(value):,} letters.</p>'
                if len(value) > LONGEST_TEXT
                else ""
            )
            for name, value in leaves[:MOST]
            if "\n" in value
        )
        shown = table(("", ""), rows, kind="narrow", numbers=False)
        folded.append(f"<details><summary>{escape(file)}</summary>{shown}{texts}</details>")
    return "".join(folded)


def _cell(value: str | None) -> str:
    if value is None:
        return '<span class="soft">not set</span>'
    shown = value if len(value) <= LONGEST else f"{value[:LONGEST]} … ({len(value):,} letters)"
    return escape(clean(shown.replace("\n", " "))) or '<span class="soft">empty</span>'
