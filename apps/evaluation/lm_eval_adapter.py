"""Adapter for EleutherAI's lm-evaluation-harness.

The harness makes three kinds of requests: log-likelihood of a continuation, log-likelihood of a
whole text, and generation. `HarnessModel` answers in log-probabilities (nats).
"""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from common.data.tokenizers import Tokenizer
from common.errors import ConfigError, DataError, MissingPackageError, did_you_mean
from common.models.base import BaseLanguageModel
from common.training.prediction_metrics import max_rows

try:
    from lm_eval import simple_evaluate
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as missing:
    raise MissingPackageError(
        f"the evaluation harness is not installed ({missing})",
        'install it: uv pip install "research-monorepo[lm-eval]" (in this folder: -e ".[lm-eval]")',
    ) from missing

_DEFAULT_LENGTH = 2048  # tokens, for models without a limit; default of the harness
_DEFAULT_NEW_TOKENS = 256  # default of the harness
_BOOTSTRAPS = 1000  # for standard errors without a formula; accurate to about 2%
_LENGTH_NAMES = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_OPTIONS = ("until", "do_sample", "temperature", "top_k", "top_p", *_LENGTH_NAMES)


@dataclass(frozen=True)
class _Window:
    """One forward pass: scores the last len(targets) predictions after `inputs`."""

    request: int
    inputs: list[int]
    targets: list[int]


class HarnessModel(LM):  # type: ignore[misc]  # untyped, and not always installed
    """A BaseLanguageModel and its tokenizer as lm_eval's `LM`.

    Args:
        batch_size: maximum number of texts at a time; fewer if their logits need much memory.
        max_length: maximum tokens of a forward pass; default: the model's context.
        seed: seed for tasks that sample.
    """

    def __init__(
        self,
        model: BaseLanguageModel,
        tokenizer: Tokenizer,
        *,
        batch_size: int = 32,
        max_length: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        limit = model.context_limit
        if batch_size < 1 or (max_length is not None and max_length < 1):
            raise ConfigError("batch_size and max_length must be at least 1")
        if limit and max_length and max_length > limit:
            raise ConfigError(f"max_length {max_length} exceeds the model's context {limit}")
        self.model = model.eval()
        self.max_length = max_length or limit or _DEFAULT_LENGTH
        self.batch_size = batch_size
        self._tokenizer = (
            tokenizer  # not `tokenizer`, which the harness assumes to be Hugging Face's
        )
        self._seed = seed
        self._device = model.device

    def loglikelihood(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Return (log-probability of the continuation, whether greedy decoding gives it) for each
        request, whose `args` are (context, continuation)."""
        windows = [
            window
            for index, request in enumerate(requests)
            for window in self._windows(index, *self._encode_pair(*request.args))
        ]
        return self._add_up(windows, len(requests), disable_tqdm)

    def _encode(self, text: str) -> list[int]:
        try:
            return [int(i) for i in self._tokenizer.encode(text)]
        except DataError as error:
            raise DataError(
                f"this model cannot encode the task: {error.message}",
                "tasks with arbitrary text need a run with data.tokenizer=bpe",
            ) from error

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Encode context and continuation like the harness: spaces before a word belong to the
        word, and an empty context becomes the end-of-text token.

        If a token spans the border (`1` + `2` is one token `12`), both are encoded separately.
        """
        stripped = context.rstrip()
        continuation = context[len(stripped) :] + continuation
        before = self._encode(stripped)
        whole = self._encode(stripped + continuation)
        parted = whole[: len(before)] == before
        after = whole[len(before) :] if parted else self._encode(continuation)
        return before or [self._tokenizer.end_of_text], after

    def _windows(
        self, request: int, context: list[int], continuation: list[int]
    ) -> Iterator[_Window]:
        """Build windows. Too long contexts are truncated at the start. A continuation longer than
        the model's window is scored in pieces, each with at least half a window of preceding
        context."""
        tokens = context + continuation
        whole = len(continuation) <= self.max_length
        size = len(continuation) if whole else max(1, self.max_length // 2)
        for first in range(len(context), len(tokens), max(1, size)):
            last = min(first + size, len(tokens))
            yield _Window(request, self._cut(tokens[: last - 1]), tokens[first:last])

    def _cut(self, tokens: list[int]) -> list[int]:
        return tokens[-self.max_length :]

    def loglikelihood_rolling(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """The log-probability of each whole text, in windows like the harness: disjoint, with a
        full context for the last."""
        windows = []
        for index, request in enumerate(requests):
            tokens = self._encode(request.args[0])
            end = self._tokenizer.end_of_text
            cuts = get_rolling_token_windows(tokens, end, self.max_length, 1)
            for context, predicted in map(make_disjoint_window, cuts):
                windows.append(_Window(index, (context + predicted)[:-1], predicted))
        return [total for total, _ in self._add_up(windows, len(requests), disable_tqdm)]

    def _add_up(
        self, windows: list[_Window], num_requests: int, quiet: bool
    ) -> list[tuple[float, bool]]:
        """Sum over the windows of each request; 0 and greedy if there was nothing to predict."""
        totals, greedy = [0.0] * num_requests, [True] * num_requests
        with _progress(quiet) as progress:
            task = progress.add_task("scoring", total=len(windows))
            # Longest first: little padding, and out-of-memory errors occur at once.
            ordered = sorted(windows, key=lambda window: -len(window.inputs))
            first = 0
            while first < len(ordered):
                longest = len(ordered[first].inputs)
                rows = min(self.batch_size, max_rows(longest, self.model.vocab_size))
                batch = ordered[first : first + rows]
                for window, (total, is_greedy) in zip(batch, self._score(batch), strict=True):
                    totals[window.request] += total
                    greedy[window.request] &= is_greedy
                first += rows
                progress.update(task, completed=first)
        return list(zip(totals, greedy, strict=True))

    @torch.no_grad()
    def _score(self, batch: list[_Window]) -> list[tuple[float, bool]]:
        """Return (log-probability, whether greedy) of the targets of each window, summed in float64."""
        longest = max(len(window.inputs) for window in batch)
        # Pad on the right, which a causal model does not see.
        padded = [window.inputs + [0] * (longest - len(window.inputs)) for window in batch]
        logits = self.model(torch.tensor(padded, device=self.device))["logits"]
        scored = []
        for row, window in zip(logits, batch, strict=True):
            end = len(window.inputs)
            scores = row[end - len(window.targets) : end]
            scores = scores if scores.dtype == torch.float64 else scores.float()
            targets = torch.tensor(window.targets, device=self.device)
            costs = torch.nn.functional.cross_entropy(scores, targets, reduction="none")
            is_greedy = bool((scores.argmax(dim=-1) == targets).all())
            scored.append((-float(costs.cpu().double().sum()), is_greedy))
        return scored

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Generate from each context, up to the first stop string, the end of text or the maximum length.

        Contexts of equal length and options are batched, since the models have no padding mask. Too
        long contexts are truncated at the start; if the new tokens do not fit, the window slides
        (the harness's own models truncate the context beforehand).
        """
        groups: dict[tuple[int, str], list[tuple[int, list[int]]]] = defaultdict(list)
        for index, request in enumerate(requests):
            context, options = request.args
            ids = self._cut(self._encode(context)) or [self._tokenizer.end_of_text]
            groups[len(ids), json.dumps(options, sort_keys=True)].append((index, ids))
        texts = [""] * len(requests)
        seed = self._seed
        with _progress(disable_tqdm) as progress:
            task = progress.add_task("writing", total=len(requests))
            for (_, options), members in groups.items():
                for first in range(0, len(members), self.batch_size):
                    batch = members[first : first + self.batch_size]
                    contexts = [ids for _, ids in batch]
                    written = self._continue(contexts, json.loads(options), seed)
                    seed += 1  # a repeated request gets another sample
                    for (index, _), text in zip(batch, written, strict=True):
                        texts[index] = text
                    progress.advance(task, len(batch))
        return texts

    def _continue(
        self, contexts: list[list[int]], options: Mapping[str, Any], seed: int
    ) -> list[str]:
        stops, max_new_tokens, sampling = _read_options(options)
        written: list[list[int]] = [[] for _ in contexts]
        texts: list[str | None] = [None] * len(contexts)  # None: not finished
        end = self._tokenizer.end_of_text
        for column in self.model.stream(
            torch.tensor(contexts), max_new_tokens, seed=seed, **sampling
        ):
            for row, token in enumerate(column.tolist()):
                if texts[row] is not None:
                    continue
                if token != end:
                    written[row].append(token)
                text = self._tokenizer.decode(written[row])
                cut = min((text.find(stop) for stop in stops if stop in text), default=None)
                if cut is not None or token == end:
                    texts[row] = text[:cut]
            if None not in texts:
                break
        return [
            self._tokenizer.decode(ids) if text is None else text
            for ids, text in zip(written, texts, strict=True)
        ]


def _read_options(options: Mapping[str, Any]) -> tuple[list[str], int, dict[str, Any]]:
    """Return (stop strings, maximum new tokens, arguments of `stream`) from a task's `generation_kwargs`.

    Greedy unless do_sample or a temperature is set. Raises ConfigError for unsupported options.
    """
    for name in options:
        if name not in _OPTIONS:
            raise ConfigError(
                f"generation_kwargs of the task: unsupported option '{name}'",
                did_you_mean(name, list(_OPTIONS)),
            )
    until = options.get("until") or []
    stops = [stop for stop in ([until] if isinstance(until, str) else until) if stop]
    lengths = [options[name] for name in _LENGTH_NAMES if options.get(name) is not None]
    temperature = float(options.get("temperature") or 0)
    if options.get("do_sample") is False:
        temperature = 0.0
    elif options.get("do_sample") and "temperature" not in options:
        temperature = 1.0
    sampling = {"temperature": temperature}
    sampling |= {name: options[name] for name in ("top_k", "top_p") if options.get(name)}
    return stops, int(lengths[0]) if lengths else _DEFAULT_NEW_TOKENS, sampling


def run_tasks(
    model: HarnessModel,
    tasks: Sequence[str],
    *,
    include_paths: Sequence[Path] = (),
    num_fewshot: int | None = None,
    limit: int | None = None,
    log_samples: bool = False,
) -> dict[str, Any]:
    """Run tasks of the harness and return its results, as accepted by its `make_table`.

    Args:
        tasks: YAML files, folders of them, or names of tasks and groups below `include_paths`.
        num_fewshot: few-shot examples per question; None: the task's default.
        limit: maximum questions per task.
        log_samples: also return every question with the model's answer, under `samples`.
    Raises ConfigError for a task that does not exist or cannot be loaded with its data.
    """
    for path in include_paths:
        if not path.is_dir():
            raise ConfigError(f"no folder {path}", "--include-path takes folders of task files")
    folders = [Path(task) for task in tasks if Path(task).is_dir()]
    # Exclude the harness's own thousands of tasks, whose data is on the hub.
    manager = TaskManager(include_path=[*include_paths, *folders], include_defaults=False)
    names = [name for task in tasks for name in _names(task, manager)]
    _check_loads(manager, names)
    results: dict[str, Any] = simple_evaluate(
        model=model,
        tasks=names,
        task_manager=manager,
        num_fewshot=num_fewshot,
        limit=limit,
        log_samples=log_samples,
        bootstrap_iters=_BOOTSTRAPS,
    )
    return results


def _check_loads(manager: TaskManager, names: list[str]) -> None:
    """Load the tasks with their data once, before anything is computed."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)  # warnings are repeated on the actual load
    try:
        manager.load(names)
    except Exception as error:  # YAML, templates, data: any exception
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(
            f"cannot load {', '.join(names)}: {reason}",
            "data_files of a task are looked up from the current folder; nothing is downloaded "
            "unless HF_HUB_OFFLINE=0 is set",
        ) from error
    finally:
        logger.setLevel(level)


def _names(task: str, manager: TaskManager) -> list[str]:
    """Names of `task` in the task manager: itself, or all tasks of a folder."""
    path = Path(task)
    if path.is_file():
        return [task]
    if path.is_dir():
        inside = [
            name
            for name in manager.all_subtasks
            if (file := manager.task_index[name].yaml_path) and file.is_relative_to(path)
        ]
        if not inside:
            raise ConfigError(f"no task in {path}", "a task is a .yaml file with the key 'task'")
        return inside
    if task not in manager.all_tasks:
        hint = "pass a YAML file or a folder, or the folder of the task with --include-path"
        if manager.all_tasks:
            hint = did_you_mean(task, manager.all_tasks)
        raise ConfigError(f"there is no task '{task}'", hint)
    return [task]


def _progress(quiet: bool) -> Progress:
    console = Console(stderr=True)
    return Progress(console=console, transient=True, disable=quiet or not console.is_terminal)
