"""The dashboard: every run of the store in a browser, served only to this machine.

launch.py     finds a port, opens the browser, serves until Ctrl-C
server.py     the FastAPI application: addresses and their answers
security.py   protection against other web pages
queries.py    SQL: two at a time, cancelled when the client disconnects
data.py       all queries of the store
runs.py       the table of runs, as changes since the last response
plots.py      the curves of a plot: of runs or of groups of seeds
curves.py     arithmetic on curves: smoothing, reduction, bands
static/       the page: ES modules without a build step

The page loads quickly because it starts with one table of columns and no plotting library;
plotly.js comes from the installed `plotly` package with the first plot. All content of the store is
inserted as text, never as HTML.
"""
