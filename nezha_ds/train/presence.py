"""That a run can be seen from its first second to its last: its pulse, and its node's exporter.

Both open before the text is looked for and before ranks meet, and close after the last save, so that a run that hangs
in its start or its end is seen as one, by whoever asks its health. In between, `at` is all that the run says.
"""

from collections.abc import Generator
from contextlib import closing, contextmanager
from dataclasses import dataclass

from nezha_ds.observe.events import Observer
from nezha_ds.observe.exporter import open_exporter
from nezha_ds.observe.pulse import Pulse
from nezha_ds.train.recipe import Recipe
from nezha_ds.world import World


@dataclass(frozen=True)
class Presence:
    """What is open for as long as the run lasts."""

    pulse: Pulse
    observers: list[Observer]
    """The node's exporter, where this rank has it."""

    def at(self, state: str) -> None:
        """A section of the run begins, one of `metrics.STATES`, at the step of the last mark."""
        self.pulse.mark(state, self.pulse.own.step)


@contextmanager
def present(recipe: Recipe, world: World) -> Generator[Presence]:
    """Be seen; "failed" when the block raises. LaunchError when the exporter's address cannot be bound."""
    with closing(Pulse.open(recipe.run.folder, world)) as pulse:
        exporter = open_exporter(recipe.exporter, world, recipe.run.folder.name, pulse)
        presence = Presence(pulse, [exporter] if exporter else [])
        try:
            yield presence
        except BaseException:
            presence.at("failed")
            raise
        else:
            if pulse.own.state != "done":  # also where it was stopped before it had begun to train
                presence.at("stopping")
        finally:
            if exporter:
                exporter.close()
