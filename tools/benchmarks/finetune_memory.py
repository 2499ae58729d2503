"""Peak memory of fine-tuning all weights and of LoRA: whole processes of projects/finetune, one by one.

Each loads the base, trains, evaluates, samples and writes its checkpoints; the figure is its largest resident set.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from common.errors import ExperimentError, exit_on_error
from common.utils.paths import REPOSITORY_ROOT
from common.utils.tables import FORMATS, format_rows
from tools.benchmarks.ratios import Row, as_table, at_most, compared
from tools.benchmarks.results import say

# Biderman et al. 2023, "Pythia", table 1: layers, hidden size, heads
MODELS = {"70m": (6, 512, 8), "160m": (12, 768, 12), "410m": (24, 1024, 16)}
_VOCABULARY, _CONTEXT = 50_304, 2048
TARGET = at_most(0.4)
_TEXT = "the cat sat on the mat; the dog did not. "


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: python tools/benchmarks/finetune_memory.py --models 70m 160m --precision fp32",
        allow_abbrev=False,
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["70m", "160m"])
    parser.add_argument("--batch-size", type=int, default=4, metavar="N", help="(default 4)")
    parser.add_argument(
        "--context-length", type=int, default=256, metavar="N", help="(default 256)"
    )
    parser.add_argument(
        "--checkpointing",
        action="store_true",
        help="training.activation_checkpointing, in both",
    )
    parser.add_argument("--steps", type=int, default=3, metavar="N", help="(default 3)")
    parser.add_argument("--rank", type=int, default=8, metavar="N", help="of LoRA (default 8)")
    parser.add_argument(
        "--precision", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"]
    )
    parser.add_argument("--format", choices=FORMATS, default="table")
    arguments = parser.parse_args()
    with exit_on_error(), tempfile.TemporaryDirectory(prefix="finetune-memory-") as folder:
        rows = []
        for name in arguments.models:
            assets = Path(folder) / name
            # In a process of its own: on Linux a child's largest resident set is at least what its
            # parent had when it started it.
            with ProcessPoolExecutor(1, get_context("spawn")) as preparing:
                preparing.submit(_prepare, assets, name).result()
            rows += [_measure(assets, name, way, arguments) for way in arguments.precision]
        print(format_rows(*as_table(rows), arguments.format))


def _prepare(assets: Path, name: str) -> None:
    """Write a base with random weights in float16, as Pythia is stored, and a text."""
    import torch

    from apps.export.hub_format import save_pretrained
    from common.data.tokenizers import BPETokenizer
    from common.models import Decoder

    layers, hidden, heads = MODELS[name]
    torch.manual_seed(0)
    neox: dict[str, Any] = {
        **{"positions": "rope", "rope_fraction": 0.25, "parallel_residual": True},
        **{"activation": "gelu", "tie_embeddings": False, "context_length": _CONTEXT},
    }
    sizes = {"num_layers": layers, "hidden_size": hidden, "num_heads": heads}
    model = Decoder(_VOCABULARY, **neox, **sizes)
    save_pretrained(model.half(), assets / "models" / "base", BPETokenizer.train([_TEXT], 300))
    text = assets / "datasets" / "pets" / "pets.txt"
    text.parent.mkdir(parents=True)
    text.write_text(_TEXT * 1000)


def _measure(assets: Path, name: str, precision: str, arguments: argparse.Namespace) -> Row:
    options = [
        "model.pretrained=base",
        "data.dataset=pets",
        f"data.batch_size={arguments.batch_size}",
        f"data.eval_batch_size={arguments.batch_size}",
        f"model.context_length={arguments.context_length}",
        f"training.max_steps={arguments.steps}",
        f"training.eval_every_steps={max(1, arguments.steps // 2)}",
        f"training.precision={precision}",
        "training.compile=false",
        "training.eval_batches=2",
        "samples.max_new_tokens=8",
        f"training.activation_checkpointing={arguments.checkpointing}",
    ]
    peaks = {}
    for way, more in (("full", []), ("LoRA", [f"model.lora={{rank: {arguments.rank}}}"])):
        peaks[way] = _peak_mib(assets, [*options, *more])
        say(f"{name}, {precision}, {way}: {peaks[way]:.0f} MiB")
    work = f"Pythia-{name}: peak memory, {precision}"
    work += ", checkpointing" * arguments.checkpointing
    return compared(work, "MiB", [peaks["LoRA"]], "all weights", [peaks["full"]], TARGET)


def _peak_mib(assets: Path, options: Sequence[str]) -> float:
    """The largest resident set of a training process."""
    script = REPOSITORY_ROOT / "projects" / "finetune" / "train.py"
    environment: dict[str, Any] = os.environ | {"RESEARCH_ASSETS_DIR": str(assets)}
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            [sys.executable, str(script), "--config", "configs/quickstart.yaml", *options],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            raise ExperimentError("a training failed", "\n".join(output.read().splitlines()[-5:]))
    return _mib(usage)


def _mib(usage: resource.struct_rusage) -> float:
    return usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


if __name__ == "__main__":
    main()
