"""Reports: what a notebook shows of the store."""

from __future__ import annotations

import pandas as pd

from apps.experiments.reports import best_experiments, list_experiments
from common.utils import save_experiment, start_experiment


def test_a_notebook_shows_a_table_in_which_no_text_is_html() -> None:
    save_experiment("a", pd.DataFrame({"loss": [0.5]}), {"project": "<script>alert(1)</script>"})
    html = best_experiments("loss")._repr_html_()
    assert "<td" in html and "0.5" in html
    assert "<script>" not in html and "&lt;script&gt;" in html
    assert best_experiments("loss").to_pandas()["loss"].tolist() == [0.5]
    assert str(list_experiments()).splitlines()[2].startswith("a ")


def test_a_run_shows_where_it_stands() -> None:
    with start_experiment("live", config={"lr": 1}) as run:
        run.log({"loss": 2.5}, step=7)
        html = run._repr_html_()
        assert "live" in html and "running" in html and "2.5" in html and "7" in html
    assert "finished" in run._repr_html_()
