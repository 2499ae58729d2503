"""Export a trained run to a format of another program."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from apps.export.config import Format, GGUFDtype, check_dtype
from apps.export.gguf import export_gguf
from apps.export.hub_format import save_pretrained
from apps.export.onnx import export_onnx
from common.data.tokenizers import Tokenizer
from common.errors import ModelError
from common.models.base import BaseLanguageModel
from common.training.trained_run import TrainedRun
from common.utils.paths import get_runs_dir


def export_run(
    run: TrainedRun, *, format: Format, dtype: str | None = None, output: Path | None = None
) -> list[Path]:
    """Write `run` in another format.

    Args:
        format: gguf (llama.cpp), onnx (ONNX Runtime), hub (a folder for transformers).
        dtype: of the matrices in GGUF, default f16; the other formats have float32.
        output: default: in `exports/` of the run folder. Returns the written files: for onnx also
            the tokenizer, which the format does not include.
    Raises ConfigError for a dtype, ModelError for a model that the format does not support.
    """
    check_dtype(format, dtype)
    name, model, tokenizer = run.name, run.model, run.text.tokenizer
    kind = cast(GGUFDtype, dtype or "f16")
    file = {"gguf": f"{name}-{kind}.gguf", "onnx": f"{name}.onnx", "hub": name}[format]
    output = output or get_runs_dir() / name / "exports" / file
    if format == "gguf":
        return [export_gguf(model, tokenizer, output, kind, name)]
    if format == "onnx":
        return _export_onnx(model, tokenizer, output, name)
    if model.quantization is not None:
        raise ModelError(
            "a quantised model cannot be written in Hugging Face format",
            "export the original model",
        )
    return [save_pretrained(model, output, tokenizer)]


def _export_onnx(
    model: BaseLanguageModel, tokenizer: Tokenizer, output: Path, name: str
) -> list[Path]:
    facts = {"experiment": name, "end_of_text": tokenizer.end_of_text}
    export_onnx(model, output, facts)
    beside = output.with_suffix(".tokenizer.json")
    tokenizer.save(beside)
    return [output, beside]
