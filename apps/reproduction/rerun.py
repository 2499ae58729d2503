"""The process of a rerun, monitored while it trains."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from apps.reproduction.differences import Row
from common.errors import ExperimentError
from common.experiments import store
from common.experiments.log import LogContent
from common.utils.paths import get_assets_dir

_POLL_SECONDS = 0.1
_GRACE_SECONDS = 60.0  # to save a checkpoint after the stop signal
_LINE_EVERY_SECONDS = 10.0
_OUTPUT_LINES = 8


class Rerun:
    """`script --config config --name name overrides` in a new session; ends with the block.

    `manifest` and `rows` are those logged since the last `poll`.
    """

    def __init__(
        self, script: Path, config: Path, name: str, overrides: Sequence[str] = ()
    ) -> None:
        self.name = name
        self.manifest: dict[str, Any] = {}
        self.rows: list[Row] = []
        self.was_stopped = False
        self._position = 0  # in its log
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the block)
        self._process = subprocess.Popen(
            [sys.executable, str(script), "--config", str(config), "--name", name, *overrides],
            cwd=script.parent,
            env=_environment(script.parents[2]),
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches only us
        )

    def poll(self) -> bool:
        """Wait briefly and read new log records; False once the process has ended."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_POLL_SECONDS)
            return False
        self.rows = []
        with suppress(FileNotFoundError):  # created after data preparation, removed when finished
            content = LogContent(store.log_path(self.name), self._position)
            self.manifest |= content.manifest
            self.rows = [*content.rows]
            self._position = content.end
        return True

    def stop(self) -> None:
        """Ask it to stop after the current step and save a checkpoint."""
        if not self.was_stopped:
            self.was_stopped = True
            self._process.send_signal(signal.SIGTERM)

    def check(self) -> None:
        """Raise ExperimentError with its last output if it failed."""
        code = self._process.returncode
        if code != 0 and not self.was_stopped:
            self._output.seek(0)
            lines = self._output.read().decode(errors="replace").splitlines()
            words = "\n  ".join(["", *lines[-_OUTPUT_LINES:]])
            raise ExperimentError(f"the rerun failed with exit code {code}:{words}")

    def __enter__(self) -> Rerun:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if self._process.poll() is None:
                self.stop()
                self._process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            pass
        finally:  # also after a second Ctrl-C
            if self._process.poll() is None:
                self._process.kill()
                self._process.wait()
            self._output.close()


def _environment(repository: Path) -> dict[str, str]:
    """Our environment, with the code of `repository` and without external loggers."""
    paths = [str(repository), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return {
        "WANDB_MODE": "disabled",
        **os.environ,
        "RESEARCH_ASSETS_DIR": str(get_assets_dir()),
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
    }


@contextmanager
def progress(total: int) -> Iterator[Callable[[int, str], None]]:
    """`show(step, text)` on stderr: a bar on a terminal, periodic lines elsewhere."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (
        TextColumn("training again"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[text]}"),
        TimeRemainingColumn(),
    )
    shown = time.monotonic()

    def print_line(step: int, text: str) -> None:
        nonlocal shown
        if time.monotonic() - shown > _LINE_EVERY_SECONDS:
            shown = time.monotonic()
            print(f"step {step}/{total}  {text}", file=sys.stderr)

    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total, text="")

        def update(step: int, text: str) -> None:
            bar.update(task, completed=step, text=text)

        yield update if console.is_terminal else print_line
