"""Words about a run that are the same in a terminal and on a page."""

from nezha_ds.observe.events import Start
from nezha_ds.observe.log import event_line
from nezha_ds.show.story import Incident


def clean(text: str) -> str:
    """Text without what a terminal would obey or break a line at."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def incident_line(one: Incident) -> str:
    """What happened, in one line."""
    return clean(f"step {one.step} · {event_line(one)}" if isinstance(one, Start) else event_line(one))


def facts_of(start: Start) -> tuple[str, str, str]:
    """What an attempt is, in three pieces."""
    ranks = f"{start.world_size:,} rank{'s' * (start.world_size != 1)}"
    return clean(f"{start.model} in {start.precision}"), f"ZeRO {start.zero_stage}", ranks
