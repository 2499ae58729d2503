"""Training processes that take turns, so that other load slows all of them equally."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import IO, Any

from common.errors import ExperimentError
from common.utils.paths import REPOSITORY_ROOT
from tools.benchmarks.results import say


@dataclass(frozen=True)
class Contestant:
    """A training process: its command, and additional environment variables."""

    command: Sequence[str]
    variables: Mapping[str, str] = field(default_factory=dict)
    may_fail: bool = True  # skip a peer that fails; ours must run


@dataclass
class Record:
    """Results of a contestant: seconds per step for each turn."""

    startup_seconds: float  # until the end of the warm-up: building, compiling, its steps
    startup_steps: int
    turns: list[float] = field(default_factory=list)

    @property
    def step_seconds(self) -> float:
        return median(self.turns)

    @property
    def preparation_seconds(self) -> float:
        """Time before the steady state: building the model and mainly compiling."""
        return max(0.0, self.startup_seconds - self.startup_steps * self.step_seconds)


def take_turns(
    contestants: Mapping[str, Contestant], rounds: int, seconds: float, label: str
) -> tuple[dict[str, Record], dict[str, str]]:
    """Return ({name: results}, {name: error}).

    All are started and warmed up one by one. Then they train for `seconds` each in turn, `rounds`
    times, with alternating order. All remain in memory.
    Raises ExperimentError if one fails that must not.
    """
    records: dict[str, Record] = {}
    failures: dict[str, str] = {}
    with ExitStack() as stack:
        running: dict[str, _Process] = {}

        def leave_out(name: str, error: ExperimentError) -> None:
            if not contestants[name].may_fail:
                raise error
            say(f"{label}: {name} does not run: {error.message}")
            failures[name] = error.message
            running.pop(name, None)
            records.pop(name, None)

        for name, contestant in contestants.items():
            say(f"{label}: starting {name}")
            try:
                process = stack.enter_context(_started(contestant, stack))
                message = process.listen()
            except ExperimentError as error:
                leave_out(name, error)
                continue
            running[name] = process
            records[name] = Record(message["seconds"], message["steps"])
        for number in range(rounds):
            for name in list(running) if number % 2 == 0 else list(reversed(running)):
                try:
                    message = running[name].train(seconds)
                except ExperimentError as error:
                    leave_out(name, error)
                    continue
                records[name].turns.append(message["seconds"] / message["steps"])
            shown = ", ".join(f"{name} {1e3 * r.turns[-1]:.4g}" for name, r in records.items())
            say(f"{label}: round {number + 1} of {rounds}, ms per step: {shown}")
    return records, failures


@contextmanager
def _started(contestant: Contestant, stack: ExitStack) -> Iterator[_Process]:
    # Inductor caches across processes; each contestant must compile itself.
    cache = stack.enter_context(tempfile.TemporaryDirectory(prefix="inductor-"))
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache, **contestant.variables}
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            contestant.command,
            cwd=REPOSITORY_ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        try:
            yield _Process(process, errors)
        finally:
            process.kill()
            process.communicate()


class _Process:
    def __init__(self, process: subprocess.Popen[str], errors: IO[str]) -> None:
        self._process = process
        self._errors = errors

    def train(self, seconds: float) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{seconds}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended: `listen` reports it
        return self.listen()

    def listen(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise ExperimentError(f"a training process ended: {last_line(self._errors)}")
        message: dict[str, Any] = json.loads(line)
        return message


def last_line(file: IO[str]) -> str:
    """The last line of output: the error of a failed Python process."""
    file.seek(0)
    lines = [line.strip() for line in file.read().splitlines() if line.strip()]
    return lines[-1] if lines else "no output"


def module_command(python: str, module: str, **options: object) -> list[str]:
    """`python -m tools.benchmarks.<module> --key value ...`; None leaves an option out, True is a flag."""
    command = [python, "-m", f"tools.benchmarks.{module}"]
    for key, value in options.items():
        if value is None or value is False:
            continue
        command.append(f"--{key.replace('_', '-')}")
        if value is not True:
            command.append(str(value))
    return command


def beside(folder: Path) -> dict[str, str]:
    """Environment variable for a Python process to import packages from `folder`."""
    paths = [str(folder), os.environ.get("PYTHONPATH", "")]
    return {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}
