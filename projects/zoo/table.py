"""Print the table of a sweep over the zoo: loss, length generalisation, speed and memory, and draw it."""

from __future__ import annotations

import argparse
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import ExperimentError, exit_on_error

if TYPE_CHECKING:
    import pandas as pd

    from common.experiments.statistics import Estimate

_OF_SWEEP = "list_contains(tags, 'sweep:{sweep}') AND status = 'finished'"
_RUNS = f"""
SELECT coalesce(config->>'$.model.layers', config->>'$.model.mixer') AS layers,
       config->>'$.data.dataset' AS dataset, seed, parameters,
       max(bits_per_byte) FILTER (split = 'val') AS short,
       max(bits_per_byte) FILTER (split = 'val_{{longer}}') AS long,
       max(tokens_per_second) AS speed, max(memory_gib) AS memory
FROM runs JOIN experiments ON experiment_name = name
WHERE {_OF_SWEEP}
GROUP BY ALL
"""
_SIZE = (14.0, 6.0)  # inches


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: python projects/zoo/table.py --sweep zoo --plot zoo.png",
    )
    parser.add_argument("--sweep", default="zoo", metavar="NAME", help="(default: zoo)")
    parser.add_argument("--longer", type=int, default=1024, help="tokens (default 1024)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="PNG, SVG or PDF")
    parser.add_argument("--format", choices=("table", "markdown", "csv"), default="table")
    arguments = parser.parse_args()

    from common.utils import query_experiments
    from common.utils.tables import format_rows

    query = {"sweep": arguments.sweep.replace("'", "''"), "longer": arguments.longer}
    if query_experiments(f"SELECT name FROM runs WHERE {_OF_SWEEP.format(**query)}").empty:
        raise ExperimentError(
            f"no finished run of the sweep '{arguments.sweep}'", "README.md has its command"
        )
    runs = query_experiments(_RUNS.format(**query))
    runs["layers"] = runs["layers"].map(short)
    table = summarise(runs)
    print(format_rows([*table.columns], table.to_numpy().tolist(), arguments.format))
    if arguments.plot:
        plot(runs, arguments.plot, arguments.longer)
        print(f"plot  {arguments.plot}")


def short(layers: str) -> str:
    """ "gru gru attention" -> "2 gru, attention" """
    groups = [(name, len([*same])) for name, same in groupby(layers.split())]
    return ", ".join(name if count == 1 else f"{count} {name}" for name, count in groups)


def estimates(runs: pd.DataFrame, dataset: str, column: str) -> dict[str, Estimate]:
    """Mean and interval over seeds by layers, the best first."""
    from common.experiments.statistics import estimate

    values = runs[runs["dataset"] == dataset].dropna(subset=column).groupby("layers")[column]
    found = {str(layers): estimate(group.tolist()) for layers, group in values}
    return dict(sorted(found.items(), key=lambda item: item[1].mean))


def summarise(runs: pd.DataFrame) -> pd.DataFrame:
    """A row per family: bits per byte with 95% intervals, the best speed of all its runs, the most memory."""
    import pandas as pd

    columns: dict[str, dict[str, str]] = {}
    for dataset in sorted(runs["dataset"].unique()):
        for column, title in (("short", dataset), ("long", f"{dataset}, longer")):
            found = estimates(runs, dataset, column)
            columns[title] = {layers: _written(each) for layers, each in found.items()}
    by_layers = runs.groupby("layers")
    columns["parameters"] = by_layers["parameters"].first().map("{:,}".format).to_dict()
    columns["tokens/s"] = by_layers["speed"].max().map("{:,.0f}".format).to_dict()
    columns["GiB"] = by_layers["memory"].max().map("{:.1f}".format).to_dict()
    table = pd.DataFrame(columns).rename_axis("layers").reset_index()
    order = {
        name: place for place, name in enumerate(estimates(runs, runs["dataset"].min(), "short"))
    }
    return table.sort_values("layers", key=lambda names: names.map(order)).fillna("")


def _written(each: Estimate) -> str:
    return f"{each.mean:.3f}" + ("" if each.half_width is None else f" ± {each.half_width:.3f}")


def plot(runs: pd.DataFrame, path: Path, longer: int) -> None:
    """A panel per text with means and intervals, sorted by loss, and one of speed."""
    from matplotlib.figure import Figure

    datasets = sorted(runs["dataset"].unique())
    figure = Figure(figsize=_SIZE, layout="constrained")
    panels = figure.subplots(1, len(datasets) + 1)
    for axes, dataset in zip(panels, datasets, strict=False):
        names = list(estimates(runs, dataset, "short"))
        for column, style, label in (
            ("long", {"color": "tab:orange", "marker": "D", "mfc": "none"}, f"{longer:,} tokens"),
            ("short", {"color": "tab:blue", "marker": "o"}, "length of training"),
        ):
            found = estimates(runs, dataset, column)
            shown = [name for name in names if name in found]
            axes.errorbar(
                [found[name].mean for name in shown],
                [names.index(name) for name in shown],
                xerr=[found[name].half_width or 0.0 for name in shown],
                linestyle="",
                markersize=5,
                label=label,
                **style,
            )
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.set_title(f"{dataset}: bits per byte", fontsize=10)
        axes.legend(fontsize=8)
    speeds = runs.groupby("layers")["speed"].max().sort_values(ascending=False)
    panels[-1].barh(range(len(speeds)), speeds, color="tab:gray")
    panels[-1].set_yticks(range(len(speeds)), speeds.index, fontsize=8)
    panels[-1].set_title("training: tokens per second", fontsize=10)
    for axes in panels:
        axes.invert_yaxis()
        axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    with exit_on_error():
        main()
