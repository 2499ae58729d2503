"""Rerun an experiment from its manifest, and compare the results bit for bit.

Recorded are the commit with uncommitted changes (checked out in a git worktree), the configuration,
the resolved `auto` and the number of threads. The data are read from their usual place. Packages
and device are the current ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from apps.reproduction.differences import Row, RowComparison, WeightComparison, compare_weights
from apps.reproduction.rerun import Rerun, progress
from apps.reproduction.signals import sigterm_interrupts
from apps.reproduction.worktree import worktree
from common.config import dump_values
from common.errors import CheckpointError, DataError, ExperimentError
from common.experiments.annotate import annotate_experiment
from common.experiments.catalogue import Catalogue
from common.experiments.conditions import diff_flat, flatten
from common.experiments.names import exists, next_name
from common.experiments.run_folders import folder_of
from common.utils.logging import get_logger
from common.utils.manifest import create_manifest

TAG = "reproduction"
Environment = dict[str, tuple[object, object]]  # what differs: (then, now)
log = get_logger("reproduce")


@dataclass(frozen=True)
class Reproduction:
    """An experiment and its rerun: both manifests, and the comparison."""

    experiment: dict[str, Any]
    rerun: dict[str, Any]
    environment: Environment
    metrics: RowComparison
    weights: WeightComparison | None  # None: no common checkpoint
    damage: str  # damage of the experiment's checkpoint, if it explains the difference

    @property
    def identical(self) -> bool:
        weights_differ = self.weights is not None and self.weights.different
        return self.metrics.first is None and not weights_differ


def reproduce(
    experiment: str, name: str | None = None, *, steps: int | None = None, keep: bool = False
) -> Reproduction:
    """Run `experiment` again as `name` (default: <experiment>_reproduced) and compare the two.

    With `steps`, or for an unfinished experiment, the rerun has the same schedule and is stopped
    once everything to compare is logged. It is archived, so that rankings and groups of seeds
    exclude it. `keep`: keep the worktree for inspection.
    Raises ExperimentError if it cannot be rerun or the rerun fails, DataError if the data have
    changed, and KeyboardInterrupt on Ctrl-C and SIGTERM, after cleaning up.
    """
    manifest, rows = _read(experiment)
    _check_source(manifest)
    name = _free_name(experiment, name)
    limit = _last_step(manifest, rows, steps)
    comparison = RowComparison(_up_to(limit, rows))
    if not comparison.expected:
        first = f"its first row is at step {rows[0]['step']}" if rows else "it ended before"
        raise ExperimentError(f"'{experiment}' has logged nothing up to step {limit}", first)
    environment = compare_environments(
        manifest, create_manifest("", project="", config={}, seed=None, tags=[])
    )
    _announce(manifest, name, environment)
    commit, project = manifest["git_commit"], manifest["project"]
    with sigterm_interrupts(), worktree(commit, manifest["git_diff"], keep=keep) as tree:
        script = tree / "projects" / project / "train.py"
        if not script.is_file():
            raise ExperimentError(
                f"there is no projects/{project}/train.py at commit {commit[:12]}",
                "only trainings by a committed train.py of a project can be rerun",
            )
        if keep:
            log.info(f"its code is kept in {tree}; remove it: git worktree remove --force {tree}")
        overrides = [f"{key}={str(choice).lower()}" for key, choice in _chosen(manifest).items()]
        with TemporaryDirectory() as folder:
            config = Path(folder) / "config.yaml"
            config.write_text(dump_values(manifest["config"]), encoding="utf-8")
            with Rerun(script, config, name, overrides) as rerun:
                _follow(rerun, manifest, comparison, limit)
    return _conclude(manifest, name, comparison, environment, limit)


def _chosen(manifest: dict[str, Any]) -> dict[str, object]:
    """The recorded choices for `auto`, which could differ today."""
    facts = {
        "training.precision": "precision",
        "training.compile": "compiled",
        "training.num_threads": "threads",  # determine the order of sums
    }
    return {key: manifest[fact] for key, fact in facts.items() if manifest.get(fact) is not None}


def changed_resumes(manifest: dict[str, Any]) -> list[str]:
    """One line for each resume that changed the configuration or the data, which a rerun cannot repeat."""
    return [
        f"resumed at step {start['step']} with {key}: {before} -> {now}"
        for start in manifest.get("starts", [])
        for key, (before, now) in start["changes"].items()
    ]


def _check_source(manifest: dict[str, Any]) -> None:
    """Raise ExperimentError if too little is recorded for a rerun."""
    name, commit = str(manifest["name"]), manifest.get("git_commit")
    if manifest["status"] == "running":
        raise ExperimentError(f"'{name}' is running", "wait until it has ended")
    if not manifest["project"] or commit is None:
        raise ExperimentError(
            f"the code of '{name}' is not recorded",
            "train with a project's train.py, in a git repository",
        )
    if not manifest["config"]:
        raise ExperimentError(
            f"the configuration of '{name}' is not recorded",
            "train with a project's train.py, or pass `config` to start_experiment",
        )
    if manifest.get("git_dirty") and manifest.get("git_diff") is None:
        raise ExperimentError(
            f"'{name}' was run with uncommitted changes of more than 1 MB, which were not recorded",
            f"commit before training; the base commit of those changes is {commit}",
        )


def _free_name(experiment: str, name: str | None) -> str:
    wanted = name or f"{experiment}_reproduced"
    if not exists(wanted):
        return wanted
    if name is None:
        return next_name(wanted)
    raise ExperimentError(
        f"an experiment named '{name}' already exists",
        f"choose another name, for example '{next_name(name)}'",
    )


def _read(name: str) -> tuple[dict[str, Any], list[Row]]:
    """Read the stored (manifest, rows)."""
    from common.experiments.members import read_members
    from common.experiments.parquet import table_to_rows

    manifest = Catalogue().manifest(name)  # current status, but without the diff
    ((stored, table),) = read_members([name])
    return manifest | {"git_diff": stored.get("git_diff")}, [*table_to_rows(table)]


def _last_step(manifest: dict[str, Any], rows: list[Row], steps: int | None) -> int | None:
    """The last step to compare; None: until the rerun ends."""
    last = max((row["step"] for row in rows), default=0)
    if manifest["status"] == "finished" and (steps is None or steps >= last):
        return None
    return last if steps is None else min(steps, last)


def _up_to(limit: int | None, rows: list[Row]) -> list[Row]:
    return [row for row in rows if limit is None or row["step"] <= limit]


def _follow(
    rerun: Rerun, manifest: dict[str, Any], comparison: RowComparison, limit: int | None
) -> None:
    """Compare while it trains, stop it at `limit`, and wait for its end."""
    has_started = is_data_known = False
    step, last = 0, max(row["step"] for row in comparison.expected)
    with progress(last) as show:
        while rerun.poll():
            has_started = has_started or _check_start(manifest, rerun)
            is_data_known = is_data_known or _check_data(manifest, rerun.name)
            comparison.add(_up_to(limit, rerun.rows))
            step = rerun.rows[-1]["step"] if rerun.rows else step
            show(min(step, last), _so_far(comparison))
            if limit is not None and (comparison.is_full or step > limit):
                rerun.stop()
    if exists(rerun.name):
        rows = _read(rerun.name)[1]
        comparison.add(_up_to(limit, rows)[comparison.rows :])  # logged since the last check
    if limit is None or not comparison.is_full:  # an original failure recurs after its last row
        rerun.check()


def _check_start(manifest: dict[str, Any], rerun: Rerun) -> bool:
    """False until it has logged its manifest."""
    if not rerun.manifest:
        return False
    _annotate(rerun.name, manifest["name"])
    _check_config(manifest, rerun.manifest)
    return True


def _so_far(comparison: RowComparison) -> str:
    first = comparison.first
    return (
        "identical so far" if first is None else f"{first.metric} differs since step {first.step}"
    )


def _check_config(then: dict[str, Any], now: dict[str, Any]) -> None:
    expected = flatten(then["config"]) | _chosen(then)
    different = diff_flat([expected, flatten(now["config"])]).items()
    if different:
        changes = "; ".join(f"{key}: {before} -> {after}" for key, (before, after) in different)
        raise ExperimentError(
            f"the recorded code resolves the configuration of '{then['name']}' differently ({changes})",
            "did code outside of git change?",
        )


def _check_data(manifest: dict[str, Any], name: str) -> bool:
    """Check that the data are equal; False if unknown yet. Raises DataError if they differ."""
    then, now = _fingerprint(manifest["name"]), _fingerprint(name)
    if then is None or now is None:
        return False
    if then != now:
        data = manifest["config"].get("data", {})
        source = data.get("path") or data.get("dataset") or "the text"
        changes = [f"{k}: {then.get(k)} -> {now.get(k)}" for k in {**then, **now}]
        raise DataError(
            f"{source} has changed since '{manifest['name']}' was trained ({'; '.join(changes)})",
            "restore it; the tokens are then prepared again automatically",
        )
    return True


def _fingerprint(name: str) -> dict[str, Any] | None:
    """Fingerprint of the data of a run, from its newest checkpoint; None without one."""
    if (newest := max(_checkpoints(name), default=None)) is None:
        return None
    from common.models.checkpoint import read_state

    fingerprint: dict[str, Any] = read_state(_checkpoint(name, newest))["fingerprint"]
    return fingerprint


def _checkpoints(name: str) -> list[int]:
    from common.training.checkpoints import steps_in

    return steps_in(folder_of(name) / "checkpoints")


def _checkpoint(name: str, step: int) -> Path:
    return folder_of(name) / "checkpoints" / f"step_{step}"


def _conclude(
    manifest: dict[str, Any],
    name: str,
    comparison: RowComparison,
    environment: Environment,
    limit: int | None,
) -> Reproduction:
    """Evaluate the comparison after the rerun."""
    rerun = Catalogue().manifest(name)
    _check_config(manifest, rerun)
    _check_data(manifest, name)
    comparison.end()
    weights, damage = _compare_checkpoints(manifest["name"], name, limit)
    result = Reproduction(manifest, rerun, environment, comparison, weights, damage)
    _annotate(name, manifest["name"], "identical" if result.identical else "different")
    return result


def _compare_checkpoints(
    then: str, now: str, limit: int | None
) -> tuple[WeightComparison | None, str]:
    """Return (comparison of weights at the last common checkpoint, damage of the older one)."""
    from common.models.checkpoint import verify

    common = {*_checkpoints(then)} & {*_checkpoints(now)}
    step = max((step for step in common if limit is None or step <= limit), default=None)
    if step is None:
        return None, ""
    weights = compare_weights(_checkpoint(then, step), _checkpoint(now, step), step)
    if weights.different:
        try:
            verify(_checkpoint(then, step))
        except CheckpointError as error:
            return weights, error.message
    return weights, ""


def compare_environments(then: dict[str, Any], now: dict[str, Any]) -> Environment:
    """Differences between two manifests: machine, Python, packages."""
    facts: list[dict[str, object]] = []
    for manifest in (then, now):
        machine = {key: manifest.get(key) for key in ("host", "platform", "python")}
        facts.append(machine | manifest.get("packages", {}))
    different = {
        key: (facts[0].get(key), facts[1].get(key))
        for key in {**facts[0], **facts[1]}
        if facts[0].get(key) != facts[1].get(key)
    }
    fingerprints = (then.get("environment"), now.get("environment"))
    if not different.keys() - {"host"} and fingerprints[0] != fingerprints[1]:
        different["other packages"] = fingerprints  # only a few versions are recorded
    return different


def _announce(manifest: dict[str, Any], name: str, environment: Environment) -> None:
    changes = " with its uncommitted changes" if manifest["git_diff"] else ""
    log.info(
        f"rerunning {manifest['name']} as {name}: commit {manifest['git_commit'][:12]}{changes}"
    )
    if manifest["git_dirty"]:
        log.warning("untracked files were not recorded and are missing now")
    if manifest.get("git_secrets"):
        log.warning("lines of the uncommitted changes that looked like secrets were not recorded")
    for line in changed_resumes(manifest):
        log.warning(f"{manifest['name']} was {line}: later results cannot be the same")
    for key, (before, after) in environment.items():
        log.info(f"different environment: {key} was {before}, is {after}")


def _annotate(name: str, experiment: str, verdict: str = "") -> None:
    note = f"reproduction of {experiment}" + (f": {verdict}" if verdict else "")
    annotate_experiment(name, add_tags=[TAG], note=note, archived=True)
