"""Operations on the experiment store: list, rank, compare, export, rename and delete.

reports.py        lists, rankings and comparisons as tables
exports.py        to CSV, JSON and Parquet
renaming.py       renaming an experiment and everything that belongs to it
deleting.py       deleting for good, and taking experiments out of packs
checking.py       verifying every file, and removing leftovers of crashes
synchronising.py  exchanging experiments with the object store of several machines
"""
