"""Run llama.cpp in a separate process, since it exits on an invalid file.

python -m apps.export.llama_cpp FILE < texts.json > log_probabilities.json
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
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
        env=os.environ | {"GGML_NO_BACKTRACE": "1"},
        capture_output=True,
        text=True,
        errors="replace",
        timeout=_TIMEOUT_SECONDS,
    )
    if result.returncode != 0:
        raise RuntimeError(_reason(result.stderr) or f"it ended with {result.returncode}")
    answer: list[list[float]] = json.loads(result.stdout)
    return answer


# In its log an error is `TIME E WHERE: MESSAGE`, the last line of a traceback, or an assertion.
_ERROR = re.compile(r"^.* E (.+)$|^(\w+Error: .+)$|(GGML_ASSERT.+)$", re.MULTILINE)


def _reason(log: str) -> str:
    """The errors in its log, or its last line."""
    errors = ["".join(found).strip() for found in _ERROR.findall(log)]
    return " | ".join(errors or log.strip().splitlines()[-1:])


def main() -> None:
    # Its libraries also write to stdout: answer on a duplicate of it.
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    texts: list[list[int]] = json.load(sys.stdin)
    server = open_server(Path(sys.argv[1]), context_length=max(map(len, texts)) + 1)
    json.dump([server_log_probabilities(server, ids) for ids in texts], answer)
    answer.close()


def open_server(path: Path, context_length: int, threads: int | None = None) -> Any:
    """Start an `xllamacpp.Server` for one text at a time, in float32.

    Its flash attention computes with half floats, which changes logits by 1e-3 of their spread; without it they are
    those of a Decoder to 1e-6.
    """
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path = str(path)
    settings.n_ctx = context_length
    settings.n_parallel = 1
    if threads is not None:
        settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = threads
    settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    settings.warmup = settings.fit_params = False
    return xllamacpp.Server(settings)


def server_log_probabilities(server: Any, ids: list[int]) -> list[float]:
    """Compute the log-probabilities of the next token after `ids`."""
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
