"""Export a trained run: GGUF (llama.cpp), ONNX (ONNX Runtime), Hugging Face."""

from __future__ import annotations

import argparse
from pathlib import Path

from apps.export.command import export
from apps.export.config import FORMATS
from common.errors import exit_on_error
from common.utils.paths import display_path

EXAMPLES = """examples:
  python tools/export.py --name exp_001 --format gguf
  python tools/export.py --name exp_001 --format gguf --dtype q8_0 --output exp_001.gguf
  python tools/export.py --name exp_001 --format onnx --checkpoint last
  python tools/export.py --name exp_001 --format hub --output my_model

gguf  families of the hub that llama.cpp computes, byte-level BPE included: `llama-cli -m FILE`
onnx  any model: input_ids (batch, time) int64 to logits; its tokenizer is written beside it
hub   families of the hub (HUGGINGFACE_GUIDE.md) as a folder for transformers: AutoModelForCausalLM.from_pretrained(FOLDER)

The default output is exports/ in the run's folder. gguf and onnx need uv pip install -e ".[export]"."""


def main() -> None:
    arguments = _parser().parse_args()
    with exit_on_error():
        written = export(
            arguments.name,
            format=arguments.format,
            checkpoint=arguments.checkpoint,
            dtype=arguments.dtype,
            output=arguments.output,
        )
        for path in written:
            print(f"wrote {display_path(path)} ({_megabytes(path):.2f} MB)")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--name", required=True, metavar="EXPERIMENT")
    add("--format", required=True, choices=FORMATS)
    add("--dtype", help="of a GGUF file: f16 (default), f32, bf16, q8_0")
    add("--output", type=Path, metavar="FILE", help="for hub: a new folder")
    add("--checkpoint", default="best", help="best (default), last, or a step such as 500")
    return parser


def _megabytes(path: Path) -> float:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files) / 1e6


if __name__ == "__main__":
    main()
