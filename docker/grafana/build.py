"""Write the dashboards that overview.py, run.py, cluster.py and docs/runbook.md describe, and their page in docs.

python docker/grafana/build.py                # what `make generated` does
python docker/grafana/build.py --root /tmp/x  # the same below another folder; a test compares the two
"""

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path

from cluster import CLUSTER
from grafana import to_json
from overview import OVERVIEW
from panels import Dashboard, Json
from run import RUN
from runbook import PAGE as RUNBOOK_PAGE
from runbook import runbook

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER, PAGE = Path("docker/grafana/dashboards"), Path("docs/dashboards.md")
MARK = "<!-- What follows is written by `make generated`. -->"


def files(page: str) -> Iterator[tuple[Path, str]]:
    """Every file with its text; `page` is the page in docs as it is, of which what follows the mark is replaced."""
    boards = [OVERVIEW, RUN, CLUSTER]
    for board in boards:
        yield FOLDER / f"{board.uid}.json", _written(to_json(board))
    yield FOLDER / "nezha-runbook.json", _written(runbook(RUNBOOK_PAGE.read_text(encoding="utf-8")))
    yield PAGE, page.partition(MARK)[0] + MARK + "\n" + "".join(_section(board) for board in boards)


def _written(board: Json) -> str:
    return json.dumps(board, indent=1, ensure_ascii=False) + "\n"


def _section(board: Dashboard) -> str:
    """A dashboard for people: its question, its variables, and each panel with what is bad."""
    lines = [f"\n## {board.title}\n", board.answers + "\n"]
    for row in board.rows:
        lines += [f"### {row.title}\n", "| panel | what it shows | what is bad |", "|---|---|---|"]
        lines += [f"| {panel.title} | {_cell(panel.means)} | {_cell(panel.bad)} |" for panel in row.panels]
        lines.append("")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|")


def main() -> None:
    """Read the options and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--root", type=Path, default=REPOSITORY, help="write below this folder (default: %(default)s)")
    root = parser.parse_args().root
    for path, text in files((REPOSITORY / PAGE).read_text(encoding="utf-8")):
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
