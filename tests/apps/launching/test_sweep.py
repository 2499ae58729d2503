"""The folder of a sweep: begun once, continued by the same command, refused to another."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from apps.launching.command import Command
from apps.launching.space import parse_space
from apps.launching.sweep import (
    Definition,
    Sweep,
    derived_name,
    get_sweeps_dir,
    in_stored_order,
    open_sweep,
    portable_path,
)
from common.errors import ConfigError, ExperimentError
from common.utils import start_experiment
from common.utils.paths import REPOSITORY_ROOT

DEFINITION = Definition(
    script="projects/baseline/train.py",
    parameters={"optimizer.lr": "1e-3,3e-4", "seed": "range(2)"},
    search={"kind": "grid"},
    nproc=None,
    config={"optimizer": {"lr": 1e-3, "betas": [0.9, 0.99]}, "seed": 0},
)


def test_the_same_sweep_is_continued() -> None:
    first = open_sweep("s", DEFINITION)
    with first.locked():
        first.add_trial(0, {"seed": "0"})
    again = open_sweep("s", DEFINITION)
    (trial,) = again.trials()
    assert (trial.name, trial.values, trial.started) == ("s_000", {"seed": "0"}, None)
    assert again.tag == "sweep:s"
    assert again.trials()[0] is trial, "one object for a trial, however often it is looked up"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"parameters": {"optimizer.lr": "1e-3", "seed": "range(2)"}},
            "parameters.optimizer.lr: 1e-3,3e-4 -> 1e-3",
        ),
        ({"parameters": {"seed": "range(2)"}}, "parameters.optimizer.lr: 1e-3,3e-4 -> absent"),
        ({"search": {"kind": "optuna", "seed": 0}}, "search.kind: grid -> optuna"),
        ({"script": "projects/other/train.py"}, "script: projects/baseline/train.py -> "),
        ({"nproc": 2}, "nproc: absent -> 2"),
        (
            {"config": {"optimizer": {"lr": 1e-3, "betas": [0.9, 0.95]}, "seed": 0}},
            "config.optimizer.betas: [0.9, 0.99] -> [0.9, 0.95]",
        ),
    ],
)
def test_another_sweep_under_the_same_name_is_refused_with_what_differs(
    changes: dict[str, object], told: str
) -> None:
    open_sweep("s", DEFINITION)
    with pytest.raises(ConfigError) as error:
        open_sweep("s", dataclasses.replace(DEFINITION, **changes))
    assert told in error.value.message
    assert error.value.hint.endswith("--sweep s_2")
    open_sweep("s", DEFINITION)  # as it was


def test_a_parameter_that_changed_is_told_once() -> None:
    open_sweep("s", DEFINITION)
    other = dataclasses.replace(
        DEFINITION,
        parameters={"optimizer.lr": "2", "seed": "range(2)"},
        config={"optimizer": {"lr": 2, "betas": [0.9, 0.99]}, "seed": 0},
    )
    with pytest.raises(ConfigError) as error:
        open_sweep("s", other)
    assert error.value.message.count("lr") == 1


@pytest.mark.parametrize("name", ["", "a b", "../x", "-a", "a" * 111])
def test_what_cannot_name_a_sweep_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="not a valid sweep name"):
        open_sweep(name, DEFINITION)
    assert not get_sweeps_dir().exists()


def test_the_trials_of_another_launcher_are_seen() -> None:
    ours, theirs = open_sweep("s", DEFINITION), open_sweep("s", DEFINITION)
    with theirs.locked():
        theirs.add_trial(0, {"seed": "0"})
        theirs.add_trial(1000, {"seed": "1"})
    assert [trial.name for trial in ours.trials()] == ["s_000", "s_1000"]


def test_an_experiment_that_is_not_of_the_sweep_is_never_taken_for_its_trial() -> None:
    start_experiment("s_000").finish()
    sweep = open_sweep("s", DEFINITION)
    with sweep.locked(), pytest.raises(ExperimentError, match="'s_000' exists") as error:
        sweep.add_trial(0, {})
    assert "--sweep" in error.value.hint
    with sweep.locked():
        trial = sweep.add_trial(1, {})
    start_experiment("s_001").finish()  # by hand, while the sweep rests
    with pytest.raises(ExperimentError, match="outside of this sweep"):
        trial.check_name_is_ours()


def test_a_trial_that_another_launcher_began_is_ours() -> None:
    sweep, other = open_sweep("s", DEFINITION), open_sweep("s", DEFINITION)
    with sweep.locked():
        trial = sweep.add_trial(0, {})
    (theirs,) = other.trials()
    theirs.started = "2026-01-01T00:00:00+00:00"
    theirs.save()
    start_experiment("s_000").finish()
    trial.check_name_is_ours()
    assert trial.started is not None


def test_names_are_derived_from_what_is_swept() -> None:
    command = Command("projects/baseline/train.py", "configs/quickstart.yaml")
    swept = parse_space(["optimizer.lr=1,2", "training.max_steps=5", "seed=range(2)"])
    assert derived_name(command, swept) == "quickstart_lr_seed"
    assert derived_name(Command("projects/baseline/train.py"), []) == "baseline"
    assert derived_name(Command("x.py", "configs/my run!.yaml"), []) == "my_run_"


def test_the_order_of_the_arguments_does_not_change_the_numbers_of_the_trials() -> None:
    open_sweep("s", DEFINITION)
    swapped = parse_space(["seed=range(2)", "optimizer.lr=1e-3,3e-4"])
    assert [p.key for p in in_stored_order("s", swapped)] == ["optimizer.lr", "seed"]
    assert in_stored_order("unheard_of", swapped) == swapped
    open_sweep("s", dataclasses.replace(DEFINITION, parameters={p.key: p.text for p in swapped}))


def test_paths_inside_of_the_repository_are_relative(tmp_path: Path) -> None:
    assert portable_path(str(REPOSITORY_ROOT / "tools" / "launch.py")) == "tools/launch.py"
    assert portable_path(str(tmp_path / "x.py")) == str(tmp_path / "x.py")


def test_a_damaged_record_is_one_clear_error() -> None:
    sweep = open_sweep("s", DEFINITION)
    (sweep.folder / "trials" / "000.json").write_text("{")
    with pytest.raises(ExperimentError, match="cannot read"):
        Sweep("s", sweep.folder).trials()
