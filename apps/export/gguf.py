"""GGUF files: a model with its tokenizer, for llama.cpp and everything built on it.

The format is that of `gguf` (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), whose
keys and architectures llama.cpp defines. Matrices are written in the asked type; vectors and the
table of positions stay float32, as llama.cpp's own conversion keeps them. llama.cpp runs the file before
it has its name.
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
from apps.export.families import Family, family_of
from apps.export.gguf_tensors import gguf_tensors
from apps.export.gguf_vocabulary import SavedTokenizer, Vocabulary, vocabulary_of
from apps.export.readback import check_logits, probe, run_reader
from common.errors import MissingPackageError, ModelError
from common.models.base import BaseLanguageModel
from common.models.decoder import Decoder
from common.utils.files import atomic_path
from common.utils.logging import get_logger

if TYPE_CHECKING:
    from gguf import GGUFWriter

# The names of `gguf` for a matrix's type and for what such a file is called as a whole.
DTYPES: dict[GGUFDtype, tuple[str, str]] = {
    "f32": ("F32", "ALL_F32"),
    "f16": ("F16", "MOSTLY_F16"),
    "bf16": ("BF16", "MOSTLY_BF16"),
    "q8_0": ("Q8_0", "MOSTLY_Q8_0"),
}
_Q8_0_BLOCK = 32  # numbers of a row that share a scale


def export_gguf(
    model: BaseLanguageModel,
    tokenizer: SavedTokenizer | Vocabulary,
    path: Path,
    dtype: GGUFDtype = "f16",
    name: str = "",
) -> Path:
    """Write `model` and its tokenizer to the file `path`, which appears once it is whole.

    Args:
        tokenizer: byte-level BPE, or its Vocabulary.
        dtype: of the matrices: f32 as they are, f16 and bf16 rounded to nearest, q8_0 in 8 bits
            with a scale per 32 numbers.
        name: what the file calls the model; by default the file's own name.
    Raises ModelError for what llama.cpp has no formula for, for numbers that `dtype` cannot hold, and
    where llama.cpp does not give the logits of `model`; MissingPackageError without the package `gguf`.
    """
    gguf = _package()
    if dtype not in DTYPES:
        raise ModelError(f"no GGUF type '{dtype}'", f"choose from: {', '.join(DTYPES)}")
    family = family_of(model)
    assert isinstance(model, Decoder)  # for the type checker: family_of has refused others
    vocabulary = tokenizer if isinstance(tokenizer, Vocabulary) else vocabulary_of(tokenizer)
    vocabulary = vocabulary.padded(model.vocab_size)
    tensors = dict(_converted(model, family, dtype))  # before there is a file: it may refuse
    with atomic_path(path) as temporary:
        writer = gguf.GGUFWriter(temporary, family)
        try:
            writer.add_name(name or path.stem)
            writer.add_file_type(getattr(gguf.LlamaFileType, DTYPES[dtype][1]))
            writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
            _add_shape(writer, model, family)
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


def _run_back(model: Decoder, path: Path, dtype: GGUFDtype) -> None:
    """Raise ModelError unless llama.cpp gives the logits of `model`."""
    # Of each text it gives those of the last position, for which there must be room for one token more.
    probes = [
        (row[None], logits.log_softmax(dim=-1)[None, -1:])
        for texts, all_logits in probe(model, leave=1)
        for row, logits in zip(texts, all_logits, strict=True)
    ]
    texts = [ids[0].tolist() for ids, _ in probes]
    found = run_reader("llama.cpp", lambda: llama_cpp.next_log_probabilities(path, texts))
    check_logits(probes, [torch.tensor(row)[None, None] for row in found], dtype, "llama.cpp")


def _read_back(written: Mapping[str, tuple[npt.NDArray[Any], Any]], path: Path) -> None:
    """Raise ModelError unless the file holds the tensors that were written; say that it was not run."""
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
            raise ModelError(
                f"nothing was written: the file does not hold {name} as it was written"
            )
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


def _add_shape(writer: GGUFWriter, model: Decoder, family: Family) -> None:
    config = model.config
    attention: Any = model.blocks[0].mixer
    feedforward: Any = model.blocks[0].feedforward
    norm: Any = model.final_norm
    writer.add_context_length(config.context_length)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(feedforward.input.out_features)
    writer.add_head_count(attention.num_heads)
    writer.add_head_count_kv(attention.num_kv_heads)
    writer.add_vocab_size(model.vocab_size)
    if family == "gpt2":
        writer.add_layer_norm_eps(norm.eps)
        return
    writer.add_layer_norm_rms_eps(norm.eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_rope_dimension_count(attention.head_size)
    writer.add_key_length(attention.head_size)
    writer.add_value_length(attention.head_size)


def _add_vocabulary(writer: GGUFWriter, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model("gpt2")  # the name of every byte-level BPE
    writer.add_tokenizer_pre(vocabulary.splitter)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges(vocabulary.merges)
    writer.add_bos_token_id(vocabulary.end_of_text)
    writer.add_eos_token_id(vocabulary.end_of_text)
    # A prompt need not be the beginning of a document: nothing is put before it.
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)


def _converted(
    model: Decoder, family: Family, dtype: GGUFDtype
) -> Iterator[tuple[str, tuple[npt.NDArray[Any], Any]]]:
    """(name, (array as it is written, its type)) of every tensor."""
    import gguf

    types = gguf.GGMLQuantizationType
    for name, tensor in gguf_tensors(model, family):
        array = tensor.detach().to("cpu", torch.float32).contiguous().numpy()
        if not np.isfinite(array).all():
            raise ModelError(
                f"{name} holds NaN or infinity",
                "training has diverged; export an earlier checkpoint",
            )
        is_matrix = array.ndim == 2 and name != "position_embd.weight"
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
        raise ModelError(f"f16 cannot hold {largest:g}, of {name}", "use --dtype bf16 or f32")
