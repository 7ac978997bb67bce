"""The runbook as a dashboard, a text for each heading of docs/runbook.md, so that a panel's links lead to what is to be
done in any Grafana, also in one that reaches nothing else.
"""

import re
from pathlib import Path

from grafana import RUNBOOK, Json, alert_number

PAGE = Path(__file__).resolve().parents[2] / "docs" / "runbook.md"
WIDTH, LETTERS = 12, 80
"""Columns of a text, and about how many letters such a line holds."""


def sections(page: str) -> dict[str, str]:
    """The text below each heading that names an alert."""
    found = re.split(r"^## (Nezha\w+)\n", page, flags=re.MULTILINE)
    return {title: text.strip() for title, text in zip(found[1::2], found[2::2], strict=True)}


def runbook(page: str) -> Json:
    """The dashboard `nezha-runbook`, from the page in Markdown."""
    texts = sections(page)
    lines = {title: sum(1 + len(line) // LETTERS for line in _joined(text)) for title, text in texts.items()}
    height = 3 + max(lines.values()) * 3 // 5
    return {
        "uid": RUNBOOK.removeprefix("/d/"),
        "title": "NEZHA: runbook",
        "description": "What does an alert mean, what is to be looked at, and what is to be done?",
        "tags": ["nezha"],
        "editable": True,
        "schemaVersion": 42,
        "links": [],
        "templating": {"list": []},
        "annotations": {"list": []},
        "panels": [
            {
                "id": alert_number(title),
                "type": "text",
                "title": title,
                "gridPos": {"h": height, "w": WIDTH, "x": WIDTH * (place % 2), "y": height * (place // 2)},
                "options": {"mode": "markdown", "content": text},
            }
            for place, (title, text) in enumerate(texts.items())
        ],
    }


def _joined(text: str) -> list[str]:
    """Paragraphs, each on one line."""
    return [" ".join(part.split()) for part in text.split("\n\n")]
