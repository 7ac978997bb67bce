"""The frame of a page, and its tables.

A page fetches nothing: its style stands in it and a policy in its head forbids the rest, so that no text that slipped
through unescaped could run or fetch. A script runs only when it is the one that was given here, known by its hash.
"""

import hashlib
from base64 import b64encode
from collections.abc import Sequence
from html import escape
from pathlib import Path

STYLE = Path(__file__).with_name("page.css")


def document(title: str, body: str, style: str = "", script: str = "") -> str:
    """A whole page. `title` is text; `body` is HTML; `style` comes behind the common one; `script` runs at the end."""
    allowed = f"; script-src 'sha256-{b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" if script else ""
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:{allowed}"
    end = f"<script>{script}</script>\n" if script else ""
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>{escape(title)}</title>\n<link rel="icon" href="data:,">\n'
        f"<style>\n{STYLE.read_text(encoding='utf-8')}{style}</style>\n</head>\n<body>\n{body}\n{end}</body>\n</html>\n"
    )
    # JSON and paths can hold halves of letters, which no encoding has.
    return page.encode("utf-8", "replace").decode("utf-8")


def tiles(figures: dict[str, str]) -> str:
    """Numbers in boxes, each under its name; HTML."""
    cells = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in figures.items())
    return f'<dl class="tiles">{cells}</dl>'


def figure(title: str, said: str, drawing: str) -> str:
    """A drawing under its title and one sentence; HTML."""
    return f"<figure><figcaption><h3>{title}</h3><p>{said}</p></figcaption>{drawing}</figure>\n"


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    foot: Sequence[str] = (),
    kind: str = "",
    more: Sequence[int] = (),
    numbers: bool = True,
) -> str:
    """Rows of HTML cells. Cells that are numbers go to the right; a phone leaves out the columns in `more`."""
    right = {
        column
        for column in range(len(head))
        if numbers and all(row[column].replace(",", "").replace(".", "").rstrip("%").isdigit() for row in rows)
    }

    def line(cells: Sequence[str], tag: str = "td") -> str:
        return "".join(
            f"<{tag}{_classes(column in right, column in more)}>{cell}</{tag}>" for column, cell in enumerate(cells)
        )

    top = f"<thead><tr>{line(head, 'th')}</tr></thead>" if any(head) else ""
    end = f"<tfoot><tr>{line(foot)}</tr></tfoot>" if foot else ""
    body = "".join(f"<tr>{line(row)}</tr>\n" for row in rows)
    return f'<table class="{kind}">{top}<tbody>{body}</tbody>{end}</table>\n'


def _classes(right: bool, more: bool) -> str:
    names = " ".join(name for name, there in (("n", right), ("more", more)) if there)
    return f' class="{names}"' if names else ""
