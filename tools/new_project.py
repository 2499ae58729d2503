"""Create a project: a copy of projects/baseline under a new name, with a test, ready to train."""

from __future__ import annotations

import argparse
import keyword
import re
import shutil
from pathlib import Path

from common.errors import ConfigError, exit_on_error
from common.utils.paths import REPOSITORY_ROOT, display_path

TEMPLATE = "baseline"
# Results belong to the original project: the copy has none until it has been trained.
NOT_MEASURED = (
    "not measured yet: train it, then write here the time, the machine, the validation loss and of how "
    "many seeds"
)
EXAMPLES = """examples:
  python tools/new_project.py my_idea
  python projects/my_idea/train.py --config configs/quickstart.yaml"""

README = """# {name}

What this project asks: *write the question here.* What it has found: nothing yet.

## What to change first

1. `build` in `train.py` is the whole experiment: text, model, what happens during training. Write a model of your own
   (`common/models/base.py` says what it needs), or fill an `Experiment` with other data, as `projects/digits` does.
2. `Config` there is the schema of `configs/*.yaml`: add a key where `build` needs one. All that can be set:
   `python projects/{name}/train.py --config configs/quickstart.yaml --print-config`.
3. `tests/projects/test_{name}.py` trains a small model; it should keep passing.

## Results

| configuration | what | result |
|---|---|---|
{rows}

To measure one, train it with as many seeds as the claim needs; write the result here and at the top of the file:

```
python tools/launch.py projects/{name}/train.py --config configs/quickstart.yaml "seed=range(3)"
python tools/query_experiments.py --best loss --top 3
```
"""
TEST = '''"""{name} learns a text that repeats itself, and its run can be loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.config import load_config
from common.training import load_run
from common.training.job import train_experiment
from common.utils.paths import REPOSITORY_ROOT, display_path
from projects.{name}.train import Config, build

SMALL = [
    *("data.tokenizer=char", "data.batch_size=8", "model.num_layers=1", "model.num_heads=2"),
    *("model.hidden_size=32", "model.context_length=16", "optimizer.lr=1e-2"),
    *("schedule.warmup_steps=5", "training.max_steps=60", "training.eval_every_steps=30"),
    *("training.device=cpu", "training.precision=fp32", "training.compile=false"),
    *("samples.prompts=[abc]", "samples.max_new_tokens=5"),
]


def test_it_learns_and_its_run_can_be_loaded(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("abcabcabd " * 400)
    config_file = REPOSITORY_ROOT / "projects/{name}/configs/quickstart.yaml"
    config = load_config(config_file, Config, [*SMALL, f"data.path={{tmp_path}}/text.txt"])
    metrics = train_experiment(config, build, project="{name}", name="small")
    assert metrics["loss"] < 1.0, "a guess among its five characters is 1.6 nats"
    assert load_run("small", "last").evaluate()["loss"] == pytest.approx(metrics["loss"], rel=1e-5)
'''


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="NAME", help="lower-case letters, digits and underscores")
    arguments = parser.parse_args()
    with exit_on_error():
        create_project(arguments.name)
        print(f"created     projects/{arguments.name}")
        print(
            f"train it    python projects/{arguments.name}/train.py --config configs/quickstart.yaml"
        )
        print(f"test it     python -m pytest tests/projects/test_{arguments.name}.py")
        print(
            "change it   build in train.py is the experiment; README.md says what to change first"
        )


def create_project(name: str) -> None:
    """Raise ConfigError if `name` is not a valid package name or the project exists."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise ConfigError(
            f"'{name}' is not a valid project name",
            "use lower-case letters, digits and underscores, a letter first",
        )
    source, target = REPOSITORY_ROOT / "projects" / TEMPLATE, REPOSITORY_ROOT / "projects" / name
    test = REPOSITORY_ROOT / "tests" / "projects" / f"test_{name}.py"
    for path in (target, test):
        if path.exists():
            raise ConfigError(f"{display_path(path)} already exists", "choose another name")
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "data"))
    for path in target.rglob("*"):
        if path.suffix in (".py", ".yaml", ".toml", ".md"):
            text = re.sub(rf"\b{TEMPLATE}\b", name, path.read_text(encoding="utf-8"))
            if path.suffix == ".yaml":
                text = _without_figures(text)
            path.write_text(text, encoding="utf-8")
    (target / "README.md").write_text(_readme(name, target), encoding="utf-8")
    test.parent.mkdir(parents=True, exist_ok=True)
    test.write_text(TEST.format(name=name), encoding="utf-8")


def _without_figures(config: str) -> str:
    """A configuration that starts with its command, without measured results."""
    command, _, rest = config.partition("\n")
    lines = rest.split("\n")
    while lines and lines[0].startswith("#"):
        del lines[0]
    return "\n".join([command, f"# {NOT_MEASURED}.", *lines])


def _readme(name: str, folder: Path) -> str:
    configs = sorted(path.name for path in (folder / "configs").glob("*.yaml"))
    rows = "\n".join(f"| `{config}` | | not measured yet |" for config in configs)
    return README.format(name=name, rows=rows)


if __name__ == "__main__":
    main()
