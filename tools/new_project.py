"""Start a project: a copy of projects/baseline under a new name, which trains as it stands."""

from __future__ import annotations

import argparse
import keyword
import re
import shutil
from pathlib import Path

from common.errors import ConfigError, exit_on_error
from common.utils.paths import REPOSITORY_ROOT

TEMPLATE = "baseline"
# A figure is of the project that measured it: the copy has none until it has been trained.
NOT_MEASURED = (
    "not measured yet: train it, then write here the time, the machine, the validation loss and of how "
    "many seeds"
)
EXAMPLES = """examples:
  python tools/new_project.py my_idea
  python projects/my_idea/train.py --config configs/quickstart.yaml"""

README = """# {name}

What this project asks, and what it has found.

| configuration | what | result |
|---|---|---|
{rows}

To measure one, train it with as many seeds as the claim needs; write the result here and at the top of the file:

```
python tools/launch.py projects/{name}/train.py --config configs/quickstart.yaml "seed=range(3)"
python tools/query_experiments.py --best loss --top 3
```

Everything that can be set: `python projects/{name}/train.py --config configs/quickstart.yaml --print-config`.

## Files

`train.py` has the schema of the configuration and `build_model`; `evaluate.py` and `sample.py` read a trained run.
Everything else is in `common/`, beginning with `common/cli.py`.
"""


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
        print(
            "change it   model and configuration are in train.py; README.md says what to write down"
        )


def create_project(name: str) -> None:
    """Raises ConfigError when `name` cannot name a Python package or the project exists."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise ConfigError(
            f"'{name}' cannot name a project",
            "use lower-case letters, digits and underscores, a letter first",
        )
    source, target = REPOSITORY_ROOT / "projects" / TEMPLATE, REPOSITORY_ROOT / "projects" / name
    if target.exists():
        raise ConfigError(f"projects/{name} exists already", "choose another name")
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "data"))
    for path in target.rglob("*"):
        if path.suffix in (".py", ".yaml", ".toml", ".md"):
            text = re.sub(rf"\b{TEMPLATE}\b", name, path.read_text(encoding="utf-8"))
            if path.suffix == ".yaml":
                text = _without_figures(text)
            path.write_text(text, encoding="utf-8")
    (target / "README.md").write_text(_readme(name, target), encoding="utf-8")


def _without_figures(config: str) -> str:
    """A configuration whose first line is its command, and which says that nothing was measured."""
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
