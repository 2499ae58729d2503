"""Start a project: a copy of projects/baseline under a new name, which trains as it stands."""

from __future__ import annotations

import argparse
import keyword
import re
import shutil

from common.errors import ConfigError, exit_on_error
from common.utils.paths import REPOSITORY_ROOT

TEMPLATE = "baseline"
EXAMPLES = """examples:
  python tools/new_project.py my_idea
  python projects/my_idea/train.py --config configs/quickstart.yaml"""


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
            text = path.read_text(encoding="utf-8")
            path.write_text(re.sub(rf"\b{TEMPLATE}\b", name, text), encoding="utf-8")


if __name__ == "__main__":
    main()
