"""Rows as docs/benchmarks.md shows them: `python -m tests.gpu.table rows.jsonl`; without a file all are unmeasured.

What was not measured says so, what failed says why. Of several rows of the same thing the last measured one counts.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.gpu.cases import SIDES, Group, Key, groups
from tests.gpu.rows import Row, key_of, last_measured, read

AIM_BERT, AIM_HF, AIM_MFU = 0.9, 3.0, 0.5
"""Of the plain BERT's sequences a second; times Hugging Face's NEZHA at L = 512; of the device's peak."""

AIMS = (
    f"Aims: at least {AIM_BERT:.0%} of the plain BERT's speed, {AIM_HF:.0f} times Hugging Face's NEZHA at L = 512, "
    f"{AIM_MFU:.0%} of the device's peak (MFU)."
)
NOT_MEASURED = "not measured"

Known = dict[Key, Row]


def main(arguments: Sequence[str]) -> int:
    if len(arguments) > 1:
        print("python -m tests.gpu.table [rows.jsonl]", file=sys.stderr)
        return 2
    rows = read(Path(arguments[0])) if arguments else []
    print(markdown(rows, planned(rows)))
    return 0


def planned(rows: list[Row]) -> list[Group]:
    """The groups that a table tells of: all, or only those in the rows where these are of a dry run."""
    shapes = {(key[1], key[2]) for row in rows if (key := key_of(row))}
    known = {(group.size, group.length) for group in groups()}
    if not shapes or shapes & known:
        return groups()
    return [_group_of(row) for row in last_measured(rows).values()]


def markdown(rows: list[Row], wanted: list[Group]) -> str:
    """Where and when, what tests said, and the tables of steps, micro-batches and tiles."""
    found = last_measured(rows)
    parts = [*_environments(rows), *_tests(rows), AIMS, *(show(found, wanted) for show in (_steps, _limits, _tiles))]
    return "\n\n".join(parts)


def _group_of(row: Row) -> Group:
    return Group(row["kind"], row["size"], row["length"], row["dtype"], (row["side"],), row["compiled"])


def _environments(rows: list[Row]) -> Iterator[str]:
    """The runs that the rows come from; the same environment once."""
    told = [row for row in rows if row["kind"] == "environment"]
    lines = {_environment(row): row["time"][:10] for row in told}
    for line, day in lines.items():
        yield f"{day}, {line}"
    if not told:
        yield "Not measured yet: no GPU was at hand."


def _environment(row: Row) -> str:
    memory = f", {row['memory_mib']:,} MiB" if row["memory_mib"] else ""
    names = ("driver", "cuda", "torch", "triton", "deepspeed", "transformers", "python")
    versions = ", ".join(f"{name} {row[name]}" for name in names if row[name])
    return f"`{row['command']}` on {row['device']}{memory} ({versions})."


def _tests(rows: list[Row]) -> Iterator[str]:
    """What the last run of the tests said."""
    last = [row for row in rows if row["kind"] == "tests"][-1:]
    for row in last:
        failed = f": {', '.join(row['failures'])}" if row["failures"] else ""
        yield f"Tests on the device: {row['passed']} passed, {row['skipped']} skipped, {row['failed']} failed{failed}."


def _steps(found: Known, wanted: list[Group]) -> str:
    lines = [
        "| model | L | precision | compiled | side | batch | sequences/s | step, update, ms | MFU | peak MiB "
        "| × BERT | × HF |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [_step(found, group, side) for group in wanted if group.kind == "step" for side in group.sides]
    return "\n".join(lines)


def _step(found: Known, group: Group, side: str) -> str:
    row = found.get(group.key(side))
    head = f"| {group.size} | {group.length} | {group.dtype} | {'yes' if group.compiled else 'no'} | {side} |"
    if row is None or "error" in row:
        return f"{head} | {_missing(row)} | | | | | |"
    mfu = "–" if row["mfu"] is None else f"{row['mfu']:.1%}"
    peak = "–" if row["peak_mib"] is None else f"{row['peak_mib']:,.0f}"
    times = f"{row['milliseconds']:.1f}, {row['update_milliseconds']:.1f}"
    ratios = f"{_ratio(found, group, side, 'bert')} | {_ratio(found, group, side, 'hf-nezha')}"
    return f"{head} {row['batch']} | {row['sequences_per_second']:,.1f} | {times} | {mfu} | {peak} | {ratios} |"


def _ratio(found: Known, group: Group, side: str, other: str) -> str:
    """How many times as fast as `other` in the same group; of Hugging Face's NEZHA there is an eager one alone."""
    beside = found.get(group.key(other))
    if beside is None and other == "hf-nezha":
        eager = ("step", group.size, group.length, group.dtype, False, other)
        beside = found.get(eager)
    if side == other or beside is None or "error" in beside:
        return "–"
    return f"{found[group.key(side)]['sequences_per_second'] / beside['sequences_per_second']:.2f}"


def _limits(found: Known, wanted: list[Group]) -> str:
    lines = ["| model | L | precision | side | largest micro-batch |", "|---|---|---|---|---|"]
    for group in wanted:
        for side in group.sides if group.kind == "limit" else ():
            row = found.get(group.key(side))
            if row is None or "error" in row:
                told = _missing(row)
            else:
                told = f"{'at least ' * row['at_least']}{row['micro_batch']:,}"
            lines.append(f"| {group.size} | {group.length} | {group.dtype} | {side} | {told} |")
    return "\n".join(lines)


def _tiles(found: Known, wanted: list[Group]) -> str:
    lines = ["| model | L | precision | kernel, queries x keys x warps x stages | µs |", "|---|---|---|---|---|"]
    for group in wanted:
        for side in group.sides if group.kind == "tiles" else ():
            row = found.get(group.key(side))
            told = _missing(row) if row is None or "error" in row else f"{row['microseconds']:,.0f}"
            lines.append(f"| {group.size} | {group.length} | {group.dtype} | {side} | {told} |")
    return "\n".join(lines)


def _missing(row: Row | None) -> str:
    """What stands for a number: a bar in an error would end its cell."""
    return NOT_MEASURED if row is None else f"{NOT_MEASURED} ({row['error'].replace('|', '/')})"


def legend() -> str:
    """What the sides are, for the docs."""
    return "\n".join(f"- `{name}`: {what}" for name, what in SIDES.items())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
