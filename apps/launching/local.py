"""Run trials on this machine, `parallel` at once, sharing its threads and GPUs."""

from __future__ import annotations

from apps.launching.attempt import Attempt, Outcome, start_attempt
from apps.launching.command import Command, share_gpus, trial_environment
from apps.launching.sweep import Trial


class LocalRunner:
    """`gpus`: GPUs per trial; None: all. Raises ConfigError if there are too few."""

    poll_seconds = 0.1

    def __init__(self, command: Command, parallel: int = 1, gpus: int | None = None) -> None:
        self.parallel = parallel
        self._command = command
        self._environment = trial_environment(parallel, command.nproc)
        self._free_gpus = None if gpus is None else share_gpus(gpus, parallel)

    def start(self, trial: Trial) -> LocalHandle | None:
        environment, devices = self._environment, None
        if self._free_gpus is not None:
            devices = self._free_gpus[0]
            environment = environment | {"CUDA_VISIBLE_DEVICES": devices}
        attempt = start_attempt(trial, self._command, environment)
        if attempt is None:
            return None
        if self._free_gpus is not None:
            self._free_gpus.pop(0)
        return LocalHandle(attempt, self, devices)

    def give_back(self, devices: str | None) -> None:
        if self._free_gpus is not None and devices is not None:
            self._free_gpus.append(devices)


class LocalHandle:
    """A child process."""

    def __init__(self, attempt: Attempt, runner: LocalRunner, devices: str | None) -> None:
        self.trial = attempt.trial
        self.interrupt = attempt.interrupt
        self.kill = attempt.kill
        self._attempt, self._runner, self._devices = attempt, runner, devices

    def poll(self) -> Outcome | None:
        outcome = self._attempt.poll()
        if outcome is not None:
            self._runner.give_back(self._devices)
        return outcome
