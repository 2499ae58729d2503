"""Run llama.cpp in a separate process, since it exits on an invalid file.

python -m apps.export.llama_cpp FILE < texts.json > log_probabilities.json
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from common.utils.paths import REPOSITORY_ROOT

_TIMEOUT_SECONDS = 1800


def is_installed() -> bool:
    return find_spec("xllamacpp") is not None


def next_log_probabilities(path: Path, texts: Sequence[Sequence[int]]) -> list[list[float]]:
    """Compute with llama.cpp the log-probabilities of the next token after each text (token ids).

    Raises RuntimeError with its message if it cannot load or run the file.
    """
    result = subprocess.run(
        [sys.executable, "-m", "apps.export.llama_cpp", str(path.absolute())],
        input=json.dumps(texts),
        cwd=REPOSITORY_ROOT,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=_TIMEOUT_SECONDS,
    )
    if result.returncode != 0:
        raise RuntimeError(_reason(result.stderr) or f"it ended with {result.returncode}")
    answer: list[list[float]] = json.loads(result.stdout)
    return answer


def _reason(log: str) -> str:
    """The errors in its log (lines are `TIME LEVEL WHERE: MESSAGE`), or its last line."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line.partition(" E ")[2].strip() for line in lines if " E " in line]
    return " | ".join(errors or lines[-1:])


def main() -> None:
    # Its libraries also write to stdout: answer on a duplicate of it.
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import xllamacpp

    texts: list[list[int]] = json.load(sys.stdin)
    settings = xllamacpp.CommonParams()
    settings.model.path = sys.argv[1]
    settings.n_ctx = max(map(len, texts)) + 1
    settings.n_parallel = 1
    settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    settings.warmup = settings.fit_params = False
    server = xllamacpp.Server(settings)
    try:
        json.dump([_next_log_probabilities(server, ids) for ids in texts], answer)
    except Exception:
        traceback.print_exc()
        os._exit(1)  # suppress the shutdown messages after the reason
    answer.close()


def _next_log_probabilities(server: Any, ids: list[int]) -> list[float]:
    # It reports no log-probabilities with an end of text or half a character: force an "a". The
    # bias changes the sampled token, not the reported probabilities.
    request = {"prompt": ids, "max_tokens": 1, "temperature": 0, "n_probs": 2**31 - 1}
    request["logit_bias"] = [["a", 1e6]]
    reply = server.handle_completions(request)
    if "choices" not in reply:
        raise RuntimeError(f"llama.cpp answers {reply}")
    entries = reply["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    by_id = {entry["id"]: entry["logprob"] for entry in entries}
    return [by_id[index] for index in range(len(by_id))]


if __name__ == "__main__":
    main()
