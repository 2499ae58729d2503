"""From a trained run to the hub and back, with the real client and a hub on 127.0.0.1."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import constants

from common.data.hf_utils import download_model
from common.errors import exit_on_error
from common.models import load_pretrained
from common.training.evaluator import Evaluator
from common.training.experiment import eval_windows
from common.utils.paths import get_runs_dir
from tests.conftest import RunTool
from tests.hub_double import HubDouble
from tests.untrained_run import make_run
from tools.push_to_hub import main

pytestmark = pytest.mark.slow  # a server and its clients
TOOL = "tools/push_to_hub.py"
TOKEN = "hf_may_write_for_me"
Push = Callable[..., Any]


@pytest.fixture(scope="module")
def hub() -> Iterator[HubDouble]:
    with HubDouble() as double:
        double.writers[TOKEN] = "me"
        yield double


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "private_folder" / "text.txt"
    path.parent.mkdir()
    path.write_text("the cat sat on the mat, and the dog | saw it.\n" * 40)
    return path


@dataclass
class Result:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def push(
    hub: HubDouble,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Push:
    """Push run `a` as the command line does, with no token but `token`; in this process: it is quicker."""
    hub.requests.clear()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    # The client has read its environment by now, so what it keeps of it is set as well.
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)

    def push(
        *arguments: object,
        repo: str = "me/model",
        token: str = TOKEN,
        endpoint: str = hub.url,
        offline: bool = False,
    ) -> Result:
        monkeypatch.setenv("HF_TOKEN", token)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        command = [TOOL, "--name", "a", "--repo", repo, "--endpoint", endpoint]
        monkeypatch.setattr(sys, "argv", [*command, *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            with exit_on_error():
                main()
        except SystemExit as end:
            code = int(end.code or 0)
        return Result(code, *capsys.readouterr())

    return push


def make(text: Path, tokenizer: str = "bpe", *more: str) -> Any:
    """Run `a` with the manifest that training writes, and with a prompt that it can encode."""
    overrides = ["samples.prompts=[the dog]", *more]
    return make_run("a", text, tokenizer, overrides, seed=3, tags=["first: [try]"])


def card_of(content: str) -> tuple[dict[str, Any], str]:
    """The front matter and the text of a model card."""
    empty, front_matter, markdown = content.split("---\n", 2)
    assert empty == ""
    return yaml.safe_load(front_matter), markdown


@pytest.mark.parametrize("tokenizer", ["bpe", "char"])
def test_dry_run_writes_what_transformers_reads(
    tokenizer: str, text: Path, push: Push, hub: HubDouble, tmp_path: Path
) -> None:
    config, model, data = make(text, tokenizer)
    result = push("--dry-run", tmp_path / "out", token="")
    assert result.returncode == 0, result.stderr
    assert "nothing was uploaded" in result.stdout and hub.requests == []
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    weights = ["model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert names == ["README.md", "config.json", *weights]
    from transformers import AutoModelForCausalLM, AutoTokenizer

    theirs, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values())
    encode: Any = AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = encode("the dog sat.", return_tensors="pt").input_ids
    assert ids[0].tolist() == data.tokenizer.encode("the dog sat.").tolist()
    expected = model.eval()(ids)["logits"]
    torch.testing.assert_close(theirs(ids).logits, expected, atol=1e-4, rtol=0)

    front_matter, markdown = card_of((tmp_path / "out" / "README.md").read_text())
    metrics = Evaluator(model, token_bytes=data.tokenizer.token_bytes).evaluate(
        eval_windows(config, data.tokens("val"))
    )
    measured = front_matter["model-index"][0]["results"][0]["metrics"]
    assert {m["type"]: m["value"] for m in measured} == {
        key: pytest.approx(metrics[key], rel=1e-4)
        for key in ("loss", "perplexity", "bits_per_byte")
    }
    assert front_matter["tags"] == ["gpt2", "first: [try]"]
    for fact in ("| seed | 3 |", "| checkpoint | step_5 |", data.fingerprint["train"], "text.txt"):
        assert fact in markdown
    assert f"{model.num_parameters():,} parameters" in markdown


def test_what_the_card_says_works_as_it_stands(
    text: Path, push: Push, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(text, "char")
    assert push("--dry-run", tmp_path / "out").returncode == 0
    content = (tmp_path / "out" / "README.md").read_text()
    code = content.split("```python\n")[1].split("```")[0]
    exec(code.replace("me/model", str(tmp_path / "out")), {})
    assert capsys.readouterr().out.startswith("the dog")


def test_the_card_tells_nothing_of_the_machine(text: Path, push: Push, tmp_path: Path) -> None:
    make(text)
    assert push("--dry-run", tmp_path / "out").returncode == 0
    manifest = json.loads((get_runs_dir() / "a" / "manifest.json").read_text())
    secrets = [str(tmp_path), "private_folder", f"host {manifest['host']}", str(manifest["argv"])]
    for path in (tmp_path / "out").iterdir():
        content = path.read_bytes()
        assert not [secret for secret in secrets if secret.encode() in content], path


@pytest.mark.slow
def test_upload_and_download_again(
    text: Path, run_tool: RunTool, hub: HubDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, model, _ = make(text)
    environment = {
        **{"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "hf")},
        **{"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"},
    }
    result = run_tool(TOOL, "--name", "a", "--repo", "me/model", env=environment)
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"a is at {hub.url}/me/model\n"
    repository = hub.repositories["model", "me/model"]
    assert not repository.private and len(repository.commits) == 2  # an empty one, and ours
    files = repository.commits[repository.refs["main"]]
    assert set(files) >= {"README.md", "config.json", "model.safetensors", "tokenizer.json"}
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    again = load_pretrained(download_model("me/model", endpoint=hub.url))
    ids = torch.arange(10)[None]
    assert torch.equal(again.eval()(ids)["logits"], model.eval()(ids)["logits"])
    assert not list((tmp_path / "assets").glob(".export_*"))

    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in kept if TOKEN.encode() in path.read_bytes()]
    assert TOKEN not in result.stdout + result.stderr


def test_the_weights_of_an_earlier_model_do_not_stay(
    text: Path, push: Push, hub: HubDouble
) -> None:
    make(text)
    old = {"model-00001-of-00002.safetensors": b"1", "model.safetensors.index.json": b"{}"}
    hub.add("model", "me/earlier", {"notes.txt": b"mine", "README.md": b"---\n---\n", **old})
    result = push(repo="me/earlier")
    assert result.returncode == 0, result.stderr
    repository = hub.repositories["model", "me/earlier"]
    files = repository.commits[repository.refs["main"]]
    assert not set(old) & set(files)
    assert files["notes.txt"] == b"mine" and b"the experiment `a`" in files["README.md"]
    commits = len(repository.commits)
    assert push(repo="me/earlier").returncode == 0
    assert len(repository.commits) == commits  # the same once more is no commit


def test_private_means_private(text: Path, push: Push, hub: HubDouble) -> None:
    make(text)
    assert push("--private", repo="me/hidden").returncode == 0
    assert hub.repositories["model", "me/hidden"].private
    hub.add("model", "me/public", {"README.md": b"---\n---\n"})
    result = push("--private", repo="me/public")
    assert result.returncode == 2 and "'me/public' exists and is public" in result.stderr, result
    repository = hub.repositories["model", "me/public"]
    assert set(repository.commits[repository.refs["main"]]) == {"README.md"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"repo": "model"}, "error [upload]: 'model' is not a repository name"),
        ({"repo": "a/b/c"}, "is not a repository name"),
        ({"token": ""}, "error [upload]: there is no token"),
        ({"token": "hf_wrong"}, "answered 401 for 'me/refused': Invalid credentials"),
        ({"repo": "others/model"}, "answered 403 for 'others/model': You have no rights"),
        ({"offline": True}, "error [upload]: the client is offline"),
        ({"endpoint": "http://127.0.0.1:9"}, "'me/refused' was not uploaded"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_what_cannot_be_uploaded_is_one_line_and_a_hint(
    arguments: dict[str, Any], message: str, text: Path, push: Push, hub: HubDouble, tmp_path: Path
) -> None:
    make(text)
    result = push(**({"repo": "me/refused"} | arguments))
    assert result.returncode == 2 and result.stdout == ""
    errors = [line for line in result.stderr.splitlines() if line.startswith("error")]
    assert len(errors) == 1 and message in errors[0], result.stderr
    assert "  hint: " in result.stderr and "Traceback" not in result.stderr
    assert "hf_wrong" not in result.stderr and TOKEN not in result.stderr
    assert ("model", "me/refused") not in hub.repositories
    assert not list((tmp_path / "assets").glob(".export_*"))


def test_a_model_that_transformers_does_not_have_is_refused(
    text: Path, push: Push, tmp_path: Path
) -> None:
    make(text, "bpe", "model.positions=none")
    result = push("--dry-run", tmp_path / "out")
    assert result.returncode == 2
    assert "error [model]: no architecture of transformers" in result.stderr
    assert "gpt2 would need positions=learned" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_run_or_a_checkpoint_that_is_not_there(text: Path, push: Push, tmp_path: Path) -> None:
    make(text)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    result = push("--checkpoint", "7", "--dry-run", tmp_path / "new")
    assert result.returncode == 2 and "no checkpoint '7'" in result.stderr
    result = push("--dry-run", tmp_path / "out")
    assert result.returncode == 2 and "already exists" in result.stderr
    (get_runs_dir() / "a").rename(get_runs_dir() / "b")
    result = push("--dry-run", tmp_path / "new")
    assert result.returncode == 2 and "no checkpoint in" in result.stderr
