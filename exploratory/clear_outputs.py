"""Take the outputs out of the notebooks here, before they are committed: `python exploratory/clear_outputs.py`.

Outputs are large, change at every run and can hold what was not meant for others. `--check` only
names the notebooks that have some, with exit code 1.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from common.utils.files import write_text_atomic

FOLDER = Path(__file__).resolve().parent


def notebooks() -> list[Path]:
    """Every notebook below this folder, but for the copies that Jupyter keeps."""
    found = sorted(FOLDER.rglob("*.ipynb"))
    return [path for path in found if ".ipynb_checkpoints" not in path.parts]


def cleared(content: dict[str, Any]) -> dict[str, Any]:
    """The notebook without outputs, execution counts and what else a run writes into it."""
    cells = []
    for cell in content["cells"]:
        cell = cell | {"metadata": {}}
        if cell["cell_type"] == "code":
            cell |= {"outputs": [], "execution_count": None}
        cells.append(cell)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return content | {"cells": cells, "metadata": metadata}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only name them")
    only_check = parser.parse_args().check
    dirty = 0
    for path in notebooks():
        content = json.loads(path.read_text(encoding="utf-8"))
        if (clean := cleared(content)) != content:
            dirty += 1
            print(path.relative_to(FOLDER))
            if not only_check:
                write_text_atomic(path, json.dumps(clean, indent=1, ensure_ascii=False) + "\n")
    sys.exit(1 if dirty and only_check else 0)


if __name__ == "__main__":
    main()
