"""Export of a trained run: its checkpoint as a file or folder of another program."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, cast

from apps.export.config import Format, GGUFDtype, check_dtype
from apps.export.gguf import export_gguf
from apps.export.onnx import export_onnx
from common.data.token_files import TokenDataset
from common.errors import ModelError
from common.models.base import BaseLanguageModel
from common.models.hub_format import save_pretrained
from common.training.config import ExperimentConfig
from common.training.experiment import load_run
from common.utils.paths import get_runs_dir

C = TypeVar("C", bound=ExperimentConfig)


def export_run(
    config: C,
    build_model: Callable[[C, int], BaseLanguageModel],
    name: str,
    which: str,
    *,
    format: Format,
    dtype: str | None = None,
    output: Path | None = None,
) -> list[Path]:
    """Write checkpoint `which` (best, last or a step) of run `name` in another format.

    Args:
        format: gguf (llama.cpp), onnx (ONNX Runtime), hub (a folder for transformers).
        dtype: of a GGUF file's matrices, by default f16; the other formats have float32.
        output: by default in `exports/` of the run's folder.
    Returns what was written: of onnx also the tokenizer, for which that format has no place.
    Raises ConfigError for a dtype that the format has not, ModelError for a model that it has not.
    """
    check_dtype(format, dtype)
    model, data, _ = load_run(config, build_model, name, which)
    kind = cast(GGUFDtype, dtype or "f16")
    file = {"gguf": f"{name}-{kind}.gguf", "onnx": f"{name}.onnx", "hub": name}[format]
    output = output or get_runs_dir() / name / "exports" / file
    if format == "gguf":
        return [export_gguf(model, data.tokenizer, output, kind, name)]
    if format == "onnx":
        return _export_onnx(model, data, output, name)
    if model.quantization is not None:
        raise ModelError(
            "a quantised model cannot be written in the format of Hugging Face",
            "export the one that it came from",
        )
    return [save_pretrained(model, output, data.tokenizer)]


def _export_onnx(
    model: BaseLanguageModel, data: TokenDataset, output: Path, name: str
) -> list[Path]:
    facts = {"experiment": name, "end_of_text": data.tokenizer.end_of_text}
    export_onnx(model, output, facts)
    beside = output.with_suffix(".tokenizer.json")
    data.tokenizer.save(beside)
    return [output, beside]
