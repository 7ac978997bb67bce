"""A DeepSpeed JSON: what is refused, with value, reason and way out; how batch sizes are completed; who gets what."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from nezha_ds.errors import ConfigError
from nezha_ds.train.batches import micro_batch_for
from nezha_ds.train.ds_config import KNOWN_KEYS, QUIET, DeepSpeedConfig, load_ds_config
from tests.helpers.runs import DEEPSPEED

FP32_SUMS = {"data_types": {"grad_accum_dtype": "fp32"}}
FP16, BF16 = {"fp16": {"enabled": True}}, {"bf16": {"enabled": True}}
PRE_NORMALIZED = {"optimizer": {"type": "Lamb", "params": {"pre_normalize": True}}}
REMOVED: Any = object()


def loaded(folder: Path, world_size: int = 1, **changes: Any) -> DeepSpeedConfig:
    """The configuration of a small good JSON with some top-level keys replaced or removed."""
    tree = {key: value for key, value in (DEEPSPEED | changes).items() if value is not REMOVED}
    path = folder / "ds.json"
    path.write_text(json.dumps(tree))
    return load_ds_config(path, world_size)


def refusal(folder: Path, world_size: int = 1, **changes: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        loaded(folder, world_size, **changes)
    message = str(caught.value)
    assert message.startswith(f"{folder / 'ds.json'}: ")
    assert "\n" not in message
    return message.removeprefix(f"{folder / 'ds.json'}: ")


# -------------------------------------------------------------------------------------------------------- refusals

REFUSED = [
    # unknown keys and shapes
    ({"train_batchsize": 4}, "unknown key 'train_batchsize'; did you mean 'train_batch_size'?"),
    ({"curriculum_learning": {}}, "unknown key 'curriculum_learning'"),
    (
        {"activation_checkpointing": {}},
        "activation_checkpointing does nothing here; set train.checkpoint_activations in",
    ),
    ({"compile": {}}, "compile does nothing here; set train.compile in the recipe"),
    ({"fp16": True}, 'fp16 = True is not an object such as {"enabled": true}'),
    ({"bfloat16": True}, 'bfloat16 = True is not an object such as {"enabled": true}'),
    ({"data_types": "fp32"}, "data_types = 'fp32' is not an object"),
    ({"zero_optimization": 1}, "zero_optimization = 1 is not an object"),
    # the optimizer and the schedule
    ({"optimizer": REMOVED}, 'no optimizer; write "optimizer": {"type": "Lamb"'),
    ({"optimizer": {"params": {"lr": 1}}}, 'optimizer has no type; write "optimizer"'),
    ({"optimizer": {"type": "Lmab"}}, "unknown optimizer 'Lmab'; did you mean 'Lamb'?"),
    (
        {"optimizer": {"type": "Lamb", "lr": 0.1}},
        "optimizer.lr is not read by DeepSpeed; move it into optimizer.params",
    ),
    ({"optimizer": {"type": "Lamb", "params": 5}}, "optimizer.params = 5 is not an object"),
    ({"optimizer": {"type": "Lamb", "params": {"lr": "auto"}}}, "optimizer.params: lr = 'auto'"),
    ({"optimizer": {"type": "Lamb", "params": {"max_coef": 1}}}, "unknown key 'max_coef'; did you mean 'max_coeff'?"),
    ({"optimizer": {"type": "Lamb", "params": {"min_coeff": 11}}}, "min_coeff 11.0 is above max_coeff 10.0; swap"),
    ({"optimizer": {"type": "AdamW", "params": {"weight_decay": "auto"}}}, "weight_decay = 'auto' is not a number"),
    ({"scheduler": "WarmupLR"}, "scheduler has no type"),
    ({"scheduler": {"type": "WarmupPolynomalLR"}}, "did you mean 'WarmupPolynomialLR'?"),
    ({"scheduler": {"type": "WarmupPolynomialLR", "params": {"warmup": 3}}}, "unknown key 'warmup'"),
    (
        {"scheduler": {"type": "WarmupConstantLR", "params": {"warmup_steps": 3, "warmup_ratio": 0.1}}},
        "warmup_steps and warmup_ratio both say how long the warm-up is; keep one",
    ),
    (
        {"scheduler": {"type": "WarmupConstantLR", "params": {"warmup_ratio": 10}}},
        "warmup_ratio = 10: input should be less than or equal to 1",
    ),
    # clipping
    ({"gradient_clipping": REMOVED}, "gradient_clipping is missing, and DeepSpeed would clip at 1.0 without a word"),
    ({"gradient_clipping": "auto"}, "gradient_clipping = 'auto' is not a norm; write 1.0"),
    ({"gradient_clipping": -1}, "gradient_clipping = -1 is not a norm"),
    # precision
    ({**FP16, **BF16}, "fp16 and bf16 are both enabled; keep one"),
    ({**FP16, "zero_optimization": {"stage": 0}}, "fp16 without ZeRO adds up micro-batches in fp16"),
    ({**BF16, **FP32_SUMS, "zero_optimization": REMOVED}, "adds gradients up in bf16 only, not fp32; write"),
    # ZeRO
    ({"zero_optimization": {"stage": 3}}, "ZeRO stage 3 splits the model's tensors"),
    ({"zero_optimization": {"stage": "two"}}, "zero_optimization.stage = 'two' is no stage; write 0, 1 or 2"),
    ({"zero_optimization": {"stage": None}}, "zero_optimization.stage = None is no stage"),
    (
        {"zero_optimization": {"stage": 1, "offload_optimizer": {"device": "cpu"}}},
        "zero_optimization.offload_optimizer is not supported; remove it",
    ),
    (
        {"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}},
        "zero_optimization.offload_param is not supported; remove it",
    ),
    ({"zero_optimization": {"stage": 2, "cpu_offload": True}}, "zero_optimization.cpu_offload is not supported"),
    (PRE_NORMALIZED, "gradient_clipping 1.0 changes nothing before optimizer.params.pre_normalize"),
    (
        {**PRE_NORMALIZED, "gradient_clipping": 0.0, "zero_optimization": {"stage": 1, "compute_grad_norm": False}},
        "pre_normalize needs the norm that zero_optimization.compute_grad_norm false leaves out; remove that key",
    ),
    # batch sizes
    ({"train_batch_size": REMOVED}, "train_batch_size = None is not a positive number of samples"),
    ({"train_batch_size": "auto"}, "train_batch_size = 'auto' is not a positive number of samples"),
    ({"train_batch_size": True}, "train_batch_size = True is not a positive number"),
    ({"train_micro_batch_size_per_gpu": 0}, "train_micro_batch_size_per_gpu = 0 is not a positive number"),
    ({"gradient_accumulation_steps": 3}, "gradient_accumulation_steps 3 × micro-batch 4 × 1 ranks is not"),
]


@pytest.mark.parametrize(("changes", "expected"), REFUSED, ids=[message[:40] for _, message in REFUSED])
def test_refused_with_value_reason_and_way_out(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    assert expected in refusal(tmp_path, **changes)


@pytest.mark.parametrize(
    ("world_size", "way_out"), [(3, "start 2 or 4 ranks"), (12, "8 or 16"), (99, "start 16 ranks")]
)
def test_a_batch_that_the_ranks_do_not_divide(tmp_path: Path, world_size: int, way_out: str) -> None:
    message = refusal(tmp_path, world_size)
    assert f"train_batch_size 16 cannot be divided among {world_size} ranks" in message
    assert way_out in message


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"{", "is not valid: "),
        (b"[1]", "holds a list, not an object of settings"),
        (b'{"fp16": {}, "fp16": {}}', "key 'fp16' stands twice; keep one"),
        (b'{"optimizer": {"params": {"lr": 1, "lr": 2}}}', "key 'lr' stands twice; keep one"),
        ("{“".encode("gbk"), "is not UTF-8 (byte 1); save it as UTF-8"),
        (None, "cannot be read (No such file or directory); name an existing file"),
    ],
)
def test_what_is_no_json(tmp_path: Path, data: bytes | None, expected: str) -> None:
    path = tmp_path / "ds.json"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(ConfigError) as caught:
        load_ds_config(path, 1)
    assert str(path) in str(caught.value)
    assert expected in str(caught.value)


# ------------------------------------------------------------------------------------------------------ batch sizes


@given(share=st.integers(1, 5000), limit=st.integers(1, 600))
def test_the_micro_batch_is_the_largest_divisor_under_the_limit(share: int, limit: int) -> None:
    size = micro_batch_for(share, limit)
    assert size == max(n for n in range(1, share + 1) if share % n == 0 and n <= limit)


@given(batch=st.integers(1, 4096), limit=st.integers(1, 256), data=st.data())
def test_the_three_sizes_multiply_to_the_batch(
    tmp_path_factory: pytest.TempPathFactory, batch: int, limit: int, data: st.DataObject
) -> None:
    world_size = data.draw(st.sampled_from([n for n in range(1, batch + 1) if batch % n == 0]))
    folder = tmp_path_factory.getbasetemp()
    config = loaded(folder, world_size, train_batch_size=batch, train_micro_batch_size_per_gpu=limit)
    sizes = config.batch
    assert sizes.micro_batch * sizes.accumulation * world_size == sizes.global_batch == batch
    assert 1 <= sizes.micro_batch <= limit
    # Writing what follows anyway changes nothing.
    written = loaded(
        folder,
        world_size,
        train_batch_size=batch,
        train_micro_batch_size_per_gpu=limit,
        gradient_accumulation_steps=sizes.accumulation,
    )
    assert written.resolved == config.resolved


@given(batch=st.integers(1, 4096), world_size=st.integers(2, 200))
def test_the_numbers_of_ranks_that_a_refusal_names_are_right(
    tmp_path_factory: pytest.TempPathFactory, batch: int, world_size: int
) -> None:
    assume(batch % world_size)
    message = refusal(tmp_path_factory.getbasetemp(), world_size, train_batch_size=batch)
    named = [int(word) for word in message.partition("start ")[2].partition(" ranks")[0].split(" or ")]
    assert all(batch % size == 0 for size in named)
    assert not any(batch % size == 0 for size in range(min(named) + 1, world_size))


# --------------------------------------------------------------------------------------- what is ours, what DeepSpeed's


@pytest.mark.parametrize("kind", ["Lamb", "lamb", "LAMB"])
def test_lamb_is_ours_however_it_is_spelt(tmp_path: Path, kind: str) -> None:
    config = loaded(tmp_path, optimizer={"type": kind, "params": {"lr": 2e-3, "weight_decay": 0.1}})
    assert "optimizer" not in config.resolved
    assert config.lamb is not None
    assert (config.lamb.lr, config.lamb.weight_decay, config.weight_decay) == (2e-3, 0.1, 0.1)


def test_lamb_without_params_has_the_decay_of_its_defaults(tmp_path: Path) -> None:
    config = loaded(tmp_path, optimizer={"type": "Lamb"})
    assert config.lamb is not None
    assert config.weight_decay == config.lamb.weight_decay == 0.01


@pytest.mark.parametrize("kind", ["AdamW", "Adam", "SGD", "Lion"])
def test_every_other_optimizer_goes_to_deepspeed_untouched(tmp_path: Path, kind: str) -> None:
    written = {"type": kind, "params": {"lr": 1e-4, "betas": [0.9, 0.95]}}
    config = loaded(tmp_path, optimizer=written)
    assert config.resolved["optimizer"] == written
    assert config.lamb is None
    assert config.weight_decay == 0.0


@pytest.mark.parametrize("kind", ["WarmupPolynomialLR", "WarmupConstantLR"])
def test_our_schedules_are_hidden_from_deepspeed(tmp_path: Path, kind: str) -> None:
    config = loaded(tmp_path, scheduler={"type": kind, "params": {"warmup_steps": 7}})
    assert "scheduler" not in config.resolved
    assert config.schedule is not None
    assert (config.schedule[0], config.schedule[1].warmup_steps) == (kind, 7)


@pytest.mark.parametrize("kind", ["WarmupLR", "WarmupDecayLR", "OneCycle", "CosineAnnealingLR"])
def test_its_own_schedules_and_torchs_are_not(tmp_path: Path, kind: str) -> None:
    written = {"type": kind, "params": {"total_num_steps": 10}}
    config = loaded(tmp_path, scheduler=written)
    assert config.resolved["scheduler"] == written
    assert config.schedule is None


def test_no_schedule_is_a_constant_rate(tmp_path: Path) -> None:
    config = loaded(tmp_path, scheduler=REMOVED)
    assert config.schedule is None
    assert "scheduler" not in config.resolved


def test_the_names_that_pass_are_deepspeeds_own() -> None:
    from deepspeed.runtime.config import DEEPSPEED_OPTIMIZERS
    from deepspeed.runtime.lr_schedules import VALID_LR_SCHEDULES

    from nezha_ds.train.ds_config import OPTIMIZERS, SCHEDULERS

    assert set(DEEPSPEED_OPTIMIZERS) == OPTIMIZERS
    assert set(VALID_LR_SCHEDULES) == set(SCHEDULERS)


# -------------------------------------------------------------------------------------------------------- the rest


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "fp32"),
        (BF16 | FP32_SUMS, "bf16"),
        ({"bfloat16": {"enabled": True}}, "bf16"),
        (FP16 | FP32_SUMS, "fp16"),
        ({"fp16": {"enabled": False}, "bf16": {}}, "fp32"),
        ({"fp16": {"loss_scale": 0}}, "fp32"),
        (BF16 | {"zero_optimization": {"stage": 0}}, "bf16"),
    ],
)
def test_precision(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    assert loaded(tmp_path, **changes).precision == expected


def test_deepspeed_is_told_what_was_completed_and_nothing_is_lost(tmp_path: Path) -> None:
    config = loaded(tmp_path, world_size=2, comms_logger={"enabled": False}, train_micro_batch_size_per_gpu=3)
    expected = DEEPSPEED | {
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 4,
        "steps_per_print": QUIET,
        "zero_allow_untested_optimizer": True,
        "comms_logger": {"enabled": False},
    }
    assert config.resolved == {key: expected[key] for key in expected.keys() - {"optimizer", "scheduler"}}
    assert config.written["train_micro_batch_size_per_gpu"] == 3
    assert config.source == str(tmp_path / "ds.json")


def test_a_wish_for_deepspeeds_own_lines_is_respected(tmp_path: Path) -> None:
    assert loaded(tmp_path, steps_per_print=5).resolved["steps_per_print"] == 5


def test_keys_that_would_take_data_or_checkpoints_away_are_unknown() -> None:
    taken = {"elasticity", "curriculum_learning", "data_efficiency", "checkpoint", "pipeline", "autotuning", "nebula"}
    assert not taken & KNOWN_KEYS
