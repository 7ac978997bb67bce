"""The command line: help that helps, quick where it can be, one line for a fault, a traceback for ours."""

import re
import shlex
import subprocess
import sys

import pytest

import nezha_ds
import nezha_ds.train.export
from nezha_ds import cli
from nezha_ds.data.preview import masked_positions
from nezha_ds.data.settings import MaskingSettings
from nezha_ds.errors import DataError
from nezha_ds.shards import read_manifest
from tests.helpers import ranks

COMMANDS = ("prepare", "inspect", "pretrain", "export", "fill-mask", "doctor", "bench-loader")
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
        cli._parser().parse_args(["pretrain", *words[start + 1 :]] if words[0] == "deepspeed" else words[1:])


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
    given = cli._parser().parse_args(["pretrain"])
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


def test_inspect_shows_the_masks_of_training(inspected, embedded):
    from nezha_ds.corpus.inspect import beginnings

    samples = [*beginnings(embedded, read_manifest(embedded), 3, "train")]
    expected = [
        len(masked_positions(ids, starts, number, MaskingSettings(), 1)) for number, (ids, starts) in enumerate(samples)
    ]
    shown = inspected("--samples", "3").strip().splitlines()
    # One colour a token, also inside a masked word.
    assert [line.count(RED) for line in shown if RED in line] == expected
    assert 0.12 < sum(expected) / sum(len(ids) for ids, _ in samples) < 0.18


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
    marks = {line.split()[0] for line in lines if not line.startswith(" ")}
    assert marks <= {"ok", "warning"}
    assert "ok" in marks
