"""How many samples each step takes: one number for ever, or growing in stages until that number is reached.

Nothing is counted while a run goes on: the samples before a step are a sum over the table, so that any step is found at
once, by any number of ranks. A table has a handful of stages.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """Some steps of one batch size."""

    batch: int
    """Samples of a step, over all ranks."""
    steps: int
    """How many steps take that many."""


@dataclass(frozen=True)
class BatchSchedule:
    """The batch of every step from 0 on: stage after stage, and then `final` for ever."""

    final: int
    stages: tuple[Stage, ...] = ()

    def batch_at(self, step: int) -> int:
        """Samples of the step that comes after `step` steps."""
        rest = self.after(step)
        return rest.stages[0].batch if rest.stages else rest.final

    def samples_before(self, step: int) -> int:
        """Samples of all steps before `step`: the first sample number of that one."""
        samples, left = 0, step
        for stage in self.stages:
            samples += stage.batch * min(left, stage.steps)
            left = max(0, left - stage.steps)
        return samples + self.final * left

    def after(self, step: int) -> "BatchSchedule":
        """What is left of it after `step` steps."""
        stages: list[Stage] = []
        left = step
        for stage in self.stages:
            if left < stage.steps:
                stages.append(Stage(stage.batch, stage.steps - left))
            left = max(0, left - stage.steps)
        return BatchSchedule(self.final, tuple(stages))
