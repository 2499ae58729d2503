"""`tools/launch.py` as a process: trials that are killed, launchers that are, and two at once."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from apps.launching.plan import make_plan
from apps.launching.report import look_further
from apps.launching.space import grid, parse_space
from apps.launching.sweep import Sweep, get_sweeps_dir
from common.errors import ConfigError
from common.experiments.catalogue import Catalogue
from common.experiments.log import read_log
from common.experiments.store import log_path
from common.utils import query_experiments, start_experiment
from common.utils.paths import REPOSITORY_ROOT
from tests.apps.launching.conftest import TINY, until
from tests.budget import budget, repeat

TOOL = "tools/launch.py"
TINY_ARGUMENTS = (TINY, "--config", "tiny.yaml", "--sweep", "s")
BASELINE = "projects/baseline/train.py"


@contextmanager
def launcher(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """The tool as a process; it and all that it started are killed in the end."""
    command = [sys.executable, str(REPOSITORY_ROOT / TOOL), *map(str, arguments)]
    process = subprocess.Popen(
        command,
        cwd=REPOSITORY_ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()
        for trial in trials_alive():
            trial.kill()
            trial.wait()


def trials_alive() -> list[psutil.Process]:
    """Every process that trains for a sweep in this test's own assets."""
    found = []
    for process in psutil.process_iter():
        try:
            ours = process.environ().get("RESEARCH_ASSETS_DIR") == os.environ["RESEARCH_ASSETS_DIR"]
            if ours and "--tag" in process.cmdline():
                found.append(process)
        except psutil.Error:
            continue
    return found


def pid_of(name: str) -> int | None:
    """The process that runs the experiment, once it has written so."""
    if not log_path(name).exists():
        return None
    pid = read_log(log_path(name)).manifest.get("pid")
    return int(pid) if pid is not None else None


def statuses() -> dict[str, str]:
    return {run.name: run.status for run in Catalogue().overview()}


def rows_of(name: str) -> list[int]:
    """The steps of an experiment as the store holds them."""
    rows = query_experiments(
        f"SELECT step FROM experiments WHERE experiment_name = '{name}' AND split = 'val' ORDER BY step"
    )
    return [int(step) for step in rows["step"]]


def attempts(number: int, sweep: str = "s") -> list[str]:
    log = (get_sweeps_dir() / sweep / "logs" / f"{number:03d}.log").read_text()
    return re.findall(r"^--- \d{4}-.*", log, re.MULTILINE)


# The proof ----------------------------------------------------------------------------------------


@pytest.mark.attack
@pytest.mark.slow
def test_a_sweep_of_real_trainings_two_of_which_are_killed_completes(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("the cat sat on the mat.\n" * 100)
    config = tmp_path / "mini.yaml"
    config.write_text(f"""
data: {{path: {tmp_path}/text.txt, tokenizer: char, batch_size: 2, eval_batch_size: 8}}
model: {{num_layers: 1, hidden_size: 16, num_heads: 2, context_length: 16}}
schedule: {{warmup_steps: 1}}
training: {{max_steps: 10, eval_every_steps: 5, log_every_steps: 1, device: cpu}}
samples: {{max_new_tokens: 5}}
""")
    rates = budget(["1e-2", "1e-3", "3e-4"], ["1e-2", "1e-3", "3e-4", "1e-4"])
    count = 2 * len(rates)
    killed: list[str] = []

    def kill_once(name: str, pid: int | None) -> bool:
        if pid is not None and name not in killed:
            os.kill(pid, signal.SIGKILL)
            killed.append(name)
        return name in killed

    with launcher(
        *(BASELINE, "--config", config, f"optimizer.lr={','.join(rates)}", "seed=range(2)"),
    ) as process:
        # One while it trains, one before it has so much as a name.
        until(lambda: kill_once("mini_lr_seed_001", pid_of("mini_lr_seed_001")), 120)

        def is_fourth(trial: psutil.Process) -> bool:
            with suppress(psutil.Error):  # it may end just now
                return "mini_lr_seed_004" in trial.cmdline()
            return False

        until(
            lambda: kill_once(
                "mini_lr_seed_004", next((t.pid for t in trials_alive() if is_fourth(t)), None)
            ),
            240,
        )
        out, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    assert killed == ["mini_lr_seed_001", "mini_lr_seed_004"]
    assert error.count("killed by SIGKILL; retrying (1 of 2)") == 2

    names = [f"mini_lr_seed_{number:03d}" for number in range(count)]
    runs = query_experiments("SELECT name, status, seed, tags FROM runs ORDER BY name")
    assert list(runs["name"]) == names and set(runs["status"]) == {"finished"}
    assert list(runs["seed"]) == [0, 1] * len(rates)
    assert all("sweep:mini_lr_seed" in tags for tags in runs["tags"])
    steps = query_experiments("""SELECT experiment_name AS name, COUNT(*) AS rows,
        COUNT(DISTINCT step) AS steps, MAX(step) AS last FROM experiments WHERE split = 'train'
        GROUP BY name ORDER BY name""")
    assert list(steps["name"]) == names
    assert set(zip(steps["rows"], steps["steps"], steps["last"], strict=True)) == {(10, 10, 10)}
    made = [len(attempts(number, "mini_lr_seed")) for number in range(count)]
    assert made == [1, 2, 1, 1, 2, 1, 1, 1][:count], "nothing was trained twice"
    assert "--resume" in attempts(1, "mini_lr_seed")[1]
    ranked = [line.split()[1] for line in out.splitlines()[2 : 2 + count]]
    best = query_experiments("""SELECT experiment_name AS name FROM experiments WHERE split = 'val'
        GROUP BY name ORDER BY MIN(loss), name""")
    assert ranked == list(best["name"])


@pytest.mark.slow
def test_torchrun_starts_a_trial(tmp_path: Path) -> None:
    with launcher(*TINY_ARGUMENTS, "--nproc", "1", "seed=1") as process:
        _, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert statuses() == {"s_000": "finished"}
    log = (get_sweeps_dir() / "s" / "logs" / "000.log").read_text()
    assert "-m torch.distributed.run --standalone --nproc-per-node=1" in log
    assert re.search("^environment .* True$", log, re.MULTILINE), "WORLD_SIZE is set"


@pytest.mark.slow
def test_an_error_under_torchrun_is_told_as_the_training_told_it() -> None:
    with launcher(*TINY_ARGUMENTS, "--nproc", "1", "misbehave=error") as process:
        out, _ = process.communicate(timeout=120)
    assert process.returncode == 2 and len(attempts(0)) == 1
    assert "s_000: error [training]: the loss is nan" in out


@pytest.mark.slow
def test_ctrl_c_reaches_a_training_behind_torchrun() -> None:
    with launcher(*TINY_ARGUMENTS, "--nproc", "1", "step_seconds=60") as process:
        until(lambda: Catalogue().summaries("loss", "s_000"))
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        assert not trials_alive()
    assert process.returncode == 130 and statuses() == {"s_000": "interrupted"}


# Going on -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_same_command_repeats_nothing(run_tool: Callable[..., Any]) -> None:
    command = (TOOL, *TINY_ARGUMENTS, "lr=1e-2,1e-3")
    first, again = run_tool(*command), run_tool(*command)
    assert first.returncode == again.returncode == 0, first.stderr + again.stderr
    assert first.stderr.count("started") == 2 and "started" not in again.stderr
    assert again.stdout == first.stdout
    assert [len(attempts(number)) for number in range(2)] == [1, 1]


@pytest.mark.slow
@repeat(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_lets_trials_save_and_the_same_command_goes_on(
    number: signal.Signals, code: int, run_tool: Callable[..., Any]
) -> None:
    sweep = (*TINY_ARGUMENTS, "--parallel", "2", "seed=range(3)", "step_seconds=0.5")
    with launcher(*sweep) as process:
        until(
            lambda: [name for name in ("s_000", "s_001") if Catalogue().summaries("loss", name)][1:]
        )
        process.send_signal(number)
        out, error = process.communicate(timeout=60)
        assert not trials_alive()
    assert process.returncode == code and out == "" and "Traceback" not in error
    assert statuses() == {"s_000": "interrupted", "s_001": "interrupted"}
    last = error.splitlines()[-1]
    assert last.startswith("stopped with 0 of 3 trials finished; to continue: python ")
    resume = shlex.split(last.partition("to continue: python ")[2])
    result = run_tool(*resume)
    assert result.returncode == 0, result.stderr
    assert set(statuses().values()) == {"finished"} and len(statuses()) == 3
    assert [rows_of(f"s_{n:03d}") for n in range(3)] == [[1, 2, 3, 4]] * 3
    assert [len(attempts(n)) for n in range(3)] == [2, 2, 1]


@pytest.mark.slow
@repeat("torchrun", [[], ["--nproc", "1"]])
def test_a_third_ctrl_c_kills_what_does_not_listen(torchrun: list[str]) -> None:
    with launcher(*TINY_ARGUMENTS, *torchrun, "misbehave=deaf", "step_seconds=60") as process:
        until(lambda: Catalogue().summaries("loss", "s_000"))
        for _ in range(3):
            assert process.poll() is None
            process.send_signal(signal.SIGINT)
            time.sleep(1.0)  # two signals at one moment are one
        process.communicate(timeout=60)
    assert process.returncode == 130 and not trials_alive()
    assert statuses() == {"s_000": "died"}


@pytest.mark.slow
def test_when_the_launcher_fails_itself_trials_save_and_end() -> None:
    search = ("--optuna", "9", "--maximize", "accuracy", "--parallel", "3")
    with launcher(*TINY_ARGUMENTS, *search, "step_seconds=loguniform(0.01,100)") as process:
        _, error = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "has logged no 'accuracy' to rank it by" in error and "choose from: loss" in error
    assert not trials_alive()
    assert sorted(set(statuses().values())) == ["finished", "interrupted"]


@pytest.mark.slow
def test_trials_outlive_a_launcher_that_is_killed_and_are_left_alone(
    run_tool: Callable[..., Any],
) -> None:
    sweep = (*TINY_ARGUMENTS, "seed=range(2)", "step_seconds=1")
    with launcher(*sweep) as process:
        until(trials_alive)  # its experiment may not have a name yet
        process.kill()
        process.wait()
        assert trials_alive()
        result = run_tool(TOOL, *sweep)
    assert result.returncode == 0, result.stderr
    assert statuses() == {"s_000": "finished", "s_001": "finished"}
    assert [len(attempts(n)) for n in range(2)] == [1, 1]
    assert [rows_of(f"s_{n:03d}") for n in range(2)] == [[1, 2, 3, 4]] * 2


@pytest.mark.attack
@pytest.mark.slow
def test_two_launchers_at_once_run_no_trial_twice() -> None:
    trials = budget(4, 6)
    sweep = (*TINY_ARGUMENTS, f"seed=range({trials})", "step_seconds=0.1")
    with launcher(*sweep) as one, launcher(*sweep) as other:
        outputs = [process.communicate(timeout=120) for process in (one, other)]
    assert one.returncode == other.returncode == 0, outputs
    assert len(statuses()) == trials and set(statuses().values()) == {"finished"}
    assert [len(attempts(n)) for n in range(trials)] == [1] * trials
    assert [rows_of(f"s_{n:03d}") for n in range(trials)] == [[1, 2, 3, 4]] * trials
    assert outputs[0][0] == outputs[1][0], "both wait for the end and see the same ranking"
    assert all("started" in error for _, error in outputs), "both have worked"


@pytest.mark.slow
def test_what_dies_again_and_again_is_given_up_until_the_next_launch(
    run_tool: Callable[..., Any],
) -> None:
    command = (TOOL, *TINY_ARGUMENTS, "--retries", "1", "misbehave=die,die_once,error")
    result = run_tool(*command)
    assert result.returncode == 2
    assert "2 of 3 trials did not finish" in result.stderr
    assert re.search(r"s_000: killed by SIGKILL  \(.*/logs/000.log\)", result.stdout)
    assert "s_002: error [training]: the loss is nan" in result.stdout
    assert [len(attempts(n)) for n in range(3)] == [2, 2, 1]
    assert statuses()["s_001"] == "finished"
    run_tool(*command)
    assert [len(attempts(n)) for n in range(3)] == [4, 2, 1]
    run_tool(*command, "--retry-failed")
    assert [len(attempts(n)) for n in range(3)] == [6, 2, 2]


@pytest.mark.slow
def test_a_search_goes_on_and_can_be_made_longer(run_tool: Callable[..., Any]) -> None:
    space = ("--minimize", "loss", "lr=loguniform(1e-4,1e-1)", "layers=choice(2,4)")
    command = (TOOL, *TINY_ARGUMENTS, *space)
    assert run_tool(*command, "--optuna", "2").returncode == 0
    result = run_tool(*command, "--optuna", "4")
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("started") == 2 and len(statuses()) == 4
    assert set(statuses().values()) == {"finished"}
    lrs = query_experiments("SELECT (config->>'$.lr')::DOUBLE AS lr FROM runs")["lr"]
    assert lrs.nunique() == 4 and lrs.between(1e-4, 1e-1).all()
    other = run_tool(*command, "--optuna", "4", "--search-seed", "1")
    assert other.returncode == 2 and "search.seed: 0 -> 1" in other.stderr


# Sharing the machine ------------------------------------------------------------------------------


@pytest.mark.slow
def test_parallel_trials_share_threads_and_gpus(
    run_tool: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    result = run_tool(
        *(
            TOOL,
            *TINY_ARGUMENTS,
            "--parallel",
            "2",
            "--gpus",
            "1",
            "seed=range(3)",
            "step_seconds=0.3",
        )
    )
    assert result.returncode == 0, result.stderr
    logs = [(get_sweeps_dir() / "s" / "logs" / f"{n:03d}.log").read_text() for n in range(3)]
    devices = [re.findall(r"CUDA_VISIBLE_DEVICES=(\w+)", log)[0] for log in logs]
    assert devices[:2] == ["5", "7"] and devices[2] in ("5", "7")
    threads = {re.findall(r"OMP_NUM_THREADS=(\w+)", log)[0] for log in logs}
    assert threads == {str(max(1, len(os.sched_getaffinity(0)) // 2))}
    first, second = (Catalogue().manifest(f"s_{n:03d}") for n in range(2))
    assert second["started"] < first["finished"], "at the same time"


# What is told -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_ranking_ends_with_commands_that_work(run_tool: Callable[..., Any]) -> None:
    result = run_tool(TOOL, *TINY_ARGUMENTS, "lr=1e-2,1e-3", "layers=2,4")
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["rank", "name", "loss", "step", "split", "status", "lr", "layers"]
    assert lines[2].split() == ["1", "s_002", "0.45", "4", "val", "finished", "1e-3", "2"]
    commands = [line[7:] for line in lines if "query_experiments.py" in line]
    assert len(commands) == 2 and commands[0].endswith("--compare s_002 s_003")
    for command in commands:
        shown = subprocess.run(
            command.replace("python ", f"{sys.executable} ", 1),
            shell=True,
            cwd=REPOSITORY_ROOT,
            capture_output=True,
            text=True,
        )
        assert shown.returncode == 0 and "s_002" in shown.stdout, shown.stderr


@pytest.mark.slow
def test_a_metric_that_nothing_has_logged_is_told(run_tool: Callable[..., Any]) -> None:
    result = run_tool(TOOL, *TINY_ARGUMENTS, "--minimize", "los")
    assert result.returncode == 2 and statuses() == {"s_000": "finished"}
    assert "'s_000' has logged no 'los'" in result.stderr
    assert "did you mean 'loss'?" in result.stderr


@pytest.mark.attack
@pytest.mark.slow
def test_all_trials_of_a_sweep_compute_as_the_first_of_them(
    run_tool: Callable[..., Any], assets_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_text("the cat sat on the mat.\n" * 100)
    config = tmp_path / "mini.yaml"
    config.write_text(f"""
data: {{path: {tmp_path}/text.txt, tokenizer: char, batch_size: 2, eval_batch_size: 8}}
model: {{num_layers: 1, hidden_size: 16, num_heads: 2, context_length: 16}}
schedule: {{warmup_steps: 1}}
training: {{max_steps: 4, eval_every_steps: 4, log_every_steps: 1, device: cpu}}
samples: {{max_new_tokens: 5}}
""")
    precisions = budget(["auto"], ["auto", "fp32"])
    swept = ["model.mixer=attention,lstm", f"training.precision={','.join(precisions)}"]
    result = run_tool(TOOL, BASELINE, "--config", config, "--sweep", "s", "--parallel", "2", *swept)
    assert result.returncode == 0, result.stderr
    agreed = json.loads((get_sweeps_dir() / "s" / "auto.json").read_text())
    assert f"precision {agreed['precision']}, compile false in all trials" in result.stdout
    computed = [
        Catalogue().manifest(f"s_{number:03d}")["precision"]
        for number in range(2 * len(precisions))
    ]
    assert computed == [agreed["precision"], "fp32"][: len(precisions)] * 2


@pytest.mark.slow
def test_every_trial_is_checked_before_anything_starts(
    run_tool: Callable[..., Any], assets_dir: Path, tmp_path: Path
) -> None:
    for argument, reason in (
        ("model.mixer=attention,mingrue", "model.mixer"),
        ("optimizer.lr=1e-3,nan,abc", "argument 'optimizer.lr=nan'"),
        (f"data.path={tmp_path}/here.txt,{tmp_path}/gone.txt", "gone.txt"),
        ("model=choice({hidden_size: 64, num_heads: 2},{hidden_size: 65, num_heads: 2})", "65"),
    ):
        (tmp_path / "here.txt").write_text("a text\n" * 100)
        for option in ([], ["--dry-run"]):
            result = run_tool(
                *(TOOL, BASELINE, "--config", "configs/quickstart.yaml", argument, *option)
            )
            assert result.returncode == 2 and reason in result.stderr, result.stderr
            assert result.stdout == "" and not list(assets_dir.rglob("sweeps"))


@pytest.mark.slow
def test_thousands_of_trials_are_checked_together() -> None:
    plan = make_plan(TINY, ["seed=range(1000)", "layers=1,2"], config="tiny.yaml")
    assert len(plan.grid) == 2000 and plan.repeated == 0
    with pytest.raises(ConfigError, match=r"layers=x.*and 999 more of 2,000 trials"):
        make_plan(TINY, ["seed=range(1000)", "layers=1,x"], config="tiny.yaml")


@pytest.mark.parametrize(
    ("arguments", "trials"),
    [
        (["lr=1e-3,0.001", "seed=0,1,00"], [0, 1]),
        (["betas=choice([0.9,0.95],[0.9, 0.95])", "lr=1,2"], [0, 1]),
        (["lr=1,1e0,2"], [0, 2]),  # numbers stay, so that an earlier sweep goes on
    ],
)
def test_a_trial_is_what_its_configuration_says(arguments: list[str], trials: list[int]) -> None:
    plan = make_plan(TINY, arguments, config="tiny.yaml")
    assert list(plan.grid) == trials and len(plan.commands()) == len(trials)


def test_a_search_is_checked_at_the_ends_of_its_space() -> None:
    with pytest.raises(ConfigError, match="argument 'layers=x'"):
        make_plan(TINY, ["lr=uniform(0,1)", "layers=choice(1,x)"], config="tiny.yaml", trials=3)


def test_a_sweep_over_seeds_suggests_to_compare_groups_of_seeds() -> None:
    sweep = Sweep("s", get_sweeps_dir() / "s")
    for number, values in enumerate(grid(parse_space(["lr=1,2", "seed=range(2)"]))):
        sweep.plan_trial(number, values)
    best_first = ["s_002", "s_003", "s_001", "s_000"]
    command, _ = look_further(sweep, best_first, ["lr", "seed"])
    assert command.endswith("--compare s_002 s_001 --group")
    (only,) = look_further(sweep, ["s_000", "s_001"], ["seed"])
    assert "--sql" in only, "two seeds of one configuration are no comparison"


@pytest.mark.slow
def test_a_dry_run_prints_commands_that_work_and_writes_nothing(
    run_tool: Callable[..., Any], assets_dir: Path
) -> None:
    result = run_tool(
        TOOL, TINY, "--config", "tiny.yaml", "--dry-run", "seed=1,2", "betas=[0.5,0.6]"
    )
    assert result.returncode == 0, result.stderr
    first, second = result.stdout.splitlines()
    assert shlex.split(second) == [*shlex.split(first)[:-1], "seed=2"]
    assert "betas=[0.5,0.6]" in shlex.split(first)
    assert not assets_dir.exists()
    _, script, *arguments = shlex.split(first)
    assert run_tool(script, *arguments).returncode == 0
    search = run_tool(TOOL, *TINY_ARGUMENTS, "--dry-run", "--optuna", "3", "lr=uniform(0.1,0.2)")
    assert "'lr=uniform(0.1,0.2)'" in search.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["lr=1,,2"], "a value is empty"),
        (["lrr=1,2"], "unknown key 'lrr'; did you mean 'lr'"),
        (["lr=fast,slow"], "number"),
        (["lr=uniform(1,2)"], "a grid needs a list"),
        (["--optuna", "3"], "nothing to search"),
        (["--parallel", "0"], "--parallel must be more than 0"),
        (["--retries", "-1"], "--retries cannot be negative"),
        (["--partition", "gpu"], "--partition requires --slurm"),
        (["--detach"], "--detach requires --slurm"),
        (["--gpus", "2"], "--gpus 2 requires --nproc 2"),
        (["--gpus", "1", "--parallel", "9"], "9 parallel trials of 1 GPUs need 9"),
        (["--optuna", "3", "--retry-failed", "lr=1,2"], "--optuna cannot be combined with"),
        (["--slurm", "--sbatch", "qos"], "expected KEY=VALUE"),
        (["--minimize", "loss", "--maximize", "loss"], "not allowed with"),
    ],
)
def test_a_mistake_is_told_in_one_line_and_nothing_is_begun(
    arguments: list[str],
    reason: str,
    run_tool: Callable[..., Any],
    assets_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    result = run_tool(TOOL, *TINY_ARGUMENTS, *arguments)
    assert result.returncode == 2 and result.stdout == ""
    assert reason in result.stderr and "Traceback" not in result.stderr
    assert not assets_dir.exists()


@pytest.mark.slow
def test_an_edited_configuration_is_another_sweep(
    run_tool: Callable[..., Any], tmp_path: Path
) -> None:
    config = tmp_path / "own.yaml"
    config.write_text("steps: 2\n")
    command = (TOOL, TINY, "--config", config, "seed=1,2")
    assert run_tool(*command).returncode == 0
    config.write_text("steps: 3\n")
    result = run_tool(*command)
    assert result.returncode == 2 and "config.steps: 2 -> 3" in result.stderr
    assert "--sweep own_seed_2" in result.stderr


@pytest.mark.slow
def test_an_experiment_of_the_same_name_is_not_taken_for_a_trial(
    run_tool: Callable[..., Any],
) -> None:
    start_experiment("s_001").finish()
    result = run_tool(TOOL, *TINY_ARGUMENTS, "seed=1,2")
    assert result.returncode == 2
    assert "an experiment named 's_001' exists outside of this sweep" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("package", "arguments"),
    [("optuna", ["--optuna", "2", "lr=1,2"]), ("submitit", ["--slurm", "lr=1,2"])],
)
def test_a_missing_package_is_told_with_how_to_install_it(
    package: str, arguments: list[str], run_tool: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text(f"raise ImportError('no {package}')")
    path = os.pathsep.join([str(tmp_path), str(REPOSITORY_ROOT)])
    result = run_tool(TOOL, *TINY_ARGUMENTS, *arguments, env={"PYTHONPATH": path})
    assert result.returncode == 2 and f"needs the package {package}" in result.stderr
    assert "uv pip install -e" in result.stderr
