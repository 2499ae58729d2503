"""What to train on. Kept apart from the code, so that a wrong key is told before anything heavy loads."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from common.config import Config


class DataConfig(Config):
    """Source, tokenizer and split of the token files, and the batches cut from them."""

    dataset: str = "python_stdlib"  # python_stdlib, stories, or a folder name in assets/datasets
    hub: str | None = (
        None  # OWNER/NAME on the Hugging Face hub to download `dataset` from if absent
    )
    path: Path | None = None  # a text file or a folder of them; takes the place of `dataset`
    more_validation: tuple[Path, ...] = ()  # other texts to judge the final model on
    text_column: str = "text"  # for datasets from the hub
    num_stories: int = Field(20_000, gt=0)  # for `stories`
    tokenizer: Literal["char", "bpe"] = "bpe"
    vocab_size: int = Field(4096, ge=257)  # for `bpe`; `char` has as many as the text needs
    val_fraction: float = Field(0.1, gt=0, lt=1)
    seed: int = 0  # of the split by document, and of `stories`
    context_length: int | None = Field(None, ge=2)  # tokens per sequence; default: the model's
    # random: windows that start anywhere, as in nanoGPT; shuffled: every token once per epoch
    sampling: Literal["random", "shuffled"] = "random"
    batch_size: int = Field(16, gt=0)  # sequences per forward pass
    eval_batch_size: int = Field(64, gt=0)

    @field_validator("path")
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        # From the folder the run was started in; a later --resume may come from another.
        return None if path is None else path.expanduser().resolve()

    @field_validator("more_validation")
    @classmethod
    def _all_absolute(cls, paths: tuple[Path, ...]) -> tuple[Path, ...]:
        return tuple(path.expanduser().resolve() for path in paths)
