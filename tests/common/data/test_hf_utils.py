"""Downloads with the real `huggingface_hub` and `datasets` clients, from a hub on 127.0.0.1."""

from __future__ import annotations

import errno
import io
import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets.config
import pyarrow
import pyarrow.parquet
import pytest
from huggingface_hub import constants

from common.data.hf_utils import (
    dataset_folder_name,
    download_dataset,
    download_model,
    explained,
    link_dataset,
)
from common.errors import DataError, DownloadError
from common.utils.paths import REPOSITORY_ROOT, get_datasets_dir, get_models_dir
from tests.hub_double import HubDouble

pytestmark = pytest.mark.slow  # a server and its clients
TOKEN = "hf_right"
BIG = random.Random(0).randbytes(21 * 2**20)  # the client keeps what it has in steps of 10 MiB
CARD = """---
configs:
- config_name: large
  data_files: [{split: train, path: large/*.parquet}]
- config_name: small
  data_files:
  - {split: train, path: small/train.parquet}
  - {split: validation, path: small/validation.parquet}
dataset_info:
- config_name: small
  features: [{name: text, dtype: string}]
  splits:
  - {name: train, num_bytes: 30, num_examples: 3}
  - {name: validation, num_bytes: 10, num_examples: 1}
- config_name: large
  features: [{name: text, dtype: string}]
---
"""


def parquet(*texts: str) -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": list(texts)}), buffer)
    return buffer.getvalue()


def jsonl(*texts: str) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


@pytest.fixture(scope="module")
def hub() -> Iterator[HubDouble]:
    with HubDouble() as double:
        small = {"small/train.parquet": parquet("a", "b", "c")}
        small["small/validation.parquet"] = parquet("v")
        card = {"README.md": CARD.encode()}
        double.add(
            "dataset", "me/stories", card | small | {"large/1.parquet": parquet("old")}, "v1"
        )
        double.add("dataset", "me/stories", card | small | {"large/1.parquet": parquet("new")})
        double.add(
            "dataset", "me/plain", {"train.jsonl": jsonl("x", "y"), "test.jsonl": jsonl("z")}
        )
        double.add("dataset", "me/secret", {"train.jsonl": jsonl("s")}, token=TOKEN)
        double.add("dataset", "me/script", {"README.md": b"hi", "script.py": b"import os"})
        double.add("dataset", "me/broken", {"train.parquet": b"this is not parquet"})
        double.move("dataset", "plain", "me/plain")
        model = {"config.json": b"{}", "onnx/model.onnx": b"onnx", "model.safetensors": b"weights"}
        double.add("model", "me/tiny", model)
        double.add("model", "me/tiny", model | {"config.json": b'{"v": 1}'}, "v1")
        double.add("model", "me/secret", {"config.json": b"{}"}, token=TOKEN)
        double.add("model", "me/big", {"config.json": b"{}", "model.bin": BIG})
        yield double


@pytest.fixture(autouse=True)
def isolated(hub: HubDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the user's settings, caches and tokens, no address but the double's."""
    monkeypatch.setenv("RESEARCH_ASSETS_DIR", str(tmp_path / "assets"))
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    # The clients have read their environment by now, so what they keep of it is set as well.
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_UPDATE_DOWNLOAD_COUNTS", False)
    hub.requests.clear()
    hub.cuts.clear()
    hub.corrupted.clear()
    hub.claimed.clear()


def visible(folder: Path) -> list[str]:
    """What is in a folder, apart from lock files."""
    return sorted(path.name for path in folder.glob("*") if path.suffix != ".lock")


def texts(folder: Path, split: str | None = None) -> list[str]:
    loaded: Any = datasets.load_from_disk(folder)
    return list((loaded[split] if split else loaded)["text"])


class TestDatasets:
    def test_configuration_and_split(self, hub: HubDouble) -> None:
        folder = download_dataset("me/stories", config="small", split="validation")
        assert folder == get_datasets_dir() / "stories-small"
        assert texts(folder) == ["v"]
        assert visible(folder.parent) == ["stories-small"]
        assert hub.downloads("small/validation.parquet")
        assert not hub.downloads("small/train.parquet")  # not asked for, not downloaded
        record = json.loads((folder / ".download.json").read_text())
        commit = hub.repositories["dataset", "me/stories"].refs["main"]
        assert record.pop("date").endswith("+00:00")
        assert record == {
            "name": "me/stories",
            "repository": "me/stories",
            "config": "small",
            "split": "validation",
            "revision": "main",
            "commit": commit,
        }

    def test_all_splits_then_from_disk_without_the_network(self, hub: HubDouble) -> None:
        folder = download_dataset("me/plain")
        assert texts(folder, "train") == ["x", "y"] and texts(folder, "test") == ["z"]
        hub.requests.clear()
        assert download_dataset("me/plain", endpoint="http://127.0.0.1:9") == folder
        assert hub.requests == []

    def test_slices_and_sums_of_splits(self, tmp_path: Path) -> None:
        one = download_dataset("me/stories", "small", "train[:2]", output_dir=tmp_path / "one")
        both = download_dataset(
            "me/stories", "small", "train+validation", output_dir=tmp_path / "both"
        )
        all_ = download_dataset("me/stories", "small", "all", output_dir=tmp_path / "all")
        assert texts(one) == ["a", "b"] and sorted(texts(both)) == sorted(texts(all_)) == list(
            "abcv"
        )

    def test_split_of_a_dataset_without_a_card(self, hub: HubDouble) -> None:
        with pytest.raises(DownloadError, match="no split 'tset'") as error:
            download_dataset("me/plain", split="tset")
        assert error.value.hint == "did you mean 'test'?"
        assert texts(download_dataset("me/plain", split="test")) == ["z"]
        assert not hub.downloads("/train.jsonl")

    def test_another_revision_is_never_answered_with_what_is_there(self, hub: HubDouble) -> None:
        folder = download_dataset("me/stories", "large", revision="v1")
        assert texts(folder, "train") == ["old"]
        with pytest.raises(DataError, match="another revision: v1, requested: main") as error:
            download_dataset("me/stories", "large")
        assert "--force" in error.value.hint and "--output-dir" in error.value.hint
        with pytest.raises(DataError, match="another split: not given, requested: train"):
            download_dataset("me/stories", "large", "train", "v1")
        commit = hub.repositories["dataset", "me/stories"].refs["v1"]
        assert download_dataset("me/stories", "large", revision=commit) == folder

    def test_force_replaces_and_output_dir_keeps_both(self, tmp_path: Path) -> None:
        old = download_dataset("me/stories", "large", revision="v1")
        new = download_dataset("me/stories", "large", output_dir=tmp_path / "new")
        assert (texts(old, "train"), texts(new, "train")) == (["old"], ["new"])
        download_dataset("me/stories", "large", force=True)
        assert texts(old, "train") == ["new"]
        assert visible(old.parent) == ["stories-large"]

    def test_a_folder_of_the_users_is_never_touched(self) -> None:
        mine = get_datasets_dir() / "plain" / "mine.txt"
        mine.parent.mkdir(parents=True)
        mine.write_text("precious")
        with pytest.raises(DataError, match="was not downloaded"):
            download_dataset("me/plain", force=True)
        assert mine.read_text() == "precious"

    def test_renamed_repository_and_local_folder_of_the_same_name(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "me" / "plain").mkdir(parents=True)
        (tmp_path / "me" / "plain" / "train.jsonl").write_bytes(jsonl("local"))
        monkeypatch.chdir(tmp_path)
        folder = download_dataset("plain")
        assert texts(folder, "train") == ["x", "y"]
        assert download_dataset("me/plain") == folder

    @pytest.mark.parametrize(
        ("asked", "message", "hint"),
        [
            ({"config": "smal"}, "no configuration 'smal'", "did you mean 'small'?"),
            ({}, "several configurations", "choose from: large, small"),
            (
                {"config": "small", "split": "valid"},
                "no split 'valid'",
                "did you mean 'validation'?",
            ),
            ({"config": "small", "split": "train[:1"}, "is not a split", "train[:1%]"),
            ({"config": "small", "revision": "v9"}, "no revision 'v9'", "/datasets/me/stories"),
        ],
    )
    def test_what_is_not_there_is_named(
        self, asked: dict[str, Any], message: str, hint: str
    ) -> None:
        with pytest.raises(DownloadError, match=message) as error:
            download_dataset("me/stories", **asked)
        assert hint in error.value.hint
        assert visible(get_datasets_dir()) == []

    def test_scripts_and_broken_files(self) -> None:
        with pytest.raises(DownloadError, match="is a Python script") as error:
            download_dataset("me/script")
        assert "refs/convert/parquet" in error.value.hint
        with pytest.raises(DownloadError, match=r"cannot read 'me/broken': .*arquet"):
            download_dataset("me/broken")
        assert visible(get_datasets_dir()) == []

    def test_cut_connection_leaves_nothing_and_a_second_run_completes(self, hub: HubDouble) -> None:
        hub.cut("test.jsonl", after_bytes=5, reset=True)
        stale = get_datasets_dir() / ".plain.partial" / "data"
        stale.mkdir(parents=True)  # as a killed process leaves it
        with pytest.raises(DownloadError) as error:
            download_dataset("me/plain")
        assert "no connection" in error.value.message and "run it again" in error.value.hint
        assert visible(get_datasets_dir()) == []
        assert texts(download_dataset("me/plain"), "test") == ["z"]
        assert len(hub.downloads("/train.jsonl")) == 1  # it was complete the first time


class TestModels:
    def test_whole_model_then_from_disk_without_the_network(self, hub: HubDouble) -> None:
        folder = download_model("me/tiny")
        assert folder == get_models_dir() / "me--tiny"
        assert visible(folder) == [
            ".cache",
            ".download.json",
            "config.json",
            "model.safetensors",
            "onnx",
        ]
        assert (folder / "model.safetensors").read_bytes() == b"weights"
        hub.requests.clear()
        assert download_model("me/tiny", endpoint="http://127.0.0.1:9") == folder
        assert hub.requests == []
        (folder / "config.json").unlink()
        assert (download_model("me/tiny") / "config.json").is_file()

    def test_one_file_and_patterns(self, hub: HubDouble) -> None:
        path = download_model("me/tiny", filename="onnx/model.onnx")
        assert path == get_models_dir() / "me--tiny" / "onnx" / "model.onnx"
        assert path.read_bytes() == b"onnx"
        assert not hub.downloads("config.json")
        folder = download_model("me/tiny", allow_patterns=["*.json", "*.txt"])
        assert (folder / "config.json").is_file() and not (folder / "model.safetensors").exists()
        with pytest.raises(DownloadError, match="both"):
            download_model("me/tiny", filename="config.json", allow_patterns="*")

    def test_missing_file_names_the_nearest(self) -> None:
        with pytest.raises(DownloadError, match=r"no file 'model\.safetensor'") as error:
            download_model("me/tiny", filename="model.safetensor")
        assert error.value.hint == "did you mean 'model.safetensors'?"
        assert visible(get_models_dir()) == []

    def test_a_revision_has_its_own_folder(self) -> None:
        assert download_model("me/tiny", "config.json").read_bytes() == b"{}"
        path = download_model("me/tiny", "config.json", revision="v1")
        assert path.parent.name == "me--tiny@v1" and path.read_bytes() == b'{"v": 1}'

    def test_all_files_of_a_folder_come_from_one_commit(self, hub: HubDouble) -> None:
        hub.add("model", "me/moving", {"config.json": b"1", "model.bin": b"1"})
        download_model("me/moving", "config.json")
        hub.add("model", "me/moving", {"config.json": b"2", "model.bin": b"2"})
        folder = download_model("me/moving")
        assert (folder / "config.json").read_bytes() == (folder / "model.bin").read_bytes() == b"1"

    def test_cut_connection_goes_on_where_it_was(self, hub: HubDouble) -> None:
        hub.cut("model.bin", after_bytes=12 * 2**20)
        path = download_model("me/big", filename="model.bin")
        assert path.read_bytes() == BIG
        first, second = hub.downloads("model.bin")
        assert (first.range, second.range) == (None, f"bytes={10 * 2**20}-")
        assert second.status == 206 and second.body_bytes == len(BIG) - 10 * 2**20

    def test_interrupted_run_keeps_complete_files(self, hub: HubDouble) -> None:
        hub.cut("model.bin", after_bytes=12 * 2**20, reset=True)
        with pytest.raises(DownloadError, match="no connection") as error:
            download_model("me/big")
        assert "complete files are not downloaded twice" in error.value.hint
        folder = get_models_dir() / "me--big"
        assert not (folder / "model.bin").exists() and not list(folder.rglob("*.incomplete"))
        download_model("me/big")
        assert (folder / "model.bin").read_bytes() == BIG
        assert len(hub.downloads("config.json")) == 1


Download = Callable[..., Path]


@pytest.mark.parametrize("download", [download_dataset, download_model])
class TestRefusals:
    def test_missing_repository(self, download: Download, tmp_path: Path) -> None:
        with pytest.raises(DownloadError, match="'me/nothing', or denies access") as error:
            download("me/nothing")
        assert "OWNER/NAME" in error.value.hint
        with pytest.raises(DownloadError, match="is not a repository name"):
            download("https://huggingface.co/me/plain")

    def test_gated_repository(
        self, download: Download, hub: HubDouble, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for token in ("", "hf_wrong"):
            monkeypatch.setenv("HF_TOKEN", token)
            with pytest.raises(DownloadError, match="'me/secret' is gated") as error:
                download("me/secret")
            page = f"{hub.url}/{'datasets/' if download is download_dataset else ''}me/secret"
            assert page in error.value.hint and "hf auth login" in error.value.hint
            assert "hf_wrong" not in f"{error.value.message} {error.value.hint}"
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        assert download("me/secret").is_dir()

    def test_no_connection_and_not_a_hub(self, download: Download, hub: HubDouble) -> None:
        with pytest.raises(DownloadError, match=r"no connection to http://127\.0\.0\.1:9") as error:
            download("me/plain", endpoint="http://127.0.0.1:9")
        assert "check the network and HF_ENDPOINT" in error.value.hint
        with pytest.raises(DownloadError, match="answered 404") as error:
            download("me/plain", endpoint=f"{hub.url}/mirror")
        assert error.value.hint == "check HF_ENDPOINT"
        with pytest.raises(DownloadError, match="is not a hub"):
            download("me/plain", endpoint=f"{hub.url}/website")


def test_a_full_disk_is_named_through_the_clients_wrapping() -> None:
    with (
        pytest.raises(DownloadError, match="the disk is full"),
        explained("model", "me/tiny", None, "http://127.0.0.1"),
    ):
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise RuntimeError("it did not work") from error


class TestDiskAndChecksums:
    """What is checked before a download, and after it."""

    @pytest.mark.parametrize("path", ["model.safetensors", "config.json"])
    def test_a_model_file_with_another_checksum_is_removed(self, path: str, hub: HubDouble) -> None:
        hub.corrupted.add(path)
        with pytest.raises(DownloadError, match=f"'{path}' of model 'me/tiny'.*checksum") as error:
            download_model("me/tiny")
        assert "run it again" in error.value.hint
        folder = get_models_dir() / "me--tiny"
        assert not (folder / path).exists() and (folder / "onnx" / "model.onnx").exists()
        hub.corrupted.clear()
        hub.requests.clear()
        assert (download_model("me/tiny") / path).is_file()
        assert [request.path for request in hub.downloads("model.onnx")] == []  # not once more

    def test_what_was_changed_on_disk_is_found_by_the_next_download(self, hub: HubDouble) -> None:
        path = download_model("me/tiny", "model.safetensors")
        path.write_bytes(b"WEIGHTS")
        with pytest.raises(DownloadError, match=r"'model\.safetensors' of model"):
            download_model("me/tiny")
        assert (download_model("me/tiny") / "model.safetensors").read_bytes() == b"weights"

    def test_a_dataset_file_with_another_checksum_is_removed(
        self, hub: HubDouble, tmp_path: Path
    ) -> None:
        hub.corrupted.add("small/train.parquet")
        with pytest.raises(DownloadError, match=r"'small/train\.parquet' of dataset"):
            download_dataset("me/stories", "small")
        assert visible(get_datasets_dir()) == []
        cached = {path.name for path in (tmp_path / "cache").rglob("*.parquet")}
        assert cached == {"validation.parquet"}
        sizes = [path.stat().st_size for path in (tmp_path / "cache").rglob("blobs/*")]
        assert sorted(sizes) == sorted([len(parquet("v")), len(CARD)])
        hub.corrupted.clear()
        assert texts(download_dataset("me/stories", "small"), "train") == ["a", "b", "c"]
        assert len(hub.downloads("small/validation.parquet")) == 1

    @pytest.mark.parametrize(
        ("download", "path"),
        [(download_model, "config.json"), (download_dataset, "train.jsonl")],
        ids=["model", "dataset"],
    )
    def test_a_disk_without_room_is_told_before_anything_is_downloaded(
        self, download: Download, path: str, hub: HubDouble
    ) -> None:
        hub.claimed[path] = 7 * 10**18  # bytes: more than any disk has
        with pytest.raises(DownloadError, match="not enough disk space at") as error:
            download("me/tiny" if path == "config.json" else "me/plain")
        assert re.search(r"needed [\d,]+\.\d GB, free [\d,.]+ [kMG]B", error.value.message)
        assert "RESEARCH_ASSETS_DIR" in error.value.hint
        assert not hub.downloads(path)

    def test_room_is_counted_on_each_disk_and_for_what_is_missing(
        self, hub: HubDouble, small_disk: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        disk = small_disk("22m")  # BIG has 21 MiB
        monkeypatch.setenv("RESEARCH_ASSETS_DIR", str(disk))
        assert download_model("me/big").is_dir()
        (disk / "models" / "me--big" / "config.json").unlink()
        assert download_model("me/big").is_dir()  # the large file is there already
        hub.add("model", "me/other", {"model.bin": BIG})
        with pytest.raises(DownloadError, match=r"needed 22 MB, free [\d.]+ [kM]B"):
            download_model("me/other")
        assert not (disk / "models" / "me--other").exists()


class TestLink:
    @pytest.fixture
    def project(self, tmp_path: Path) -> Path:
        for name in ("one", "two"):
            (get_datasets_dir() / name).mkdir(parents=True)
        project = tmp_path / "projects" / "mine"
        project.mkdir(parents=True)
        return project

    def test_relative_repeatable_and_repointed(self, project: Path) -> None:
        for _ in range(2):
            link = link_dataset(project, "one")
            assert link == project / "data" and str(link.readlink()) == "../../assets/datasets/one"
            assert link.resolve() == (get_datasets_dir() / "one").resolve()
        link_dataset(project, "owner/two")
        assert str(link.readlink()) == "../../assets/datasets/two"
        link.unlink()
        link.symlink_to("nowhere")
        assert link_dataset(project, "one").is_dir()
        assert [path.name for path in project.iterdir()] == ["data"]

    def test_real_folder_in_the_way_stays(self, project: Path) -> None:
        (project / "data").mkdir()
        with pytest.raises(DataError, match="is not a link"):
            link_dataset(project, "one")
        assert not (project / "data").is_symlink()

    def test_missing_dataset_says_how_to_get_it(self, project: Path) -> None:
        with pytest.raises(DataError, match="no dataset 'three'") as error:
            link_dataset(project, "me/three")
        assert "python tools/download_hf_dataset.py --name me/three" in error.value.hint
        with pytest.raises(DataError, match="no project folder"):
            link_dataset(project / "nowhere", "one")

    @pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a disk without links: /proc")
    def test_no_symlinks_here(self, project: Path) -> None:
        with pytest.raises(DataError, match="cannot make /proc/data") as error:
            link_dataset("/proc", "one")
        assert "Developer Mode" in error.value.hint and "data.dataset=one" in error.value.hint


def test_folder_names() -> None:
    assert dataset_folder_name("roneneldan/TinyStories") == "TinyStories"
    assert dataset_folder_name("wikitext", "wikitext-2-raw-v1") == "wikitext-wikitext-2-raw-v1"


class TestTools:
    @pytest.fixture
    def start(self, tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
        """Start a tool in a fresh process with its own assets and caches."""

        def start(tool: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
            own = {
                "HF_HOME": str(tmp_path / "hf"),
                "HF_UPDATE_DOWNLOAD_COUNTS": "0",
                "HF_HUB_DISABLE_TELEMETRY": "1",
            }
            return subprocess.Popen(
                [sys.executable, str(REPOSITORY_ROOT / "tools" / f"{tool}.py"), *arguments],
                env=os.environ | own | environment,
                cwd=tmp_path,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )

        return start

    @pytest.mark.slow
    def test_dataset_tool(self, start: Any, hub: HubDouble, tmp_path: Path) -> None:
        project = tmp_path / "mine"
        project.mkdir()
        command = ("download_hf_dataset", "--name", "me/plain", "--link", str(project))
        both = [start(*command), start(*command)]  # at once: one downloads, the other waits
        for process in both:
            out, err = process.communicate(timeout=60)
            assert process.returncode == 0, err
            assert "me/plain is in assets/datasets/plain" in out
            assert "data.dataset=plain" in out
        assert len(hub.downloads("/train.jsonl")) == 1
        assert (project / "data" / "dataset_dict.json").is_file()
        offline = start(*command, HF_HUB_OFFLINE="1", HF_ENDPOINT="http://127.0.0.1:9")
        assert offline.communicate(timeout=60)[0] == out and offline.returncode == 0

    @pytest.mark.slow
    def test_model_tool(self, start: Any, tmp_path: Path) -> None:
        one = start("download_hf_model", "--repo-id", "me/tiny", "--filename", "config.json")
        out, err = one.communicate(timeout=60)
        assert one.returncode == 0, err
        assert out == "me/tiny is in assets/models/me--tiny/config.json\n"
        assert (tmp_path / "assets/models/me--tiny/config.json").is_file()

    @pytest.mark.slow
    def test_failures_are_one_line_a_hint_and_exit_code_2(self, start: Any, tmp_path: Path) -> None:
        gated = start("download_hf_dataset", "--name", "me/secret", HF_TOKEN="hf_wrong")
        missing = start("download_hf_model", "--repo-id", "me/nothing")
        offline = start("download_hf_model", "--repo-id", "me/tiny", HF_HUB_OFFLINE="1")
        for process, message, hint in (
            (gated, "dataset 'me/secret' is gated", "accept its terms on "),
            (missing, "has no model 'me/nothing', or denies access", "check the name"),
            (offline, "is not on disk, the client is offline", "unset HF_HUB_OFFLINE"),
        ):
            out, err = process.communicate(timeout=60)
            assert process.returncode == 2, err
            first, second = err.splitlines()
            assert first.startswith("error [download]: ") and message in first
            assert second.startswith("  hint: ") and hint in second
            assert out == "" and "hf_wrong" not in err
        assert visible(tmp_path / "assets/datasets") == visible(tmp_path / "assets/models") == []

    @pytest.mark.slow
    def test_a_token_is_sent_and_kept_nowhere(self, start: Any, tmp_path: Path) -> None:
        for kind, tool in (("name", "download_hf_dataset"), ("repo-id", "download_hf_model")):
            for name in ("me/secret", "me/nothing"):  # it opens the first, the second fails
                process = start(tool, f"--{kind}", name, HF_TOKEN=TOKEN, HF_DEBUG="0")
                out, err = process.communicate(timeout=60)
                assert process.returncode == (0 if name == "me/secret" else 2), err
                assert TOKEN not in out + err
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert any(path.name == "config.json" for path in files)
        assert not [path for path in files if TOKEN.encode() in path.read_bytes()]

    @pytest.mark.parametrize("tool", ["download_hf_dataset", "download_hf_model"])
    def test_help_is_quick(self, start: Any, tool: str) -> None:
        seconds = []
        for _ in range(3):  # the best of three: the machine may be busy
            begin = time.perf_counter()
            process = start(tool, "--help")
            out, err = process.communicate(timeout=60)
            seconds.append(time.perf_counter() - begin)
            assert process.returncode == 0 and "examples:" in out, err
        assert min(seconds) < 0.5
