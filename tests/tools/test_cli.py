"""`cli`: the projects' own commands over all projects, and what it adds to them."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from apps.listing import read_header
from common.training.projects import find_projects
from common.utils import start_experiment
from common.utils.paths import REPOSITORY_ROOT, get_datasets_dir
from tests.fork_server import ForkServer
from tests.untrained_run import make_run
from tools import cli

pytestmark = pytest.mark.slow  # dozens of commands

CONFIG = "projects/baseline/configs/quickstart.yaml"
COMMANDS = ["list", "prepare", "train-tokenizer", "train", "evaluate", "sample", "export"]


class Result:
    def __init__(self, code: object, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def run_cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """`run_cli("train", "baseline", ...)`: the command in this process, from the repository root."""
    monkeypatch.chdir(REPOSITORY_ROOT)

    def run(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["cli", *map(str, arguments)])
        try:
            cli.main()
            code: object = 0
        except SystemExit as exit:
            code = exit.code or 0
        return Result(code, *capsys.readouterr())

    return run


def test_the_script_that_is_installed_is_this_one() -> None:
    scripts = tomllib.loads((REPOSITORY_ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"cli": "tools.cli:main"}


@pytest.mark.parametrize("how", [["-m", "tools.cli"], ["tools/cli.py"]])
def test_it_runs_as_a_module_and_as_a_script(how: list[str]) -> None:
    result = subprocess.run(
        [sys.executable, *how, "--help"], cwd=REPOSITORY_ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0 and all(f"  {name} " in result.stdout for name in COMMANDS)


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)])
def test_help_has_examples(run_cli, command: list[str]) -> None:
    result = run_cli(*command, "--help")
    assert result.code == 0 and result.err == ""
    assert "examples:" in result.out.lower() and f"  cli {' '.join(command)}" in result.out


@pytest.mark.parametrize(
    "command", [["--help"], ["train", "--help"], ["sample", "--help"], ["list"]]
)
def test_it_answers_without_anything_heavy(command: list[str]) -> None:
    code = (
        f"import sys; sys.argv = {['cli', *command]!r}\n"
        "from tools.cli import main\n"
        "try: main()\n"
        "finally: print(*sys.modules, file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    loaded = set(result.stderr.split())
    assert result.returncode == 0 and "typer" in loaded
    assert not loaded & {
        "torch",
        "numpy",
        "pandas",
        "duckdb",
        "transformers",
        "datasets",
        "pyarrow",
    }


def test_list_shows_every_configuration_with_its_header_and_what_is_prepared(
    run_cli, tmp_path: Path
) -> None:
    assert "no prepared datasets yet" in run_cli("list").out
    text = tmp_path / "letters.txt"
    text.write_text("the cat sat on the mat.\n" * 60)
    _, _, data = make_run("exp_001", text)
    shown = run_cli("list").out
    for project in find_projects():
        assert f"{project.name}: {project.description}" in shown and project.description
        for config in project.configs:
            assert all(line in shown for line in read_header(config)) and read_header(config)
    assert str(data.directory) in shown and f" {data.meta['splits']['train']['tokens']} " in shown
    (data.directory / "meta.json").write_text("{}")
    damaged = run_cli("list")
    assert damaged.code == 2 and "is damaged" in damaged.err and "rm -r" in damaged.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["baseline", "--config", "configs/quickstart.yaml", "seed=5"],
        ["--config", CONFIG, "seed=5"],
        ["seed=5", "--config", CONFIG],
        ["seed=5", "baseline", "--config", CONFIG],
    ],
)
def test_train_is_the_train_of_the_project_that_is_named_or_that_the_config_lies_in(
    run_cli, run_tool, arguments: list[str]
) -> None:
    shown = run_cli("train", *arguments, "--print-config")
    assert shown.code == 0, shown.err
    own = run_tool("projects/baseline/train.py", "--config", CONFIG, "seed=5", "--print-config")
    assert shown.out == own.stdout


def test_the_project_of_a_resumed_run_is_in_its_manifest(run_cli, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat.\n" * 60)
    make_run("exp_001", text)
    shown = run_cli("train", "--name", "exp_001", "--resume", "--print-config")
    assert shown.code == 0 and str(text) in shown.out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["trian"], ["trian", "train"]),
        (["train", "baselin", "--config", "x"], ["no project 'baselin'", "'baseline'"]),
        (["train", "baseline", "--config", "configs/quikstart.yaml"], ["'quickstart.yaml'"]),
        (["train", "baseline", "--config", CONFIG, "optimizer.lrr=1"], ["mean 'lr'"]),
        (["train", "baseline"], ["--config is missing", "configs/quickstart.yaml"]),
        (["train", "--config", "/elsewhere/x.yaml"], ["no project given", "baseline"]),
        (["train", "--bogus"], ["--bogus", "--help"]),
        (["train", "--name", "x", "--resume"], ["no experiment 'x'"]),
        (["evaluate"], ["pass one experiment"]),
        (["evaluate", "exp_01"], ["no experiment 'exp_01'", "'exp_001'"]),
        (["sample", "exp_01"], ["no experiment 'exp_01'", "'exp_001'"]),
        (["sample", "lost"], ["'gone'", "not in projects/"]),
        (["prepare", "baseline"], ["--config is missing"]),
        (
            ["prepare", "--config", CONFIG, "data.dataset=mine"],
            ["projects/baseline needs the dataset 'mine'", "does not exist"],
        ),
        (["train-tokenizer", "--dataset", "stories"], ["--name"]),
        (["train-tokenizer", "--name", "a"], ["--path PATH or as --dataset NAME"]),
        (["train-tokenizer", "--name", "a", "--dataset", "storys"], ["'storys'", "'stories'"]),
        (["train-tokenizer", "--name", "a", "--dataset", "stories", "--kind", "bep"], ["'bep'"]),
        (["export", "exp_001", "--format", "ggml"], ["no format 'ggml'", "gguf, onnx, hub"]),
        (["export", "exp_01", "--format", "gguf"], ["no experiment 'exp_01'", "'exp_001'"]),
        (["prepare", "--confg", "x"], ["--confg", "--config"]),
    ],
)
def test_a_mistake_is_one_line_with_the_way_out_and_exit_code_2(
    run_cli, arguments: list[str], expected: list[str]
) -> None:
    for name, project in (("exp_001", "baseline"), ("lost", "gone")):
        start_experiment(name, project=project).finish()
    result = run_cli(*arguments)
    assert result.code == 2 and result.out == ""
    lines = result.err.splitlines()
    assert lines[0].startswith("error [") and len(lines) <= 2
    assert all(text in result.err for text in expected), result.err


def test_prepare_makes_the_token_files_and_says_where_they_are(run_cli, tmp_path: Path) -> None:
    text = tmp_path / "letters.txt"
    text.write_text("the cat sat on the mat.\n" * 60)
    overrides = (f"data.path={text}", "data.tokenizer=char")
    result = run_cli("prepare", "baseline", "--config", CONFIG, *overrides)
    assert result.code == 0, result.err
    assert "letters: 1,296 tokens for training, 144 for validation, vocabulary of 13" in result.out
    (folder,) = (get_datasets_dir() / "letters" / "tokens").glob("char-*")
    assert str(folder) in result.out and (folder / "train.bin").stat().st_size == 2 * 1296
    built = (folder / "meta.json").stat().st_mtime_ns
    assert run_cli("prepare", "baseline", "--config", CONFIG, *overrides).out == result.out
    assert (folder / "meta.json").stat().st_mtime_ns == built, "what is there is used"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["data.dataset=mine"],
            ["needs the dataset 'mine'", "datasets/mine", "projects/baseline/README.md"],
        ),
        (
            ["data.dataset=mine", "data.hub=me/mine"],
            [f"download it with: cli prepare baseline --config {CONFIG} data.dataset=mine"],
        ),
        (["data.dataset=storys"], ["did you mean 'stories'?"]),
        (["data.path=nothing.txt"], ["no such file or folder", "nothing.txt"]),
        (["data.more_validation=[nothing.txt]"], ["no such file or folder", "nothing.txt"]),
    ],
)
def test_training_without_its_text_fails_at_once_with_the_way_to_get_it(
    run_tool, overrides: list[str], expected: list[str]
) -> None:
    code = (
        f"import sys; sys.argv = {['cli', 'train', '--config', CONFIG, *overrides]!r}\n"
        "from tools.cli import main\n"
        "try: main()\n"
        "finally: print({'torch', 'numpy', 'datasets'} & set(sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY_ROOT, capture_output=True, text=True
    )
    assert result.returncode == 2 and result.stdout == "set()\n"
    assert all(text in result.stderr for text in expected), result.stderr
    own = run_tool("projects/baseline/train.py", "--config", CONFIG, *overrides)
    assert (own.returncode, own.stderr) == (2, result.stderr), "train.py says the same"


def test_a_run_whose_text_is_gone_is_told_at_once(run_cli, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat.\n" * 60)
    make_run("exp_001", text)
    evaluated = run_cli("evaluate", "exp_001")
    assert evaluated.code == 0 and "bits per byte" in evaluated.out
    sampled = run_cli("sample", "--prompt", "the", "--name", "exp_001", "--temperature", "0")
    assert sampled.code == 0 and sampled.out.startswith("the")
    text.unlink()
    for command in ("evaluate", "sample"):
        result = run_cli(command, "exp_001", "--checkpoint", "last")
        assert result.code == 2 and f"needs {text}: no such file" in result.err


@pytest.mark.slow
def test_a_vocabulary_is_learned_measured_and_found_again(run_cli, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("the cat sat on the mat.\n" * 300)
    arguments = ("--path", tmp_path / "text.txt", "--vocab-size", 269, "--holdout", 0.2)
    result = run_cli("train-tokenizer", "--name", "cats", *arguments)
    assert result.code == 0, result.err
    assert "bytes_per_token" in result.out and "round_trip      True" in result.out
    overrides = ("data.dataset=stories", "data.num_stories=20", "data.tokenizer=pretrained")
    used = run_cli(*("prepare", "--config", CONFIG, *overrides, "data.pretrained_tokenizer=cats"))
    assert used.code == 0 and "vocabulary of 269" in used.out, used.err


@pytest.mark.slow
@pytest.mark.parametrize("to", ["gguf", "onnx", "hub"])
def test_a_run_is_written_for_other_programs(run_cli, tmp_path: Path, to: str) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat.\n" * 60)
    make_run("exp_001", text, tokenizer="bpe")
    result = run_cli("export", "exp_001", "--format", to, "--output", tmp_path / "out")
    assert result.code == 0, result.err
    assert str(tmp_path / "out") in result.out and (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_whole_way_from_a_toml_file(fork_server: ForkServer, tmp_path: Path) -> None:
    """Train, evaluate, sample, as `python -m tools.cli` from another folder."""
    (tmp_path / "text.txt").write_text("the cat sat on the mat.\n" * 60)
    (tmp_path / "tiny.toml").write_text(f"""
[data]
path = "{tmp_path / 'text.txt'}"
tokenizer = "char"
batch_size = 2
eval_batch_size = 4
[model]
num_layers = 1
hidden_size = 16
num_heads = 2
context_length = 16
[schedule]
warmup_steps = 1
[training]
max_steps = 4
eval_every_steps = 2
device = "cpu"
""")

    def run(*arguments: str) -> str:
        result = fork_server.run("-m", "tools.cli", *arguments, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        return result.stdout

    trained = run("train", "baseline", "--config", "tiny.toml", "--name", "exp_001")
    numbers = next(line for line in trained.splitlines() if line.startswith("validation"))
    assert numbers.split("loss ")[1] in run("evaluate", "exp_001", "--checkpoint", "last")
    assert run("sample", "exp_001", "--prompt", "the", "--max-new-tokens", "5").startswith("the")
