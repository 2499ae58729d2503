"""The dashboard: every run of the store in a browser, on this machine alone.

launch.py     finds a port, opens the browser, serves until Ctrl-C
server.py     the FastAPI application: addresses and their answers
security.py   what a page of somebody else's must not be able to do
queries.py    SQL: two at a time, none whose asker has left
data.py       all that is asked of the store
runs.py       the table of runs, as what changed since the last answer
plots.py      the curves a plot shows: of runs or of groups of seeds
curves.py     arithmetic on curves: smoothing, reduction, bands
static/       the page: ES modules, one idea each, and no build step

The page loads at once because it begins with one table of columns and no plotting library; plotly.js
comes from the installed `plotly` package when the first plot is drawn. Everything the store holds
is text to the page, never HTML.
"""
