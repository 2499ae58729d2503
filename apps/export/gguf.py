"""GGUF files: a model with its tokenizer, for llama.cpp and compatible programs.

The format is `gguf` (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), whose keys and
architectures llama.cpp defines. Matrices are written in the requested dtype; vectors and the
position table remain float32, as in llama.cpp's own conversion. llama.cpp verifies the file before
it is published.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from apps.export import llama_cpp
from apps.export.config import GGUFDtype
from apps.export.gguf_architectures import Architecture
from apps.export.gguf_tensors import ARCHITECTURES, IN_FLOAT32, gguf_tensors
from apps.export.gguf_vocabulary import SavedTokenizer, Vocabulary, vocabulary_of
from apps.export.hub_format import hub_config
from apps.export.readback import check_logits, probe, run_reader
from common.errors import MissingPackageError, ModelError
from common.models.base import BaseLanguageModel
from common.models.decoder import Decoder
from common.models.hub.config import settings
from common.utils.files import atomic_path
from common.utils.logging import get_logger

if TYPE_CHECKING:
    from gguf import GGUFWriter

# Names in `gguf` of a matrix dtype, and of the file type.
DTYPES: dict[GGUFDtype, tuple[str, str]] = {
    "f32": ("F32", "ALL_F32"),
    "f16": ("F16", "MOSTLY_F16"),
    "bf16": ("BF16", "MOSTLY_BF16"),
    "q8_0": ("Q8_0", "MOSTLY_Q8_0"),
}
_HINT = "use --format onnx, which supports any model"
_Q8_0_BLOCK = 32  # numbers of a row per scale


def export_gguf(
    model: BaseLanguageModel,
    tokenizer: SavedTokenizer | Vocabulary,
    path: Path,
    dtype: GGUFDtype = "f16",
    name: str = "",
) -> Path:
    """Write `model` and its tokenizer to the file `path`, atomically.

    Args:
        tokenizer: byte-level BPE, or its Vocabulary.
        dtype: of matrices: f32 unchanged, f16 and bf16 rounded to nearest, q8_0 in 8 bits with a
            scale per 32 numbers.
        name: model name in the file; default: the file name.
    Raises ModelError for architectures that llama.cpp does not support, numbers that `dtype` cannot
    represent, and different logits in llama.cpp; MissingPackageError without the package `gguf`.
    """
    gguf = _package()
    if dtype not in DTYPES:
        raise ModelError(f"no GGUF type '{dtype}'", f"choose from: {', '.join(DTYPES)}")
    if type(model) is not Decoder:
        raise ModelError(f"llama.cpp has no code for a {type(model).__name__}", _HINT)
    config = hub_config(model)
    architecture = _architecture(model, config["model_type"])
    vocabulary = tokenizer if isinstance(tokenizer, Vocabulary) else vocabulary_of(tokenizer)
    vocabulary = vocabulary.padded(model.vocab_size)
    tensors = dict(
        _converted(model, config, architecture, dtype)
    )  # before creating the file: it may raise
    with atomic_path(path) as temporary:
        writer = gguf.GGUFWriter(temporary, architecture.name)
        try:
            writer.add_name(name or path.stem)
            writer.add_file_type(getattr(gguf.LlamaFileType, DTYPES[dtype][1]))
            writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
            writer.add_vocab_size(model.vocab_size)
            architecture.add_keys(writer, model.config, settings(model.config))
            _add_vocabulary(writer, vocabulary)
            for key, (data, kind) in tensors.items():
                writer.add_tensor(key, data, raw_dtype=kind)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()
        if llama_cpp.is_installed():
            _run_back(model, temporary, dtype)
        else:
            _read_back(tensors, temporary)
    return path


def _architecture(model: Decoder, model_type: str) -> Architecture:
    """llama.cpp's architecture for a `model_type`. Raises ModelError, naming what it does not compute of the model."""
    architecture = ARCHITECTURES[model_type]
    limits = [*architecture.limits(model.config, settings(model.config))]
    if limits:
        raise ModelError(
            f"llama.cpp's {architecture.name} does not compute {', '.join(limits)}", _HINT
        )
    return architecture


def _run_back(model: Decoder, path: Path, dtype: GGUFDtype) -> None:
    """Raise ModelError unless llama.cpp gives the logits of `model`."""
    # It returns those of the last position of each text, which needs room for one more token.
    probes = [
        (row[None], logits.log_softmax(dim=-1)[None, -1:])
        for texts, all_logits in probe(model, leave=1)
        for row, logits in zip(texts, all_logits, strict=True)
    ]
    texts = [ids[0].tolist() for ids, _ in probes]
    found = run_reader("llama.cpp", lambda: llama_cpp.next_log_probabilities(path, texts))
    logits = [torch.tensor(row)[None, None] for row in found]
    if model.experts:  # half of all texts must agree, see check_logits
        probes = [(probes[-1][0], torch.cat([expected for _, expected in probes]))]
        logits = [torch.cat(logits)]
    check_logits(probes, logits, dtype, "llama.cpp", has_experts=bool(model.experts))


def _read_back(written: Mapping[str, tuple[npt.NDArray[Any], Any]], path: Path) -> None:
    """Raise ModelError unless the file has the written tensors; warn that it was not run."""
    import gguf

    def read() -> dict[str, Any]:
        return {t.name: (t.data, t.tensor_type) for t in gguf.GGUFReader(path).tensors}

    found = run_reader("the reader of gguf", read)
    for name, (data, kind) in written.items():
        if (
            name not in found
            or found[name][1] != kind
            or found[name][0].tobytes() != data.tobytes()
        ):
            raise ModelError(f"nothing was written: {name} in the file differs from the model")
    get_logger("export").warning(
        "the file was read back but not run: llama.cpp is not installed (uv pip install xllamacpp)"
    )


def _package() -> Any:
    try:
        import gguf
    except ImportError as error:
        raise MissingPackageError(
            "exporting to GGUF needs the package 'gguf'",
            'install it: uv pip install -e ".[export]"',
        ) from error
    return gguf


def _add_vocabulary(writer: GGUFWriter, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model("gpt2")  # the name for any byte-level BPE
    writer.add_tokenizer_pre(vocabulary.splitter)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges(vocabulary.merges)
    writer.add_bos_token_id(vocabulary.end_of_text)
    writer.add_eos_token_id(vocabulary.end_of_text)
    # A prompt need not start a document: no token is prepended.
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)


def _converted(
    model: Decoder, config: dict[str, Any], architecture: Architecture, dtype: GGUFDtype
) -> Iterator[tuple[str, tuple[npt.NDArray[Any], Any]]]:
    """Yield (name, (array as written, its type)) of every tensor."""
    import gguf

    types = gguf.GGMLQuantizationType
    for name, tensor in gguf_tensors(model, config, architecture):
        array = tensor.detach().to("cpu", torch.float32).contiguous().numpy()
        if not np.isfinite(array).all():
            raise ModelError(
                f"{name} contains NaN or infinity",
                "training has diverged; export an earlier checkpoint",
            )
        is_matrix = array.ndim >= 2 and not IN_FLOAT32.search(name)
        kind = getattr(types, DTYPES[dtype][0]) if is_matrix else types.F32
        _check_fits(name, array, kind.name)
        yield name, (gguf.quants.quantize(array, kind), kind)


def _check_fits(name: str, array: npt.NDArray[Any], kind: str) -> None:
    if kind == "Q8_0" and array.shape[-1] % _Q8_0_BLOCK:
        raise ModelError(
            f"q8_0 needs rows of a multiple of {_Q8_0_BLOCK} numbers, {name} has {array.shape[-1]}",
            "use --dtype f16",
        )
    largest = float(np.abs(array).max(initial=0.0))
    if kind == "F16" and largest > float(np.finfo(np.float16).max):
        raise ModelError(f"f16 cannot represent {largest:g} in {name}", "use --dtype bf16 or f32")
