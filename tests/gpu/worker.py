"""A process that measures: groups as lines of JSON come in, rows go out as they are found.

    python -m tests.gpu.worker DEVICE

An answer is {"at": SIDE} when a side is begun, {"row": {…}} for a row, {"done": true} after the group. Whoever started
it ends it when a group takes too long or the device is broken, and knows which side was at fault.
"""

import itertools
import json
import math
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any, NamedTuple, TextIO
from unittest.mock import patch

import torch

from nezha_ds.model import clipped
from nezha_ds.model.config import preset
from nezha_ds.model.dropout import Dropout
from nezha_ds.model.flops import peak_flops, step_flops
from nezha_ds.model.nezha import padding_mask
from nezha_ds.model.relative import relative_table
from tests.gpu.cases import Group
from tests.gpu.search import fits_in_memory, free_memory, largest
from tests.gpu.sides import DTYPES, Side, predictions

TURN_SECONDS = 0.5
"""Of a side's turn, if its steps are shorter than that."""
MIB = 1 << 20

Answer = Callable[[dict[str, Any]], None]


class Times(NamedTuple):
    """Seconds of the steps of one turn, each with its update, and of the updates alone."""

    steps: list[float]
    updates: list[float]


class Device:
    """Clock and memory of a device; a CPU has no memory that torch counts."""

    def __init__(self, name: str) -> None:
        self.device = torch.device(name)
        self._cuda = self.device.type == "cuda"
        self.name = torch.cuda.get_device_name(self.device) if self._cuda else name

    def mark(self) -> Any:
        """A moment in the device's stream."""
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, marks: list[Any]) -> list[float]:
        """Between each two; waits for the last."""
        if not self._cuda:
            return [late - early for early, late in itertools.pairwise(marks)]
        torch.cuda.synchronize()
        return [early.elapsed_time(late) / 1000 for early, late in itertools.pairwise(marks)]

    def allocated(self) -> int:
        """Bytes."""
        return torch.cuda.memory_allocated() if self._cuda else 0

    def begin_peak(self) -> None:
        """Forget the highest so far."""
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()

    def peak(self) -> int | None:
        """Most bytes allocated since then."""
        return torch.cuda.max_memory_allocated() if self._cuda else None


class Contender:
    """A side in a group of steps: built, warm, with its readings."""

    def __init__(self, name: str, group: Group, device: Device) -> None:
        self.name, self._device = name, device
        before = device.allocated()
        self.side = Side(name, group, device.device)
        self._own = device.allocated() - before
        self._warm_up(group.warm_up)
        seconds = device.seconds([device.mark(), self._step(), device.mark()])[0]
        self._count = min(20, max(2, math.ceil(TURN_SECONDS / max(seconds, 1e-3))))
        self.times: list[Times] = []
        self.peaks: list[int] = []
        self.loss = math.nan

    def turn(self) -> None:
        """Some steps, after one that does not count."""
        free_memory()
        self._step()
        self._device.seconds([self._device.mark()])
        at_rest = self._device.allocated()
        self._device.begin_peak()
        marks = [self._device.mark()]
        for _ in range(self._count):
            loss = self.side.forward_backward()
            marks.append(self._device.mark())
            self.side.update()
            marks.append(self._device.mark())
        parts = self._device.seconds(marks)
        peak = self._device.peak()
        if peak is not None:
            self.peaks.append(peak - at_rest + self._own)
        self.times.append(Times([a + b for a, b in zip(parts[::2], parts[1::2], strict=True)], parts[1::2]))
        self.loss = float(loss)
        if not math.isfinite(self.loss):
            raise FloatingPointError(f"the loss is {self.loss}")

    def _step(self) -> Any:
        self.side.forward_backward()
        self.side.update()
        return self._device.mark()

    def _warm_up(self, steps: int) -> None:
        """A batch that does not fit beside the other sides is halved; the row tells its size."""
        while not fits_in_memory(self._step):
            if self.side.batch == 1:
                raise torch.OutOfMemoryError("not even one sample fits")
            self.side.set_batch(self.side.batch // 2)
        for _ in range(steps):
            self._step()


def measure_steps(group: Group, device: Device, answer: Answer) -> None:
    """Every side once, then every side again, …; one that fails loses its own row."""
    contenders: dict[str, Contender] = {}
    for name in group.sides:
        answer({"at": name})
        with _failing_alone(group, name, answer):
            contenders[name] = Contender(name, group, device)
        free_memory()
    for _ in range(group.rounds):
        for name in list(contenders):
            answer({"at": name})
            contender = contenders.pop(name)
            with _failing_alone(group, name, answer):
                contender.turn()
                contenders[name] = contender
    for name, contender in contenders.items():
        answer({"row": group.row(name, **step_values(group, device, contender))})


def step_values(group: Group, device: Device, contender: Contender) -> dict[str, Any]:
    """What the row of a side says besides what it is of."""
    rounds = [median(times.steps) for times in contender.times]
    seconds = median([second for times in contender.times for second in times.steps])
    config, samples = preset(group.size), contender.side.batch
    flops = samples * step_flops(config, group.length, predictions(group.length), nsp=True)
    peak = peak_flops(device.name, DTYPES[group.dtype])
    return {
        "batch": samples,
        "sequences_per_second": samples / seconds,
        "milliseconds": 1000 * seconds,
        "milliseconds_range": [1000 * min(rounds), 1000 * max(rounds)],
        "update_milliseconds": 1000 * median([second for times in contender.times for second in times.updates]),
        "teraflops": flops / seconds / 1e12,
        "mfu": None if peak is None else flops / seconds / peak,
        "peak_mib": max(contender.peaks) / MIB if contender.peaks else None,
        "steps": sum(len(times.steps) for times in contender.times),
        "loss": contender.loss,
    }


def measure_limits(group: Group, device: Device, answer: Answer) -> None:
    """The largest micro-batch of each side, alone on the device."""
    for name in group.sides:
        answer({"at": name})
        with _failing_alone(group, name, answer):
            found = limit_of(Side(name, group, device.device), group, device)
            answer({"row": group.row(name, micro_batch=found, at_least=found == group.most)})
        free_memory()


def limit_of(side: Side, group: Group, device: Device) -> int:
    """The most samples of which a whole step fits."""

    def step(samples: int) -> None:
        side.set_batch(samples)
        side.forward_backward()
        side.update()
        # What runs out of memory says so at once; what is broken only when somebody waits.
        device.seconds([device.mark()])

    return largest(lambda samples: fits_in_memory(lambda: step(samples)), group.batch, group.most)


def measure_tiles(group: Group, device: Device, answer: Answer) -> None:
    """Microseconds of the Triton body forward or backward, with one choice of blocks after another."""
    for name in group.sides:
        answer({"at": name})
        with _failing_alone(group, name, answer):
            answer({"row": group.row(name, microseconds=1e6 * tile_seconds(name, group, device))})
        free_memory()


def tile_seconds(name: str, group: Group, device: Device) -> float:
    """Of one call; of `FORWARD` the forward pass, of the others the backward pass, where the other kernel stays."""
    kernel, choice = name.split()
    tiles = clipped.Tiles(*map(int, choice.split("x")))
    config, dtype = preset(group.size), DTYPES[group.dtype]
    shape = (group.batch, group.length, config.num_attention_heads, config.head_size)
    q, k, v = (torch.randn(shape, device=device.device).to(dtype).transpose(1, 2).requires_grad_() for _ in range(3))
    table = relative_table(config.max_relative_position, config.head_size).to(device.device, dtype)
    mask = padding_mask(torch.full(shape[:1], group.length, device=device.device), group.length, dtype)
    dropout = Dropout(config.attention_probs_dropout_prob).train()
    seconds = []
    with patch.object(clipped, kernel, getattr(clipped, kernel) | {config.head_size: tiles}):
        for _ in range(25):
            marks = [device.mark()]
            output = clipped.triton_attention(q, k, v, table, mask, dropout)
            marks.append(device.mark())
            torch.autograd.grad(output, (q, k, v), output)
            marks.append(device.mark())
            seconds.append(device.seconds(marks)[kernel != "FORWARD"])
    return median(seconds[5:])


MEASURES = {"step": measure_steps, "limit": measure_limits, "tiles": measure_tiles}


class _failing_alone:  # noqa: N801 - reads as a function in `with`
    """Turns an exception of a side into its row. A device that is broken takes the process with it."""

    def __init__(self, group: Group, name: str, answer: Answer) -> None:
        self._group, self._name, self._answer = group, name, answer

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        if not isinstance(error, Exception):
            return False
        traceback.print_exception(error)
        self._answer({"row": self._group.row(self._name, error=reason(error))})
        # After an illegal access every later call fails: whoever started this process makes a new one.
        return not broke_the_device(error)


def broke_the_device(error: Exception) -> bool:
    """Whether it is one of those after which a CUDA context is of no use."""
    return isinstance(error, torch.AcceleratorError) or "Triton Error [CUDA]" in str(error)


def reason(error: BaseException) -> str:
    """An error in one short line."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {text}"[:300]


def serve(device: Device, questions: Iterator[str], answer: Answer) -> None:
    """Measure group after group."""
    for line in questions:
        group = Group.from_json(json.loads(line))
        MEASURES[group.kind](group, device, answer)
        answer({"done": True})


def main() -> None:
    # What libraries print goes to stderr, and the answers alone to what was stdout.
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)

        def answer(values: dict[str, Any], to: TextIO = answers) -> None:
            to.write(json.dumps(values) + "\n")
            to.flush()

        serve(Device(sys.argv[1]), sys.stdin, answer)


if __name__ == "__main__":
    main()
