"""One run of a report: its story, its papers, and what it is called."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nezha_ds.errors import DataError
from nezha_ds.observe.layout import METRICS_FILE
from nezha_ds.observe.tail import Tail
from nezha_ds.show.folder import Papers, journal_of, name_of, read_papers
from nezha_ds.show.state import State, state_of
from nezha_ds.show.story import Story
from nezha_ds.show.words import clean


@dataclass(frozen=True)
class Run:
    """All that a page tells of one run."""

    name: str
    """No other run of the page is called so."""
    story: Story
    papers: Papers
    state: State
    unreadable: int = 0
    """Lines of the journal that are no events."""
    torn: int = 0
    """Bytes of a last line that is not whole."""

    def style(self, place: int) -> str:
        """The classes of its lines, being the run at a place: eight colours, then the same ones dashed."""
        return f"s{place % 8}" + (" dashed" if place >= 8 else "")


def read_runs(paths: Sequence[Path], now: float | None = None) -> list[Run]:
    """Every run of a page, 10,000 records a second; DataError when a journal cannot be read."""
    journals = [journal_of(path) for path in paths]
    stories = [_read(journal) for journal in journals]
    names = [
        story.start.run if story.start else name_of(path) for (story, _, _), path in zip(stories, journals, strict=True)
    ]
    runs: list[Run] = []
    for name, path, (story, tail, torn) in zip(names, paths, stories, strict=True):
        papers = read_papers(journal_of(path))
        ended = papers.attempts[-1].exit_code if papers.attempts else None
        state = state_of(story, time.time() if now is None else now, ended)
        called = clean(name if names.count(name) == 1 else str(path))
        runs.append(Run(called, story, papers, state, tail.unreadable, torn))
    return runs


def _read(journal: Path) -> tuple[Story, Tail, int]:
    story, tail = Story(), Tail(journal)
    while True:
        news = tail.look()
        if news.problem:
            raise DataError(
                f"{journal} cannot be read ({news.problem}); name a run's folder, or the {METRICS_FILE} of one"
            )
        for event in news.events:
            story.take(event)
        if not news.more:
            return story, tail, news.left
