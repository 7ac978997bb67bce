"""Compile the Triton kernels to machine code for GPUs that are not there, and tell what ptxas made of them.

    python -m tests.model.compile_kernels               what `make test` compiles
    python -m tests.model.compile_kernels --all         every head size, precision and capability: some minutes

The launches are those of the attention body itself: it is called with tensors on the CPU, and what would have been
launched is kept instead, with the specialisation that Triton derives from such arguments (divisible by 16, equal to 1,
absent). Compiling needs no GPU: Triton's wheel brings ptxas. A line of JSON for each kernel. TRITON_INTERPRET must not
be set, because it replaces the compiler.
"""

import argparse
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime import JITFunction

from nezha_ds.model import clipped, kernels
from nezha_ds.model.dropout import Dropout
from nezha_ds.model.nezha import padding_mask
from nezha_ds.model.relative import relative_table

SHARED = {80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10, 120: 99 << 10}
"""Bytes of shared memory that a block may have, by compute capability (CUDA programming guide, table of limits)."""

POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.int64: "*i64"}


@dataclass(frozen=True)
class Case:
    """A call of the body, and for which GPU."""

    capability: int
    dtype: str = "bfloat16"
    head_size: int = 64
    rate: float = 0.1
    batch: int = 2
    heads: int = 12
    length: int = 512
    clip: int = 64


CASES = (
    # What base and large are on an H100; the most shared memory, on an A10, which has least; whatever is equal to 1.
    Case(90),
    Case(86, "float32", 128),
    Case(80, "float16", head_size=32, rate=0.0, batch=1, heads=1, length=1, clip=8),
)


def every_case() -> Iterator[Case]:
    """All that anybody may ask for."""
    for capability, dtype, size, rate in product(
        (80, 86, 90), ("bfloat16", "float16", "float32"), clipped.HEAD_SIZES, (0.1, 0.0)
    ):
        yield Case(capability, dtype, size, rate)


@dataclass(frozen=True)
class Launch:
    """A kernel with the arguments that it was to be launched with."""

    kernel: JITFunction
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    options: dict[str, int]


@dataclass(frozen=True)
class Usage:
    """What a compiled kernel takes of a GPU."""

    shared: int
    """Bytes of a block."""
    registers: int
    """Of a thread."""
    stack: int
    """Bytes of a thread in memory: registers that were spilled."""


class Recorder:
    """Stands for the module of kernels; launching one of its kernels only notes it."""

    INTERPRETED = triton.language.constexpr(True)  # so that it takes tensors on the CPU

    def __init__(self) -> None:
        self.launches: list[Launch] = []

    def __getattr__(self, name: str) -> Any:
        kernel = getattr(kernels, name)
        return _Launcher(kernel, self.launches)


class _Launcher:
    def __init__(self, kernel: JITFunction, launches: list[Launch]) -> None:
        self._kernel, self._launches = kernel, launches

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launch(*values: Any, **named: Any) -> None:
            names = self._kernel.arg_names
            arguments = dict(zip(names, values, strict=False)) | {k: v for k, v in named.items() if k in names}
            options = {name: value for name, value in named.items() if name not in names}
            self._launches.append(Launch(self._kernel, grid, arguments, options))

        return launch


def launches_of(case: Case) -> list[Launch]:
    """Forward and backward of the body on tensors of that shape; nothing is computed."""
    dtype = getattr(torch, case.dtype)
    shape = (case.batch, case.length, case.heads, case.head_size)
    q, k, v = (torch.zeros(shape, dtype=dtype).transpose(1, 2).requires_grad_() for _ in range(3))
    table = relative_table(case.clip, case.head_size).to(dtype)
    mask = padding_mask(torch.full((case.batch,), case.length), case.length, dtype)
    recorder, real = Recorder(), clipped._kernels
    clipped._kernels = lambda: recorder
    try:
        dropout = Dropout(case.rate).train()
        output: Tensor = clipped.triton_attention(q, k, v, table, mask, dropout)
        output.backward(torch.zeros_like(output))
    finally:
        clipped._kernels = real
    return recorder.launches


def compile_launch(launch: Launch, capability: int) -> Usage:
    """To machine code, as Triton would at that launch on that GPU."""
    signature: dict[str, str] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    for place, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        kind, aligned = _specialised(value, parameter.is_constexpr)
        signature[parameter.name] = kind
        if kind == "constexpr":
            constants[place,] = value
        elif aligned:
            attributes[place,] = [["tt.divisibility", 16]]
    source = ASTSource(launch.kernel, signature, constants, attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=launch.options)
    return Usage(compiled.metadata.shared, *_resources(compiled.asm["cubin"]))


def _specialised(value: Any, constant: bool) -> tuple[str, bool]:
    """The type that Triton gives an argument, and whether it knows that it is divisible by 16."""
    if constant or value is None or (isinstance(value, int) and value == 1):
        return "constexpr", False
    if isinstance(value, Tensor):
        return POINTERS[value.dtype], value.data_ptr() % 16 == 0
    if isinstance(value, float):
        return "fp32", False
    return ("i32" if -(1 << 31) <= value < 1 << 31 else "i64"), value % 16 == 0


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of stack of a thread, as cuobjdump reads them."""
    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        told = subprocess.run([program, "-res-usage", file.name], capture_output=True, text=True, check=True)
    found = re.search(r"REG:(\d+) STACK:(\d+)", told.stdout + told.stderr)
    assert found, told
    return int(found[1]), int(found[2])


def main() -> None:
    parser = argparse.ArgumentParser("python -m tests.model.compile_kernels")
    parser.add_argument("--all", action="store_true")
    for case in every_case() if parser.parse_args().all else CASES:
        for launch in launches_of(case):
            usage = compile_launch(launch, case.capability)
            named = {"kernel": launch.kernel.__name__, "grid": launch.grid, **launch.options}
            print(json.dumps(asdict(case) | named | asdict(usage)), flush=True)


if __name__ == "__main__":
    main()
