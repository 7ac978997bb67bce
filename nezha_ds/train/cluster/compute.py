"""Whether a rank's device multiplies right, and how fast; and what the driver says of a GPU.

Matrices of -1, 0 and 1, a quarter of them not 0: every sum is a whole number below 256 (16 is its standard deviation
over 4,096 places), exact in bf16 as well as in fp32, so that a result is right or wrong and nothing between. It is held
against the inputs by Freivalds' check, C·x = A·(B·x) in fp64, which costs a thousandth of the product. About a second.
"""

import shutil
import subprocess
import time
from collections.abc import Callable

import torch
from torch import Tensor

from nezha_ds.train.cluster.survey import Compute, Gpu

SIZES = {"cuda": 4096, "cpu": 512}
"""A product takes 0.2 ms on an H100, 5 ms on a core."""
SECONDS = 1.0
QUERIES = (
    "ecc.errors.uncorrected.volatile.total",
    "remapped_rows.pending",
    "clocks_throttle_reasons.hw_thermal_slowdown",
    "clocks_throttle_reasons.hw_power_brake_slowdown",
    "clocks_throttle_reasons.sw_thermal_slowdown",
)
"""nvidia-smi --help-query-gpu"""


def measure(local_rank: int, threads: int, multiply: Callable[[Tensor, Tensor], Tensor] = torch.matmul) -> Compute:
    """Products on this rank's device for about a second: the best rate, and whether all were right."""
    device, dtype = torch.device("cpu"), torch.float32
    if torch.cuda.is_available():
        device, dtype = torch.device("cuda", local_rank % torch.cuda.device_count()), torch.bfloat16
        torch.cuda.set_device(device)
    torch.set_num_threads(threads)
    size = SIZES[device.type]
    generator = torch.Generator().manual_seed(1)
    one, other = (_signs(size, generator).to(device, dtype) for _ in range(2))
    correct = is_product(one, other, multiply(one, other))
    best, end = float("inf"), time.perf_counter() + SECONDS
    while True:
        start = time.perf_counter()
        product = multiply(one, other)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
        if time.perf_counter() > end:
            break
    correct = correct and is_product(one, other, product)
    return Compute(2 * size**3 / best, correct, _gpu(device) if device.type == "cuda" else None)


def is_product(one: Tensor, other: Tensor, product: Tensor) -> bool:
    """Whether the product of two (n, n) matrices of small whole numbers is exact, with all but 1 in 2^10 certainty."""
    n = one.shape[0]
    x = torch.randint(0, 1024, (n, 1), generator=torch.Generator().manual_seed(2)).to(one.device, torch.float64)
    return bool(torch.equal(product.double() @ x, one.double() @ (other.double() @ x)))


def parse_driver(line: str) -> tuple[int, bool, tuple[str, ...]]:
    """Uncorrected errors, whether rows wait to be remapped, and why the clock is held down, from nvidia-smi's line.

    What a GPU does not tell (`[N/A]`) counts as well.
    """
    errors, remapping, *slowed = (field.strip() for field in line.split(","))
    reasons = [name.rpartition(".")[2] for name in QUERIES[2:]]
    return (
        int(errors) if errors.isdecimal() else 0,
        remapping.lower() in ("yes", "1", "pending"),
        tuple(reason for reason, value in zip(reasons, slowed, strict=True) if value == "Active"),
    )


def _signs(size: int, generator: torch.Generator) -> Tensor:
    numbers = torch.randint(0, 8, (size, size), generator=generator)
    return (numbers == 0).float() - (numbers == 1).float()


def _gpu(device: torch.device) -> Gpu:
    free, total = torch.cuda.mem_get_info(device)
    properties = torch.cuda.get_device_properties(device)
    found = (0, False, ())
    if shutil.which("nvidia-smi"):
        command = ["nvidia-smi", f"--id=GPU-{properties.uuid}", f"--query-gpu={','.join(QUERIES)}"]
        done = subprocess.run(
            [*command, "--format=csv,noheader,nounits"], capture_output=True, text=True, timeout=30, check=False
        )
        if done.returncode == 0:
            found = parse_driver(done.stdout.strip())
    return Gpu(properties.name, free, total, *found)
