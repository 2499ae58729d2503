"""Map tags to metrics: `val/loss` is the metric `loss` on the split `val`.

The rule: when the first or the last part of a tag between slashes is the name of a split
(`train/loss`, `loss/train`), or the tag begins with one and `_` (`val_loss`), that is its split and
the rest its metric; `val_quick/loss` is on `val_quick`. Other tags keep their name, on the split
`train`. `training` means `train`; `valid`, `validation`, `dev`, `eval` and `evaluation` as `val`;
`testing` as `test`.
A tag (or a rest) `epoch` fills the column `epoch` of all rows of its step.

No two tags share a metric and split. A tag whose metric is taken, reserved, or differs from another
only in case gets another, deterministic name with a warning.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import count
from operator import itemgetter
from typing import Any, NamedTuple

from apps.importing.foreign import tidy_text
from common.experiments.metrics import VAL_QUICK
from common.experiments.rows import RESERVED_NAMES, make_row

_WORDS = {
    "train": ("train", "training"),
    VAL_QUICK: (VAL_QUICK,),
    "val": ("val", "valid", "validation", "dev", "eval", "evaluation"),
    "test": ("test", "testing"),
}
SPLIT_OF_WORD = {word: split for split, words in _WORDS.items() for word in words}
DEFAULT_SPLIT = "train"
EPOCH = "epoch"


class Point(NamedTuple):
    """One logged number; `time` in seconds since the run's start, None if unknown."""

    tag: str
    step: int
    time: float | None
    value: float


class Place(NamedTuple):
    split: str
    metric: str


def rows_of_points(points: Iterable[Point]) -> tuple[list[dict[str, Any]], list[str]]:
    """Return (rows by step, warnings). Points of equal step and split share a row.

    A tag logged repeatedly at a step gets a row each time, so nothing is lost.
    """
    # Finally by name: some trackers write the metrics of a step in varying order.
    ordered = sorted(points, key=lambda p: (p.step, p.time or 0.0, p.tag))
    places, warnings = place_tags({point.tag for point in ordered})
    epochs: dict[int, float] = {}
    times_seen: Counter[tuple[str, int]] = Counter()
    found: dict[tuple[int, int, str], tuple[float | None, dict[str, float]]] = {}
    for point in ordered:
        place = places[point.tag]
        if place.metric == EPOCH:
            epochs[point.step] = point.value
            continue
        nth = times_seen[point.tag, point.step]
        times_seen[point.tag, point.step] += 1
        _, metrics = found.setdefault((point.step, nth, place.split), (point.time, {}))
        metrics[place.metric] = point.value
    for step in epochs.keys() - {step for step, _, _ in found}:
        found[step, 0, DEFAULT_SPLIT] = (None, {})
    known: dict[str, str] = {}
    rows = [
        make_row(step, split, epochs.get(step), time, metrics, known)
        for (step, _, split), (time, metrics) in sorted(found.items(), key=itemgetter(0))
    ]
    return rows, warnings


def place_tags(tags: Iterable[str]) -> tuple[dict[str, Place], list[str]]:
    """Return ({tag: metric and split}, a warning that names all renamed tags)."""
    places: dict[str, Place] = {}
    taken: set[Place] = set()
    spelling: dict[str, str] = {}
    renamed = []
    for tag in sorted(tags):
        wish = _split_and_metric(tag)
        place = wish
        if wish.metric != EPOCH:
            place = next(p for p in _candidates(tag, wish, spelling) if p not in taken)
            taken.add(place)
            spelling[place.metric.lower()] = place.metric
        places[tag] = place
        if place != wish:
            renamed.append(f"'{tag}' is '{place.metric}' on {place.split}")
    return places, [f"renamed metrics: {', '.join(renamed)}"] if renamed else []


def distinct_names(names: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Return ({column: metric}, warnings) for columns that are metrics; does not parse splits."""
    metrics: dict[str, str] = {}
    taken = set(RESERVED_NAMES)
    renamed = []
    for name in names:
        wish = tidy_text(name) or "unnamed"
        metric = next(m for m in _numbered(_unreserved(wish)) if m.lower() not in taken)
        taken.add(metric.lower())
        metrics[name] = metric
        if metric != name:
            renamed.append(f"'{name}' is '{metric}'")
    return metrics, [f"renamed metrics: {', '.join(renamed)}"] if renamed else []


def _split_and_metric(tag: str) -> Place:
    _, split, metric = _parse(tag)
    return Place(split, EPOCH if metric.lower() == EPOCH else metric)


def _parse(tag: str) -> tuple[str, str, str]:
    """Return (the word that names the split or "", the split, the metric)."""
    tag = tidy_text(tag)
    first, _, after = tag.partition("/")
    before, _, last = tag.rpartition("/")
    prefix, _, rest = tag.partition("_")
    for word, metric in ((first, after), (last, before), (prefix, rest)):
        split = SPLIT_OF_WORD.get(word.lower())
        if split and metric:
            return word.lower(), split, metric
    return "", DEFAULT_SPLIT, tag or "unnamed"


def _candidates(tag: str, wish: Place, spelling: dict[str, str]) -> Iterator[Place]:
    """Yield candidates for a tag by preference: as parsed, on the split's own word, with a number."""
    word, split, _ = _parse(tag)
    metric = _unreserved(wish.metric)
    for candidate in (split, word) if word else (split,):
        yield Place(candidate, spelling.get(metric.lower(), metric))
    for name in _numbered(metric):
        yield Place(split, spelling.get(name.lower(), name))


def _unreserved(metric: str) -> str:
    return f"logged_{metric}" if metric.lower() in RESERVED_NAMES else metric


def _numbered(name: str) -> Iterator[str]:
    yield name
    yield from (f"{name}_{number}" for number in count(2))
