"""Log a run while it trains: `with start_experiment("exp_001") as run: run.log(...)`; and
`save_experiment`, which stores a finished one from a table."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from filelock import BaseFileLock, Timeout

from common.errors import ExperimentError
from common.experiments.catalogue import Catalogue
from common.experiments.log import LogContent, LogWriter, damaged_lines, read_log
from common.experiments.names import claim_name, exists, is_finished, next_name
from common.experiments.recovery import finish_log, open_catalogue
from common.experiments.rows import dataframe_rows, make_row
from common.experiments.store import check_name, lock_of, log_path
from common.utils.files import write_json_atomic, write_text_atomic
from common.utils.manifest import ID, check_manifest, create_manifest, now, plain_facts
from common.utils.paths import get_runs_dir
from common.utils.system_metrics import SystemMetrics

if TYPE_CHECKING:
    import pandas as pd


def start_experiment(
    name: str | None = None,
    *,
    prefix: str = "",
    project: str = "",
    config: Mapping[str, Any] | None = None,
    config_text: str | None = None,
    seed: int | None = None,
    tags: Sequence[str] = (),
    resume: bool = False,
    facts: Mapping[str, Any] | None = None,
    system_metrics_seconds: float | None = 10.0,
) -> Run:
    """Claim `name` (or the next free `<prefix>_NNN`) and return the run to log to.

    Every `system_metrics_seconds` (None: never) the next row includes `SystemMetrics`. With
    `resume`, an unfinished run of that name continues: call `Run.resume_from` with the number of
    valid rows. `facts` are added to the manifest. Raises ExperimentError if the name is taken,
    there is nothing to resume, the run is finished or running in another process, or `to_plain`
    cannot convert `config` or a fact to JSON.
    """
    try:
        manifest = create_manifest(
            "", project=project, config=dict(config or {}), seed=seed, tags=list(tags)
        )
        manifest = check_manifest(plain_facts(manifest | dict(facts or {})))
    except ValueError as error:
        raise ExperimentError(f"cannot start the experiment: {error}") from error
    if resume:
        if name is None:
            raise ExperimentError(
                "--resume needs the name of the run to continue", "add --name NAME"
            )
        open_catalogue()  # finishes a run that was killed while finishing
        _check_resumable(name)
    else:
        name = _claim(name, prefix or project or "experiment")
    lock = lock_of(name)
    try:
        lock.acquire(timeout=2)  # `is_running` of a reader holds it for a moment
    except Timeout:
        raise ExperimentError(f"experiment '{name}' is running in another process") from None
    try:
        if resume:
            _check_resumable(name)  # again: the holder may have finished it meanwhile
        run = Run(name, lock, system_metrics_seconds)
    except BaseException:
        lock.release()
        raise
    run.session = {key: manifest[key] for key in _SESSION}
    if not run.manifest:  # new, or killed before its first record
        run.start(manifest | {"name": name}, config_text)
    return run


_SESSION = ("started", "argv", "git_commit", "git_dirty", "host", "pid")


def _claim(name: str | None, prefix: str) -> str:
    while True:
        candidate = name or next_name(f"{prefix}_000")
        try:
            claim_name(candidate)
            return candidate
        except ExperimentError:
            if name is not None or not exists(candidate):
                raise  # otherwise another process took this number: try the next one


def _check_resumable(name: str) -> None:
    if is_finished(name):
        hint = "start a new one with another --name"
        if log_path(name).exists():
            hint += "; an unfinished run has the same name: rename it with --rename, see --check"
        raise ExperimentError(f"experiment '{name}' is finished", hint)
    if not log_path(name).exists():
        raise ExperimentError(f"no experiment '{name}' to resume", "leave out --resume")


class Run:
    """A live experiment, created by `start_experiment`. As a context manager, the end of the block
    finishes it, Ctrl-C marks it interrupted, any other exception failed.
    """

    def __init__(
        self, name: str, lock: BaseFileLock, system_metrics_seconds: float | None = None
    ) -> None:
        self.name = name
        self.directory: Path = get_runs_dir() / name
        self.directory.mkdir(parents=True, exist_ok=True)
        self._lock = lock
        self._ended = False
        self.session: dict[str, Any] = {}  # facts of this process, for `record_start`
        self._writer = LogWriter(log_path(name))
        self._metric_names: dict[str, str] = {}
        self._system = SystemMetrics(system_metrics_seconds) if system_metrics_seconds else None
        self._take_up(read_log(log_path(name)))

    def _take_up(self, content: LogContent) -> None:
        self.manifest: dict[str, Any] = content.manifest
        self.rows = content.next_row  # number of the next row; damaged lines count
        self._metric_names |= {name.lower(): name for name in content.metrics}
        self._worked_before = content.seconds
        self._started = time.monotonic()

    def _worked(self) -> float:
        """Seconds of work over all starts, by a monotonic clock."""
        return round(self._worked_before + time.monotonic() - self._started, 6)

    def start(self, manifest: dict[str, Any], config_text: str | None) -> None:
        """Log the manifest as the first record."""
        self.manifest = manifest
        self._writer.append({"kind": "start", "manifest": manifest})
        self._writer.flush()
        if config_text is not None:
            self.write_config_file(config_text)
        self._write_manifest_file()

    def write_config_file(self, text: str) -> None:
        """Write `config.yaml` to the run folder: a copy for readers, never loaded."""
        write_text_atomic(self.directory / "config.yaml", text)

    def record_start(
        self, step: int, changes: Mapping[str, Sequence[Any]] | None = None, **facts: Any
    ) -> None:
        """Add a start or resume at `step` to `starts` of the manifest, with user, machine and code version.

        Args:
            changes: {key: [before, now]} of the configuration; a run with changes has no single
                configuration and counts in no group.
            facts: how this process computes (precision, threads, device ...); the latest are also
                top-level keys of the manifest.
        """
        start = {"step": step, **self.session, **facts, "changes": dict(changes or {})}
        self.update(starts=[*self.manifest.get("starts", []), start], **facts)

    def resume_from(self, rows: int) -> None:
        """Continue after the first `rows` rows: later ones of the killed process are superseded."""
        again = {"pid": os.getpid(), "resumed": now(), "duration": self._worked()}
        self._writer.append({"kind": "resume", "rows": rows, **again})
        path = log_path(self.name)
        content = read_log(path)
        self._take_up(content)
        # A power loss took unflushed rows, or the log was damaged.
        if content.num_rows < rows:
            lines = ", ".join(map(str, damaged_lines(path)))
            damage = f"; damaged: line {lines} of {path}" if lines else ""
            _warn(
                f"the log of '{self.name}' has {content.num_rows} of the {rows} rows before this "
                f"point{damage}"
            )
        self._write_manifest_file()

    def log(
        self,
        metrics: Mapping[str, Any],
        step: int,
        split: str = "train",
        epoch: float | None = None,
    ) -> None:
        """Append one row. `metrics` maps names to numbers; after the call, a kill loses nothing."""
        if self._system is not None and (measured := self._system.sample()):
            metrics = measured | dict(metrics)  # the caller's values take precedence
        row = make_row(step, split, epoch, self._worked(), metrics, self._metric_names)
        self._writer.append({"kind": "row", "row": self.rows, **row})
        self.rows += 1

    def flush(self) -> None:
        """Fsync every row logged so far, unless the disk is full."""
        self._writer.flush_unless_full()

    def update(self, **facts: Any) -> None:
        """Record facts known later, such as `parameters` or `tokens`. Raises ExperimentError for
        values that would make the finished run unreadable."""
        try:
            facts = plain_facts(facts)
            check_manifest(self.manifest | facts)
        except ValueError as error:
            raise ExperimentError(f"cannot update '{self.name}': {error}") from error
        if any(facts.get(key, self.manifest[key]) != self.manifest[key] for key in ("name", ID)):
            raise ExperimentError(
                f"cannot change the name or id of '{self.name}'",
                f"rename it once it has ended: tools/query_experiments.py --rename {self.name} NEW",
            )
        self.manifest |= facts
        self._writer.append({"kind": "update", "manifest": facts})
        self._write_manifest_file()

    def finish(self, status: str = "finished") -> Path:
        """End the run. `finished` converts the log to its Parquet file; any other status
        (`interrupted`, `failed`) keeps the log, so that the run can be resumed."""
        if self._ended:
            raise ExperimentError(f"experiment '{self.name}' has already ended")
        self.update(status=status, finished=now(), duration=self._worked())
        self._ended = True
        self._writer.close()
        path = log_path(self.name)
        if status == "finished":
            path = finish_log(self.name)
            _publish(self.name)
        self.manifest["file"] = str(path)
        # Before the release: afterwards another process may resume the run and own the file.
        Path(self._lock.lock_file).unlink(missing_ok=True)
        self._lock.release()
        return path

    def _repr_html_(self) -> str:
        """Notebook display: the facts, and the last value of every metric."""
        from common.utils.tables import format_html

        facts = ", ".join(str(self.manifest[key]) for key in ("name", "status"))
        summaries = Catalogue().summaries(name=self.name)
        rows = [[s.metric, s.split, s.last_step, s.last, s.minimum, s.maximum] for s in summaries]
        columns = ["metric", "split", "step", "last", "lowest", "highest"]
        return format_html(columns, rows, f"{facts}, {self.rows} rows in {self.directory}")

    def _write_manifest_file(self) -> None:
        write_json_atomic(self.directory / "manifest.json", self.manifest)

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._ended:
            return
        if kind is None:
            self.finish()
        else:
            self.finish("interrupted" if issubclass(kind, KeyboardInterrupt) else "failed")


def save_experiment(
    name: str, dataframe: pd.DataFrame, metadata: Mapping[str, Any] | None = None
) -> Path:
    """Store a finished experiment from a table of metrics and return its Parquet file.

    `dataframe` has a row per step. `step`, `epoch`, `split` and `time` are optional (`step`
    defaults to the row number); every other column must be numeric. `metadata` is anything that
    `to_plain` converts to JSON: `config`, `project`, `seed`, `tags`, `parameters` and `tokens` fill
    the columns of `runs`, the rest is stored beside them.
    Raises ExperimentError if the name is taken, or a column or the metadata are invalid.
    """
    from common.experiments.parquet import write_parquet  # pyarrow, 0.3 s

    check_name(name)
    manifest = _saved_manifest(name, metadata or {})
    rows = dataframe_rows(dataframe)
    claim_name(name)
    try:
        path = write_parquet(manifest, rows)
    finally:
        log_path(name).unlink(missing_ok=True)
    _publish(name)
    return path


def _saved_manifest(name: str, metadata: Mapping[str, Any]) -> dict[str, Any]:
    manifest = create_manifest(name, project="", config={}, seed=None, tags=[])
    manifest |= {"status": "finished", "finished": now()} | {**metadata} | {"name": name}
    try:
        return check_manifest(plain_facts(manifest))
    except ValueError as error:
        raise ExperimentError(f"cannot store the metadata of '{name}': {error}") from error


def _publish(name: str) -> None:
    """Update the catalogue, and the object store if set, after a finish.

    The experiment is already stored, so failures are logged and do not end a training.
    """
    if os.environ.get("RESEARCH_EXPERIMENTS_URI"):
        from common.experiments.remote import upload_finished

        upload_finished(name)
    try:
        enter_into_catalogue()
    except (OSError, ExperimentError, ValueError) as error:
        _warn(f"{name} is stored, but the catalogue or a pack could not be written: {error}")


def enter_into_catalogue() -> None:
    """Update the catalogue with the stored experiment, and pack old ones if there are many."""
    # Done here, where pyarrow is already loaded, so that the next --list need not load it.
    from common.experiments.packing import pack_cold_experiments

    pack_cold_experiments()
    open_catalogue()


def _warn(message: str) -> None:
    from common.utils.logging import get_logger  # lazy: 15 ms

    get_logger("experiments").warning(message)
