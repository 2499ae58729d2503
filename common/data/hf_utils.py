"""Datasets and models from the Hugging Face hub, or a mirror of it, kept under `assets/`.

A finished download carries a `.download.json`: what was asked, and the commit it came from. Asking for the
same again is answered from disk, without the network; asking for something else in the same folder is an
error, never the wrong data.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from common.errors import DataError, DownloadError, did_you_mean
from common.utils.files import fsync_dir, fsync_file, read_json, write_json_atomic
from common.utils.paths import display_path, get_datasets_dir, get_models_dir

__all__ = [
    "dataset_folder_name",
    "download_dataset",
    "download_model",
    "get_datasets_dir",
    "get_models_dir",
    "link_dataset",
]

RECORD = ".download.json"
HUB_TIMEOUT_SECONDS = 30.0
Kind = Literal["dataset", "model"]


def dataset_folder_name(name: str, config: str | None = None) -> str:
    """`owner/TinyStories` -> `TinyStories`; with a configuration, `wikitext-wikitext-2-raw-v1`."""
    return "-".join(part for part in (name.rsplit("/", 1)[-1], config) if part)


def download_dataset(
    name: str,
    config: str | None = None,
    split: str | None = None,
    revision: str | None = None,
    endpoint: str | None = None,
    output_dir: Path | str | None = None,
    force: bool = False,
) -> Path:
    """Download a dataset into a folder that `datasets.load_from_disk` opens, and return the folder.

    The folder is `get_datasets_dir() / dataset_folder_name(name, config)`, or exactly `output_dir`. It holds
    a `DatasetDict`, or a `Dataset` when `split` names one (`train`, `train[:1%]`, `train+test`); the files of
    other splits are then not downloaded. `revision` is a branch, tag or commit (default: `main`). `endpoint`
    is a mirror's address (default: `HF_ENDPOINT`, then the hub). `force` downloads again and replaces the
    folder, token files included.

    Not for several threads at once: see `_clients_use`.

    Raises:
        DownloadError: the hub does not have it, does not give it, or cannot be reached.
        DataError: the folder holds something else.
    """
    folder = Path(output_dir or get_datasets_dir() / dataset_folder_name(name, config))
    asked = {"name": name, "config": config, "split": split, "revision": revision or "main"}
    with _locked(folder):
        if _holds(folder, asked, force):
            return folder
        with _explained("dataset", name, revision, endpoint):
            repository, commit = _resolve("dataset", name, revision, endpoint)
            partial = folder.with_name(f".{folder.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)  # what a killed process left
            try:
                # A cache of its own, because `datasets` answers from the shared one, with whatever
                # revision is there, when the network fails half-way.
                with _clients_use(_endpoint(endpoint)):
                    dataset = _build(repository, config, split, commit, partial / "cache")
                    dataset.save_to_disk(str(partial / "data"))
                write_json_atomic(partial / "data" / RECORD, _record(asked, commit))
                _publish(partial / "data", folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    return folder


def download_model(
    repo_id: str,
    filename: str | None = None,
    revision: str | None = None,
    endpoint: str | None = None,
    allow_patterns: str | list[str] | None = None,
) -> Path:
    """Download a model repository, the files that match `allow_patterns` (`*.safetensors`), or one file.

    Returns the folder `get_models_dir() / "owner--name"` (`owner--name@revision` when one is asked for), or
    the path of `filename` in it. All files of a folder come from one commit, the one that its first
    download found; delete the folder to get a newer one. After an interruption, files that are complete
    are not downloaded again. `endpoint` is as in `download_dataset`.

    Raises:
        DownloadError: the hub does not have it, does not give it, or cannot be reached.
    """
    if filename and allow_patterns:
        raise DownloadError("`filename` and `allow_patterns` were both given", "give one of them")
    patterns = [allow_patterns] if isinstance(allow_patterns, str) else allow_patterns
    request = filename or " ".join(sorted(patterns or ["*"]))
    version = f"@{quote(revision, safe='')}" if revision else ""
    folder = get_models_dir() / (repo_id.replace("/", "--") + version)
    target = folder / filename if filename else folder
    with _locked(folder):
        record = _read_record(folder) if (folder / RECORD).exists() else {"requests": {}}
        finished = record["requests"].get(request)
        if finished is not None and all((folder / file).is_file() for file in finished):
            return target
        with _explained("model", repo_id, revision, endpoint):
            repo_id, commit = _resolve("model", repo_id, record.get("commit", revision), endpoint)
            files = _select(repo_id, commit, endpoint, filename, patterns)
            if "commit" not in record:  # before the download, so that a second run gets the same commit
                record |= _record({"name": repo_id, "revision": revision or "main"}, commit)
                folder.mkdir(parents=True, exist_ok=True)
                write_json_atomic(folder / RECORD, record)
            _fetch(repo_id, commit, endpoint, files, folder)
        record["requests"][request] = files
        write_json_atomic(folder / RECORD, record)
    return target


def link_dataset(project_dir: Path | str, dataset: str) -> Path:
    """Make `<project_dir>/data` a relative symlink to a downloaded dataset; return the link.

    `dataset` is a folder of `get_datasets_dir()`, or the name on the hub. A link to another dataset is
    re-pointed; repeating is harmless.

    Raises:
        DataError: no such dataset or project, a real file in the way, or symlinks are not possible here.
    """
    folder = get_datasets_dir() / dataset_folder_name(dataset)
    if not folder.is_dir():
        name = dataset if "/" in dataset else f"<owner>/{dataset}"
        hint = f"download it: python tools/download_hf_dataset.py --name {name}"
        raise DataError(f"no dataset '{folder.name}' in {display_path(folder.parent)}", hint)
    project = Path(project_dir).resolve()
    if not project.is_dir():
        raise DataError(f"no project folder {display_path(project)}", "create it, or check the path")
    link = project / "data"
    if not link.is_symlink() and link.exists():
        raise DataError(f"{display_path(link)} is not a link; it stays", "move it away, then try again")
    new = project / f".data.{os.getpid()}.tmp"
    try:
        new.symlink_to(os.path.relpath(folder, project), target_is_directory=True)
        new.replace(link)
    except OSError as error:
        hint = (
            "on Windows, turn on Developer Mode (Settings > System > For developers); elsewhere, check that "
            f"the disk allows links. Training needs none: data.source={folder.name} finds the dataset too"
        )
        raise DataError(f"cannot make the link {display_path(link)}: {error.strerror}", hint) from error
    return link


def _endpoint(endpoint: str | None) -> str:
    from huggingface_hub import constants

    # The client reads HF_ENDPOINT once, when it is imported; a later change counts too.
    return (endpoint or os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


@contextmanager
def _clients_use(endpoint: str) -> Iterator[None]:
    """Point `datasets` at `endpoint`.

    `load_dataset` takes no endpoint. It looks these three names up at each call (`datasets` its own, and
    the hub client's for the addresses of single files), so they are set for the time of the block.
    """
    import datasets.config
    from huggingface_hub import constants

    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    before = (datasets.config.HF_ENDPOINT, constants.ENDPOINT, constants.HUGGINGFACE_CO_URL_TEMPLATE)
    datasets.config.HF_ENDPOINT = constants.ENDPOINT = endpoint
    constants.HUGGINGFACE_CO_URL_TEMPLATE = template
    try:
        yield
    finally:
        datasets.config.HF_ENDPOINT, constants.ENDPOINT, constants.HUGGINGFACE_CO_URL_TEMPLATE = before


def _resolve(kind: Kind, name: str, revision: str | None, endpoint: str | None) -> tuple[str, str]:
    """The repository's present name and the commit of `revision`; fails early if it is gated or missing.

    Asked first, because what the clients raise later no longer tells these cases apart.
    """
    from huggingface_hub import HfApi

    api = HfApi(endpoint=_endpoint(endpoint))
    info = api.repo_info(name, repo_type=kind, revision=revision, timeout=HUB_TIMEOUT_SECONDS)
    if getattr(info, "gated", False):
        api.auth_check(info.id, repo_type=kind)
    if info.sha is None:
        raise DownloadError(f"{api.endpoint} names no commit for '{name}'", "use another mirror")
    return info.id, info.sha


# `datasets` has no types: its objects are Any here.
def _build(repository: str, config: str | None, split: str | None, commit: str, cache: Path) -> Any:
    import datasets

    # With the prefix, a local folder of the same name is not taken for the dataset.
    path = f"hf://datasets/{repository}"
    try:
        builder = datasets.load_dataset_builder(path, config, revision=commit, cache_dir=str(cache))
    except ValueError as error:
        configs = datasets.get_dataset_config_names(path, revision=commit)
        if config in configs or (config is None and len(configs) == 1):
            raise
        wrong = f"no configuration '{config}'" if config else "several configurations"
        hint = did_you_mean(config or "", configs)
        raise DownloadError(f"dataset '{repository}' has {wrong}", hint) from error
    files = builder.config.data_files
    wanted = {part.split("[")[0].strip() for part in split.split("+")} if split else set(files)
    if missing := wanted - set(files) - {"all"}:
        message = f"dataset '{repository}' has no split '{min(missing)}'"
        raise DownloadError(message, did_you_mean(min(missing), list(files)))
    if "all" not in wanted:
        for other in set(files) - wanted:
            del files[other]  # or it is downloaded too
            (builder.info.splits or {}).pop(other, None)  # or the client misses it
    builder.download_and_prepare()
    return builder.as_dataset(split=split)


def _select(
    repo_id: str, commit: str, endpoint: str | None, filename: str | None, patterns: list[str] | None
) -> list[str]:
    """The files to download, each of which the repository has."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils import filter_repo_objects

    files = HfApi(endpoint=_endpoint(endpoint)).list_repo_files(repo_id, revision=commit)
    chosen = list(filter_repo_objects(files, allow_patterns=patterns))
    if filename:
        chosen = [file for file in files if file == filename]
    if not chosen:
        what = filename or " ".join(patterns or ["*"])
        raise DownloadError(f"model '{repo_id}' has no file '{what}'", did_you_mean(what, files))
    return chosen
