"""Tasks on one process, on many, or on the ranks of an MPI job, with a gauge that tells how far they are.

The seam is `concurrent.futures.Executor`: in place for one worker (a debugger and Ctrl-C reach the task itself), a pool
of processes for more, `mpi4py.futures` across nodes. A process of the pool ignores Ctrl-C, which its parent
answers for all; it stops at the next megabyte when told to, and dies within a moment of its parent, even when that was
killed. Its results come through files unless they are small: one that is killed half way through a pipe leaves the
other end waiting for the rest for ever. A rank ends the task that it is at; when one is killed, `mpirun` ends all, and
so does `srun` if told by `--kill-on-bad-exit=1`: without, a step on several nodes waits for the dead rank for ever.
"""

import multiprocessing
import os
import pickle
import secrets
import signal
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any, Literal, ParamSpec, Protocol, TypeVar

from nezha_ds.errors import LaunchError
from nezha_ds.files import unwritable


class Sized(Protocol):
    """A task that knows about how many bytes of text it holds."""

    @property
    def size(self) -> int:
        """In bytes."""
        ...


T = TypeVar("T")
R = TypeVar("R")
TaskT = TypeVar("TaskT", bound=Sized)
P = ParamSpec("P")

ExecutorName = Literal["processes", "mpi"]
"""Who does the tasks: processes of this machine, or the other ranks of `mpirun`."""

# Not forked from here: tokenizers and pyarrow may hold threads that a fork would cut off. Forked from a server that has
# only imported them, which takes 0.5 s, once: later pools start in 0.26 s instead of 0.71 s (two workers).
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["nezha_ds.corpus.encode", "rjieba"])


class StoppedError(Exception):
    """Ends a worker's task after another task failed or the user pressed Ctrl-C; nobody sees it."""


class Gauge:
    """How many bytes all processes have read, and whether they should stop.

    Only workers take the lock, and only to add: one that is killed with the lock in its hand stops the others, which
    the pool then ends, but never the parent that has to say so.
    """

    def __init__(self, shared: bool) -> None:
        """`shared` between processes that add."""
        self._bytes, self._stopping = _CONTEXT.RawValue("q", 0), _CONTEXT.RawValue("b", 0)
        self._lock = _CONTEXT.Lock() if shared else nullcontext()

    def add(self, count: int) -> None:
        """Count bytes; StoppedError when the work is called off."""
        if self._stopping.value:
            raise StoppedError
        with self._lock:
            self._bytes.value += count

    def read(self) -> int:
        """The bytes counted so far."""
        return self._bytes.value

    def call_off(self) -> None:
        """Make every task end at its next `add`."""
        self._stopping.value = 1


_gauge: Gauge | None = None
"""This process's own, set when it starts to work."""


def count_bytes(count: int) -> None:
    """What a task calls, about every megabyte that it has read."""
    if _gauge is not None:
        _gauge.add(count)


@dataclass(frozen=True)
class _Left:
    """A result that was pickled: its bytes, or the file with them."""

    data: bytes | Path


def _take(result: R | _Left) -> R:
    """The result itself; its file is gone then."""
    if not isinstance(result, _Left):
        return result
    data = result.data if isinstance(result.data, bytes) else result.data.read_bytes()
    if isinstance(result.data, Path):
        result.data.unlink()
    return pickle.loads(data)  # noqa: S301 - our own worker's


_PIPE_BYTES = 3000
"""Up to PIPE_BUF (4,096), with what is sent around it, a message is in the pipe at once or not at all."""


def _do(function: Callable[[TaskT], R], task: TaskT, exchange: Path | None) -> R | _Left:
    """The function's result, by way of a file in `exchange` if it is large."""
    result = function(task)
    if exchange is None:
        return result
    data = pickle.dumps(result)
    if len(data) <= _PIPE_BYTES:
        return _Left(data)
    path = exchange / f".{secrets.token_hex(8)}.tmp"
    try:
        path.write_bytes(data)
    except OSError as error:
        raise unwritable(path, error) from None
    return _Left(path)


class Pool:
    """Workers for one `run` after another."""

    def __init__(self, executor: Executor, gauge: Gauge, on_ranks: bool = False, exchange: Path | None = None) -> None:
        self._executor, self.gauge = executor, gauge
        self._exchange = exchange  # where results are left, if pipes are to be kept short
        self._on_ranks = on_ranks  # of other machines, perhaps, where nobody adds to this gauge

    def run(self, function: Callable[[TaskT], R], tasks: Sequence[TaskT]) -> list[R]:
        """The function's result for each task, in order. The first failure calls the others off and is raised.

        LaunchError when a worker was killed.
        """
        results: dict[Future[R | _Left], R] = {}
        try:
            futures = {self._executor.submit(_do, function, task, self._exchange): task.size for task in tasks}
            for future in as_completed(futures):
                results[future] = _take(future.result())
                if self._on_ranks:
                    self.gauge.add(futures[future])
            return [results[future] for future in futures]
        except BrokenProcessPool:
            raise LaunchError(
                "a worker process was killed, most likely for want of memory; run again with fewer workers: "
                "what is finished stays"
            ) from None
        except BaseException:
            self.gauge.call_off()
            self._executor.shutdown(cancel_futures=True)
            raise


# ------------------------------------------------------------------------------------------------------- the processes


@contextmanager
def processes(workers: int, exchange: Path) -> Generator[Pool]:
    """A pool of so many processes of this machine; for one worker (or none) this process itself.

    Processes leave their results in `exchange`, as `.*.tmp`.
    """
    gauge = Gauge(shared=workers > 1)
    with _executor(workers, gauge) as executor:
        yield Pool(executor, gauge, exchange=exchange if workers > 1 else None)


def _executor(workers: int, gauge: Gauge) -> Executor:
    if workers > 1:
        return ProcessPoolExecutor(workers, mp_context=_CONTEXT, initializer=_start_worker, initargs=(gauge,))
    _use(gauge)
    return _InPlace()


class _InPlace(Executor):
    """Runs each task as it is submitted; what it raises reaches the caller at once."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


def _start_worker(gauge: Gauge) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_die_with_parent, daemon=True).start()
    _use(gauge)


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _use(gauge: Gauge) -> None:
    global _gauge
    _gauge = gauge


# ----------------------------------------------------------------------------------------------------------- the ranks


def on_ranks(main: Callable[[Pool], R]) -> R:
    """Call `main` on rank 0 of an MPI job while all other ranks work for its pool; its result on every rank.

    What `main` raises is raised on rank 0; the others then exit with the same code and say nothing. LaunchError without
    MPI, or with rank 0 alone.
    """
    comm, executor_of = _mpi()
    result: R | None = None
    failure: BaseException | None = None
    with executor_of(comm, root=0) as executor:
        if executor is not None:
            try:
                result = main(Pool(executor, Gauge(shared=False), on_ranks=True))
            except BaseException as error:  # the workers must be let go before it is raised
                failure = error
    exit_code, answer = comm.bcast((failure and getattr(failure, "exit_code", 1), result), root=0)
    if failure:
        raise failure
    if exit_code:
        raise SystemExit(exit_code)
    return answer


def _mpi() -> tuple[Any, Any]:
    """The world's communicator and the class of its executor."""
    try:
        from mpi4py import MPI
        from mpi4py.futures import MPICommExecutor
    except (ImportError, RuntimeError) as error:  # RuntimeError: mpi4py is there, the library that it loads is not
        reason = str(error).partition("\n")[0]
        raise LaunchError(
            f"executor 'mpi' needs MPI ({reason}); install one (Debian: openmpi-bin) and `pip install 'nezha-ds[mpi]'`"
        ) from None
    if MPI.COMM_WORLD.Get_size() < 2:
        raise LaunchError(
            "executor 'mpi' has no rank but this one, which only hands out work; start it with `mpirun -n 3` or more "
            "(in a Slurm step `srun --mpi=pmix -n 3`), or use executor 'processes'"
        )
    return MPI.COMM_WORLD, MPICommExecutor
