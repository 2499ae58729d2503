"""Print the table of sweeps over objectives and numbers of steps, and draw loss against training FLOPs."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import ExperimentError, exit_on_error

if TYPE_CHECKING:
    import pandas as pd

_FINISHED = "list_has_any(tags, [{tags}]) AND status = 'finished'"
_RUNS = f"""
SELECT config->>'$.data.dataset' AS dataset, config->>'$.objective' AS objective,
       CAST(config->>'$.training.max_steps' AS INTEGER) AS steps, seed, parameters, tokens,
       CAST(config->>'$.model.num_layers' AS INTEGER) AS layers,
       CAST(config->>'$.model.hidden_size' AS INTEGER) AS hidden,
       CAST(config->>'$.model.context_length' AS INTEGER) AS context,
       max(coalesce(*COLUMNS('^bits_per_byte(_bound)?$'))) AS bits
FROM runs JOIN experiments ON experiment_name = name
WHERE {_FINISHED} AND split = 'val'
GROUP BY ALL
ORDER BY dataset, objective, steps, seed
"""
TITLES = {"next_token": "next token", "masked_diffusion": "masked diffusion (bound)"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: python projects/diffusion/compare.py --sweep diffusion diffusion_longer --plot flops.png",
    )
    parser.add_argument(
        "--sweep", nargs="+", default=["diffusion"], metavar="NAME", help="(default: diffusion)"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="PNG, SVG or PDF")
    parser.add_argument("--format", choices=("table", "markdown", "csv"), default="table")
    arguments = parser.parse_args()

    from common.utils import query_experiments
    from common.utils.tables import format_rows

    quoted = (sweep.replace("'", "''") for sweep in arguments.sweep)
    tags = ", ".join(f"'sweep:{sweep}'" for sweep in quoted)
    if query_experiments(f"SELECT name FROM runs WHERE {_FINISHED.format(tags=tags)}").empty:
        raise ExperimentError(
            f"no finished run of the sweep {', '.join(arguments.sweep)}",
            "README.md has its command",
        )
    table = summarise(query_experiments(_RUNS.format(tags=tags)))
    columns = ["text", "objective", "steps", "TFLOPs", "bits per byte", "seeds"]
    rows = [
        [
            row.dataset,
            TITLES[row.objective],
            row.steps,
            f"{row.flops / 1e12:,.1f}",
            _bits(row),
            row.seeds,
        ]
        for row in table.itertuples()
    ]
    print(format_rows(columns, rows, arguments.format))
    if arguments.plot:
        plot(table, arguments.plot)
        print(f"plot  {arguments.plot}")


def _bits(row: Any) -> str:
    """The mean and its interval; a bound with <=."""
    sign = "<= " if row.objective == "masked_diffusion" else ""
    interval = f" ± {row.half_width:.3f}" if row.seeds > 1 else ""
    return f"{sign}{row.bits:.3f}{interval}"


def summarise(runs: pd.DataFrame) -> pd.DataFrame:
    """A row for each text, objective and number of steps: training FLOPs, mean and 95% interval over the seeds.

    FLOPs are those of common/training/mfu.py for tied embeddings, all logits included; masked diffusion
    computes the logits of the masked tokens, on average half of them.
    """
    import pandas as pd

    from common.experiments.statistics import estimate
    from common.training.mfu import flops_per_token

    rows = []
    for key, group in runs.groupby(["dataset", "objective", "steps"]):
        one, found = group.iloc[0], estimate(group["bits"].tolist())
        per_token = flops_per_token(
            one["parameters"], one["layers"], 1, one["hidden"], one["context"]
        )
        row = dict(zip(("dataset", "objective", "steps"), key, strict=True))
        row |= {"flops": float(per_token * one["tokens"]), "seeds": found.seeds}
        rows.append(row | {"bits": found.mean, "half_width": found.half_width or 0.0})
    return pd.DataFrame(rows).sort_values(["dataset", "flops", "objective"])


def plot(table: pd.DataFrame, path: Path) -> None:
    """A panel per text: bits per byte by training FLOPs, with intervals."""
    from matplotlib.figure import Figure

    datasets = sorted(table["dataset"].unique())
    figure = Figure(figsize=(4.5 * len(datasets), 3.6), layout="constrained")
    for axes, dataset in zip(
        figure.subplots(1, len(datasets), squeeze=False)[0], datasets, strict=True
    ):
        for objective, title in TITLES.items():
            part = table[(table["dataset"] == dataset) & (table["objective"] == objective)]
            axes.errorbar(
                part["flops"],
                part["bits"],
                yerr=part["half_width"],
                marker="o",
                capsize=3,
                label=title,
            )
        if (entropy := _bits_of_grammar(dataset)) is not None:
            axes.axhline(entropy, color="0.5", linestyle="--", label="entropy")
        axes.set_xscale("log")
        ticks = sorted(table["flops"].round(-11).unique())
        axes.set_xticks(ticks, [f"{flops / 1e12:.0f}" for flops in ticks])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.set_title(dataset)
        axes.set_xlabel("TFLOPs of training")
        axes.legend()
        axes.grid(alpha=0.3)
    figure.supylabel("bits per byte")
    figure.savefig(path, dpi=150)


def _bits_of_grammar(dataset: str) -> float | None:
    """The entropy in bits per byte of a text with a grammar."""
    from common.data import speeches, stories

    grammar = {"stories": stories.GRAMMAR, "speeches": speeches.GRAMMAR}.get(dataset)
    if grammar is None:
        return None
    nats, size = grammar.entropy()
    return nats / math.log(2) / size


if __name__ == "__main__":
    with exit_on_error():
        main()
