"""docs/metrics.md: the table of metrics as a page for people. `make generated` writes it, a test compares."""

import sys
from collections.abc import Iterable

from nezha_ds.observe.metrics import ANY, TABLE, Metric

GROUPS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("The run", "What runs, since when, and what it is at.", ("build", "run", "signals")),
    ("Training", "How far it is, how fast, and whether its numbers are sound.", ("train", "device", "lamb")),
    ("Data", "What was read, and whether steps wait for it.", ("data",)),
    ("Ranks", "Who is slow, who is silent, who runs out of memory.", ("rank",)),
    ("Evaluation", "On held-out text; `split` is `heldout`, or `heldout/NAME` for one of several texts.", ("eval",)),
    ("Checkpoints", "What would be left if the run died now.", ("checkpoint",)),
    ("The exporter itself", "Who asks, and what it costs.", ("exporter",)),
)
"""Title, what its metrics answer, and the second words of their names."""

HEAD = """\
# Metrics

<!-- Made from the table in nezha_ds/observe/metrics.py by `make generated`. -->

What `/metrics` tells Prometheus, {count} families. The names are an interface: a rename is in the CHANGELOG, and a test
finds any rule, dashboard, document or report that names a metric which is not on this page.

- Every series has the label **`run`**, the name of the run's folder, besides those listed. Prometheus adds `job` and
  `instance`.
- **run** or **node** says who exports it. Series of the run come from rank 0 alone, so that a sum over all targets
  counts them once; series of a node come from the first rank of every node.
- **Counters** count what this attempt did and begin at 0 with each: use `rate` or `increase`, which know that. What
  goes on across attempts is a gauge, as `nezha_train_global_step`.
- What is not known is **absent**, never 0: a last checkpoint at second 0 would alarm at once. *Absent* says when a
  series is missing although the exporter answers; where nothing is said, it is there from the start.
- Moments are timestamps in seconds since 1970, not ages: `time() - nezha_train_last_step_timestamp_seconds`.
"""


def reference(table: Iterable[Metric] = TABLE) -> str:
    """The whole page, in Markdown."""
    metrics = tuple(table)
    sections = [HEAD.format(count=len(metrics))]
    for title, about, words in GROUPS:
        rows = [_row(metric) for metric in metrics if metric.name.split("_")[1] in words]
        sections.append("\n".join([f"## {title}", "", about, "", *_TOP, *rows, ""]))
    return "\n".join(sections)


_TOP = ("| Metric | Type | From | What it tells |", "|---|---|---|---|")


def _row(metric: Metric) -> str:
    told = [f"{metric.help}.", *_labels(metric)]
    if metric.buckets:
        told.append(f"Buckets up to {', '.join(f'{bound:g}' for bound in metric.buckets)} s.")
    if metric.absent:
        told.append(f"*Absent* {metric.absent}.")
    return f"| `{metric.name}` | {metric.kind} | {metric.per} | {'<br>'.join(told)} |"


def _labels(metric: Metric) -> Iterable[str]:
    """Each label with the values that it can take, and then together those of which they are not known beforehand."""
    for label, values in metric.labels.items():
        if values != ANY:
            yield f"By `{label}`: {', '.join(f'`{value}`' for value in values)}."
    if free := [f"`{label}`" for label, values in metric.labels.items() if values == ANY]:
        yield f"By {', '.join(free)}."


if __name__ == "__main__":
    sys.stdout.write(reference())
