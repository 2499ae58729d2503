"""Experiments: an append-only log while a run is live, one Parquet file when it is finished, SQL over both.

log.py        the live log: one checksummed line per record, safe against kill -9
store.py      names, the Parquet files, save_experiment
run.py        start_experiment: the run that a training script logs to
catalogue.py  a SQLite cache of one row per run and metric, rebuilt from the files at any time
sql.py        query_experiments: DuckDB over every experiment
"""
