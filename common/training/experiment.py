"""Experiment: a model, its objective and their data, the value that everything else takes.

A project's `build(config)` returns it. The Trainer trains it; evaluation, sampling, export and
analysis get the same value from `load_run` (trained_run.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from typing import Any, TypeVar

from torch.utils.data import DataLoader

from common.data.batch import Batch, BatchSource, batch_source
from common.data.loader import EvalWindows, MixedWindows, RandomWindows, ShuffledWindows
from common.data.texts import read_texts
from common.data.token_files import TokenDataset, TokenMixture, Tokens
from common.errors import ConfigError, DataError, ModelError, UsageError
from common.experiments.metrics import VAL_QUICK
from common.models.base import BaseLanguageModel, BaseModel
from common.training.callbacks.base import Callback
from common.training.callbacks.efficiency import Efficiency
from common.training.callbacks.samples import Samples
from common.training.config import BaseExperimentConfig, ExperimentConfig
from common.training.objective import NextToken, Objective

C = TypeVar("C", bound=BaseExperimentConfig)
_LOOK_AT = 100  # training batches to search for a first target
_NO_LABELS = "-100 marks what is not predicted; the labels of a text are its input ids"


class Experiment:
    """A model with its training and validation data.

    Args:
        train_data: returns the batch of any index (data/batch.py), the same in every process; or a
            DataLoader or a list of batches, which are cycled through.
        val_data: batches of one pass over the validation split, for example a DataLoader or a list;
            None: no evaluation.
        objective: what is predicted; None: the next token, by `model.vocab_size`.
        quick_val_data: a part of it, evaluated during training and at the end, for the best
            checkpoint and early stopping. Logged as the split `val_quick`, so that a loss over few
            batches is never mistaken for that of the whole split; `val` is then logged once, at the
            end. None: all of `val_data`, logged as `val` each time.
        other_val_data: further validation sets by name, evaluated at the end and logged as splits.
        callbacks: callbacks in addition to those of the configuration.
        units_per_epoch: size of the training split in the unit of the objective, for the logged
            `epoch` if `train_data` has no epochs.
        fingerprint: identifies the data (JSON), in addition to the fingerprint of `train_data`; a
            resume on other data is refused.
        facts: values to record in the manifest of the run.
        text: the tokens that the batches are cut from, if the data is text.
    Raises DataError for data that cannot return a batch by index, ModelError if `model` is no
    BaseModel.
    """

    def __init__(
        self,
        model: BaseModel,
        train_data: BatchSource | DataLoader[Any] | Sequence[Any],
        val_data: Iterable[Any] | None = None,
        objective: Objective | None = None,
        *,
        quick_val_data: Iterable[Any] | None = None,
        other_val_data: Mapping[str, Iterable[Any]] | None = None,
        callbacks: Sequence[Callback] = (),
        units_per_epoch: int | None = None,
        fingerprint: Mapping[str, Any] | None = None,
        facts: Mapping[str, Any] | None = None,
        text: TokenDataset | None = None,
    ) -> None:
        if not isinstance(model, BaseModel):
            raise ModelError(
                f"an experiment trains a BaseModel, not a {type(model).__name__}",
                "subclass BaseModel or BaseLanguageModel; Classifier(network) takes any module",
            )
        self.model = model
        self.train_data = batch_source(train_data)
        self.val_data = val_data
        self.objective = objective or NextToken(getattr(model, "vocab_size", None))
        self.quick_val_data = quick_val_data if quick_val_data is not None else val_data
        self.other_val_data = dict(other_val_data or {})
        self.callbacks = list(callbacks)
        self.units_per_epoch = units_per_epoch
        self.fingerprint = {**getattr(self.train_data, "fingerprint", {}), **(fingerprint or {})}
        self.facts = dict(facts or {})
        if self.objective.is_bound:
            self.facts["loss_is_bound"] = True
        self._text = text

    @property
    def has_text(self) -> bool:
        """Whether the data is text."""
        return self._text is not None

    @property
    def text(self) -> TokenDataset:
        """The text data. Raises UsageError if the data is not text."""
        if self._text is None:
            raise UsageError("this experiment has no text", "it was trained on other data")
        return self._text

    def batch(self, index: int) -> Batch:
        """Return training batch `index`, prepared for the model."""
        return self.objective.prepare(self.train_data.batch(index), index)

    def check(self) -> None:
        """Raise DataError if there is nothing to learn or to evaluate."""
        count = self.objective.count
        if not any(count(self.batch(index)) for index in range(_LOOK_AT)):
            raise DataError(
                f"none of the first {_LOOK_AT} training batches has a label", _NO_LABELS
            )
        sets = {"val_data": self.val_data, "quick_val_data": self.quick_val_data}
        for name, data in {**sets, **self.other_val_data}.items():
            if isinstance(data, Iterator):
                raise DataError(
                    f"{name} is an iterator, and would be empty after the first evaluation",
                    "pass a DataLoader or a list of batches",
                )
            prepared = (self.objective.prepare(each, i) for i, each in enumerate(data or ()))
            if data is not None and not any(map(count, prepared)):
                raise DataError(f"{name} has no label to predict", _NO_LABELS)


def build_experiment(build: Callable[[C], Experiment], config: C, project: str) -> Experiment:
    """Call the `build` of a project. Raises ConfigError if it returns no Experiment."""
    experiment = build(config)
    if not isinstance(experiment, Experiment):
        raise ConfigError(
            f"build in projects/{project}/train.py returns a {type(experiment).__name__}",
            "end it with: return Experiment(model, train_data, val_data, objective)",
        )
    return experiment


def text_experiment(
    config: ExperimentConfig,
    model: BaseLanguageModel,
    text: TokenDataset,
    callbacks: Sequence[Callback] = (),
    objective: Objective | None = None,
) -> Experiment:
    """Create an Experiment of next-token prediction, or of another `objective`, on `text` by `config.data`,
    with samples at every evaluation.

    Raises ResearchError for a text that is too short and prompts that cannot be encoded.
    """
    if config.data.document_mask:
        model.mask_documents(text.tokenizer.end_of_text)
    text.tokenizer.encode_batch(config.samples.prompts)
    few = config.training.eval_batches
    others = _other_texts(config, text)
    return Experiment(
        model,
        _train_windows(config, text),
        eval_windows(config, text.tokens("val")),
        objective or NextToken(model.vocab_size, text.tokenizer.token_bytes),
        quick_val_data=eval_windows(config, text.tokens("val"), few) if few else None,
        other_val_data={name: eval_windows(config, tokens) for name, tokens in others.items()},
        callbacks=[
            Efficiency(config.context_length),
            Samples(text.tokenizer, config.samples, config.seed),
            *callbacks,
        ],
        units_per_epoch=text.meta["splits"]["train"]["tokens"],
        fingerprint=text.fingerprint | _fingerprint_of(others),
        facts={
            "floor_bits_per_byte": text.floor_bits_per_byte,
            "data_fingerprint": text.fingerprint
            | (_fingerprint_of_few(config, text) if few else {}),
            "tokenizer": text.meta["tokenizer_sha256"],
        },
        text=text,
    )


def eval_windows(
    config: ExperimentConfig, tokens: Tokens, max_batches: int | None = None
) -> EvalWindows:
    """Batches over all of `tokens`, or `max_batches` spread across them."""
    return EvalWindows(
        tokens,
        batch_size=config.data.eval_batch_size,
        context_length=config.context_length,
        max_batches=max_batches,
    )


def _train_windows(config: ExperimentConfig, text: TokenDataset) -> BatchSource:
    if isinstance(text, TokenMixture):
        return MixedWindows(
            [source.tokens("train") for source in text.sources.values()],
            [*text.weights.values()],
            batch_size=config.data.batch_size,
            context_length=config.context_length,
            seed=config.seed,
        )
    windows = RandomWindows if config.data.sampling == "random" else ShuffledWindows
    return windows(
        text.tokens("train"),
        batch_size=config.data.batch_size,
        context_length=config.context_length,
        seed=config.seed,
    )


def _other_texts(config: ExperimentConfig, text: TokenDataset) -> dict[str, Tokens]:
    """Tokens of each text of `data.more_validation`, by file name, and of each source."""
    texts = read_texts(
        config.data.more_validation, text.tokenizer, taken=["train", "val", VAL_QUICK]
    )
    if isinstance(text, TokenMixture):
        texts |= {f"val {name}": source.tokens("val") for name, source in text.sources.items()}
    return texts


def _fingerprint_of_few(config: ExperimentConfig, text: TokenDataset) -> dict[str, str]:
    """Fingerprint that is equal for runs whose quick evaluations use the same windows of the same tokens."""
    tokens = [value for key, value in text.fingerprint.items() if key.endswith("val")]
    windows = config.training.eval_batches, config.data.eval_batch_size, config.context_length
    return {VAL_QUICK: sha256(repr((tokens, windows)).encode()).hexdigest()}


def _fingerprint_of(texts: Mapping[str, Tokens]) -> dict[str, str]:
    return {f"text {name}": sha256(tokens.tobytes()).hexdigest() for name, tokens in texts.items()}
