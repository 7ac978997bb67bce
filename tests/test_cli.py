"""The command line: help that helps, quick where it can be, one line for a fault, a traceback for ours."""

import json
import re
import shlex
import subprocess
import sys

import pytest

import nezha_ds
import nezha_ds.train.export
from nezha_ds import cli
from nezha_ds.arguments import parser
from nezha_ds.data.preview import preview
from nezha_ds.data.settings import DataSettings, MaskingSettings
from nezha_ds.errors import DataError
from nezha_ds.shards import read_manifest
from nezha_ds.text.vocab import load_vocabulary
from tests.helpers import ranks

COMMANDS = (
    "prepare",
    "vocab",
    "inspect",
    "bench-loader",
    "pretrain",
    "export",
    "replay",
    "convert",
    "onnx",
    "fill-mask",
    "doctor",
    "hash-password",
    "watch",
    "report",
)
RED = "\x1b[1;37;41m"


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a command that ends in argparse prints on stdout."""
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_help_names_every_command(capsys):
    text = printed(capsys, "--help")
    assert all(re.search(rf"^ +{command}\b", text, re.M) for command in COMMANDS)
    assert printed(capsys, "--version").strip() == nezha_ds.__version__


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_examples_that_parse(capsys, command):
    _, _, examples = printed(capsys, command, "--help").partition("\nexamples:\n")
    lines = [line.strip() for line in examples.replace("\\\n", " ").splitlines()]
    # What stands behind three spaces explains the example.
    shown = [shlex.split(re.split(r" {9}", line)[0]) for line in lines if line.startswith(("nezha-ds", "deepspeed"))]
    assert shown
    for words in shown:
        start = words.index("launch/pretrain.py") if words[0] == "deepspeed" else 1
        parser().parse_args(["pretrain", *words[start + 1 :]] if words[0] == "deepspeed" else words[1:])


@pytest.mark.parametrize("arguments", [[], ["pretain"], ["prepare"], ["fill-mask", "folder"], ["inspect", "x", "--no"]])
def test_what_it_does_not_know_is_exit_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("usage: nezha-ds")


def test_help_does_not_wait_for_torch():
    code = (
        "import sys; from nezha_ds.cli import main\n"
        "try: main(['pretrain', '--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit(len({'torch', 'deepspeed', 'pyarrow', 'numpy'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_the_script_for_launchers_is_the_same_command():
    done = subprocess.run(
        [sys.executable, "launch/pretrain.py", "--help"],
        env=ranks.environment(),
        cwd=ranks.REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "deepspeed launch/pretrain.py" in done.stdout
    assert "75 stopped and saved, start again" in done.stdout


def test_without_arguments_it_is_the_demo():
    given = parser().parse_args(["pretrain"])
    assert given.recipe.is_file()
    assert given.deepspeed_config.is_file()
    assert given.set == []


# ------------------------------------------------------------------------------------------------------ faults and ends


def fails_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> list[str]:
    """Arguments of a command that raises this."""

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("nezha_ds.train.export.export", fail)
    return ["export", "run", "out"]


def test_a_users_fault_is_one_line(monkeypatch, capsys):
    assert cli.main(fails_with(monkeypatch, DataError("a, b; do c"))) == 2
    assert capsys.readouterr() == ("", "nezha-ds: a, b; do c\n")


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch):
    with pytest.raises(ZeroDivisionError):
        cli.main(fails_with(monkeypatch, ZeroDivisionError()))


def test_ctrl_c_is_no_fault(monkeypatch, capsys):
    assert cli.main(fails_with(monkeypatch, KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == ""


# --------------------------------------------------------------------------------------------------- inspect and doctor


@pytest.fixture
def inspected(embedded, capsys, monkeypatch):
    """What `inspect` prints of the shipped text, in colour."""
    for name, value in (("FORCE_COLOR", "1"), ("TERM", "xterm-256color"), ("COLUMNS", "100000")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)

    def run(*options: str) -> str:
        assert cli.main(["inspect", str(embedded), *options]) == 0
        return capsys.readouterr().out

    return run


def test_inspect_tells_what_was_prepared(inspected, embedded):
    text = re.sub(r"\x1b\[[\d;]*m", "", inspected("--samples", "0"))
    manifest = read_manifest(embedded)
    assert re.search(rf"^ *documents +{manifest.total('documents'):,}\b", text, re.M)
    assert re.search(rf"^ *tokens +{manifest.total('tokens'):,}\b", text, re.M)
    assert manifest.fingerprint[:16] in text


def test_both_commands_tell_what_cleaning_dropped(tmp_path, capsys):
    article = "漢字簡化之後，頭髮與發展的發字不再區別，這是許多人都知道的事情。"
    source, out = tmp_path / "a.txt", tmp_path / "out"
    source.write_text("\n\n".join([article, article.replace("漢字", "汉字"), article + "完。", "别的文章。", "短"]))
    options = ["--simplify", "--deduplicate", "--near-duplicates", "0.7", "--near-values", "64"]
    options += ["--clean", "min_characters=2", "--workers", "1"]
    assert cli.main(["prepare", str(source), "--out", str(out), *options]) == 0
    assert cli.main(["inspect", str(out)]) == 0
    for told in capsys.readouterr():
        rows = {line.split("  ")[0].strip(): line for line in told.splitlines()}
        assert " 40.0% " in rows["kept"]
        assert all(" 20.0% " in rows[name] for name in ("copies", "near copies", "too short"))
        assert "汉字简化之后" in rows["near copies"]


def test_inspect_shows_the_masks_of_training(inspected, embedded):
    found = preview(DataSettings(shards=str(embedded)), MaskingSettings(), 1, load_vocabulary(), rows=3)
    shown = inspected("--samples", "3").strip().splitlines()
    # One colour a token, also inside a masked word.
    assert [line.count(RED) for line in shown if RED in line] == [int(row.predicted.sum()) for row in found.rows]


def test_inspect_on_a_pipe_has_no_colours_and_whole_lines(embedded):
    command = [sys.executable, "-m", "nezha_ds.cli", "inspect", str(embedded), "--samples", "2"]
    done = subprocess.run(command, env=ranks.environment(), capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert "\x1b" not in done.stdout
    *_, first, blank, second, end = done.stdout.split("\n")[:-1]
    assert (blank, end) == ("", "")
    assert "[" in first
    assert max(map(len, (first, second))) > 80


def test_inspect_tells_machines(inspected, embedded):
    tree = json.loads(inspected("--json", "--masking", "span", "--length", "64", "--format", "doc-sentences"))
    assert tree["fingerprint"] == read_manifest(embedded).fingerprint
    assert {name: tree["masking"][name] for name in ("method", "length", "format", "seed")} == {
        "method": "span",
        "length": 64,
        "format": "doc-sentences",
        "seed": 1,
    }


def test_inspect_tells_what_the_second_segments_are(inspected, tmp_path):
    options = ("--samples", "6", "--format", "segment-pair", "--pairing", "sentence-order")
    tree = json.loads(inspected("--json", *options))
    assert set(tree["masking"]["pairs"]) == {"in order", "swapped", "none"}
    assert sum(tree["masking"]["pairs"].values()) == tree["masking"]["samples"]
    text = re.sub(r"\x1b\[[\d;]*m", "", inspected(*options, "--html", str(tmp_path / "page.html")))
    assert re.search(r"second segments +\d+\.\d% in order, \d+\.\d% swapped, \d\.\d% none", text)
    shown = re.findall(r"^(in order|swapped|none): ", text, re.M)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert re.findall(r"second segment: ([\w ]+)<", page) == shown
    assert len(shown) == 6 and len(set(shown)) > 1
    assert "% random" in inspected("--samples", "0", "--format", "sentence-pair")
    assert "second segments" not in inspected("--samples", "0")


def test_inspect_writes_a_page(inspected, tmp_path):
    assert "documents" in inspected("--samples", "0", "--html", str(tmp_path / "page.html"))
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<h2>Lengths</h2>" in page
    assert "<h2>Samples</h2>" not in page


@pytest.mark.parametrize("options", [["--length", "7"], ["--html", "no/such/folder/page.html"]])
def test_what_inspect_cannot_do_is_exit_code_2(embedded, options, capsys):
    assert cli.main(["inspect", str(embedded), *options]) == 2
    assert capsys.readouterr().err.startswith("nezha-ds: ")


def test_inspect_shows_no_negative_number_of_samples(embedded, capsys):
    with pytest.raises(SystemExit):
        cli.main(["inspect", str(embedded), "--samples", "-1"])
    assert "'-1' is not a number from 0 on" in capsys.readouterr().err


def test_other_seeds_and_methods_show_other_masks(inspected):
    first = inspected()
    assert inspected("--seed", "1", "--masking", "whole-word") == first
    assert inspected("--seed", "2") != first
    assert inspected("--masking", "character") != first


def test_doctor_finds_this_machine_fit(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("MASTER_PORT", str(ranks.free_port()))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setenv("PATH", ranks.environment()["PATH"])
    assert cli.main(["doctor", "--folder", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    marks = {line.split()[0] for line in lines if not line.startswith((" ", "["))}  # DeepSpeed logs there
    assert marks <= {"ok", "warning"}
    assert "ok" in marks
