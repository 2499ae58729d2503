"""ONNX files: the forward pass of any model as a graph for ONNX Runtime and others.

The graph maps `input_ids` (batch, time) int64 to `logits` (batch, time, vocab_size) float32, for
any batch and any time up to the model's context. It has no cache: each new token costs a pass over
the whole text. Exported with PyTorch through `torch.export`, and verified with ONNX Runtime before
the file is published.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from apps.export.readback import check_logits, probe, run_reader
from common.errors import MissingPackageError, ModelError
from common.models.base import BaseLanguageModel
from common.utils.files import atomic_path
from common.utils.logging import get_logger

_MAX_BYTES = 2**31  # limit of a protocol buffer


class _Logits(nn.Module):
    """The exported module: tensors to a tensor."""

    def __init__(self, model: BaseLanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """(batch, time) int64 -> (batch, time, vocab_size)"""
        logits: torch.Tensor = self.model(input_ids)["logits"]
        return logits


def export_onnx(
    model: BaseLanguageModel, path: Path, metadata: Mapping[str, object] | None = None
) -> Path:
    """Write the forward pass of `model` to the file `path`, atomically.

    Args:
        metadata: additional text entries, besides vocabulary size and context.
    Raises ModelError if the model cannot be exported as a graph, or ONNX Runtime gives other
    logits; MissingPackageError without the packages `onnx` and `onnxscript`.
    """
    onnx = _package()
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    if size >= _MAX_BYTES:
        raise ModelError(
            f"the limit of an ONNX file is 2 GiB, this model has {size / 2**30:.1f}",
            "export it with --format gguf or --format hub",
        )
    graph = _trace(model)
    facts: dict[str, object] = {"vocab_size": model.vocab_size, **(metadata or {})}
    if model.context_limit is not None:
        facts["context_length"] = model.context_limit
    graph.metadata_props.update({key: str(value) for key, value in facts.items()})
    with atomic_path(path) as temporary:
        onnx.save(_as_proto(graph), temporary)
        onnx.checker.check_model(temporary, full_check=True)
        _run_back(model, temporary)
    return path


def _run_back(model: BaseLanguageModel, path: Path) -> None:
    """Raise ModelError unless ONNX Runtime gives the logits of `model`; warn if it is not installed."""
    try:
        import onnxruntime
    except ImportError:
        get_logger("export").warning(
            "the file was checked but not run: ONNX Runtime is not installed (uv pip install onnxruntime)"
        )
        return
    probes, reader = probe(model), f"ONNX Runtime {onnxruntime.__version__}"

    def compute() -> list[torch.Tensor]:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # fatal errors are raised
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        runs = [session.run(["logits"], {"input_ids": ids.numpy()}) for ids, _ in probes]
        return [torch.from_numpy(logits) for (logits,) in runs]

    check_logits(probes, run_reader(reader, compute), "f32", reader)


def _package() -> Any:
    try:
        import onnx
        import onnxscript  # noqa: F401  # PyTorch's exporter needs it
    except ImportError as error:
        raise MissingPackageError(
            f"exporting to ONNX needs the package '{error.name}'",
            'install it: uv pip install -e ".[export]"',
        ) from error
    return onnx


def _trace(model: BaseLanguageModel) -> Any:
    """The graph as an `onnx_ir.Model`."""
    # Not 1, which becomes a constant, nor equal sizes, which become one variable.
    example = torch.zeros(2, min(3, model.context_limit or 3), dtype=torch.int64)
    dynamic = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    was_training = model.training
    try:
        with _quiet():
            program = torch.onnx.export(
                _Logits(model).eval(),
                (example.to(model.device),),
                dynamo=True,
                dynamic_shapes={"input_ids": dynamic},
                input_names=["input_ids"],
                output_names=["logits"],
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        reason = " ".join(str(error.__cause__ or error).split())[:300]
        raise ModelError(f"this model cannot be written as a graph: {reason}") from error
    finally:
        model.train(was_training)
    assert program is not None  # only the older exporter returns None
    return program.model


def _as_proto(graph: Any) -> Any:
    """Serialise the graph without the exporter's metadata and with dynamic sizes.

    The metadata contain lines and paths of the source code. For an LSTM the exporter fixes the time
    of the example, though the graph supports any.
    """
    import onnx_ir

    for node in graph.graph.all_nodes():
        node.metadata_props.clear()
    proto = onnx_ir.to_proto(graph)
    del proto.graph.value_info[:]
    for value in (*proto.graph.input, *proto.graph.output):
        for dimension, name in zip(
            value.type.tensor_type.shape.dim, ("batch", "time"), strict=False
        ):
            dimension.dim_param = name
    return proto


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the exporter's warnings about PyTorch deprecations and torchvision."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
