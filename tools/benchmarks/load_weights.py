"""Time and peak memory of loading weights beside plain reading of their files and transformers: one run, one table."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from common.errors import exit_on_error
from common.utils.files import fsync_file, write_json_atomic
from common.utils.manifest import create_manifest
from common.utils.tables import FORMATS, format_rows
from tools.benchmarks.processes import run_process
from tools.benchmarks.ratios import Row, Target, as_table, at_most, compared, limited
from tools.benchmarks.results import say

EXAMPLES = """examples:
  python tools/benchmarks/load_weights.py                              (half an hour, 2 GB of disk)
  python tools/benchmarks/load_weights.py --families gpt2 --caches warm --rounds 3

Linux only: the peak memory is that of /proc, the page cache is emptied by posix_fadvise."""
BASELINE = "read_into_one_buffer"
OURS = {"ours": "bfloat16", "ours_float32": "float32"}
PEERS = {
    "ours": ("read_through_a_mebibyte", "transformers", "load_file", "load_file_pread"),
    "ours_float32": ("transformers_float32",),
}
_MIB = 2**20
Turns = dict[str, list[dict[str, float]]]


def main() -> None:
    arguments = _parse()
    with (
        exit_on_error(),
        tempfile.TemporaryDirectory(prefix="load-benchmark-", dir=arguments.folder) as name,
    ):
        rows: list[Row] = []
        raw: dict[str, Turns] = {}
        for family in arguments.families:
            folder, small = Path(name) / family, Path(name) / f"{family}-small"
            say(f"{family}: writing {arguments.megabytes} MB")
            write_model(folder, family, arguments.megabytes)
            write_model(small, family, 1)
            for cache in arguments.caches:
                turns = measure(folder, small, cache, arguments.rounds)
                raw[f"{family}, {cache}"] = turns
                rows += rows_of(f"{family}, {cache} cache", turns)
                if arguments.json:
                    _write(arguments.json, raw)
        print(format_rows(*as_table(rows), arguments.format))


def _write(path: Path, raw: dict[str, Turns]) -> None:
    manifest = create_manifest("load-benchmark", project="", config={}, seed=0, tags=[])
    write_json_atomic(path, {"manifest": manifest, "measured": raw})


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--families", nargs="+", choices=("llama", "gpt2"), default=["llama", "gpt2"]
    )
    parser.add_argument("--caches", nargs="+", choices=("warm", "cold"), default=["warm", "cold"])
    parser.add_argument("--megabytes", type=int, default=1000, help="of weights (default 1000)")
    parser.add_argument("--rounds", type=int, default=7, help="(default 7)")
    parser.add_argument("--folder", type=Path, help="for temporary files")
    parser.add_argument("--json", type=Path, help="write every measurement to this file")
    parser.add_argument("--format", choices=FORMATS, default="table")
    return parser.parse_args()


def write_model(folder: Path, family: str, megabytes: int) -> None:
    """Random bfloat16 weights of a family in files of at most 400 MB, with config.json."""
    import torch
    from huggingface_hub import save_torch_state_dict

    config, shapes = describe(family, megabytes)
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.empty(shape, dtype=torch.bfloat16).normal_(0, 0.02, generator=generator)
        for name, shape in shapes.items()
    }
    folder.mkdir()
    write_json_atomic(folder / "config.json", config)
    save_torch_state_dict(tensors, folder, max_shard_size="400MB")
    for path in folder.glob("*.safetensors"):
        fsync_file(path)  # only clean pages leave the cache


def describe(family: str, megabytes: int) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """config.json and the shape of each tensor; at least one layer."""
    width, inner, kv, vocabulary = (
        (2048, 5632, 512, 32_000) if megabytes >= 200 else (64, 128, 32, 99)
    )
    if family == "llama":
        layer = {
            "input_layernorm.weight": (width,),
            "post_attention_layernorm.weight": (width,),
            **{f"self_attn.{name}_proj.weight": (width, width) for name in "qo"},
            **{f"self_attn.{name}_proj.weight": (kv, width) for name in "kv"},
            **{f"mlp.{name}_proj.weight": (inner, width) for name in ("gate", "up")},
            "mlp.down_proj.weight": (width, inner),
        }
        outside = {
            "model.embed_tokens.weight": (vocabulary, width),
            "model.norm.weight": (width,),
            "lm_head.weight": (vocabulary, width),
        }
        prefix, heads = "model.layers", 16 if width == 2048 else 4
    else:
        layer = {
            **{f"ln_{n}.{kind}": (width,) for n in (1, 2) for kind in ("weight", "bias")},
            "attn.c_attn.weight": (width, 3 * width),
            "attn.c_attn.bias": (3 * width,),
            "attn.c_proj.weight": (width, width),
            "attn.c_proj.bias": (width,),
            "mlp.c_fc.weight": (width, 4 * width),
            "mlp.c_fc.bias": (4 * width,),
            "mlp.c_proj.weight": (4 * width, width),
            "mlp.c_proj.bias": (width,),
        }
        outside = {
            "transformer.wte.weight": (vocabulary, width),
            "transformer.wpe.weight": (1024, width),
            "transformer.ln_f.weight": (width,),
            "transformer.ln_f.bias": (width,),
        }
        prefix, heads = "transformer.h", 16
    layers = max(1, round((megabytes * 1e6 / 2 - _numel(outside)) / _numel(layer)))
    shapes = outside | {
        f"{prefix}.{n}.{name}": shape for n in range(layers) for name, shape in layer.items()
    }
    config = {"model_type": family, "vocab_size": vocabulary, "dtype": "bfloat16"}
    if family == "gpt2":
        sizes = {"n_positions": 1024, "n_embd": width, "n_layer": layers, "n_head": heads}
        return config | sizes | {"architectures": ["GPT2LMHeadModel"]}, shapes
    return (
        config
        | {
            "architectures": ["LlamaForCausalLM"],
            "hidden_size": width,
            "intermediate_size": inner,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads * kv // width,
            "max_position_embeddings": 2048,
            "tie_word_embeddings": False,
        },
        shapes,
    )


def _numel(shapes: dict[str, tuple[int, ...]]) -> int:
    from math import prod

    return sum(map(prod, shapes.values()))


def measure(folder: Path, small: Path, cache: str, rounds: int) -> Turns:
    """Every contestant in turn, a process of its own; the first round does not count."""
    names = [BASELINE, *(name for mine, peers in PEERS.items() for name in (mine, *peers))]
    turns: Turns = {name: [] for name in names}
    for number in range(rounds + 1):
        say(f"{folder.name}, {cache} cache: round {number} of {rounds}")
        for name in names if number % 2 else reversed(names):
            if cache == "cold":
                empty_page_cache(folder)
            script = Path(__file__).with_name("load_turns.py")
            command = [sys.executable, str(script), name, str(folder), str(small)]
            turn = json.loads(run_process(command, os.environ).splitlines()[-1])
            if number:
                turns[name].append(turn)
    return turns


def empty_page_cache(folder: Path) -> None:
    """Drop the files of a folder from the page cache."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def rows_of(work: str, turns: Turns) -> list[Row]:
    """Ours beside each other's: seconds, those of the CPU, and peak memory; it also beside the bytes of the weights."""

    def beside(mine: str, peer: str, field: str, name: str, target: Target | None = None) -> Row:
        own, theirs = ([turn[field] for turn in turns[name]] for name in (mine, peer))
        return compared(f"{work}, {OURS[mine]}: {name}", "s", own, peer, theirs, target)

    rows = []
    for mine, dtype in OURS.items():
        target = (
            at_most(1.5) if dtype == "bfloat16" else None
        )  # float32 has twice the bytes to write
        rows.append(beside(mine, BASELINE, "seconds", "time", target))
        rows += [beside(mine, peer, "seconds", "time") for peer in PEERS[mine]]
        peers = (BASELINE, *PEERS[mine])
        rows += [beside(mine, peer, "cpu_seconds", "CPU time") for peer in peers]
        rows.append(_memory_row(f"{work}, {dtype}: peak memory / weights", turns[mine]))
        for peer in PEERS[mine]:
            peak = [turn["peak_bytes"] / _MIB for turn in turns[peer]]
            own = [turn["peak_bytes"] / _MIB for turn in turns[mine]]
            rows.append(compared(f"{work}, {dtype}: peak memory", "MiB", own, peer, peak))
    return rows


def _memory_row(work: str, turns: Sequence[dict[str, float]]) -> Row:
    ratio = median(turn["peak_bytes"] / turn["tensor_bytes"] for turn in turns)
    return limited(work, "x", ratio, at_most(1.2))


if __name__ == "__main__":
    main()
