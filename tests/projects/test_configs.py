"""What holds for the configurations of every project, and for the projects over texts of the user's own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import common.data
from apps.listing import read_header
from common.config import dump_config, load_config
from common.data.token_files import TokenDataset
from common.models import BaseModel
from common.training.config import ExperimentConfig
from common.training.projects import CONFIG_SUFFIXES, find_projects
from common.utils import query_experiments
from common.utils.paths import REPOSITORY_ROOT

CONFIGS = [path for project in find_projects() for path in project.configs]
OWN_TEXT = {
    "shakespeare": "shakespeare",
    "bundestag_char": "bundestag",
    "bundestag_tiktoken": "bundestag",
}
SMALL = (
    *("model.num_layers=1", "model.hidden_size=16", "model.num_heads=2", "model.context_length=16"),
    *(
        "data.num_stories=100",
        "data.batch_size=2",
        "schedule.warmup_steps=1",
        "training.max_steps=4",
    ),
    *("training.eval_every_steps=4", "training.device=cpu", "training.precision=fp32"),
    *("training.compile=false", "samples.max_new_tokens=5"),
)


def named(path: Path) -> str:
    return str(path.relative_to(REPOSITORY_ROOT / "projects"))


@pytest.mark.parametrize("path", CONFIGS, ids=named)
def test_no_configuration_names_what_auto_measures(path: Path) -> None:
    """One CPU's best precision, compilation or number of threads is another's slowest."""
    found = re.findall(
        r"^\s*(precision|compile|num_threads):\s*(\S+)", path.read_text(), re.MULTILINE
    )
    assert [key for key, value in found if value not in ("auto", "null")] == []


@pytest.mark.parametrize("path", CONFIGS, ids=named)
def test_a_configuration_loads_builds_its_model_and_survives_being_written(
    path: Path, tmp_path: Path, short_text: TokenDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(common.data, "prepare", lambda config: short_text)
    (project,) = (project for project in find_projects() if project.directory in path.parents)
    schema, build = project.load()
    config = load_config(path, schema)
    if project.name != "finetune":  # it needs weights; tests/projects/test_finetune.py has some
        # No memory for the weights of the large ones.
        has_text = isinstance(config, ExperimentConfig)
        with torch.device("meta" if has_text else "cpu"):
            model = build(config).model
        assert isinstance(model, BaseModel) and model.num_parameters() > 0
    (tmp_path / "again.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "again.yaml", schema) == config


@pytest.mark.parametrize("path", CONFIGS, ids=named)
def test_a_configuration_begins_with_its_command_its_time_and_its_number(path: Path) -> None:
    header = read_header(path)
    assert header, f"{named(path)} does not begin with a comment: its command, time and number"
    command, *rest = header
    project, config = path.parent.parent.name, f"configs/{path.name}"
    assert command.startswith(f"python projects/{project}/train.py --config {config}")
    told = " ".join(rest).lower()
    measured = re.search(r"\d+ m|\d+ s", told) and re.search(r"\d\.\d", told)
    assert measured or "not measured" in told or "has not been measured" in told


@pytest.mark.parametrize("project", OWN_TEXT)
def test_the_readme_names_every_configuration_and_where_the_text_goes(project: str) -> None:
    folder = REPOSITORY_ROOT / "projects" / project
    readme = (folder / "README.md").read_text()
    assert f"assets/datasets/{OWN_TEXT[project]}/" in readme
    for path in folder.glob("configs/*"):
        assert path.suffix in CONFIG_SUFFIXES and f"`{path.name}`" in readme


@pytest.mark.parametrize("project", OWN_TEXT)
def test_a_text_that_has_to_be_given_is_asked_for_at_once(run_tool, project: str) -> None:
    own = OWN_TEXT[project]
    (config,) = {"shakespeare.yaml", "bundestag.yaml"} & {
        path.name for path in (REPOSITORY_ROOT / "projects" / project / "configs").iterdir()
    }
    result = run_tool(f"projects/{project}/train.py", "--config", f"configs/{config}")
    assert result.returncode == 2 and result.stdout == ""
    assert f"projects/{project} needs the dataset '{own}'" in result.stderr
    assert f"assets/datasets/{own}/{own}.txt" in result.stderr
    assert f"projects/{project}/README.md says more" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("project", OWN_TEXT)
def test_the_stand_in_trains_without_the_network(run_tool, project: str) -> None:
    script = f"projects/{project}/train.py"
    # Nobody answers there; HF_HUB_OFFLINE would be read at an import, and need a process of its own.
    offline = {"HTTP_PROXY": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9"}
    result = run_tool(script, "--config", "configs/quickstart.yaml", *SMALL, env=offline)
    assert result.returncode == 0, result.stderr
    assert "is the entropy of this text" in result.stdout
    run = query_experiments("SELECT name, status, project FROM runs").iloc[0]
    assert (run["name"], run["status"], run["project"]) == ("quickstart_001", "finished", project)


@pytest.mark.slow
def test_a_text_that_was_given_is_trained_on(run_tool, assets_dir: Path) -> None:
    folder = assets_dir / "datasets" / "bundestag"
    folder.mkdir(parents=True)
    (folder / "bundestag.txt").write_text("Herr Präsident! Das Wort hat die Größe.\n" * 60)
    script, config = "projects/bundestag_char/train.py", "configs/bundestag.yaml"
    env = {"OMP_NUM_THREADS": "1"}
    result = run_tool(script, "--config", config, "--name", "exp_001", *SMALL, env=env)
    assert result.returncode == 0, result.stderr
    sampled = run_tool("tools/cli.py", "sample", "exp_001", "--prompt", "Grö", env=env)
    assert sampled.returncode == 0 and sampled.stdout.startswith("Grö"), sampled.stderr
    (folder / "bundestag.txt").unlink()
    gone = run_tool("tools/cli.py", "sample", "exp_001", env=env)
    assert gone.returncode == 2 and "is empty" in gone.stderr
