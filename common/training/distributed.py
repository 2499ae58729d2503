"""Distributed training: `torchrun --nproc-per-node 2 projects/x/train.py ...`.

The batch of a step does not depend on the number of processes; each computes its rows of it. So a
configuration means the same training on 1, 2 or 4 processes, and can be resumed on another number.
Only rank 0 writes the log, the samples and unsharded checkpoints.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from common.errors import Interrupted, TrainingError
from common.training.precision import select_device
from common.utils.seeding import seed_everything

T = TypeVar("T")
Store = torch._C._distributed_c10d.Store

# The other ranks wait while rank 0 prepares the data; torchrun notices when a process dies.
_TIMEOUT = timedelta(hours=12)
# How long a process without an error of its own waits for the one that reports. torchrun ends all
# others when one process fails, so this is rarely reached.
_SILENCE_SECONDS = 5.0
# Time to find the other processes at the start, and to end without torchrun.
_MEETING_TIMEOUT = timedelta(minutes=5)
_LAST_SECONDS = 300.0


@dataclass(frozen=True)
class DistributedContext:
    """This process in a group that trains together; with a single process, methods do nothing."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over all processes, in place."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def any(self, *flags: bool) -> list[bool]:
        """Whether any process sets each flag; does not wait for a device."""
        if self.world_size == 1:
            return list(flags)
        found = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
        return [bool(flag) for flag in found]

    def from_main(self, value: T) -> T:
        """Send the value of rank 0 to all processes (anything that can be pickled)."""
        if self.world_size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def gather(self, value: T) -> list[T]:
        """Gather the values of all processes, by rank."""
        if self.world_size == 1:
            return [value]
        values: list[T] = [value] * self.world_size
        dist.all_gather_object(values, value)
        return values

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Run the block on rank 0 first (it writes files that the other ranks read)."""
        if not self.is_main:
            dist.barrier()
        yield
        if self.is_main and self.world_size > 1:
            dist.barrier()

    def seed_apart(self) -> None:
        """Give each process its own random numbers; rank 0 keeps its state.

        Call it after the model is initialised, for which all ranks need the same state.
        """
        if not self.is_main:
            seed_everything(torch.initial_seed() + 1_000_003 * self.rank)


@contextmanager
def join_context(device_name: str) -> Iterator[DistributedContext]:
    """Join the processes that torchrun started, or run as a single one, on `training.device`.

    One process reports an error of the block: the first to fail raises, the others exit silently.
    Raises TrainingError if the device is not available or the processes cannot connect.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        yield DistributedContext(device=select_device(device_name))
        return
    store, rank, world_size = _meet()
    if "TORCHELASTIC_RUN_ID" in os.environ:
        threading.Thread(target=_end_with_torchrun, args=[os.getppid()], daemon=True).start()
    with _reported_once(store, rank):
        device = _own_device(device_name)
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(
            backend, store=store, rank=rank, world_size=world_size, timeout=_TIMEOUT
        )
        yield DistributedContext(rank, world_size, device)
        # Not after an error: the processes would wait for one another.
        dist.barrier()  # other ranks may still communicate
        dist.destroy_process_group()


def _meet() -> tuple[Store, int, int]:
    """Return (store shared by all processes, rank, world size) from the environment."""
    from torch.distributed.rendezvous import rendezvous

    found: list[tuple[Store, int, int] | Exception] = []

    def meet() -> None:
        try:
            found.append(next(rendezvous("env://", timeout=_MEETING_TIMEOUT)))
        except (ValueError, dist.DistError) as error:
            found.append(error)

    # In a thread: PyTorch waits forever for a foreign server at this port.
    thread = threading.Thread(target=meet, daemon=True)
    thread.start()
    thread.join(2 * _MEETING_TIMEOUT.total_seconds())
    if found and not isinstance(found[0], Exception):
        return found[0]
    place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    problem = str(found[0]) if found else ""
    if "EADDRINUSE" in problem:
        raise TrainingError(
            f"another program listens at {place}, the address of this training's rank 0",
            "set MASTER_PORT to another port, or let torchrun --standalone find one",
        )
    if isinstance(found[0] if found else None, ValueError):
        raise TrainingError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']} means several processes, but: {problem}",
            "start them with torchrun, or unset WORLD_SIZE",
        )
    raise TrainingError(
        f"rank 0 of this training is not at {place}",
        "see the output of rank 0; does another program use MASTER_PORT?",
    )


def _end_with_torchrun(parent: int) -> None:
    """Save and stop when torchrun was killed, which then ends no processes itself."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_LAST_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)


def _own_device(name: str) -> torch.device:
    """The device of this process on this machine."""
    device = select_device(name)
    if device.type == "cpu":
        return device
    local_rank = int(os.environ["LOCAL_RANK"])
    if device.type != "cuda" or device.index is not None:
        raise TrainingError(
            f"several processes cannot share the device '{device}'",
            "set training.device=cuda (one for each process) or cpu",
        )
    if local_rank >= torch.cuda.device_count():
        raise TrainingError(
            f"process {local_rank} has no CUDA device of its own: "
            f"this machine has {torch.cuda.device_count()}",
            "start torchrun with a smaller --nproc-per-node",
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


@contextmanager
def _reported_once(store: Store, rank: int) -> Iterator[None]:
    """Report once why all processes end: rank 0 reports an interruption, the first to fail an error."""
    try:
        yield
    except Interrupted as interrupt:
        dist.barrier()  # now rank 0 has recorded it in the experiment
        if rank == 0:
            raise
        time.sleep(1.0)
        sys.exit(interrupt.exit_code)
    except (Exception, KeyboardInterrupt) as error:
        if not _is_first_to_fail(store):
            time.sleep(_SILENCE_SECONDS)
            sys.exit(2)
        if _is_lost_connection(error):
            raise TrainingError(
                "another process of this training died (killed, or out of memory)",
                "continue from the last checkpoint with --resume",
            ) from error
        raise


def _is_first_to_fail(store: Store) -> bool:
    try:
        return store.add("failed", 1) == 1
    except (dist.DistError, RuntimeError):  # the process that held the store died
        return True


def _is_lost_connection(error: BaseException) -> bool:
    # Gloo raises plain RuntimeErrors that name its source file.
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and "gloo" in str(error)
    )
