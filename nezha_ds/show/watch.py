"""`nezha-ds watch`: a frame a second of a run that goes on, or one of a run that is over.

A look costs what the run wrote since the last one; a frame 20 ms, also
of 100,000 records. The journal may be missing, torn, cut, or replaced by
that of a restart: it waits, says so and goes on.
"""

import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.live import Live

from nezha_ds.observe.layout import ATTEMPTS
from nezha_ds.observe.tail import News, Tail
from nezha_ds.show.folder import journal_of, name_of, read_attempts
from nezha_ds.show.frame import Look, frame
from nezha_ds.show.state import State, state_of
from nezha_ds.show.story import Story

FASTEST = 0.05
"""Seconds between two looks at least."""


@dataclass
class Watch:
    """One run that is followed."""

    path: Path
    """Its journal."""
    story: Story = field(default_factory=Story)
    news: News = field(default_factory=News)

    def __post_init__(self) -> None:
        self._tail = Tail(self.path)

    def look(self) -> bool:
        """Take in what came; whether there is more at once."""
        self.news = self._tail.look()
        if self.news.anew:
            self.story = Story()
        for event in self.news.events:
            self.story.take(event)
        return self.news.more

    def picture(self, now: float, width: int, height: int) -> Look:
        """What is to be drawn now."""
        start = self.story.start
        name = start.run if start else name_of(self.path)
        return Look(self.story, name, self._state(now), now, width, height, tuple(self._notes()))

    def _state(self, now: float) -> State:
        if self.news.problem and self.story.last is None:
            return State("waiting", "soft", f"for {self.path}")
        attempts = read_attempts(self.path.with_name(ATTEMPTS))
        return state_of(self.story, now, attempts[-1].exit_code if attempts else None)

    def _notes(self) -> list[str]:
        notes = [f"{self.path}: {self.news.problem.lower()}; waiting for it"] if self.news.problem else []
        if self.news.more:
            notes.append(f"reading: {self.news.left / 1e6:,.0f} MB to go")
        if self._tail.unreadable:
            notes.append(f"{self._tail.unreadable:,} lines of {self.path} are no events of this version")
        return notes


def watch(path: Path, once: bool, every: float, console: Console) -> None:
    """Draw a run until Ctrl-C, or once: also where `console` is no terminal."""
    run = Watch(journal_of(path))
    if once or not console.is_terminal:
        while run.look():
            pass
        console.print(frame(run.picture(time.time(), console.width, console.height)))
        return
    with suppress(KeyboardInterrupt), Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            more = run.look()
            live.update(frame(run.picture(time.time(), console.width, console.height)), refresh=True)
            if not more:
                time.sleep(max(FASTEST, every))
