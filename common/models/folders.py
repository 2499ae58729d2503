"""Find models in Hugging Face format. Imports no torch, so that a missing one is reported at once."""

from __future__ import annotations

from pathlib import Path

from common.errors import ModelError, did_you_mean
from common.utils.paths import display_path, get_models_dir


def find_model_folder(where: Path | str) -> Path:
    """Find a model: a folder, or a name in assets/models (OWNER/NAME of the hub, or a local name).

    Raises ModelError with the download command if neither exists.
    """
    folder = Path(where).expanduser()
    if folder.is_dir():
        return folder
    known = {path.parent.name: path.parent for path in get_models_dir().glob("*/config.json")}
    name = str(where).replace("/", "--")
    if name in known:
        return known[name]
    names = [other.replace("--", "/") for other in known]
    raise ModelError(
        f"no model '{where}', neither a folder nor in {display_path(get_models_dir())}",
        (did_you_mean(str(where), names) + "; or " if names else "")
        + "download it: python tools/download_hf_model.py --repo-id OWNER/NAME "
        "--include '*.safetensors' '*.json'",
    )
