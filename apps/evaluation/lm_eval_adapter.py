"""Our models under EleutherAI's lm-evaluation-harness, the field's common set of tasks.

The harness asks three questions of a model: how likely is a continuation, how likely is a whole
text, and how does a text go on. `HarnessModel` answers them in log-probabilities (nats).
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

_DEFAULT_LENGTH = 2048  # tokens, for models without a limit; as the harness assumes for its own
_DEFAULT_NEW_TOKENS = 256  # as the harness's
_BOOTSTRAPS = 1000  # for standard errors without a formula; good to some 2% of them
_LENGTH_NAMES = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_OPTIONS = ("until", "do_sample", "temperature", "top_k", "top_p", *_LENGTH_NAMES)


@dataclass(frozen=True)
class _Window:
    """One forward pass: the last len(targets) predictions after `inputs` are scored."""

    request: int
    inputs: list[int]
    targets: list[int]


class HarnessModel(LM):  # type: ignore[misc]  # untyped, and not always installed
    """A BaseLanguageModel and its tokenizer as lm_eval's `LM`.

    Args:
        batch_size: the most texts at a time; fewer where their logits would take much memory.
        max_length: tokens that one forward pass may see; default: the model's context.
        seed: of the draws where a task samples.
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
            raise ConfigError(f"max_length {max_length} is more than the model's context {limit}")
        self.model = model.eval()
        self.max_length = max_length or limit or _DEFAULT_LENGTH
        self.batch_size = batch_size
        self._tokenizer = tokenizer  # not `tokenizer`: the harness takes that for Hugging Face's
        self._seed = seed
        self._device = model.device

    def loglikelihood(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """(log-probability of the continuation, is it what greedy decoding gives) of each request,
        whose `args` are (context, continuation)."""
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
                f"this model cannot read the task: {error.message}",
                "tasks in any text need a run with data.tokenizer=bpe",
            ) from error

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """As the harness splits them for its own models: spaces before a word belong to the word,
        and a text without context comes after the end of another one.

        Where the last token of the context swallows the start of the continuation (`1` + `2` is one
        token `12`) there is no such split, and both are encoded by themselves.
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
        """A context that is too long loses its start. A continuation that is longer than the model's
        whole window is scored in pieces, each after at least half a window of what precedes it."""
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
        """The log-probability of each whole text, in windows as the harness cuts them: disjoint, a
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
        """Sums over the windows of each request; 0 and greedy where there was nothing to predict."""
        totals, greedy = [0.0] * num_requests, [True] * num_requests
        with _progress(quiet) as progress:
            task = progress.add_task("scoring", total=len(windows))
            # Longest first: little padding, and what does not fit into memory is known at once.
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
        """(log-probability, greedy?) of the targets of each window, summed in float64."""
        longest = max(len(window.inputs) for window in batch)
        # Filled up on the right, where a causal model does not look.
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
        """How each context goes on, up to the first stop text, the end of text or the most tokens.

        Contexts of the same length and options are written in one batch: the models have no mask
        for padding. A context that is too long loses its start; where the new tokens do not fit
        behind it the window moves on (the harness's own models cut the context beforehand).
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
                    seed += 1  # a question that is asked again gets another answer
                    for (index, _), text in zip(batch, written, strict=True):
                        texts[index] = text
                    progress.advance(task, len(batch))
        return texts

    def _continue(
        self, contexts: list[list[int]], options: Mapping[str, Any], seed: int
    ) -> list[str]:
        stops, max_new_tokens, sampling = _read_options(options)
        written: list[list[int]] = [[] for _ in contexts]
        texts: list[str | None] = [None] * len(contexts)  # None: still being written
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
    """(stop texts, most new tokens, arguments of `stream`) from a task's `generation_kwargs`.

    Greedy unless do_sample or a temperature says otherwise. Raises ConfigError for what our models
    cannot do, instead of doing something else.
    """
    for name in options:
        if name not in _OPTIONS:
            raise ConfigError(
                f"generation_kwargs of the task: '{name}' is not known here",
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
    """Run tasks of the harness and return its results, as its `make_table` prints them.

    Args:
        tasks: YAML files, folders of them, or names of tasks and groups below `include_paths`.
        num_fewshot: examples before each question; None leaves it to the task.
        limit: the most questions of each task.
        log_samples: also every question with what the model answered, under `samples`.
    Raises ConfigError for a task that is not there or cannot be read, with its data.
    """
    for path in include_paths:
        if not path.is_dir():
            raise ConfigError(f"no folder {path}", "--include-path takes folders of task files")
    folders = [Path(task) for task in tasks if Path(task).is_dir()]
    # The harness's own thousands of tasks are left out: their data is on the hub.
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
    logger.setLevel(logging.ERROR)  # what it has to say it says again when it loads them for use
    try:
        manager.load(names)
    except Exception as error:  # YAML, templates, data: the libraries below raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(
            f"cannot load {', '.join(names)}: {reason}",
            "data_files of a task are looked up from the current folder; nothing is downloaded "
            "unless HF_HUB_OFFLINE=0 is set",
        ) from error
    finally:
        logger.setLevel(level)


def _names(task: str, manager: TaskManager) -> list[str]:
    """What the task manager calls `task`: itself, or all tasks of a folder."""
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
        hint = "name a YAML file or a folder, or the folder of the task with --include-path"
        if manager.all_tasks:
            hint = did_you_mean(task, manager.all_tasks)
        raise ConfigError(f"there is no task '{task}'", hint)
    return [task]


def _progress(quiet: bool) -> Progress:
    console = Console(stderr=True)
    return Progress(console=console, transient=True, disable=quiet or not console.is_terminal)
