"""Grafana's JSON, its classic model, made from the words of panels.py. Pure functions; 2 ms a dashboard."""

from collections.abc import Iterable
from string import ascii_uppercase
from zlib import crc32

from panels import Dashboard, Events, Json, Panel, Query, Variable

SOURCE: Json = {"type": "prometheus", "uid": "${datasource}"}
"""Whatever the variable `datasource` has chosen, at first the one with the uid `prometheus`."""
RUNBOOK = "/d/nezha-runbook"
COLUMNS = 24
"""Of Grafana's grid."""
SHORTEST = "2m"
"""Of a rate. Counters grow at log steps; over less time than lies between two of them a rate is 0 and then too high."""


def to_json(board: Dashboard) -> Json:
    """A dashboard in Grafana's classic JSON model."""
    return {
        "uid": board.uid,
        "title": board.title,
        "description": board.answers,
        "tags": ["nezha"],
        "editable": True,
        "graphTooltip": 1,  # one crosshair over all panels
        "refresh": "30s",
        "schemaVersion": 42,
        "time": {"from": board.span, "to": "now"},
        "timezone": "browser",
        "links": [_link(title, url) for title, url in board.links.items()],
        "templating": {"list": [_data_source(), *(_variable(one) for one in board.variables)]},
        "annotations": {"list": [_annotation(one, board.selection) for one in board.events]},
        "panels": list(_placed(board)),
    }


def alert_number(alert: str) -> int:
    """The number of an alert's text in the runbook: of its name alone, so that an old link leads to no other's."""
    return crc32(alert.encode()) & 0x7FFFFFFF


def _placed(board: Dashboard) -> Iterable[Json]:
    """The rows' headings and panels with their numbers and places."""
    number, y = 1, 0
    for row in board.rows:
        yield {
            "id": number,
            "type": "row",
            "title": row.title,
            "collapsed": False,
            "gridPos": {"h": 1, "w": COLUMNS, "x": 0, "y": y},
            "panels": [],
        }
        number, y, x, line = number + 1, y + 1, 0, 0
        for panel in row.panels:
            if x + panel.width > COLUMNS:
                x, y, line = 0, y + line, 0
            yield _panel(panel, number, board.selection, {"h": panel.height, "w": panel.width, "x": x, "y": y})
            number, x, line = number + 1, x + panel.width, max(line, panel.height)
        y += line


def _panel(panel: Panel, number: int, selection: str, place: Json) -> Json:
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": f"{panel.means}\n\n**Bad:** {panel.bad}",
        "datasource": SOURCE,
        "gridPos": place,
        "links": [_link(alert, f"{RUNBOOK}?viewPanel={alert_number(alert)}") for alert in panel.alerts],
        "targets": [
            _target(panel, query, letter, selection)
            for letter, query in zip(ascii_uppercase, panel.queries, strict=False)
        ],
        "fieldConfig": {"defaults": panel.defaults, "overrides": list(panel.overrides)},
        "options": panel.options,
        "transformations": list(panel.transformations),
        **({"interval": SHORTEST} if any("$__rate_interval" in query.expr for query in panel.queries) else {}),
    }


def _target(panel: Panel, query: Query, letter: str, selection: str) -> Json:
    return {
        "refId": letter,
        "datasource": SOURCE,
        "editorMode": "code",
        "expr": _selected(query.expr, selection),
        "legendFormat": query.legend or "__auto",
        "range": not panel.instant,
        "instant": panel.instant,
        "format": "table" if panel.kind == "table" else "time_series",
    }


def _selected(expr: str, selection: str) -> str:
    """The expression for the dashboard's runs, on one line."""
    return " ".join(expr.replace("{RUN", "{" + selection).split())


def _data_source() -> Json:
    return {
        "name": "datasource",
        "label": "Prometheus",
        "description": "The Prometheus that scrapes the runs",
        "type": "datasource",
        "query": "prometheus",
        "current": {"text": "Prometheus", "value": "prometheus"},
        "hide": 0,
        "includeAll": False,
        "multi": False,
        "options": [],
        "refresh": 1,
        "regex": "",
    }


def _variable(variable: Variable) -> Json:
    """The values that a label has within the dashboard's span of time, so that a run that has ended is found too."""
    every = {"text": ["All"], "value": ["$__all"]}
    return {
        "name": variable.name,
        "label": variable.name,
        "description": variable.means,
        "type": "query",
        "datasource": SOURCE,
        "query": {
            "qryType": 1,
            "query": f"label_values({variable.metric}, {variable.label})",
            "refId": "PrometheusVariableQueryEditor-VariableQuery",
        },
        "hide": 0,
        "multi": variable.several,
        "includeAll": variable.several,
        **({"allValue": ".+", "current": every} if variable.several else {}),
        "options": [],
        "refresh": 2,
        "regex": "",
        "sort": 7,
    }


def _annotation(events: Events, selection: str) -> Json:
    expr = f"({events.expr}) * 1000" if events.is_time else events.expr
    return {
        "name": events.name,
        "datasource": SOURCE,
        "enable": True,
        "hide": False,
        "iconColor": events.colour,
        "expr": _selected(expr, selection),
        "step": "15s",
        "titleFormat": events.title,
        "useValueForTime": events.is_time,
    }


def _link(title: str, url: str) -> Json:
    inside = url.startswith("/d/")
    return {
        "type": "link",
        "title": title,
        "url": url,
        "icon": "dashboard" if inside else "doc",
        "tooltip": "",
        "tags": [],
        "asDropdown": False,
        "includeVars": inside,
        "keepTime": inside,
        "targetBlank": not inside,
    }
