"""Words for dashboards: queries, panels, rows, variables and events as plain values.

A dashboard is described in overview.py, run.py and cluster.py with these words, grafana.py makes Grafana's JSON of it,
and build.py writes that. Each panel must tell what it means and what is bad: nobody shall have to guess before a curve.

`{RUN}` in an expression stands for the dashboard's own selection of runs, and `{RUN, state="training"}` narrows it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from string import ascii_uppercase
from typing import Any, TypeAlias

Json: TypeAlias = dict[str, Any]

GREEN, YELLOW, RED, BLUE, GREY = "green", "yellow", "red", "blue", "text"
Steps: TypeAlias = Sequence[tuple[float, str]]
"""From each number on the value has this colour; below the first it is green, unless that is BAD_BELOW."""
BAD_BELOW = -inf


@dataclass(frozen=True)
class Query:
    """A PromQL expression and how its series are called: `{{label}}` is a label's value."""

    expr: str
    legend: str = ""


@dataclass(frozen=True)
class Panel:
    """One panel: what all kinds have in common, and what is its kind's own."""

    kind: str
    title: str
    means: str
    """What it shows, in a sentence or two."""
    bad: str
    """What to worry about, with the number where there is one."""
    queries: Sequence[Query]
    defaults: Json
    """Grafana's field configuration for all series."""
    options: Json
    overrides: Sequence[Json] = ()
    transformations: Sequence[Json] = ()
    alerts: Sequence[str] = ()
    """The alerts that watch the same; each is a link to its heading in the runbook."""
    instant: bool = False
    """Only the newest value is asked for, and as a table."""
    width: int = 8
    height: int = 8


@dataclass(frozen=True)
class Row:
    """Panels below one heading, set from left to right in lines of 24 columns."""

    title: str
    panels: Sequence[Panel]


@dataclass(frozen=True)
class Events:
    """Marks on the time axis of every panel: where the expression is above 0, or at the times that are its values."""

    name: str
    expr: str
    colour: str
    title: str
    is_time: bool = False
    """Values are seconds since 1970."""


@dataclass(frozen=True)
class Variable:
    """What the reader chooses at the top: values of a label of a metric, one, or any number of them."""

    name: str
    metric: str
    label: str
    means: str
    several: bool = False


@dataclass(frozen=True)
class Column:
    """A column of a table: the value of an expression, of which each result is a row's."""

    title: str
    expr: str
    unit: str = "short"
    steps: Steps = ()
    mappings: Sequence[Json] = ()
    decimals: int | None = None


@dataclass(frozen=True)
class Dashboard:
    """A whole dashboard; `selection` is what `{RUN}` stands for in its expressions."""

    uid: str
    title: str
    answers: str
    """The question that it answers, for its description and the docs."""
    selection: str
    variables: Sequence[Variable]
    rows: Sequence[Row]
    events: Sequence[Events] = ()
    links: Mapping[str, str] = field(default_factory=dict)
    """Title -> address of what is one click away."""
    span: str = "now-6h"


# ------------------------------------------------------------------------------------------------ kinds of panels


def series(
    title: str,
    means: str,
    bad: str,
    *queries: Query,
    unit: str = "short",
    stack: bool = False,
    steps: Steps = (),
    log: int | None = None,
    least: float | None = None,
    most: float | None = None,
    points: bool = False,
    alerts: Sequence[str] = (),
    width: int = 8,
) -> Panel:
    """Curves over time. `steps` colours the ground from its numbers on; `log` is the base of a logarithmic axis;
    `points` joins and shows the rare values of evaluations and saves.
    """
    custom: Json = {
        "drawStyle": "line",
        "lineWidth": 1,
        "fillOpacity": 40 if stack else 0,
        "showPoints": "always" if points else "never",
        "spanNulls": points,
        "stacking": {"mode": "normal" if stack else "none", "group": "A"},
        "scaleDistribution": {"type": "log", "log": log} if log else {"type": "linear"},
        "thresholdsStyle": {"mode": "line+area" if steps else "off"},
    }
    defaults = {**_field(unit, steps), "custom": custom, "color": {"mode": "palette-classic"}, **_range(least, most)}
    options = {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    return Panel("timeseries", title, means, bad, queries, defaults, options, alerts=alerts, width=width)


def stat(
    title: str,
    means: str,
    bad: str,
    query: Query,
    unit: str = "short",
    steps: Steps = (),
    mappings: Sequence[Json] = (),
    decimals: int | None = None,
    names: bool = False,
    none: str = "–",
    alerts: Sequence[str] = (),
    width: int = 3,
) -> Panel:
    """One big number, the newest, or with `names` the names of the series; `none` is shown where there is none."""
    defaults = {**_field(unit, steps, mappings, decimals), "noValue": none, "color": {"mode": "thresholds"}}
    options = {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "colorMode": "value",
        "graphMode": "none",
        "justifyMode": "auto",
        "orientation": "auto",
        "percentChangeColorMode": "standard",
        "showPercentChange": False,
        "textMode": "name" if names else "auto",
        "wideLayout": True,
    }
    return Panel(
        "stat", title, means, bad, [query], defaults, options, alerts=alerts, instant=True, width=width, height=4
    )


def timeline(
    title: str, means: str, bad: str, query: Query, mappings: Sequence[Json], width: int = 24, height: int = 5
) -> Panel:
    """Coloured bars over time, one a series, by what its number is called in `mappings`."""
    defaults = {
        **_field("short", mappings=mappings),
        "custom": {"fillOpacity": 70, "lineWidth": 0},
        "color": {"mode": "thresholds"},
    }
    options = {
        "alignValue": "left",
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": False, "calcs": []},
        "mergeValues": True,
        "rowHeight": 0.8,
        "showValue": "auto",
        "tooltip": {"mode": "single", "sort": "none"},
    }
    return Panel("state-timeline", title, means, bad, [query], defaults, options, width=width, height=height)


def table(
    title: str,
    means: str,
    bad: str,
    *columns: Column,
    links: Mapping[str, str] | None = None,
    alerts: Sequence[str] = (),
    width: int = 24,
    height: int = 8,
) -> Panel:
    """Rows by what their expressions' results have as labels, the newest values in columns; `links` makes a label a
    link to an address.
    """
    values = {f"Value #{letter}": column for letter, column in zip(ascii_uppercase, columns, strict=False)}
    if len(columns) == 1:  # Grafana numbers the values only where there are several queries.
        values = {"Value": columns[0]}
    renamed = {name: column.title for name, column in values.items()}
    organised = {"excludeByName": {"Time": True}, "renameByName": renamed, "indexByName": {}}
    merged = [{"id": "merge", "options": {}}, {"id": "organize", "options": organised}]
    overrides = [_override(column.title, _column(column)) for column in columns]
    overrides += [
        _override(label, {"links": [{"title": f"Open {label}", "url": url}]}) for label, url in (links or {}).items()
    ]
    defaults = {
        **_field("short"),
        "custom": {"align": "auto", "cellOptions": {"type": "auto"}, "inspect": False, "filterable": True},
    }
    options = {"cellHeight": "sm", "frameIndex": 0, "showHeader": True}
    return Panel(
        kind="table",
        title=title,
        means=means,
        bad=bad,
        queries=[Query(column.expr) for column in columns],
        defaults=defaults,
        options=options,
        overrides=overrides,
        transformations=merged,
        alerts=alerts,
        instant=True,
        width=width,
        height=height,
    )


def facts(title: str, means: str, bad: str, *queries: Query, hidden: Sequence[str] = (), width: int = 24) -> Panel:
    """A table of the labels of info metrics, which say all in their labels; `hidden` ones are left out."""
    left_out = dict.fromkeys(("Time", "Value", *(f"Value #{a}" for a in ascii_uppercase[:2]), *hidden), True)
    organised = {"excludeByName": left_out, "renameByName": {}, "indexByName": {}}
    return Panel(
        kind="table",
        title=title,
        means=means,
        bad=bad,
        queries=queries,
        defaults={
            **_field("string"),
            "custom": {"align": "auto", "cellOptions": {"type": "auto"}, "inspect": False},
        },
        options={"cellHeight": "sm", "frameIndex": 0, "showHeader": True},
        transformations=[{"id": "merge", "options": {}}, {"id": "organize", "options": organised}],
        instant=True,
        width=width,
        height=4,
    )


def named(names: Mapping[int, tuple[str, str]]) -> list[Json]:
    """Grafana's mapping of numbers to a text and a colour each."""
    options = {str(number): {"text": text, "color": colour} for number, (text, colour) in names.items()}
    return [{"type": "value", "options": options}]


def _field(unit: str, steps: Steps = (), mappings: Sequence[Json] = (), decimals: int | None = None) -> Json:
    """Unit, colours and names of values."""
    steps = [*([] if steps and steps[0][0] == BAD_BELOW else [(BAD_BELOW, GREEN)]), *steps]
    coloured = [{"color": colour, "value": None if value == BAD_BELOW else value} for value, colour in steps]
    return {
        "unit": unit,
        "thresholds": {"mode": "absolute", "steps": coloured},
        "mappings": list(mappings),
        **({} if decimals is None else {"decimals": decimals}),
    }


def _range(least: float | None, most: float | None) -> Json:
    return {**({} if least is None else {"min": least}), **({} if most is None else {"max": most})}


def _column(column: Column) -> Json:
    field = _field(column.unit, column.steps, column.mappings, column.decimals)
    coloured = column.steps or column.mappings
    return {**field, **({"custom.cellOptions": {"type": "color-text"}} if coloured else {})}


def _override(name: str, properties: Json) -> Json:
    return {
        "matcher": {"id": "byName", "options": name},
        "properties": [{"id": key, "value": value} for key, value in properties.items()],
    }
