"""Download datasets and models from the Hugging Face hub, or a mirror of it, to `assets/`.

A finished download has a `.download.json` with the request and the commit. The same request is
answered from disk, without the network; a different one never is.
"""

from __future__ import annotations

import glob
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from filelock import FileLock

from common.data.hf_errors import Kind, explained
from common.data.hf_files import HubFile, check_arrived, check_space, list_files
from common.errors import DataError, DownloadError, did_you_mean
from common.utils.file_locks import file_lock
from common.utils.files import publish_folder, read_json, write_json_atomic
from common.utils.paths import display_path
from common.utils.paths import get_datasets_dir as get_datasets_dir
from common.utils.paths import get_models_dir as get_models_dir

RECORD = ".download.json"


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

    The folder is `get_datasets_dir() / dataset_folder_name(name, config)`, or exactly `output_dir`.
    It contains a `DatasetDict`, or a `Dataset` if `split` is given (`train`, `train[:1%]`,
    `train+test`); files of other splits are then not downloaded. `revision` is a branch, tag or
    commit (default `main`), `endpoint` a mirror's address (default `HF_ENDPOINT`, then the hub).
    `force` downloads again and replaces the whole folder, token files included. Call it from one
    thread at a time: see `_clients_use`.

    Raises DownloadError (the hub does not have it, denies access, or cannot be reached) and
    DataError (the folder contains something else).
    """
    endpoint = hub_endpoint(endpoint)
    folder = Path(output_dir or get_datasets_dir() / dataset_folder_name(name, config))
    folder = folder.expanduser().absolute()
    asked = {"name": name, "config": config, "split": split, "revision": revision or "main"}
    partial = folder.with_name(f".{folder.name}.partial")
    with _lock(folder):
        if _holds(folder, asked, force):
            return folder
        _remove(partial)  # left by a killed process
        try:
            with explained("dataset", name, revision, endpoint):
                repository, commit = _resolve("dataset", name, revision, endpoint)
                with _clients_use(endpoint):
                    _save(repository, config, split, commit, endpoint, partial)
            found = {"repository": repository, "commit": commit, "date": _now()}
            write_json_atomic(partial / "data" / RECORD, asked | found)
            publish_folder(partial / "data", folder, partial / "old")
        finally:
            _remove(partial)
    return folder


def check_downloaded_from(folder: Path, name: str) -> None:
    """Raise DataError if `folder` is a download of another dataset; users' own files are accepted."""
    if not (folder / RECORD).is_file():
        return
    record = _read_record(folder)
    if name not in (record["name"], record["repository"]):
        raise DataError(
            f"{display_path(folder)} contains {record['name']}, but data.hub is {name}",
            "set data.dataset to another name",
        )


def download_model(
    repo_id: str,
    filename: str | None = None,
    revision: str | None = None,
    endpoint: str | None = None,
    allow_patterns: str | list[str] | None = None,
) -> Path:
    """Download a model: all its files, those that match `allow_patterns` (`*.safetensors`), or one file.

    Returns the folder `get_models_dir() / "owner--name"` (`owner--name@revision` for a given
    revision), or the path of `filename` in it. All files of a folder come from one commit, the
    first one downloaded: delete the folder to get a newer one. After an interruption, complete
    files are not downloaded again.

    Raises DownloadError: the hub does not have it, denies access, or cannot be reached.
    """
    if filename and allow_patterns:
        raise DownloadError("both a file name and patterns were given", "give one of them")
    patterns = [allow_patterns] if isinstance(allow_patterns, str) else allow_patterns or ["*"]
    patterns = [glob.escape(filename)] if filename else sorted(patterns)
    endpoint, request = hub_endpoint(endpoint), " ".join(patterns)
    version = f"@{quote(revision, safe='')}" if revision else ""
    folder = get_models_dir() / (repo_id.replace("/", "--") + version)
    with _lock(folder):
        record = _read_record(folder) if (folder / RECORD).exists() else {"requests": {}}
        files = record["requests"].get(request)
        if files is None or not all((folder / file).is_file() for file in files):
            revision = record.get("commit") or revision
            with explained("model", repo_id, revision, endpoint):
                name, commit = _resolve("model", repo_id, revision, endpoint)
                found = _matching_files(name, commit, endpoint, patterns)
                files = [file.path for file in found]
                check_space({folder: sum(f.size for f in found if not _is_there(f, folder))})
                # Written before the files, so that the next run continues with the same commit.
                record |= {"name": repo_id, "repository": name, "commit": commit, "date": _now()}
                folder.mkdir(exist_ok=True)
                write_json_atomic(folder / RECORD, record)
                _fetch(name, commit, endpoint, patterns, folder)
                check_arrived("model", name, [(file, folder / file.path) for file in found])
            record["requests"][request] = files
            write_json_atomic(folder / RECORD, record)
    return folder / filename if filename else folder


def link_dataset(project_dir: Path | str, dataset: str) -> Path:
    """Make `<project_dir>/data` a relative symlink to a downloaded dataset; return the link.

    `dataset` is a folder in `get_datasets_dir()`, or its name on the hub. An existing link is
    replaced. Raises DataError: no such dataset, a real file in the way, or symlinks are not
    supported.
    """
    folder, project = get_datasets_dir() / dataset_folder_name(dataset), Path(project_dir).resolve()
    if not folder.is_dir():
        name = dataset if "/" in dataset else f"OWNER/{dataset}"
        hint = f"download it: python tools/download_hf_dataset.py --name {name}"
        raise DataError(f"no dataset '{folder.name}' in {display_path(folder.parent)}", hint)
    if not project.is_dir():
        raise DataError(f"no project folder {display_path(project)}", "check the path")
    link, new = project / "data", project / f".data.{os.getpid()}.tmp"
    if link.exists() and not link.is_symlink():
        raise DataError(f"{display_path(link)} exists and is not a link", "move it away")
    try:
        new.symlink_to(os.path.relpath(folder, project), target_is_directory=True)
        new.replace(link)
    except OSError as error:
        hint = "on Windows, turn on Developer Mode (Settings, For developers); training needs no link: "
        hint += f"data.dataset={folder.name} is enough"
        raise DataError(f"cannot make {display_path(link)}: {error.strerror}", hint) from error
    finally:
        new.unlink(missing_ok=True)
    return link


def hub_endpoint(endpoint: str | None) -> str:
    """The endpoint: the given one, else HF_ENDPOINT, else the hub; without trailing slash."""
    # Read here, because the hub client reads its environment only once, when it is imported.
    return (endpoint or os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _lock(folder: Path) -> FileLock:
    """One process downloads, the others wait for it. The lock file is kept: removing it would be a race."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    return file_lock(folder.parent / f".{folder.name}.lock")


def _read_record(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = read_json(folder / RECORD, DataError, f"delete {display_path(folder)}")
    return record


def _holds(folder: Path, asked: dict[str, str | None], force: bool) -> bool:
    """Whether `folder` is the requested download; False if it does not exist."""
    if not folder.exists() or not any(folder.iterdir()):
        return False
    where = display_path(folder)
    if not (folder / RECORD).is_file():  # not a download: even `force` does not remove it
        raise DataError(f"{where} contains something that was not downloaded", "move it away")
    if force:
        return False
    record = _read_record(folder)
    also_known_as = {"name": record["repository"], "revision": record["commit"]}
    for key, value in asked.items():
        if value not in (record[key], also_known_as.get(key)):
            have, want = record[key] or "not given", value or "not given"
            hint = "--force (force=True) replaces it; --output-dir (output_dir=...) keeps both"
            raise DataError(f"{where} contains another {key}: {have}, requested: {want}", hint)
    return True


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


@contextmanager
def _clients_use(endpoint: str) -> Iterator[None]:
    """Point `datasets` at `endpoint` inside the block.

    `load_dataset` takes no endpoint. On every call it looks up these three names: its own and, for
    the URL of a single file, the hub client's.
    """
    import datasets.config
    from huggingface_hub import constants as hub

    before = datasets.config.HF_ENDPOINT, hub.ENDPOINT, hub.HUGGINGFACE_CO_URL_TEMPLATE
    try:
        datasets.config.HF_ENDPOINT = hub.ENDPOINT = endpoint
        hub.HUGGINGFACE_CO_URL_TEMPLATE = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        yield
    finally:
        datasets.config.HF_ENDPOINT, hub.ENDPOINT, hub.HUGGINGFACE_CO_URL_TEMPLATE = before


def _resolve(kind: Kind, name: str, revision: str | None, endpoint: str) -> tuple[str, str]:
    """Return the repository's current name and the commit of `revision`.

    Called first: it fails at once, and later errors of the clients do not distinguish a missing
    repository, revision or permission.
    """
    from huggingface_hub import HfApi

    api = HfApi(endpoint=endpoint)
    try:
        info = api.repo_info(name, repo_type=kind, revision=revision, timeout=30.0)
    except json.JSONDecodeError as error:
        raise DownloadError(f"{endpoint} is not a hub", "check HF_ENDPOINT") from error
    if getattr(info, "gated", False):
        api.auth_check(info.id, repo_type=kind)
    if info.sha is None:
        raise DownloadError(
            f"{endpoint} reports no commit of {kind} '{name}'", "use another mirror"
        )
    return info.id, info.sha


def _save(
    name: str, config: str | None, split: str | None, commit: str, endpoint: str, partial: Path
) -> None:
    """Build the dataset in `partial / "cache"` and save it to `partial / "data"`.

    Uses a private cache: if the network fails, `datasets` would answer from the shared one with any
    revision.
    """
    builder = _builder(name, config, commit, partial / "cache")
    if split:
        _keep_only(builder, split)
    _fetch_data_files(builder, name, commit, endpoint, partial)
    builder.download_and_prepare()
    builder.as_dataset(split=split).save_to_disk(str(partial / "data"))


def _fetch_data_files(builder: Any, name: str, commit: str, endpoint: str, partial: Path) -> None:
    """Download the builder's files into the client's cache, and verify them."""
    from huggingface_hub import constants, snapshot_download, try_to_load_from_cache

    here = f"hf://datasets/{name}@{commit}/"
    addresses = [str(a) for files in (builder.config.data_files or {}).values() for a in files]
    wanted = {address.partition(here)[2] for address in addresses}
    files = [f for f in list_files("dataset", name, commit, endpoint) if f.path in wanted]
    if not files:  # its files are elsewhere
        return

    def place(file: HubFile) -> Path:
        found = try_to_load_from_cache(name, file.path, revision=commit, repo_type="dataset")
        return Path(found) if isinstance(found, str) else Path(constants.HF_HUB_CACHE, "missing")

    # Once in the cache; in our folder as Arrow files and as their saved copy.
    missing = sum(file.size for file in files if not place(file).exists())
    check_space(
        {Path(constants.HF_HUB_CACHE): missing, partial: 2 * sum(file.size for file in files)}
    )
    snapshot_download(
        name,
        repo_type="dataset",
        revision=commit,
        endpoint=endpoint,
        allow_patterns=[glob.escape(file.path) for file in files],
    )
    check_arrived("dataset", name, [(file, place(file)) for file in files])


def _builder(name: str, config: str | None, commit: str, cache: Path) -> Any:
    """A `datasets.DatasetBuilder`: Any, because the library has no type information."""
    import datasets

    # Without the prefix, a local folder of that name takes precedence.
    path = f"hf://datasets/{name}"
    try:
        return datasets.load_dataset_builder(path, config, revision=commit, cache_dir=str(cache))
    except ValueError as error:
        configs = datasets.get_dataset_config_names(path, revision=commit)
        if config in configs or (config is None and len(configs) == 1):
            raise
        wrong = f"no configuration '{config}'" if config else "several configurations"
        hint = did_you_mean(config or "", configs)
        raise DownloadError(f"dataset '{name}' has {wrong}", hint) from error


def _keep_only(builder: Any, split: str) -> None:
    """Remove splits not named by `split` from the builder, which would download them too."""
    import datasets

    try:
        datasets.ReadInstruction.from_spec(split)
    except ValueError as error:
        raise DownloadError(f"'{split}' is not a split", "write train, train[:1%] ...") from error
    files = builder.config.data_files
    splits = {str(name): name for name in files}
    wanted = {part.split("[")[0].strip() for part in split.split("+")}
    for unknown in wanted - set(splits) - {"all"}:
        hint = did_you_mean(unknown, list(splits))
        raise DownloadError(f"dataset '{builder.repo_id}' has no split '{unknown}'", hint)
    for other in set() if "all" in wanted else set(splits) - wanted:
        del files[splits[other]]
        (builder.info.splits or {}).pop(other, None)  # else the builder reports it missing


def _matching_files(name: str, commit: str, endpoint: str, patterns: list[str]) -> list[HubFile]:
    from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]  # lazy export

    files = list_files("model", name, commit, endpoint)
    chosen = list(filter_repo_objects(files, allow_patterns=patterns, key=lambda file: file.path))
    if not chosen:
        hint = did_you_mean(patterns[0], [file.path for file in files])[:500]
        raise DownloadError(f"model '{name}' has no file '{' '.join(patterns)}'", hint)
    return chosen


def _is_there(file: HubFile, folder: Path) -> bool:
    path = folder / file.path
    return path.is_file() and path.stat().st_size == file.size


def _fetch(name: str, commit: str, endpoint: str, patterns: list[str], folder: Path) -> None:
    from huggingface_hub import snapshot_download

    # If the hub stops answering, the client returns an incomplete folder.
    snapshot_download(
        name, revision=commit, endpoint=endpoint, allow_patterns=patterns, local_dir=folder
    )
