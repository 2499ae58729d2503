"""Stream datasets from the hub, for those that do not fit the disk."""

from __future__ import annotations

from typing import Any

from common.data.hf_errors import explained
from common.data.hf_utils import _clients_use, _resolve, dataset_folder_name, hub_endpoint


def stream_dataset(name: str) -> tuple[str, str, dict[str, Any]]:
    """Return (folder name, commit, {split: iterable of rows}) of a dataset at its current commit.

    Each row is a dict. Each iteration starts over and needs the network. Raises DownloadError.
    """
    import datasets

    endpoint = hub_endpoint(None)
    with explained("dataset", name, None, endpoint):
        repository, commit = _resolve("dataset", name, None, endpoint)
        with _clients_use(endpoint):
            loaded = datasets.load_dataset(
                f"hf://datasets/{repository}", revision=commit, streaming=True
            )
    splits = {str(split): _Rows(rows, name, endpoint) for split, rows in loaded.items()}
    return dataset_folder_name(name), commit, splits


class _Rows:
    """The rows of one split; errors are translated as for a download."""

    def __init__(self, rows: Any, name: str, endpoint: str) -> None:
        self._rows, self._name, self._endpoint = rows, name, endpoint

    def __iter__(self) -> Any:
        with explained("dataset", self._name, None, self._endpoint), _clients_use(self._endpoint):
            yield from self._rows
