"""One preparation at a time in a folder (`nezha_ds.lock` says how far that reaches).

The lock belongs to the process that hands out the work; its workers stop by themselves when it is gone.
"""

import sys
from contextlib import AbstractContextManager
from pathlib import Path

from nezha_ds.lock import holding

LOCK = ".prepare.lock"


def alone_in(folder: Path) -> AbstractContextManager[None]:
    """Keep every other preparation out of the folder. LaunchError names host and process of the one that is in it."""

    def warn(reason: str) -> None:
        # Also without a progress bar.
        print(f"warning: no lock on {folder} ({reason}); start no second preparation in it", file=sys.stderr)  # noqa: T201

    busy = "is being prepared by another process ({holder}); wait for it or end it, or choose another folder"
    return holding(folder / LOCK, f"{str(folder).replace('{', '{{').replace('}', '}}')} {busy}", warn)
