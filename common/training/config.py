"""Training configuration. Imports no torch, so that a wrong key is reported at once."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from common.config import Config, Seed
from common.data.config import DataConfig
from common.models.config import ModelConfig

Share = Annotated[float, Field(ge=0, lt=1)]

# Keys that a resume may change freely: they affect no weight and no logged row. (The number of
# threads changes the order of sums, as another machine does: the resume warns of it itself.)
FREE_ON_RESUME = frozenset(
    f"training.{name}"
    for name in (
        "checkpoint_every_steps",
        "keep_checkpoints",
        "num_threads",
        "profile_steps",
        "save_in_background",
        "tensorboard",
        "wandb",
    )
)


class OptimizerConfig(Config):
    """AdamW, or Muon for the matrices between embedding and output with AdamW for everything else.

    `weight_decay` applies to matrices only, not to biases and norms.
    """

    name: Literal["adamw", "muon"] = "adamw"
    lr: float = Field(1e-3, gt=0)  # of AdamW
    betas: tuple[Share, Share] = (0.9, 0.99)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.1, ge=0)
    muon_lr: float = Field(0.02, gt=0)
    muon_momentum: float = Field(0.95, ge=0, lt=1)
    muon_weight_decay: float = Field(0.0, ge=0)
    # Learning-rate factors by pattern of parameter names; the first match applies:
    # {"token_embedding.*": 5.0}
    lr_factors: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)


class ScheduleConfig(Config):
    """Linear warm-up to the learning rate, then decay to `min_lr_ratio` of it at the last step."""

    name: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    warmup_steps: int = Field(100, ge=0)
    min_lr_ratio: float = Field(0.1, ge=0, le=1)
    decay_fraction: float = Field(0.2, gt=0, le=1)  # of all steps; only for wsd


class TrainingConfig(Config):
    """Length, intervals and device of a training run. Intervals are in optimizer steps."""

    max_steps: int = Field(1000, gt=0)
    gradient_accumulation_steps: int = Field(1, gt=0)
    max_grad_norm: float | None = Field(1.0, gt=0)  # clips the global norm; null: no clipping
    ema_decay: float | None = Field(None, gt=0, lt=1)  # evaluate, sample and save averaged weights
    log_every_steps: int = Field(10, gt=0)
    eval_every_steps: int = Field(250, gt=0)
    eval_batches: int | None = Field(None, gt=0)  # of evaluations during training: split val_quick
    checkpoint_every_steps: int | None = Field(None, gt=0)  # in addition to each evaluation
    keep_checkpoints: int = Field(2, gt=0)  # the latest ones, and the best
    save_in_background: bool = False  # one at a time, from a copy in memory
    early_stopping_patience: int | None = Field(None, gt=0)  # evaluations without a better loss
    num_threads: int | None = Field(None, gt=0)  # of the CPU; default: all cores
    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps
    precision: Literal["auto", "fp32", "tf32", "bf32", "bf16", "fp16"] = "auto"
    compile: Literal["auto", True, False] = "auto"  # torch.compile
    activation_checkpointing: bool = False  # less memory, a third more computation
    distributed: Literal["auto", "ddp", "fsdp"] = "auto"  # under torchrun; auto: ddp
    tensorboard: bool = False
    wandb: Literal["off", "offline", "online"] = "off"
    profile_steps: tuple[int, int] | None = None  # the first and the last, both included

    @field_validator("wandb", mode="before")
    @classmethod
    def _off_is_a_word(cls, value: object) -> object:
        return "off" if value is False else value  # and to YAML 1.1 `off` is false

    @field_validator("profile_steps")
    @classmethod
    def _steps_in_order(cls, steps: tuple[int, int] | None) -> tuple[int, int] | None:
        if steps is not None and not 1 <= steps[0] <= steps[1]:
            raise ValueError("expected [first, last] with 1 <= first <= last")
        return steps

    @model_validator(mode="after")
    def _profile_what_comes(self) -> TrainingConfig:
        if self.profile_steps is not None and self.profile_steps[0] > self.max_steps:
            raise ValueError(
                f"profile_steps {list(self.profile_steps)} come after max_steps {self.max_steps}"
            )
        return self


class SampleConfig(Config):
    """Samples drawn at every evaluation."""

    prompts: tuple[str, ...] = Field(("",), min_length=1)  # "" starts a new document
    max_new_tokens: int = Field(100, gt=0)
    temperature: float = Field(0.8, ge=0)
    top_k: int | None = Field(None, gt=0)
    top_p: float | None = Field(None, gt=0, le=1)


class BaseExperimentConfig(Config):
    """Keys of every experiment, whatever its data and task; projects add their own."""

    seed: Seed = 0
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    training: TrainingConfig = TrainingConfig()

    def check_inputs(self) -> None:
        """Raise a ResearchError if something that the configuration names is missing.

        Called before torch is imported. Text data is checked elsewhere.
        """


class ExperimentConfig(BaseExperimentConfig):
    """A language model trained on text; projects narrow the type of `model`."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    samples: SampleConfig = SampleConfig()

    @model_validator(mode="after")
    def _lengths_fit(self) -> ExperimentConfig:
        limit, length = self.model.context_length, self.data.context_length
        if length is not None and length > limit:
            raise ValueError(
                f"data.context_length {length} is longer than the model's context_length {limit}"
            )
        return self

    @property
    def context_length(self) -> int:
        """Tokens per training sequence: `data.context_length`, by default the model's."""
        return self.data.context_length or self.model.context_length
