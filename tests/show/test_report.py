"""`nezha-ds report`: one file that fetches nothing, shows hostile text as text, and draws whatever a run may tell."""

import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nezha_ds import cli
from nezha_ds.errors import DataError
from nezha_ds.observe.events import Event, RankMemory
from nezha_ds.observe.journal import MetricsFile
from nezha_ds.show.page import page
from nezha_ds.show.run import read_runs
from tests.helpers.browser import Browser, browser, faint_text
from tests.observe.samples import copy, evaluation, events, record, save, start, stop, trouble

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&lt;\u202e\x00\ud800"
TOO_WIDE = """[...document.querySelectorAll('body *')].filter(e => e.getClientRects().length
    && !e.closest('.scroll, pre')
    && e.getBoundingClientRect().right > innerWidth + 0.5).map(e => e.outerHTML.slice(0, 200))"""


def write(folder: Path, some: Sequence[Event], **files: str) -> Path:
    journal = MetricsFile(folder / "metrics.jsonl")
    for event in some:
        journal.update(event)
    journal.close()
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def rich_run(name: str = "first", steps: int = 400, **changes: object) -> list[Event]:
    """A run of two attempts with everything in it; its loss spikes at step 200 and is NaN at 210."""
    told: list[Event] = [start(run=name, time=1000.0, target_steps=steps)]
    for step in range(10, steps + 1, 10):
        loss = 40.0 if step == 200 else math.nan if step == 210 else 10 - 5 * step / steps
        memory = tuple(RankMemory(allocated=4 * 10**9, peak=6 * 10**9, limit=8 * 10**9) for _ in range(2))
        told.append(
            record(
                step, loss=loss, rank_busy_seconds=(8.0, 10.0), rank_memory=memory, skipped_steps=step == 300, **changes
            )
        )
        if step % 50 == 0:
            told += [evaluation(step, loss=9 - 4 * step / steps, time=1000.0 + step)]
            told += [
                evaluation(step, loss=8.0, split=f"heldout/{text}", time=1000.0 + step) for text in ("news", "law")
            ]
        if step % 100 == 0:
            told += [save(step, time=1000.5 + step, ok=step != 300), copy(step, time=1000.6 + step)]
        if step == 250:
            told += [
                trouble(251, time=1251.0),
                stop(250, time=1252.0),
                start(run=name, step=200, time=1260.0, target_steps=steps),
            ]
    return told


RECIPE = '[train]\nsteps = {steps}\n[data]\nshards = "here"\n'


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as window:
        yield window


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory, chromium: Browser) -> Path:
    """The page of two runs, open in the browser."""
    folder = tmp_path_factory.mktemp("report")
    first = write(
        folder / "a", rich_run(), recipe__toml=RECIPE.format(steps=400), ds_config__json='{"fp16": {"on": true}}'
    )
    second = write(folder / "b", rich_run("second", lamb={}), recipe__toml=RECIPE.format(steps=500))
    out = folder / "new" / "report.html"
    assert cli.main(["report", str(first), str(second / "metrics.jsonl"), "--out", str(out)]) == 0
    assert out.stat().st_size < 500_000
    chromium.open(out)
    assert chromium.requests() == [out.as_uri()]
    return out


def drawn(html: str) -> str:
    """The path of the first chart's first line."""
    found = re.search(r'data-name="train" d="([^"]+)"', html)
    assert found
    return found[1]


def only(folder: Path, *some: Event, **files: str) -> str:
    """The page of one run."""
    return page(read_runs([write(folder / "run", some, **files)], now=5000.0))


# --------------------------------------------------------------------------------------------------------- in a browser


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_the_window(chromium: Browser, shown: Path, width: int, scheme: str) -> None:
    chromium.resize(width)
    chromium.media(scheme)
    assert chromium.ask(TOO_WIDE) == []
    assert chromium.ask("document.documentElement.scrollWidth <= innerWidth")
    assert chromium.log("browser") == []


def test_text_stands_out_from_what_is_behind_it(chromium: Browser, shown: Path) -> None:
    for scheme in ("light", "dark"):
        chromium.media(scheme)
        assert faint_text(chromium) == []


def test_every_chart_has_lines_axes_and_a_name(chromium: Browser, shown: Path) -> None:
    chromium.resize(1280)
    charts = chromium.ask("""[...document.querySelectorAll('.plot.lines > svg')].filter(e => e.getClientRects().length)
        .map(svg => ({name: svg.ariaLabel, lines: svg.querySelectorAll('path.line').length,
        labels: [...svg.querySelectorAll('text')].map(text => text.textContent)}))""")
    names = [chart["name"] for chart in charts]
    expected = {"Loss", "Loss: mlm", "Accuracy: nsp", "Learning rate", "Gradient norm", "Loss scale", "Overflows"}
    expected |= {"Attention", "Feed forward", "Tokens per second", "MFU", "Waiting for data", "Mask rate", "Memory"}
    assert expected <= {*names}
    for chart in charts:
        assert chart["lines"] >= 1
        assert len(chart["labels"]) >= 4
        assert not any("nan" in label.lower() for label in chart["labels"])
    assert next(chart["lines"] for chart in charts if chart["name"] == "Loss") == 4


def test_axis_and_scale_are_chosen_by_keyboard_and_shown(chromium: Browser, shown: Path) -> None:
    visible = "[...document.querySelectorAll('.view')].filter(e => e.getClientRects().length).map(e => e.className)"
    first = chromium.ask(visible)
    assert len(first) == 5  # three losses, two accuracies
    assert {*first} == {"view x-steps linear", "view x-steps linear log"}
    chromium.ask("document.getElementById('choose-x-steps').focus()")
    for kind in ("keyDown", "keyUp"):
        chromium.devtools(
            "Input.dispatchKeyEvent", type=kind, key="ArrowRight", code="ArrowRight", windowsVirtualKeyCode=39
        )
    chromium.ask("document.getElementById('choose-log').click()")
    assert {*chromium.ask(visible)} == {"view x-tokens log", "view x-tokens linear log"}
    axis = "[...document.querySelectorAll('.view')].find(e => e.getClientRects().length).textContent"
    assert "tokens" in chromium.ask(axis)
    for choice in ("x-steps", "linear"):
        chromium.ask(f"document.getElementById('choose-{choice}').click()")


def test_values_are_read_off_by_pointer_and_by_keys(chromium: Browser, shown: Path) -> None:
    chart = "[...document.querySelectorAll('.plot.lines > svg')].find(e => e.ariaLabel == 'Loss')"
    read = f"{chart}.parentElement.querySelector('.read').innerText"
    chromium.ask(f"{chart}.focus()")
    key = f"{chart}.dispatchEvent(new KeyboardEvent('keydown', {{key: 'KEY', bubbles: true}}))"
    chromium.ask(key.replace("KEY", "End"))
    assert chromium.ask(read).startswith("400 steps\nfirst 5\nfirst, held out 5\n")
    chromium.ask(key.replace("KEY", "Home"))
    assert chromium.ask(read).startswith("10 steps\nfirst 9.875\n")
    place = "{clientX: field.left + field.width * 190 / 390, clientY: field.top + 5}"
    move = f"{chart}.dispatchEvent(new PointerEvent('pointermove', {place}))"
    chromium.ask(f"(field => {move})({chart}.getBoundingClientRect())")
    assert chromium.ask(read).startswith("200 steps\nfirst 40\n")  # the spike of one step
    chromium.ask(f"{chart}.blur()")
    assert chromium.ask(f"{chart}.parentElement.querySelector('.read').getClientRects().length") == 0
    assert chromium.log("browser") == []


def test_it_prints_on_white(chromium: Browser, shown: Path) -> None:
    chromium.media("light", medium="print")
    assert chromium.ask("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert chromium.ask("getComputedStyle(document.querySelector('.choice')).display") == "none"
    assert chromium.devtools("Page.printToPDF", printBackground=True)["data"]
    chromium.media("light")


def test_hostile_names_and_settings_are_shown_as_text(chromium: Browser, tmp_path: Path) -> None:
    name = HOSTILE.replace("\ud800", "")
    told = [
        start(run=name, job_id=name, model=name, sources=(name, "b")),
        record(10, source_tokens={name: 5, "b": 6}),
        evaluation(10, split=f"heldout/{name}"),
        stop(10, signal=name),
    ]
    settings_of = json.dumps({HOSTILE: HOSTILE, "lines": f"{HOSTILE}\n</pre>{HOSTILE}"})
    runs = [write(tmp_path / one, told, environment__json=settings_of) for one in ("a", "b")]
    for number, paths in enumerate((runs[:1], runs)):
        out = tmp_path / f"{number}.html"
        assert cli.main(["report", *map(str, paths), "--out", str(out)]) == 0
        chromium.open(out)
        chromium.ask("document.querySelectorAll('details').forEach(e => e.open = true)")
        assert chromium.ask("document.querySelectorAll('script').length") == 1
        assert chromium.ask("document.querySelectorAll('img, iframe, [onerror]').length") == 0
        assert "<script>alert(1)</script>" in chromium.ask("document.body.innerText")
        assert chromium.log("browser") == []
        assert len(chromium.requests()) == 1


def test_a_script_that_slipped_in_would_not_run(chromium: Browser, shown: Path, tmp_path: Path) -> None:
    """The policy, not the escaping: only the script whose hash stands in the head runs."""
    broken = tmp_path / "page.html"
    broken.write_text(shown.read_text().replace("<footer", "<script>document.title = 'taken'</script><footer"))
    chromium.open(broken)
    assert chromium.ask("document.title") == "first, second"
    assert any("Content Security Policy" in entry["message"] for entry in chromium.log("browser"))


# ---------------------------------------------------------------------------------------------------- without a browser


def test_a_spike_of_one_step_is_drawn_and_a_long_run_is_a_small_page(tmp_path: Path) -> None:
    run = write(tmp_path / "run", [start()])
    pattern = record(123_456_789, loss=-1.0).model_dump_json().replace("123456789", "{}").replace(":-1.0", ":{}")
    head, middle, tail = pattern.split("{}")
    with (run / "metrics.jsonl").open("a") as file:
        for step in range(1, 10_001):
            file.write(f"{head}{step}{middle}{77.0 if step == 7777 else 3.0 + step % 7 / 10}{tail}\n")
    html = page(read_runs([run]))
    assert len(html) < 900_000
    (top,) = {
        max(map(float, found.split(","))) for found in re.findall(r'aria-label="Loss" .*? data-y="([^"]+)"', html)
    }
    assert top == 77.0
    path = drawn(html)
    points = [tuple(map(float, point.split(","))) for point in re.split("[M ]", path) if point]
    assert min(points, key=lambda point: point[1]) == (777.7, 0.0)
    assert len(points) <= 4 * 150


def test_what_was_undone_is_not_drawn_but_told(tmp_path: Path) -> None:
    html = only(tmp_path, start(), record(10), record(20), record(30), start(step=10, time=1100.0), record(20))
    path = drawn(html)
    assert len(path.split()) == 2
    assert "2 records were undone by restarts" in html
    assert "killed or crashed" in html


def test_losses_that_are_no_numbers_are_marked(tmp_path: Path) -> None:
    html = only(tmp_path, start(), record(10), record(20, loss=math.nan), record(30, loss=math.inf), record(40))
    loss = html.split('aria-label="Loss"')[1].split("</div>")[0]
    assert loss.count('class="lost"') == 2
    assert "NaN or infinite at 20 steps" in loss
    assert loss.count("M") == 2  # the line begins again behind them


@pytest.mark.parametrize(
    "told",
    [
        [],
        [start()],
        [record(10)],
        [start(), record(10)],
        [start(), record(10, loss=math.nan, losses={"mlm": math.nan}, grad_norm=math.inf)],
        [start(), evaluation(10)],
        [start(time=1e300), record(10, time=-1e300), save(10, time=math.inf)],
    ],
    ids=["empty", "start", "record", "one record", "no number", "only evaluated", "no calendar's times"],
)
def test_runs_with_next_to_nothing_in_them_have_a_page(tmp_path: Path, told: list[Event]) -> None:
    html = only(tmp_path, *told)
    assert html.rstrip().endswith("</html>")
    assert not re.search(r'(?<![\w"-])nan(?![\w"])', re.sub(r"<title>.*?</title>", "", html))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(events, max_size=8), min_size=1, max_size=3))
def test_any_events_make_a_page(tmp_path_factory: pytest.TempPathFactory, journals: list[list[Event]]) -> None:
    folder = tmp_path_factory.mktemp("any")
    runs = read_runs([write(folder / str(number), told) for number, told in enumerate(journals)])
    assert len({run.name for run in runs}) == len(runs)
    html = page(runs)
    assert "<script>alert" not in html
    assert not re.search(r'(?:d|x1|cx|points|y|x|width|height)="[^"]*\b(?:nan|inf)\b', html)


def test_settings_that_differ_stand_side_by_side(chromium: Browser, shown: Path) -> None:
    chromium.open(shown)
    rows = chromium.ask("""[...[...document.querySelectorAll('section')].find(e =>
        e.querySelector('h2').textContent == 'Settings that differ').querySelectorAll('tbody tr')].map(row =>
        [...row.cells].map(cell => cell.innerText))""")
    assert ["train.steps\nrecipe.toml", "400", "500"] in rows
    assert ["fp16.on\nds_config.json", "true", "not set"] in rows
    assert not any("data.shards" in row[0] for row in rows)


def test_an_old_journal_and_a_newer_one_are_told_apart_from_a_broken_one(tmp_path: Path) -> None:
    run = write(tmp_path / "run", [start(), record(10)])
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b'{"kind": "record", "of": "tomorrow"}\n{"kind": "reco')
    html = page(read_runs([run]))
    assert "1 lines of the journal are no events of this version" in html
    assert "torn" in html
    old = json.loads(record(20).model_dump_json())
    for name in ("rank_busy_seconds", "rank_memory", "stalled_steps", "prefetched_batches", "lamb", "source_tokens"):
        del old[name]
    (run / "metrics.jsonl").write_text(start().model_dump_json() + "\n" + json.dumps(old) + "\n")
    html = page(read_runs([run]))
    assert "no events" not in html
    assert "Trust ratios" not in html


def test_what_cannot_be_read_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError, match=r"metrics\.jsonl"):
        read_runs([tmp_path / "not_there"])
    assert cli.main(["report", str(tmp_path / "not_there")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("attempts", [1, 3])
def test_exit_codes_are_told_by_name(tmp_path: Path, attempts: int) -> None:
    noted = [
        {"attempt": "a", "began_at": 0},
        {"attempt": "a", "exit_code": 75, "step": 10},
        {"attempt": "b", "began_at": 10},
    ]
    ends = "\n".join(map(json.dumps, noted * (attempts == 1) or [{"attempt": str(n), "began_at": 0} for n in range(9)]))
    html = only(tmp_path, start(), record(10), start(step=10, time=2000.0), attempts__jsonl=ends)
    assert ("stopped (75)" in html) == (attempts == 1)
