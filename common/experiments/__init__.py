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

From the bottom up; a file imports those above it alone.

store.py              the files: how each is called, which count, who holds a run
rows.py               the columns of a table, and checked rows
log.py                the live log: one checksummed line per record, safe against kill -9
metrics.py            the summary of a metric, and which way is better
conditions.py         what a run came from: configuration, hash, seed, machine, tokens
annotations.py        the log of tags, notes and archive marks
parquet.py            the Parquet file of one experiment, and the SHA-256 of every file
packs.py              many experiments in one Parquet file
catalogue_entries.py  what each file enters into the tables of the catalogue
catalogue_cache.py    the SQLite file that keeps them, made again from the files at any time
catalogue.py          the questions that --list, --best and --compare ask: `Catalogue` reads
recovery.py           `open_catalogue` finishes what killed processes have left, and reads
names.py              which names are taken, and claiming one
packing.py            moving cold experiments into packs
remote.py             copying finished experiments to an object store
run.py                start_experiment: the run that a script logs to; save_experiment
annotate.py           changing tags, notes and archive marks
run_folders.py        whose the folder of checkpoints and samples is
members.py            whole experiments, wherever they stand
comparison.py         groups of seeds
statistics.py         intervals, tests, power
sql.py                query_experiments: SQL over every experiment
sql_process.py        the processes that run it, each of which can be killed
sql_worker.py         what such a process does: one SELECT within its bounds
sql_views.py          the views `experiments` and `runs` in DuckDB
"""

import lazy_loader

# As in __init__.pyi, which takes 5 ms to read: every list of experiments would wait for that.
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "run": ["Run", "save_experiment", "start_experiment"],
        "sql": ["query_experiments"],
    },
)
