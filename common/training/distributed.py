"""Several processes that train one model: `torchrun --nproc-per-node 2 projects/x/train.py ...`.

The batch of a step is the same whatever the number of processes, each takes its rows of it. So a
configuration means the same training on 1, 2 or 4 processes, and can be resumed on another number.
Rank 0 alone writes: the log, the samples, the checkpoints that are not sharded.
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

# Others wait while the main process prepares the data; torchrun notices when a process dies.
_TIMEOUT = timedelta(hours=12)
# How long a process that has nothing to say lets the one that has speak first. torchrun ends all
# others when one process fails, so hardly anybody ever waits so long.
_SILENCE_SECONDS = 5.0
# How long processes look for one another at the start, and what they have to end without torchrun.
_MEETING_TIMEOUT = timedelta(minutes=5)
_LAST_SECONDS = 300.0


@dataclass(frozen=True)
class DistributedContext:
    """This process among those that train together; alone, every method does nothing."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over all processes, in place."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def any(self, *flags: bool) -> list[bool]:
        """For each flag whether one of the processes has it set; no device is waited for."""
        if self.world_size == 1:
            return list(flags)
        found = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
        return [bool(flag) for flag in found]

    def from_main(self, value: T) -> T:
        """What the main process passes, in all of them (anything that can be pickled)."""
        if self.world_size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def gather(self, value: T) -> list[T]:
        """The values of all processes, in the order of their ranks."""
        if self.world_size == 1:
            return [value]
        values: list[T] = [value] * self.world_size
        dist.all_gather_object(values, value)
        return values

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The main process goes through the block first (and writes files that the others find)."""
        if not self.is_main:
            dist.barrier()
        yield
        if self.is_main and self.world_size > 1:
            dist.barrier()

    def seed_apart(self) -> None:
        """Give each process random numbers of its own; the main one goes on with those it has.

        Called where all of them have the same: after the model was initialised.
        """
        if not self.is_main:
            seed_everything(torch.initial_seed() + 1_000_003 * self.rank)


@contextmanager
def join_context(device_name: str) -> Iterator[DistributedContext]:
    """Join the processes that torchrun has started, or be the only one; `training.device` names the kind.

    What goes wrong in the block is told by one process: the first to meet it raises, the others
    leave without a word. Raises TrainingError for a device that is not there, and where the
    processes do not find one another.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        yield DistributedContext(device=select_device(device_name))
        return
    store, rank, world_size = _meet()
    if "TORCHELASTIC_RUN_ID" in os.environ:
        threading.Thread(target=_end_with_torchrun, args=[os.getppid()], daemon=True).start()
    with _told_once(store, rank):
        device = _own_device(device_name)
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(
            backend, store=store, rank=rank, world_size=world_size, timeout=_TIMEOUT
        )
        yield DistributedContext(rank, world_size, device)
        # Not after an error: others may be waiting for this process, and so would it for them.
        dist.barrier()  # a process that is still talking must find the others
        dist.destroy_process_group()


def _meet() -> tuple[Store, int, int]:
    """(what all processes share, rank, how many they are), as the environment says."""
    from torch.distributed.rendezvous import rendezvous

    found: list[tuple[Store, int, int] | Exception] = []

    def meet() -> None:
        try:
            found.append(next(rendezvous("env://", timeout=_MEETING_TIMEOUT)))
        except (ValueError, dist.DistError) as error:
            found.append(error)

    # In a thread, since PyTorch waits for a server of another kind at this port without end.
    thread = threading.Thread(target=meet, daemon=True)
    thread.start()
    thread.join(2 * _MEETING_TIMEOUT.total_seconds())
    if found and not isinstance(found[0], Exception):
        return found[0]
    place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    problem = str(found[0]) if found else ""
    if "EADDRINUSE" in problem:
        raise TrainingError(
            f"another program listens at {place}, where the processes of this training were to meet",
            "choose another port, as MASTER_PORT, or let torchrun --standalone find one",
        )
    if isinstance(found[0] if found else None, ValueError):
        raise TrainingError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']} speaks of several processes, but: {problem}",
            "start them with torchrun, or unset WORLD_SIZE",
        )
    raise TrainingError(
        f"the main process of this training is not at {place}",
        "see what it says itself; is MASTER_PORT that of another program?",
    )


def _end_with_torchrun(parent: int) -> None:
    """A torchrun that was killed ends no processes any more: save and end as it would have them do."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_LAST_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)


def _own_device(name: str) -> torch.device:
    """The device of this process among those on this machine."""
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
def _told_once(store: Store, rank: int) -> Iterator[None]:
    """Let one process tell why all of them end: an interruption the main one, an error the first."""
    try:
        yield
    except Interrupted as interrupt:
        dist.barrier()  # now the main process has recorded it in the experiment
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
                "another process of this training is gone (killed, or out of memory)",
                "go on from the last checkpoint with --resume",
            ) from error
        raise


def _is_first_to_fail(store: Store) -> bool:
    try:
        return store.add("failed", 1) == 1
    except (dist.DistError, RuntimeError):  # the process that counted is gone
        return True


def _is_lost_connection(error: BaseException) -> bool:
    # Gloo raises plain RuntimeErrors that name its source file.
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and "gloo" in str(error)
    )
