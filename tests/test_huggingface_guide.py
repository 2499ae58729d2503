"""The walk of HUGGINGFACE_GUIDE.md, command by command, against a hub on 127.0.0.1."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.data.stories import generate_stories
from tests.budget import budget
from tests.fork_server import ForkServer
from tests.hub_double import HubDouble

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "HUGGINGFACE_GUIDE.md").read_text(encoding="utf-8")


def walk() -> list[str]:
    """The commands of the one section, continued lines joined."""
    section = GUIDE.split("## From a dataset of the hub to a GGUF file")[1].split("\n## ")[0]
    block = re.findall(r"^```bash\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL)[0]
    lines = block.replace("\\\n", " ").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def stories(tmp_path: Path) -> bytes:
    texts = [text for text, _ in generate_stories(budget(1000, 3000), seed=1)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "train.parquet")
    return (tmp_path / "train.parquet").read_bytes()


@pytest.mark.attack
@pytest.mark.slow
def test_every_command_of_the_walk_works(tmp_path: Path, fork_server: ForkServer) -> None:
    """The first command alone asks the hub, in a process that imports its address."""
    environment = os.environ | {"RESEARCH_ASSETS_DIR": str(tmp_path / "assets")}
    with HubDouble() as hub:
        files = {"data/train-00000-of-00001.parquet": stories(tmp_path)}
        hub.add("dataset", "roneneldan/TinyStories", files)
        of_the_hub = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "cache")}
        written = ""
        for command in walk():
            words = shlex.split(command)
            if words[0] == "cli":
                words[:1] = ["-m", "tools.cli"]
            elif words[0] == "python":
                words[:1] = [str(ROOT / words[1])]
                del words[1]
            if "train" in words:
                words.append(f"training.max_steps={budget(12, 40)}")
            asks = of_the_hub if "download" in words[0] else {}
            result = fork_server.run(*words, cwd=tmp_path, env=environment | asks)
            assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
            written += result.stdout
    assert "Once upon a time" in written and "bits per byte" in written
    assert (tmp_path / "stories.gguf").read_bytes()[:4] == b"GGUF"
    assert (tmp_path / "stories_hub" / "config.json").is_file()
