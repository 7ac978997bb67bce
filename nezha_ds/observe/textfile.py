"""The metrics as a file for node_exporter's textfile collector, where nobody may open a port.

nezha_RUN-nodeN.prom is written every 15 s and after log steps, see kept.py, without timestamps, which the collector
refuses. A killed run leaves it, and `node_textfile_mtime_seconds` tells how old it is.
"""

from pathlib import Path

from prometheus_client import generate_latest

from nezha_ds.config import Settings
from nezha_ds.observe.board import Board
from nezha_ds.observe.kept import KeptFile
from nezha_ds.world import World


class TextfileSettings(Settings):
    """Metrics by way of a file."""

    textfile: Path | None = None
    """Folder of node_exporter's textfile collector, in which nezha_RUN-nodeN.prom is kept; made if need be."""


def keep_textfile(folder: Path, run: str, world: World, board: Board) -> KeptFile:
    """The node's file, from now until it is closed."""
    return KeptFile(folder / f"nezha_{run}-node{world.node}.prom", lambda: generate_latest(board))
