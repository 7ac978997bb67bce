"""The shipped DeepSpeed JSONs are what ds_configs/README.md says, and right at every world size that it names."""

import re
from pathlib import Path
from typing import NamedTuple

import pytest

from nezha_ds.optim.schedule import Schedule, schedule_settings
from nezha_ds.train.ds_config import DeepSpeedConfig, load_ds_config

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
    degree: str
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
    assert kind == "WarmupPolynomialLR"
    assert schedule.degree == number(row.degree)
    assert (schedule.warmup_steps if "steps" in row.warmup else schedule.warmup_ratio) == number(row.warmup)
    ours = (config.lamb.max_coeff, config.lamb.adapt_undecayed, config.lamb.nezha_ratio)
    assert ours == {"LAMB": (10.0, True, False), "NEZHA": (10.0, True, True), "NVIDIA": (1e9, False, False)}[row.lamb]
    assert (config.lamb.min_coeff, config.lamb.pre_normalize) == (0.0, False)
    assert (config.lamb.eps, config.lamb.weight_decay, config.lamb.bias_correction) == (1e-6, 0.01, True)


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


def learning_rates(settings, steps: int) -> list[float]:
    import torch

    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    schedule = Schedule(optimizer, settings, "polynomial", steps)
    rates = []
    for _ in range(steps):
        rates.append(schedule.get_last_lr()[0])
        schedule.step()
    return rates
