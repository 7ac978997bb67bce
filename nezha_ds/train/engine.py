"""The only door to deepspeed: a model and a checked JSON become an `Engine`.

DeepSpeed decides by precision and ZeRO stage which of five optimizer wrappers it builds, each with its own private
names for masters, groups, scale and overflow. All of that knowledge is in this file, `gradients.py` and `masters.py`;
the rest of the project sees `forward`, `backward`, `step`, a few numbers, and a list of slices.
"""

import gc
import importlib
import logging
import os
import subprocess
import sys
import warnings
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from torch import Tensor, nn

from nezha_ds.batch import Batch
from nezha_ds.errors import ConfigError, LaunchError
from nezha_ds.model.flops import peak_flops
from nezha_ds.optim.groups import parameter_groups
from nezha_ds.optim.lamb import Lamb
from nezha_ds.optim.norms import Quantiles, quantiles
from nezha_ds.optim.schedule import SCHEDULES, Schedule
from nezha_ds.optim.slices import Slice
from nezha_ds.train.busy import Busy, CudaClock, HostClock
from nezha_ds.train.ds_config import DeepSpeedConfig
from nezha_ds.train.extensions import compiling_alone
from nezha_ds.train.gradients import drop_gradients, own_gradients
from nezha_ds.train.loss_scale import LossScale
from nezha_ds.train.masters import find_slices
from nezha_ds.train.meeting import close_meeting, is_over, unmet
from nezha_ds.train.rendezvous import settle_rendezvous
from nezha_ds.world import World, search_programs_in, set_rendezvous, threads_per_rank

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AcceleratorInfo:
    """What DeepSpeed will run on."""

    name: str
    devices: int
    fp16: bool
    bf16: bool


def describe_accelerator() -> AcceleratorInfo:
    """The accelerator that DeepSpeed finds, and the precisions that it claims to support."""
    accelerator = _accelerator()
    return AcceleratorInfo(
        name=accelerator.device_name(),
        devices=accelerator.device_count(),
        fp16=bool(accelerator.is_fp16_supported()),
        bf16=bool(accelerator.is_bf16_supported()),
    )


def claim_fp16() -> None:
    """Let the accelerator say that it computes fp16, from here on in this process."""
    _accelerator().is_fp16_supported = lambda: True


def _accelerator() -> Any:
    """DeepSpeed's accelerator; its own annotation says that it may be None, which it never is."""
    return get_accelerator()


def join_ranks(world: World) -> None:
    """Take this rank's share of the cores and meet the other ranks. When they do not come: LaunchError, or
    LostRankError where they are on other nodes.
    """
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # DeepSpeed calls functions that torch has renamed; no user can mend that.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    torch.set_num_threads(threads_per_rank(world))
    settle_rendezvous(world)
    set_rendezvous(world)
    _accelerator().set_device(world.local_rank)
    if _accelerator().device_name() == "cpu":
        _compile_communication()
    try:
        if is_over(world):
            raise unmet(world, "they met before, and will end as they lost a rank")
        deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
        close_meeting(world)
    except (RuntimeError, ValueError, OSError) as error:
        raise unmet(world, error) from None


def _compile_communication() -> None:
    """What DeepSpeed would do at its first collective, but one rank after the other; LaunchError without a compiler."""
    # pip puts ninja beside this Python, where nobody looks unless the environment is activated.
    search_programs_in(str(Path(sys.executable).parent))
    try:
        with compiling_alone():
            _accelerator().create_op_builder("ShareMemCommBuilder").load(verbose=False)
    except (RuntimeError, ImportError, subprocess.CalledProcessError) as error:
        reason = str(error).partition(":")[0]
        raise LaunchError(
            f"DeepSpeed's communication on CPUs cannot be compiled ({reason}); install g++ and ninja, "
            "`nezha-ds doctor` tells what is missing"
        ) from error


def leave_ranks() -> None:
    """Close the process group, so that no rank complains at exit."""
    if dist.is_initialized():
        dist.destroy_process_group()


class Engine:
    """A model under DeepSpeed: what the loop calls and what a checkpoint needs."""

    def __init__(self, model: nn.Module, config: DeepSpeedConfig, total_steps: int, world: World) -> None:
        self.config = config
        self.world = world
        self._lamb: Lamb | None = None
        groups = parameter_groups(model, config.weight_decay)
        if config.lamb:
            self._lamb = Lamb(groups, config.lamb)
        self._engine: Any = _initialize(model, self._lamb, groups, config)
        self.busy = self._own_time()
        """The time in which this rank computes; the loop says when it does."""
        self._loss_scale = LossScale(self._engine.optimizer) if config.precision == "fp16" else None
        self.slices = list(find_slices(self._engine))
        if self._lamb:
            together = (_sum_over_ranks, self._gradient_norm) if self.partitioned else (None, None)
            self._lamb.bind(self.slices, self._tensors(), *together)
        if config.schedule:
            kind, settings = config.schedule
            # After DeepSpeed, which replaces the parameters of the groups but keeps the groups.
            self._engine.lr_scheduler = Schedule(self._basic(), settings, SCHEDULES[kind], total_steps)

    # ---------------------------------------------------------------------------------------------- one micro-batch

    def begin_step(self, step: int) -> None:
        """Take the batch that comes after `step` steps: gradients are averaged over its micro-batches."""
        batch = self.config.batch
        self._engine.set_train_batch_size(batch.global_batch_at(step))
        # DeepSpeed knows the last micro-batch by their count, which must begin at a multiple of the new number.
        self._engine.micro_steps = step * batch.accumulation_at(step)

    def __call__(self, batch: Batch) -> Any:
        """The model's output for a micro-batch on this rank's device."""
        return self._engine(batch)

    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradients up; in the last micro-batch of a step also over the ranks."""
        self._engine.backward(loss)
        # Where DeepSpeed steps by itself after backward it counts micro-batches here.
        if not self._engine.is_gradient_accumulation_boundary():
            self._engine.step()

    def step(self) -> bool:
        """Update the weights after the last micro-batch of a step. False when an overflow in fp16 skipped it.

        DivergedError, on all ranks and with nothing changed, for an overflow that the loss scale cannot answer.
        """
        assert self._engine.is_gradient_accumulation_boundary()
        self._engine.step()
        if self._loss_scale:
            self._loss_scale.settle()
        return bool(self._engine.was_step_applied())

    def drop_step(self) -> None:
        """End a step without its update: weights, moments, schedule, loss scale and count of updates stay."""
        assert self._engine.is_gradient_accumulation_boundary()
        drop_gradients(self._engine.optimizer)
        self._engine._global_grad_norm = None
        self._engine.global_steps += 1
        self._engine.global_samples += self._engine.train_batch_size()
        self._engine.micro_steps += 1

    def gradients(self) -> list[tuple[Slice, Tensor]]:
        """This rank's slices with their gradients, between the last backward and the update: see gradients.py."""
        named = dict(self.module.named_parameters())
        return list(own_gradients(self._engine.optimizer, self._basic().param_groups, named, self.slices))

    # --------------------------------------------------------------------------------------------------- as numbers

    @property
    def device(self) -> torch.device:
        """This rank's device."""
        return torch.device(self._engine.device)

    @property
    def module(self) -> nn.Module:
        """The model, in the precision that it computes in."""
        return self._engine.module

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next update, of the first group."""
        return float(self._basic().param_groups[0]["lr"])

    @property
    def loss_scale(self) -> float | None:
        """The loss scale in fp16, None otherwise."""
        return self._loss_scale.value if self._loss_scale else None

    @property
    def grad_norm(self) -> float | None:
        """The global norm of the last step's gradients before clipping. Waits for the device.

        None in fp32 without ZeRO, where DeepSpeed does not keep it.
        """
        norm = self._engine.get_global_grad_norm()
        return None if norm is None else float(norm)

    @property
    def lamb_norms(self) -> dict[str, dict[str, Quantiles]]:
        """Quantiles of LAMB's norms and ratios at the last update by part of the model. Waits for the device.

        Empty before the first update, and with any other optimizer.
        """
        if not self._lamb:
            return {}
        trained = [(name, p) for name, p in self.module.named_parameters() if p.requires_grad]
        return quantiles(trained, self._lamb.norms)

    @property
    def peak_flops(self) -> float | None:
        """Operations a second that this rank's device could make in its precision; None where that is not known."""
        dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        return peak_flops(name, dtypes[self.config.precision])

    @property
    def skipped_steps(self) -> int:
        """Steps that an overflow skipped, since the beginning."""
        return int(self._engine.skipped_steps)

    # ----------------------------------------------------------------------------------------------- for checkpoints

    @property
    def partitioned(self) -> bool:
        """Whether ranks hold different slices (ZeRO), or each the whole."""
        return self.config.zero_stage > 0

    def moments(self, piece: Slice) -> dict[str, Tensor]:
        """The optimizer's tensors of a slice, each (numel,), as views: exp_avg, exp_avg_sq."""
        state = self._basic().state[piece.owner]
        return {
            key: piece.of(value)
            for key, value in state.items()
            if isinstance(value, Tensor) and value.shape == piece.owner.shape
        }

    def make_moments(self) -> None:
        """Create as zeros the moments that DeepSpeed's and torch's optimizers make at their first step."""
        for owner in self._owners():
            state = self._basic().state[owner]
            for key in ("exp_avg", "exp_avg_sq"):
                state.setdefault(key, torch.zeros_like(owner, requires_grad=False))

    def counters(self) -> dict[str, Any]:
        """Everything else that the next step depends on, as plain numbers."""
        return {
            "updates": self._updates(),
            "skipped_steps": self.skipped_steps,
            "schedule": self._engine.lr_scheduler.state_dict() if self._engine.lr_scheduler else {},
            "loss_scaler": self._loss_scale.state() if self._loss_scale else {},
        }

    def restore_counters(self, counters: dict[str, Any], step: int) -> None:
        """Go on as after `step` steps with these `counters`."""
        self._engine.global_steps = step
        self._engine.global_samples = self.config.batch.samples_before(step)
        self.begin_step(step)
        self._engine.skipped_steps = counters["skipped_steps"]
        if self._engine.lr_scheduler:
            self._engine.lr_scheduler.load_state_dict(counters["schedule"])
        if self._loss_scale:
            self._loss_scale.restore(counters["loss_scaler"])
        self._set_updates(counters["updates"])

    @torch.no_grad()
    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Put fp32 weights, by the model's names, into the masters and into the model."""
        for name, parameter in self.module.named_parameters():
            parameter.copy_(weights[name])
        for piece in self.slices:
            part = weights[piece.name].reshape(-1).narrow(0, piece.offset, piece.numel)
            piece.of(piece.owner.data).copy_(part)

    # -------------------------------------------------------------------------------------------------------- inside

    def _basic(self) -> torch.optim.Optimizer:
        """The optimizer inside DeepSpeed's wrapper."""
        return self._engine.basic_optimizer

    def _own_time(self) -> Busy:
        """Without the two functions in which DeepSpeed adds gradients up: after backward, and in it by hooks (ZeRO)."""
        busy, optimizer = Busy(CudaClock() if self.device.type == "cuda" else HostClock()), self._engine.optimizer
        self._engine.allreduce_gradients = busy.without(self._engine.allreduce_gradients)
        if hasattr(optimizer, "average_tensor"):
            optimizer.average_tensor = busy.without(optimizer.average_tensor)
        return busy

    def _gradient_norm(self) -> Tensor:
        """The global norm of what ZeRO is about to give to the optimizer, known before the first group's update."""
        norm = self._engine.optimizer._global_grad_norm
        return torch.as_tensor(norm, dtype=torch.float32, device=self.device)

    def _tensors(self) -> int:
        return sum(1 for _ in self.module.named_parameters())

    def _owners(self) -> list[Tensor]:
        return list({id(piece.owner): piece.owner for piece in self.slices}.values())

    def _updates(self) -> int:
        """Updates made: our Lamb counts by group, DeepSpeed's and torch's optimizers in the state of parameters."""
        groups, states = self._basic().param_groups, self._basic().state.values()
        return max(int(counted.get("step", 0)) for counted in (*groups, *states))

    def _set_updates(self, updates: int) -> None:
        for group in self._basic().param_groups:
            if "step" in group:
                group["step"] = updates
        if not self._lamb:
            is_torch = type(self._basic()).__module__.startswith("torch.")
            for owner in self._owners():
                self._basic().state[owner]["step"] = torch.tensor(float(updates)) if is_torch else updates


def _initialize(model: nn.Module, lamb: Lamb | None, groups: list[dict[str, Any]], config: DeepSpeedConfig) -> Any:
    """DeepSpeed's engine; ConfigError for what only DeepSpeed itself can find wrong in the JSON."""
    if config.written["optimizer"]["type"] != "Muon":
        _start_quickly()
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):  # noqa: PTH123 - it prints its configuration
            return deepspeed.initialize(
                model=model,
                optimizer=lamb,
                model_parameters=None if lamb else cast(Any, groups),
                config=config.resolved,
            )[0]
    except (ValueError, TypeError, AssertionError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{config.source}: DeepSpeed refuses it ({reason}); mend that key") from error


def _start_quickly() -> None:
    """Spare each rank half of the 5.4 s of CPU time that it takes to start.

    To see that an optimizer is not its Muon, DeepSpeed imports that, which loads torch's whole compiler for three
    decorators: here they leave their functions as they are. And it collects garbage six times among a million objects
    of imported modules, which can never be garbage.
    """
    compiler: Any = importlib.import_module("deepspeed.runtime.compiler")
    compiling = compiler.compile
    compiler.compile = lambda: lambda function: function
    try:
        importlib.import_module("deepspeed.runtime.zero.muon.original_muon")
    finally:
        compiler.compile = compiling
    gc.freeze()


def _sum_over_ranks(tensor: Tensor) -> None:
    dist.all_reduce(tensor)
