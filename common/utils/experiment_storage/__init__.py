"""Experiments: an append-only log while a run is live, one Parquet file when it is finished, SQL over both.

log.py              the live log: one checksummed line per record, safe against kill -9
store.py            names, the Parquet files, save_experiment
run.py              start_experiment: the run that a training script logs to
annotations.py      tags and notes, which may change at any time
metrics.py          the summary of a metric, and which way is better
catalogue.py        the questions that --list, --best and --compare ask
catalogue_cache.py  the SQLite cache that answers them, rebuilt from the files at any time
comparison.py       configuration differences, groups of seeds
statistics.py       intervals, tests, power
sql.py              query_experiments: DuckDB over every experiment
"""
