"""What counts as a rank's own computing, with a clock that passes only when it is told to."""

import pytest
import torch

from nezha_ds.train.busy import Busy, CudaClock, HostClock


class Stream:
    """A device that comes to what was given to it later than the host: marks are known once it has come there."""

    def __init__(self) -> None:
        self.now, self.reached = 0.0, float("inf")

    def work(self, seconds: float) -> None:
        self.now += seconds

    def mark(self) -> float:
        return self.now

    def seconds(self, start: float, end: float) -> float | None:
        return end - start if end <= self.reached else None


def test_what_is_left_out_does_not_count_and_what_is_around_it_does():
    stream = Stream()
    busy = Busy(stream)
    reduce = busy.without(stream.work)
    for _ in range(2):
        with busy:
            stream.work(3.0)
            reduce(100.0)
            stream.work(2.0)
            reduce(50.0)
        stream.work(1000.0)  # waiting for data, the update
    reduce(7.0)
    busy.settle()
    assert busy.take() == 10.0
    assert busy.take() == 0.0


def test_what_is_left_out_twice_is_left_out_once():
    """Hooks of ZeRO run inside of what runs after backward."""
    stream = Stream()
    busy = Busy(stream)
    inner = busy.without(stream.work)

    def reduce() -> str:
        inner(10.0)
        stream.work(1.0)
        inner(10.0)
        return "reduced"

    with busy:
        stream.work(2.0)
        assert busy.without(reduce)() == "reduced"
        stream.work(3.0)
    busy.settle()
    assert busy.take() == 5.0


def test_nothing_waits_for_a_device_that_is_behind():
    stream = Stream()
    busy = Busy(stream)
    for _ in range(3):
        with busy:
            stream.work(1.0)
    stream.reached = 2.0
    busy.settle()
    assert busy.take() == 2.0
    stream.reached = 3.0
    busy.settle()
    assert busy.take() == 1.0


def test_an_error_ends_a_stretch_as_anything_does():
    stream = Stream()
    busy = Busy(stream)

    def lose() -> None:
        stream.work(9.0)
        raise RuntimeError("lost")

    with pytest.raises(RuntimeError, match="lost"), busy:
        stream.work(1.0)
        busy.without(lose)()
    with busy:
        stream.work(1.0)
    busy.settle()
    assert busy.take() == 2.0


def test_the_hosts_clock_passes():
    clock = HostClock()
    first = clock.mark()
    assert clock.seconds(first, clock.mark()) >= 0.0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_stream_tells_and_nobody_waits():
    """Of two equal parts of the device's work one is left out; the host has given both to it long before."""
    busy, clock = Busy(CudaClock()), CudaClock()
    reduce = busy.without(torch.cuda._sleep)
    began = clock.mark()
    with busy:
        torch.cuda._sleep(200_000_000)
        reduce(200_000_000)
    ended = clock.mark()
    busy.settle()
    assert busy.take() == 0.0
    torch.cuda.synchronize()
    busy.settle()
    whole = clock.seconds(began, ended)
    assert whole and 0.4 * whole < busy.take() < 0.6 * whole
