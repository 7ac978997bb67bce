"""fp16 before ranks meet: what a JSON may ask for, what a device is asked, and that all of the model computes in it."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.accelerator import get_accelerator

from nezha_ds.errors import ConfigError
from nezha_ds.model.heads import NezhaForPreTraining
from nezha_ds.objectives import ObjectiveSettings, pretraining_losses
from nezha_ds.train.ds_config import HALF_SUMS, DeepSpeedConfig, load_ds_config
from nezha_ds.train.engine import describe_accelerator
from nezha_ds.train.precision import settle_precision
from tests.helpers.runs import DEEPSPEED
from tests.model.samples import random_batch, small_config, span_batch

DS_CONFIGS = Path(__file__).parents[2] / "ds_configs"
SUMS = {"data_types": {"grad_accum_dtype": "fp32"}}


def loaded(folder: Path, **changes: Any) -> DeepSpeedConfig:
    path = folder / "ds.json"
    path.write_text(json.dumps(DEEPSPEED | SUMS | changes))
    return load_ds_config(path, 1)


def fp16(folder: Path, **section: Any) -> DeepSpeedConfig:
    return loaded(folder, fp16={"enabled": True, **section})


# ------------------------------------------------------------------------------------------------------------ the JSON

ABSURD = [
    ({"hysteresis": 0}, "fp16: hysteresis = 0: input should be greater than or equal to 1"),
    ({"hysteresis": -2}, "fp16: hysteresis = -2"),
    ({"hysteresis": 1.5}, "fp16: hysteresis = 1.5: input should be a valid integer"),
    ({"hysteresis": True}, "fp16: hysteresis = True: input should be a valid integer"),
    ({"loss_scale_window": 0}, "fp16: loss_scale_window = 0: input should be greater than or equal to 1"),
    ({"loss_scale_window": -1000}, "fp16: loss_scale_window = -1000"),
    ({"loss_scale_window": "auto"}, "fp16: loss_scale_window = 'auto'"),
    ({"min_loss_scale": 0}, "fp16: min_loss_scale = 0: input should be greater than or equal to 1"),
    ({"min_loss_scale": -1}, "fp16: min_loss_scale = -1"),
    ({"min_loss_scale": 0.25}, "fp16: min_loss_scale = 0.25: input should be a valid integer"),
    ({"min_loss_scale": 1024, "initial_scale_power": 9}, "min_loss_scale 1024 is above the scale to begin with, 2^9"),
    ({"initial_scale_power": 400}, "fp16: initial_scale_power = 400: input should be less than or equal to 32"),
    ({"initial_scale_power": -1}, "fp16: initial_scale_power = -1"),
    ({"loss_scale": 128}, "fp16.loss_scale = 128 cannot fall, and an overflow would be skipped for ever; write 0"),
    ({"loss_scale": -1}, "fp16.loss_scale = -1 cannot fall"),
    ({"loss_scale": float("inf")}, "fp16.loss_scale = inf cannot fall"),
    ({"loss_scale": "auto"}, "fp16: loss_scale = 'auto': input should be a valid number"),
    ({"consecutive_hysteresis": 1}, "fp16: consecutive_hysteresis = 1: input should be a valid boolean"),
    ({"fp16_master_weights_and_grads": True}, "would keep the weights in fp16 only"),
    ({"histeresis": 2}, "fp16: unknown key 'histeresis'; did you mean 'hysteresis'?"),
    ({"enabled": "auto"}, "fp16: enabled = 'auto': input should be a valid boolean"),
]


@pytest.mark.parametrize(("section", "expected"), ABSURD, ids=[str(section) for section, _ in ABSURD])
def test_a_scale_that_could_not_work_is_refused(tmp_path: Path, section: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        fp16(tmp_path, **section)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'ds.json'}: ")
    assert expected in message


def test_deepspeeds_own_keys_and_defaults_are_known(tmp_path: Path) -> None:
    from deepspeed.runtime.precision_config import DeepSpeedFP16Config

    from nezha_ds.train.loss_scale import Fp16Settings

    assert Fp16Settings().model_dump() == DeepSpeedFP16Config().model_dump()
    assert fp16(tmp_path, **(DeepSpeedFP16Config().model_dump() | {"enabled": True})).precision == "fp16"


@pytest.mark.parametrize("dtype", ["fp16", "float16"])
def test_an_autocast_to_fp16_would_have_no_loss_scale(tmp_path: Path, dtype: str) -> None:
    with pytest.raises(ConfigError, match=r"torch_autocast in .* computes without the loss scale"):
        loaded(tmp_path, torch_autocast={"enabled": True, "dtype": dtype})
    assert loaded(tmp_path, torch_autocast={"enabled": False, "dtype": dtype}).precision == "fp32"


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("sums", [None, "fp32"])
def test_many_micro_batches_add_up_in_fp32_only(tmp_path: Path, precision: str, sums: str | None) -> None:
    types = {"data_types": {"grad_accum_dtype": sums} if sums else {}}
    half = {precision: {"enabled": True}, "train_micro_batch_size_per_gpu": 1, **types}
    assert loaded(tmp_path, train_batch_size=HALF_SUMS, **half).batch.accumulation == HALF_SUMS
    if sums == "fp32":
        assert loaded(tmp_path, train_batch_size=512, **half).batch.accumulation == 512
    else:
        with pytest.raises(ConfigError, match=f"512 micro-batches would add up in {precision}, which loses the small"):
            loaded(tmp_path, train_batch_size=512, **half)


@pytest.mark.parametrize("path", sorted(DS_CONFIGS.glob("*.json")), ids=lambda path: path.name)
def test_shipped_jsons_add_up_in_fp32_at_any_number_of_micro_batches(path: Path) -> None:
    config = load_ds_config(path, 1)
    if config.precision != "fp32":
        assert config.resolved["data_types"]["grad_accum_dtype"] == "fp32"
        assert config.zero_stage in (1, 2)


# ---------------------------------------------------------------------------------------------------------- the device


@pytest.fixture
def no_fp16(monkeypatch: pytest.MonkeyPatch) -> None:
    """The accelerator says that it has none; what is claimed is taken back afterwards."""
    monkeypatch.setattr(get_accelerator(), "is_fp16_supported", lambda: False, raising=False)


@pytest.mark.usefixtures("no_fp16")
def test_a_device_without_fp16_is_refused_with_the_switch_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"asks for fp16, which cpu here cannot .* train\.emulate_fp16=true$"):
        settle_precision(describe_accelerator(), fp16(tmp_path), emulate_fp16=False, loud=True)


@pytest.mark.usefixtures("no_fp16")
@pytest.mark.parametrize("loud", [True, False])
def test_under_the_switch_it_computes_fp16_and_one_rank_warns(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, loud: bool
) -> None:
    settle_precision(describe_accelerator(), fp16(tmp_path), emulate_fp16=True, loud=loud)
    assert describe_accelerator().fp16
    accelerator = get_accelerator()
    assert accelerator is not None and torch.float16 in accelerator.supported_dtypes()
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == loud
    assert all("fp16 is EMULATED" in record.getMessage() for record in warnings)


@pytest.mark.usefixtures("no_fp16")
def test_the_switch_changes_nothing_for_other_precisions(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settle_precision(describe_accelerator(), loaded(tmp_path), emulate_fp16=True, loud=True)
    assert not describe_accelerator().fp16
    assert not caplog.records


def test_the_switch_does_nothing_where_fp16_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(get_accelerator(), "is_fp16_supported", lambda: True, raising=False)
    settle_precision(describe_accelerator(), fp16(tmp_path), emulate_fp16=True, loud=True)
    assert "train.emulate_fp16 does nothing here: cpu computes fp16 by itself" in caplog.text


# ----------------------------------------------------------------------------------------------------------- the model

PARTS = [
    ({}, {"nsp": 1.0}),
    ({"hidden_act": "gelu_tanh", "norm": "pre"}, {}),
    ({"positions": "functional-relative-unclipped"}, {}),
    ({"positions": "learned-relative"}, {}),
    ({"positions": "learned-absolute"}, {}),
    ({"positions": "functional-absolute"}, {}),
    ({"attention": "reference"}, {}),
    ({"attention": "banded"}, {}),
    ({"span_form": "nezha"}, {"span": 1.0}),
    ({"span_form": "spanbert"}, {"span": 1.0}),
]


@pytest.mark.parametrize(("sizes", "objective"), PARTS, ids=[str(sizes | objective) for sizes, objective in PARTS])
def test_every_part_of_the_model_trains_in_fp16_on_the_cpu(sizes: dict[str, Any], objective: dict[str, float]) -> None:
    """Dropout on, at a loss scale of 256: losses within 2% of fp32's, gradients within 3% of their norm."""
    batch = span_batch() if "span" in objective else random_batch([40, 13])
    results = {}
    for dtype in (torch.float32, torch.float16):
        model = NezhaForPreTraining(small_config(**sizes), seed=3).half().to(dtype).train()
        torch.manual_seed(0)
        loss = pretraining_losses(model(batch), batch, ObjectiveSettings(**objective)).total
        (loss.float() * 256).backward()
        results[dtype] = (
            loss.item(),
            torch.cat([p.grad.flatten().float() for p in model.parameters() if p.grad is not None]),
        )
    (exact, right), (half, ours) = results.values()
    assert half == pytest.approx(exact, rel=0.02)
    assert (ours - right).norm() < 0.03 * right.norm()
