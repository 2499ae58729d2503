"""The curves of a plot: one per run, or one with a band per group of seeds."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from apps.dashboard.curves import Floats, band, find_trouble, reduce, smooth
from apps.dashboard.data import AllSeries, Series, SeriesCache, read_seeds
from common.errors import ExperimentError
from common.experiments.metrics import preferred_split

MOST_RUNS = 100  # limit of distinguishable lines
_MOST_POINTS, _FEWEST_POINTS, _ALL_POINTS = 2000, 250, 200_000
_FEWEST_SMOOTHED = 50  # points; fewer would lag far behind the data
_SEED_ENDING = re.compile(r"[._-]*(seed|s)?[._-]*\d*$", re.IGNORECASE)


class PlotRequest(BaseModel):
    """What to plot. Empty `metrics`: the main metric; empty `splits`: all of them."""

    model_config = ConfigDict(extra="forbid")
    runs: list[str]
    metrics: list[str] = []
    splits: list[str] = []
    x: Literal["step", "epoch", "time"] = "step"
    log_x: bool = False
    smoothing: float = Field(0.0, ge=0.0, le=0.999)
    group: bool = False
    window: tuple[float, float] | None = None  # x range when zoomed in
    known: dict[str, str] = {}  # {key: stamp} of curves already on the page


def draw(request: PlotRequest, hashes: Mapping[str, str], cache: SeriesCache) -> dict[str, Any]:
    """Return the curves that are new or changed since `request.known`, and the available choices.

    {"metrics": {metric: splits}, "shown": metrics, "curves": [{"key", "stamp", "label", "runs",
    "series"}], "keys": of all curves in order, "missing": unreadable runs, "left_out"}.
    """
    read: dict[str, tuple[str, AllSeries]] = {}
    missing = []
    wanted = list(dict.fromkeys(request.runs))
    for name in wanted[:MOST_RUNS]:
        try:
            if name not in hashes:
                raise ExperimentError(f"there is no experiment '{name}'")
            read[name] = cache.read(name)
        except ExperimentError as error:
            missing.append([name, error.message])
    available = _available([series for _, series in read.values()])
    shown = [m for m in request.metrics if m in available] or _default(available)
    groups = _groups(read, hashes) if request.group else {name: [name] for name in read}
    lines = sum(len(available[metric]) for metric in shown) * len(groups)
    points = max(_FEWEST_POINTS, min(_MOST_POINTS, _ALL_POINTS // max(lines, 1)))
    labels = _labels(groups)
    seeds = read_seeds(read) if request.group else {}
    curves = []
    for key, names in groups.items():
        stamp = _combined([read[name][0] for name in names])
        if request.known.get(key) != stamp:
            members = [read[name][1] for name in names]
            series = _series(request, shown, members, names, points, seeds)
            facts = {"key": key, "stamp": stamp, "label": labels[key], "runs": names}
            curves.append({**facts, "series": series})
    return {
        "metrics": available,
        "shown": shown,
        "keys": list(groups),
        "curves": curves,
        "missing": missing,
        "left_out": max(0, len(wanted) - MOST_RUNS),
    }


def _available(runs: Sequence[AllSeries]) -> dict[str, list[str]]:
    """{metric: splits}, the main split first."""
    found: dict[str, list[str]] = {}
    for metric, split in dict.fromkeys(key for series in runs for key in series):
        found.setdefault(metric, []).append(split)
    for splits in found.values():
        best = preferred_split(splits)
        splits.sort(key=lambda split: (split != best, split))
    return dict(sorted(found.items(), key=lambda item: (item[0] != "loss", item[0])))


def _default(available: Mapping[str, Sequence[str]]) -> list[str]:
    return list(available)[:1]


def _groups(read: Mapping[str, Any], hashes: Mapping[str, str]) -> dict[str, list[str]]:
    """{configuration hash: its runs}"""
    groups: dict[str, list[str]] = {}
    for name in read:
        groups.setdefault(hashes[name], []).append(name)
    return groups


def _labels(groups: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Label of a group: the common part of its names without the seed; distinct."""
    labels: dict[str, str] = {}
    for key, names in groups.items():
        if len(names) == 1:
            labels[key] = names[0]
            continue
        common = _common_beginning(names)
        label = _SEED_ENDING.sub("", common) or common or names[0]
        labels[key] = f"{label} #{key[:6]}" if label in labels.values() else label
    return labels


def _common_beginning(names: Sequence[str]) -> str:
    first, last = min(names), max(names)  # what these share, all share
    same = [a == b for a, b in zip(first, last, strict=False)]
    return first[: (*same, False).index(False)]


def _combined(stamps: Sequence[str]) -> str:
    return hashlib.sha256("|".join(stamps).encode()).hexdigest()[:16]


def _series(
    request: PlotRequest,
    shown: Sequence[str],
    members: Sequence[AllSeries],
    names: Sequence[str],
    points: int,
    seeds: Mapping[str, int | None],
) -> list[dict[str, Any]]:
    drawn = []
    for metric in shown:
        splits = dict.fromkeys(split for runs in members for m, split in runs if m == metric)
        for split in splits:
            if request.splits and split not in request.splits:
                continue
            present = [
                (name, runs[metric, split])
                for name, runs in zip(names, members, strict=True)
                if (metric, split) in runs
            ]
            trouble = [
                {"run": name, **found._asdict()}
                for name, series in present
                if (found := find_trouble(series.step, series.value))
            ]
            curves = [_curve(series, request) for _, series in present]
            line = None
            if request.group:
                of_runs = [seeds.get(name) for name, _ in present]
                line = _band(curves, of_runs, request, points)
            line = line or _line(*curves[0], request, points)
            drawn.append({"metric": metric, "split": split, "trouble": trouble, **line})
    return drawn


def _curve(series: Series, request: PlotRequest) -> tuple[Floats, Floats]:
    """(x ascending, y); points without an x are left out."""
    x: Floats = getattr(series, request.x)
    kept = np.isfinite(x) & (x > 0 if request.log_x else True)
    x, y = x[kept], series.value[kept]
    if (np.diff(x) < 0).any():
        order = np.argsort(x, kind="stable")
        x, y = x[order], y[order]
    return x, y


def _line(x: Floats, y: Floats, request: PlotRequest, points: int) -> dict[str, Any]:
    smoothed = _smooth(y, request)
    inside = _inside(x, request.window)
    kept = inside.start + reduce(x[inside], y[inside], points, log_x=request.log_x)
    line: dict[str, Any] = {"x": x[kept].tolist(), "y": _numbers(y[kept])}
    if smoothed is not y:
        line["smooth"] = _numbers(smoothed[kept])
    return line


def _smooth(y: Floats, request: PlotRequest) -> Floats:
    enough = request.smoothing > 0 and len(y) >= _FEWEST_SMOOTHED
    return smooth(y, request.smoothing) if enough else y


def _band(
    curves: Sequence[tuple[Floats, Floats]],
    seeds: Sequence[int | None],
    request: PlotRequest,
    points: int,
) -> dict[str, Any] | None:
    """None for a single run: it has no interval."""
    if len(curves) < 2:
        return None
    parts, of_parts = [], []
    for (x, y), seed in zip(curves, seeds, strict=True):
        inside = _inside(x, request.window)
        if len(x[inside]):
            parts.append((x[inside], _smooth(y, request)[inside]))
            of_parts.append(seed)
    if not parts:
        return {"x": [], "y": []}
    result = band(parts, points // 2, seeds=of_parts, log_x=request.log_x)
    return {
        "x": result.x.tolist(),
        "y": _numbers(result.mean),
        "low": _numbers(result.low),
        "high": _numbers(result.high),
        "n": result.n.tolist(),
        "members": len(curves),
    }


def _inside(x: Floats, window: tuple[float, float] | None) -> slice:
    """The points in the window and one on either side, so that lines reach its edges."""
    if window is None:
        return slice(0, len(x))
    first, last = np.searchsorted(x, window[0]), np.searchsorted(x, window[1], side="right")
    return slice(max(0, int(first) - 1), int(last) + 1)


def _numbers(values: Floats) -> list[float | None]:
    """JSON has no NaN: null is a gap."""
    numbers: list[float | None] = values.tolist()
    wrong = np.flatnonzero(~np.isfinite(values)).tolist()
    for index in wrong:
        numbers[index] = None
    return numbers
