"""Experiments: an append-only log while a run is live, one Parquet file when it is finished, packs of many
when there are many, SQL over all of them.

    assets/outputs/experiments/
      exp_007.jsonl            a live run: its log
      exp_006.parquet          a finished one
      packs/<time>.parquet     the cold ones of a large store
      _annotations.jsonl       tags, notes and archive marks
      _checksums.jsonl         what every Parquet file must be
      _remote.jsonl            which experiment each file of the object store holds
      .catalogue.sqlite        a cache, which can be deleted at any time; that of a store which may only be
                               read is in ~/.cache/research-monorepo

log.py              the live log: one checksummed line per record, safe against kill -9
store.py            names, checked rows, save_experiment
run.py              start_experiment: the run that a training script logs to
parquet.py          the Parquet file of one experiment
packs.py            moving cold experiments into packs and back
checksums.py        the SHA-256 of every Parquet file
annotations.py      tags, notes and archive marks, which may change at any time
metrics.py          the summary of a metric, and which way is better
catalogue.py        the questions that --list, --best and --compare ask
catalogue_cache.py  the SQLite cache that answers them, rebuilt from the files at any time
scan.py             which files count at this moment
reports.py          the answers as tables for a terminal or a notebook
comparison.py       configuration differences, groups of seeds
statistics.py       intervals, tests, power
sql.py              query_experiments: SQL over every experiment
sql_process.py      the processes that run it, each of which can be killed
sql_worker.py       what such a process does: one SELECT within its bounds
sql_views.py        the views `experiments` and `runs` in DuckDB
maintenance.py      deleting, and checking every file
run_folders.py      whose the folder of checkpoints and samples is
renaming.py         another name for an experiment and all that belongs to it
exports.py          to CSV, JSON and Parquet
remote.py           an object store that several machines share
"""

import lazy_loader

# As in __init__.pyi, which takes 5 ms to read: every list of experiments would wait for that.
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "exports": ["export_experiments"],
        "reports": ["best_experiments", "compare_experiments", "list_experiments"],
        "run": ["Run", "start_experiment"],
        "sql": ["query_experiments"],
        "store": ["save_experiment"],
    },
)
