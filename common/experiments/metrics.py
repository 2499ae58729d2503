"""Summaries of metrics, and their direction (whether higher is better)."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


# Words in a metric's name that give its direction. A loss or an error is a loss in any combination
# (`auc_loss`, `precision_error`); in other names the last known word counts.
_LOSSES = _set("loss losses error errors err regret")
_LOWER = _set(
    """perplexity ppl nll xent ce bce crossentropy bits nats bpb bpc bpt bpd mae mse rmse mape smape brier
    ece mce wer cer ter eer fid kid lpips fpr fnr failure failures latency runtime seconds secs ms time
    duration memory"""
)
_HIGHER = _set(
    """accuracy acc correct f1 bleu sacrebleu rouge chrf meteor cider bertscore auc auroc auprc roc ap map
    iou miou dice jaccard ndcg mrr hit hits match em win wins success mcc kappa precision prec recall
    sensitivity specificity tpr tnr r2 pearson spearman correlation psnr ssim likelihood elbo mfu hfu
    tflops throughput goodput speed fps tps sps wps"""
)
# Words that make the direction unknown: `loss_scale`, `accuracy_std`, `explained_variance`.
_UNDECIDABLE = _set(
    """scale scaler coef coeff weight weights std stddev stderr sem var variance delta diff difference gap
    drop threshold target limit budget size lr alpha beta gamma lambda"""
)
_TIMES = _set("s sec secs second seconds ms minute minutes hour hours day")
_PHRASES = (
    (r"(?<=\w)/(?=(s|sec|second)\b)|(?<=[^\Ws]s)[ _-](?=(s|sec)\b)", " per "),  # it/s, tokens_sec
    (r"\b(s|sec)/(?=(it|iter|step|batch|epoch)\b)", "seconds per "),
    (r"[\W_]+", " "),
    (r"\bheld out\b", "heldout"),
    (r"\bcross entropy", "crossentropy"),
    (r"\br (squared|2)\b", "r2"),
    (r"\b(top|pass) ?\d+", "accuracy"),
    (r"\bfalse (positive|negative)s?", "fpr"),
    (r"\btrue (positive|negative)s?", "tpr"),
    (r"\b(train|training|test|val|valid|eval|dev)(?=(loss|error|acc|accuracy)\b)", r"\1 "),
)
# The split of evaluations on a part of the validation split `val` (see Trainer): its losses are not
# comparable with those of the whole split.
VAL_QUICK = "val_quick"
_TEST = _set("test testing")
_TRAIN = _set("train training")
_VALIDATION = _set("val valid validation eval evaluation dev development holdout heldout")
# Metrics per token: comparable only between runs with the same tokens.
_PER_TOKEN = _LOSSES | _set(
    "perplexity ppl nll xent ce crossentropy bits nats bpt likelihood entropy accuracy acc"
)
_PER_TEXT = _set("byte bytes char chars character characters word words")


class MetricSummary(NamedTuple):
    """One metric of one split of one run. `last` is the value at the highest step (the latest
    logged one). `minimum` and `maximum` are over finite values, with the step of the first row that
    reached them."""

    name: str
    split: str
    metric: str
    num_values: int
    first: float | None
    last: float | None
    minimum: float | None
    maximum: float | None
    minimum_step: int | None
    maximum_step: int | None
    last_step: int
    non_finite: int

    @property
    def diverged(self) -> bool:
        """Whether the last value is NaN or infinite (SQLite stores NaN as NULL)."""
        return self.last is None or math.isinf(self.last)

    def best(self, direction: str) -> float | None:
        """The best finite value; `direction` is `min` or `max`."""
        return self.minimum if direction == "min" else self.maximum

    def best_step(self, direction: str) -> int | None:
        """The step of `best`."""
        return self.minimum_step if direction == "min" else self.maximum_step


@lru_cache(maxsize=4096)
def metric_direction(metric: str) -> str | None:
    """`min` if lower is known to be better, `max` if higher is, else None."""
    words = _words(metric)
    if "per" in words[1:-1]:
        cut = words.index("per", 1)
        per_time = not _TIMES.isdisjoint(words[cut + 1 :])
        words = words[:cut]
        if per_time and _direction(words) != "min":
            return "max"
    return _direction(words)


def _direction(words: list[str]) -> str | None:
    known = [word for word in words if word in _LOSSES | _LOWER | _HIGHER | _UNDECIDABLE]
    undecidable = not _UNDECIDABLE.isdisjoint(known)
    if not known or (undecidable and known[-1] not in _LOSSES):  # `std_loss` is a loss
        return None
    lower = not _LOSSES.isdisjoint(known) or known[-1] in _LOWER
    if words[0] in ("neg", "negative"):  # `neg_mean_squared_error` of scikit-learn
        lower = not lower
    return "min" if lower else "max"


def is_per_token(metric: str) -> bool:
    """Whether the metric is about tokens (`loss`, `perplexity`), not about bytes, words or time."""
    words = {*_words(metric)}
    return not words.isdisjoint(_PER_TOKEN) and words.isdisjoint(_PER_TEXT)


def _words(name: str) -> list[str]:
    """Split a name into words: `val/TopK_Acc` into val, top, k and acc, `bleu4` into bleu."""
    parts = re.split(r"([\W_]+)", name)
    text = "".join(map(_split_camel_case, parts)).lower()
    for pattern, replacement in _PHRASES:
        text = re.sub(pattern, replacement, text)
    return [word if _is_known(word) else word.rstrip("0123456789") for word in text.split()]


def _split_camel_case(word: str) -> str:
    if _is_known(word.lower().rstrip("0123456789")):  # mAP50, IoU
        return word
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", word)


def _is_known(word: str) -> bool:
    return word in _LOSSES | _LOWER | _HIGHER


def preferred_split(splits: Iterable[str]) -> str:
    """The main split of a run: test before validation (val, valid, eval, dev ...) before
    `val_quick` before train before any other."""
    return min(splits, key=lambda split: (*_split_rank(split), split))


@lru_cache(maxsize=4096)
def _split_rank(split: str) -> tuple[int, int]:
    if split == VAL_QUICK:
        return 2, 0
    words = _words(split)
    kinds = ((0, _TEST), (1, _VALIDATION), (3, _TRAIN))
    rank = next((rank for rank, kind in kinds if not kind.isdisjoint(words)), 4)
    return rank, len(words)  # `val` before `val_wiki`


def summarise_rows(
    name: str, rows: Iterable[Mapping[str, Any]], known: Iterable[MetricSummary] = ()
) -> list[MetricSummary]:
    """Summarise the rows of a log. `known` are the summaries of earlier rows."""
    found = {(s.split, s.metric): _RunningSummary(s) for s in known}
    for row in rows:
        split, step = row["split"], row["step"]
        for metric, value in row["metrics"].items():
            summary = found.get((split, metric))
            if summary is None:
                summary = _RunningSummary(_no_values(name, split, metric, value, step))
                found[split, metric] = summary
            summary.add(value, step)
    return [summary.frozen() for summary in found.values()]


def _no_values(name: str, split: str, metric: str, first: float, step: int) -> MetricSummary:
    return MetricSummary(
        name, split, metric, 0, first, None, None, None, None, None, last_step=step, non_finite=0
    )


class _RunningSummary:
    """An accumulating MetricSummary. Not a dataclass, whose module takes 10 ms to import."""

    def __init__(self, begun: MetricSummary) -> None:
        self._begun = begun
        self.num_values, self.non_finite = begun.num_values, begun.non_finite
        self.last, self.last_step = begun.last, begun.last_step
        self.minimum, self.minimum_step = begun.minimum, begun.minimum_step
        self.maximum, self.maximum_step = begun.maximum, begun.maximum_step

    def add(self, value: float, step: int) -> None:
        self.num_values += 1
        if step >= self.last_step:  # steps may be logged in any order
            self.last, self.last_step = value, step
        if not math.isfinite(value):
            self.non_finite += 1
            return
        if self.minimum is None or value < self.minimum:
            self.minimum, self.minimum_step = value, step
        if self.maximum is None or value > self.maximum:
            self.maximum, self.maximum_step = value, step

    def frozen(self) -> MetricSummary:
        return self._begun._replace(
            num_values=self.num_values,
            last=self.last,
            minimum=self.minimum,
            maximum=self.maximum,
            minimum_step=self.minimum_step,
            maximum_step=self.maximum_step,
            last_step=self.last_step,
            non_finite=self.non_finite,
        )
