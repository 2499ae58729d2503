"""What people do with a store of experiments: list, rank and compare them, export, rename and delete them.

reports.py        lists, rankings and comparisons as tables
exports.py        to CSV, JSON and Parquet
renaming.py       another name for an experiment and all that belongs to it
deleting.py       deleting for good, and taking experiments out of packs
checking.py       reading every file, and removing what crashes left behind
synchronising.py  exchanging experiments with the object store of several machines
"""
