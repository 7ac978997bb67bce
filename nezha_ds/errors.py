"""What can go wrong on the user's side, each with the exit code that a scheduler sees.

A message names the value, the reason and the way out, in one line. The command line prints it without a
traceback; anything else that is raised is a fault of ours and keeps its traceback.
"""

from enum import IntEnum


class Exit(IntEnum):
    """What a run's exit code tells whoever started it. Any other code, 1 or a signal's, means: start it again."""

    DONE = 0
    REFUSED = 2
    """The recipe, the JSON, the text or the machine is not as it must be: do not retry, nothing changes by itself."""
    STOPPED = 75
    """Stopped and saved: start the same command again. EX_TEMPFAIL of sysexits.h, which schedulers read so."""
    DIVERGED = 76
    """The numbers ran away and the last good state is saved: do not retry as it is."""
    NO_PROGRESS = 77
    """Restarts came no further: do not retry as it is."""
    HUNG = 79
    """A step took longer than its limit, and every rank wrote where it stood: start the same command again."""


class NezhaError(Exception):
    """An error that the user can mend."""

    exit_code: int = Exit.REFUSED


class ConfigError(NezhaError):
    """A recipe, an override or a DeepSpeed JSON that cannot be right."""


class DataError(NezhaError):
    """Text, a vocabulary, a shard or a manifest that is missing, damaged or of another kind."""


class CheckpointError(NezhaError):
    """A checkpoint that does not verify, or belongs to another model or data set."""


class LaunchError(NezhaError):
    """Ranks, devices, ports or disks that are not as the run needs them."""


class DivergedError(NezhaError):
    """Losses, gradients or weights that are no numbers any more, or a loss scale that can fall no further."""

    exit_code = Exit.DIVERGED


class NoProgressError(NezhaError):
    """Attempt after attempt that ended before it came further than the one before."""

    exit_code = Exit.NO_PROGRESS


class LostRankError(NezhaError):
    """Another rank ended, or cannot be reached any more, in the middle of the run: start it again."""

    exit_code = 1
