"""Data configuration of texts and of images. Imports nothing heavy, so that a wrong key is reported at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from common.config import Config


class DataConfig(Config):
    """Source, tokenizer and split of the token files, and the batches cut from them."""

    dataset: str = (
        "python_stdlib"  # python_stdlib, stories, speeches, or a folder in assets/datasets
    )
    hub: str | None = None  # OWNER/NAME on the hub: where `cli prepare` gets `dataset`
    streaming: bool = False  # read rows from the hub without storing the dataset
    path: Path | None = None  # a text file or a folder of them; overrides `dataset`
    # Mixture {path or dataset: weight}: each sequence is drawn from one source
    mixture: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    more_validation: tuple[Path, ...] = ()  # other texts to evaluate the final model on
    text_column: str = "text"  # of JSONL, Parquet and datasets from the hub
    num_stories: int = Field(20_000, gt=0)  # for `stories`, and of speeches
    tokenizer: Literal[
        "char", "bpe", "sentencepiece", "sentencepiece_bpe", "tiktoken", "pretrained"
    ] = "bpe"
    vocab_size: int = Field(4096, ge=257)  # for trained tokenizers; ignored by `char`
    encoding: str = "gpt2"  # for `tiktoken`: gpt2, cl100k_base, o200k_base ...
    # For `pretrained`: a folder, a tokenizer.json, a name in assets/tokenizers or assets/models, or
    # OWNER/NAME of the hub
    pretrained_tokenizer: str | None = None
    val_fraction: float = Field(0.1, gt=0, lt=1)
    # document: whole documents, drawn by the seed; fraction: the last part of all text, as in
    # nanoGPT. A single document is always split by fraction.
    split_by: Literal["document", "fraction"] = "document"
    seed: int = 0  # of the split by document, and of `stories`
    context_length: int | None = Field(None, ge=2)  # tokens per sequence; default: the model's
    # random: windows at random offsets, as in nanoGPT; shuffled: every token once per epoch
    sampling: Literal["random", "shuffled"] = "random"
    document_mask: bool = False  # mask attention across documents
    batch_size: int = Field(16, gt=0)  # sequences per forward pass
    eval_batch_size: int = Field(64, gt=0)

    @field_validator("path")
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        # Resolve against the current folder: a later --resume may run in another.
        return None if path is None else path.expanduser().resolve()

    @field_validator("more_validation")
    @classmethod
    def _all_absolute(cls, paths: tuple[Path, ...]) -> tuple[Path, ...]:
        return tuple(path.expanduser().resolve() for path in paths)

    @model_validator(mode="after")
    def _tokenizer_is_named(self) -> DataConfig:
        if self.tokenizer == "pretrained" and not self.pretrained_tokenizer:
            raise ValueError(
                "tokenizer=pretrained needs pretrained_tokenizer: a folder or OWNER/NAME"
            )
        if self.tokenizer != "pretrained" and self.pretrained_tokenizer:
            raise ValueError("pretrained_tokenizer has no effect without tokenizer=pretrained")
        if self.mixture and self.sampling != "random":
            raise ValueError("a mixture draws every sequence by weight: it needs sampling=random")
        if self.streaming and self.hub is None:
            raise ValueError("streaming needs hub: OWNER/NAME")
        return self


class AugmentConfig(Config):
    """Random changes of training images, different in every epoch; see data/image_batches.py."""

    shift: int = Field(0, ge=0)  # at most so many pixels along each axis
    rotate: float = Field(0.0, ge=0, le=180)  # at most so many degrees in each direction
    scale: float = Field(0.0, ge=0, lt=1)  # by a factor from 1 - scale to 1 + scale
    flip: bool = False  # half of the images, left to right
    erase: float = Field(0.0, ge=0, lt=1)  # a square of this fraction of the height turns black


class ImageConfig(Config):
    """Source and split of labelled images, and the batches drawn from them."""

    dataset: str = "digits"  # digits, mnist5k, or a folder in assets/datasets
    path: Path | None = None  # a folder of idx files, or of images by class; overrides `dataset`
    size: int | None = Field(None, gt=0)  # resize to this height and width in pixels
    # Drawn by the seed from a source without a test set of its own; None: a fifth of its images, rounded up
    test_images: int | None = Field(None, gt=0)
    seed: int = Field(0, ge=0)  # of that draw
    # train: evaluate on as many of the training images, left out of training, to choose
    # hyper-parameters without the test images
    evaluate_on: Literal["test", "train"] = "test"
    batch_size: int = Field(64, gt=0)
    eval_batch_size: int = Field(500, gt=0)
    augment: AugmentConfig = AugmentConfig()

    @field_validator("path")
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        return None if path is None else path.expanduser().resolve()
