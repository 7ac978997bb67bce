"""What can go wrong on the user's side, each with the exit code that a scheduler sees.

A message names the value, the reason and the way out, in one line. The command line prints it without a
traceback; anything else that is raised is a fault of ours and keeps its traceback.
"""


class NezhaError(Exception):
    """An error that the user can mend. `exit_code` 2 means: do not retry, nothing changes by itself."""

    exit_code = 2


class ConfigError(NezhaError):
    """A recipe, an override or a DeepSpeed JSON that cannot be right."""


class DataError(NezhaError):
    """Text, a vocabulary, a shard or a manifest that is missing, damaged or of another kind."""


class CheckpointError(NezhaError):
    """A checkpoint that does not verify, or belongs to another model or data set."""


class LaunchError(NezhaError):
    """Ranks, devices, ports or disks that are not as the run needs them."""
