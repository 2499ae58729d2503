"""The processes of test_training_under_attack.py: real trainings that are killed at a chosen moment.

Run as a script it is their parent: it imports everything once, computes nothing, starts no thread,
and forks one process per order. The test kills it from outside, or it kills itself when it has
called a function so many times or is about to change a file for the n-th time.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import runpy
import signal
import sys
import threading
import time
import traceback
from typing import Any

_TOO_LONG_SECONDS = 120.0
_CHANGES = ("os.rename", "os.mkdir", "os.remove", "os.rmdir")


class Trigger:
    """Sends the signal to this very process at the `count`-th of the events that are counted."""

    def __init__(self, count: int, number: int) -> None:
        self._left, self._number = count, number
        self._lock = threading.Lock()  # checkpoints may be written by another thread

    def count(self) -> None:
        with self._lock:
            self._left -= 1
            strike = self._left == 0
        if strike:
            os.kill(os.getpid(), self._number)


def strike_at_call(target: str, after: bool, trigger: Trigger) -> None:
    """`target`: `package.module:function` or `package.module:Class.method`; `after`: when it returns."""
    module, _, path = target.partition(":")
    owner: Any = importlib.import_module(module)
    *outer, name = path.split(".")
    for part in outer:
        owner = getattr(owner, part)
    original = getattr(owner, name)

    @functools.wraps(original)
    def counted(*arguments: Any, **options: Any) -> Any:
        if not after:
            trigger.count()
        result = original(*arguments, **options)
        if after:
            trigger.count()
        return result

    setattr(owner, name, counted)


def strike_at_change(text: str, trigger: Trigger) -> None:
    """Count whatever is about to change a file whose path contains `text`, and every fsync of one."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        opened = event == "open" and not sys.is_finalizing()
        if (opened or event in _CHANGES) and any(text in str(a) for a in arguments[:2]):
            trigger.count()

    sys.addaudithook(hook)


def become(order: dict[str, Any]) -> None:
    os.chdir(order["cwd"])
    os.environ.update(order["environment"])
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.argv = [order["script"], *order["arguments"]]
    if threads := order.get("threads"):
        import torch

        torch.set_num_threads(threads)
    for strike in order["strikes"]:
        trigger = Trigger(strike["count"], strike["signal"])
        if "call" in strike:
            strike_at_call(strike["call"], strike["after"], trigger)
        else:
            strike_at_change(strike["change"], trigger)
    code = 1
    try:
        runpy.run_path(order["script"], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def wait_for(process: int) -> int:
    """Its exit code, negative for a signal; one that never ends is killed and answered -99."""
    until = time.monotonic() + _TOO_LONG_SECONDS
    while time.monotonic() < until:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return -99


def main() -> None:
    for name in (
        "yaml",
        "pandas",
        "pyarrow.parquet",
        "torch._dynamo",
        "common.training.experiment",
        "common.training.callbacks.early_stopping",
        "common.models.decoder",
    ):
        importlib.import_module(name)
    for line in sys.stdin:
        order = json.loads(line)
        answer = wait_for(order["wait"]) if "wait" in order else os.fork()
        if answer == 0 and "wait" not in order:
            become(order)
        print(answer, flush=True)


if __name__ == "__main__":
    main()
