"""Several sources in one training: the weights are kept, the words shared, the resume checked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from common.config import load_config
from common.data.config import DataConfig
from common.data.loader import MixedWindows
from common.data.prepare import prepare
from common.data.token_files import TokenMixture
from common.errors import ConfigError


@pytest.fixture
def mixture(tmp_path: Path) -> TokenMixture:
    (tmp_path / "a.txt").write_text("aaa bbb " * 500)
    (tmp_path / "b.txt").write_text("ccc ddd " * 300)
    weights = {str(tmp_path / "a.txt"): 3.0, str(tmp_path / "b.txt"): 1.0}
    data = prepare(DataConfig(mixture=weights, tokenizer="char"))
    assert isinstance(data, TokenMixture)
    return data


def test_sources_share_a_vocabulary_and_keep_their_own_files(mixture: TokenMixture) -> None:
    assert mixture.tokenizer.decode(range(1, 6)) == " abcd"
    assert len({source.directory for source in mixture.sources.values()}) == 2
    text = mixture.tokenizer.decode(mixture.tokens("val").tolist())
    assert text == ("aaa bbb " * 50) + ("ccc ddd " * 30)
    assert (mixture.tokens("val") == 0).sum() == 1, "the end of text stands between"
    assert mixture.meta["splits"]["train"]["bytes"] == 3600 + 2160
    assert len(mixture.fingerprint) == 5


def test_sequences_are_drawn_by_weight_and_by_index_alone(mixture: TokenMixture) -> None:
    sources = [source.tokens("train") for source in mixture.sources.values()]
    windows = MixedWindows(
        sources, [*mixture.weights.values()], batch_size=8, context_length=16, seed=5
    )
    first = windows.batch(3)["input_ids"]
    is_first = [
        bool((windows.batch(i)["input_ids"][row] <= 3).all())
        for i in range(250)
        for row in range(8)
    ]
    assert abs(np.mean(is_first) - 0.75) < 0.04  # 4 standard errors
    assert windows.batch(3)["input_ids"].equal(first)
    assert not windows.batch(4)["input_ids"].equal(first)


def test_epochs_of_a_mixture_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("mixture: {stories: 1, python_stdlib: 2}\nsampling: shuffled\n")
    with pytest.raises(ConfigError, match="needs sampling=random"):
        load_config(path, DataConfig)
