"""The experiment store: an append-only log per live run, one Parquet file per finished one, packs
of many, and SQL over all of them.

    assets/outputs/experiments/
      exp_007.jsonl            a live run: its log
      exp_006.parquet          a finished one
      packs/<time>.parquet     the cold ones of a large store
      _annotations.jsonl       tags, notes and archive marks
      _checksums.jsonl         SHA-256 of every Parquet file
      _remote.jsonl            the experiment in each file of the object store
      .catalogue.sqlite        a cache, safe to delete; for a read-only store in
                               ~/.cache/research-monorepo

From the bottom up; a file imports only those above it.

store.py              the files: their names, which count, and locks of runs
rows.py               the columns of a table, and checked rows
log.py                the live log: one checksummed line per record, safe against kill -9
metrics.py            the summary of a metric, and which way is better
conditions.py         the origin of a run: configuration, hash, seed, machine, tokens
annotations.py        the log of tags, notes and archive marks
parquet.py            the Parquet file of one experiment, and the SHA-256 of every file
packs.py              many experiments in one Parquet file
catalogue_entries.py  the rows of each file in the tables of the catalogue
catalogue_cache.py    the SQLite file with the rows, rebuilt from the files at any time
catalogue.py          the queries of --list, --best and --compare: `Catalogue` only reads
recovery.py           `open_catalogue` finishes runs of killed processes, and reads
names.py              taken names, and claiming one
packing.py            moving cold experiments into packs
remote.py             copying finished experiments to an object store
run.py                start_experiment: the run that a script logs to; save_experiment
annotate.py           changing tags, notes and archive marks
run_folders.py        the folder of checkpoints and samples of an experiment
members.py            whole experiments, wherever they are stored
comparison.py         groups of seeds
statistics.py         intervals, tests, power
sql.py                query_experiments: SQL over every experiment
sql_process.py        the processes that run it, which can be killed
sql_worker.py         the code of such a process: one SELECT within its limits
sql_views.py          the views `experiments` and `runs` in DuckDB
"""

import lazy_loader

# As in __init__.pyi, whose parsing would delay every list of experiments by 5 ms.
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "run": ["Run", "save_experiment", "start_experiment"],
        "sql": ["query_experiments"],
    },
)
