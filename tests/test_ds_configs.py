"""The shipped DeepSpeed JSONs are what ds_configs/README.md says, and right at every world size that it names."""

import json
import re
import shlex
from pathlib import Path
from typing import NamedTuple

import pytest

from nezha_ds.arguments import parser
from nezha_ds.cli import scale_lr
from nezha_ds.config import load
from nezha_ds.optim.schedule import SCHEDULES, Schedule, Shape, schedule_settings
from nezha_ds.train.ds_config import DeepSpeedConfig, load_ds_config
from nezha_ds.train.recipe import Recipe

FOLDER = Path(__file__).parents[1] / "ds_configs"


class Row(NamedTuple):
    """One line of the table, as text."""

    file: str
    batch: str
    limit: str
    worlds: str
    precision: str
    lr: str
    warmup: str
    decay: str
    lamb: str
    source: str


def documented() -> list[Row]:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    return [
        Row(*(cell.strip() for cell in line[1:-1].split("|"))) for line in re.findall(r"^\|.*\.json.*\|$", text, re.M)
    ]


def number(text: str) -> float:
    return float(text.removesuffix(" steps").replace(",", ""))


def worlds(row: Row) -> list[int]:
    return [int(size) for size in row.worlds.split(", ")]


ROWS = documented()
CASES = [pytest.param(row, world, id=f"{row.file}-{world}") for row in ROWS for world in worlds(row)]
BY_FILE = [pytest.param(row, load_ds_config(FOLDER / row.file, worlds(row)[0]), id=row.file) for row in ROWS]


def test_every_file_is_in_the_table_and_every_row_has_a_file() -> None:
    assert sorted(row.file for row in ROWS) == sorted(path.name for path in FOLDER.glob("*.json"))


@pytest.mark.parametrize(("row", "world"), CASES)
def test_batch_sizes_at_every_documented_world_size(row: Row, world: int) -> None:
    config = load_ds_config(FOLDER / row.file, world)
    batch, resolved = config.batch, config.resolved
    assert batch.global_batch == number(row.batch) == batch.micro_batch * batch.accumulation * world
    assert batch.micro_batch <= number(row.limit) == config.written["train_micro_batch_size_per_gpu"]
    # Half the memory left empty would be a world size to warn of, not to recommend.
    assert batch.micro_batch * 2 > min(number(row.limit), batch.global_batch // world)
    assert resolved["train_batch_size"] == batch.global_batch
    assert resolved["train_micro_batch_size_per_gpu"] == batch.micro_batch
    assert resolved["gradient_accumulation_steps"] == batch.accumulation


@pytest.mark.parametrize(("row", "config"), BY_FILE)
def test_what_the_table_says_is_what_the_file_says(row: Row, config: DeepSpeedConfig) -> None:
    assert config.lamb is not None
    assert config.schedule is not None
    assert config.precision == row.precision
    assert config.lamb.lr == number(row.lr)
    kind, schedule = config.schedule
    if row.decay.startswith("×"):
        assert (kind, row.decay) == ("WarmupExponentialLR", f"×{schedule.decay_rate} every {schedule.decay_steps}")
    else:
        assert (kind, schedule.degree) == ("WarmupPolynomialLR", number(row.decay))
    assert (schedule.warmup_steps if "steps" in row.warmup else schedule.warmup_ratio) == number(row.warmup)
    lamb = config.lamb
    ours = (lamb.min_coeff, lamb.max_coeff, lamb.adapt_undecayed, lamb.nezha_ratio)
    variants = {
        "LAMB": (0.0, 10.0, True, False),
        "NEZHA": (0.0, 10.0, True, True),
        "NVIDIA": (0.0, 1e9, False, False),
        "DeepSpeed": (0.01, 0.3, True, False),
    }
    assert ours == variants[row.lamb]
    assert (lamb.weight_decay, lamb.pre_normalize) == (0.01, False)
    assert (lamb.eps, lamb.bias_correction) == ((1e-8, False) if row.lamb == "DeepSpeed" else (1e-6, True))


@pytest.mark.parametrize(("row", "config"), BY_FILE)
def test_nothing_small_is_lost_and_nothing_is_left_to_a_default(row: Row, config: DeepSpeedConfig) -> None:
    assert config.written["gradient_clipping"] == 1.0
    assert config.zero_stage == 1
    assert row.precision == "fp32" or config.written["data_types"] == {"grad_accum_dtype": "fp32"}
    assert "optimizer" not in config.resolved
    assert "scheduler" not in config.resolved


@pytest.mark.parametrize(("row", "config"), [case for case in BY_FILE if "fp16" in str(case.id)])
def test_fp16_scales_the_loss_dynamically(row: Row, config: DeepSpeedConfig) -> None:
    assert config.written["fp16"] == {
        "enabled": True,
        "loss_scale": 0,
        "initial_scale_power": 16,
        "loss_scale_window": 1000,
        "hysteresis": 2,
        "min_loss_scale": 1,
    }


@pytest.mark.parametrize("row", [row for row in ROWS if "fp16" in row.file], ids=lambda row: row.file)
def test_a_bf16_twin_differs_in_precision_alone(row: Row) -> None:
    fp16, bf16 = (load_ds_config(FOLDER / name, 8).written for name in (row.file, row.file.replace("fp16", "bf16")))
    assert fp16.keys() - {"fp16"} == bf16.keys() - {"bf16"}
    assert all(fp16[key] == bf16[key] for key in fp16.keys() - {"fp16"})


def test_nvidias_files_have_nvidias_schedule() -> None:
    """(1 - step/steps)^0.5 of the peak from the end of the warm-up on, over the steps of each phase."""
    for name, steps in (("lamb-65536-fp16.json", 7038), ("lamb-32768-fp16.json", 1563)):
        params = load_ds_config(FOLDER / name, 8).written["scheduler"]["params"]
        rates = learning_rates(schedule_settings("WarmupPolynomialLR", params, name), steps)
        after = [(rate, (1 - step / steps) ** 0.5) for step, rate in enumerate(rates) if 0.3 * steps < step < steps]
        assert [ours for ours, _ in after] == pytest.approx([theirs for _, theirs in after])


def test_deepspeeds_files_have_deepspeeds_rates() -> None:
    """bing_bert's, with 1e-3 on top in phase 1."""
    for name, top, rate, warmup, every in (
        ("lamb-65536-deepspeed-fp16.json", 1e-3, 11e-3, 450, 250),
        ("lamb-32768-deepspeed-fp16.json", 0.0, 2e-3, 150, 150),
    ):
        config = load_ds_config(FOLDER / name, 8)
        assert config.lamb is not None
        assert config.schedule is not None
        rates = learning_rates(config.schedule[1], 7500, "exponential", config.lamb.lr)
        expected = [
            rate * ((step / warmup) ** 2 if step < warmup else 0.9 ** ((step - warmup) / every)) for step in range(7500)
        ]
        assert rates[: warmup - 1] == pytest.approx([top + part for part in expected[1:warmup]])
        assert rates[warmup:] == pytest.approx([top + part for part in expected[warmup:]])


def learning_rates(settings, steps: int, shape: Shape = "polynomial", lr: float = 1.0) -> list[float]:
    import torch

    optimizer = torch.optim.SGD([torch.zeros(1)], lr=lr)
    schedule = Schedule(optimizer, settings, shape, steps)
    rates = []
    for _ in range(steps):
        rates.append(schedule.get_last_lr()[0])
        schedule.step()
    return rates


def text() -> str:
    return (FOLDER / "README.md").read_text(encoding="utf-8")


def test_the_schedules_are_those_of_the_table() -> None:
    assert re.findall(r"^\| (Warmup\w+) \|", text(), re.M) == list(SCHEDULES)


def test_its_commands_are_ones_that_the_command_line_takes() -> None:
    """The second phase of each pair begins from the first, in another folder, with half the batch and the same LAMB."""
    commands = [
        shlex.split(line) for line in re.findall(r"^(?:deepspeed|nezha-ds) .*$", text().replace("\\\n", " "), re.M)
    ]
    runs = [words[words.index("launch/pretrain.py") + 1 :] for words in commands if words[0] == "deepspeed"]
    phases = [parser().parse_args(["pretrain", *words]) for words in runs]
    assert len(phases) == 4
    for first, second in (phases[:2], phases[2:]):
        assert f"run.folder={second.init_from}" in first.set
        recipes = [load(Recipe, FOLDER.parent / phase.recipe, phase.set) for phase in (first, second)]
        jsons = [load_ds_config(FOLDER.parent / phase.deepspeed_config, 8) for phase in (first, second)]
        assert recipes[0].run.folder != recipes[1].run.folder
        assert recipes[0].model == recipes[1].model
        assert [recipe.data.length for recipe in recipes] == [128, 512]
        assert [config.batch.global_batch for config in jsons] == [65536, 32768]
        lambs = [config.lamb and config.lamb.model_copy(update={"lr": 0.0}) for config in jsons]
        assert lambs[0] == lambs[1]
    assert [words[1:] for words in commands if words[0] == "nezha-ds"] == [
        ["scale-lr", "ds_configs/lamb-8192-bf16.json", "32768"]
    ]


def test_the_growing_batch_of_the_readme_is_one(tmp_path: Path) -> None:
    (example,) = re.findall(r"```json\n(.*?)\n```", text(), re.S)
    tree = load_ds_config(FOLDER / "lamb-32768-bf16.json", 8).written | json.loads(f"{{{example}}}")
    (tmp_path / "ds.json").write_text(json.dumps(tree))
    batch = load_ds_config(tmp_path / "ds.json", 8).batch
    assert [batch.global_batch_at(step) for step in (0, 999, 1000, 1999, 2000)] == [4096, 4096, 8192, 8192, 32768]
    assert [batch.accumulation_at(step) for step in (0, 1000, 2000)] == [32, 64, 256]


def test_scale_lr_tells_what_to_write(capsys: pytest.CaptureFixture[str]) -> None:
    """The row of 32,768 in the LAMB paper's table, from that of 8,192."""
    assert scale_lr(parser().parse_args(["scale-lr", str(FOLDER / "lamb-8192-bf16.json"), "32768"])) == 0
    assert capsys.readouterr().out.splitlines() == [
        '"train_batch_size": 32768',
        '"lr": 0.005',
        '"warmup_ratio": 0.2',
    ]
