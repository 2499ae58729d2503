"""The value that flows: its data are checked before anything is trained."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from common.errors import DataError, UsageError
from common.training import Experiment
from tests.tiny_training import tiny_model

IDS = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
NOTHING = {"input_ids": IDS, "labels": torch.full_like(IDS, -100)}


def test_data_without_a_label_is_refused_before_training() -> None:
    with pytest.raises(DataError, match="none of the first"):
        Experiment(tiny_model(), [NOTHING]).check()
    Experiment(tiny_model(), [NOTHING, IDS]).check()
    empty: list[Any] = [[], [NOTHING]]
    for data in empty:
        with pytest.raises(DataError, match="val_data has no label to predict"):
            Experiment(tiny_model(), [IDS], data).check()
        with pytest.raises(DataError, match="other has no label to predict"):
            Experiment(tiny_model(), [IDS], other_val_data={"other": data}).check()
    with pytest.raises(DataError, match="is an iterator"):
        Experiment(tiny_model(), [IDS], iter([IDS])).check()


def test_data_that_are_no_text_have_none() -> None:
    experiment = Experiment(tiny_model(), [IDS])
    assert not experiment.has_text
    with pytest.raises(UsageError, match="no text"):
        _ = experiment.text
