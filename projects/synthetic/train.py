"""Train any mixer on a task with exact answers: parity, modular arithmetic, associative recall, selective copying."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from common.cli import train_main
from common.config import Config as ConfigSection
from common.models.config import DecoderConfig
from common.training.config import BaseExperimentConfig

if TYPE_CHECKING:
    from common.training.experiment import Experiment


class TaskConfig(ConfigSection):
    name: Literal["parity", "modular_arithmetic", "associative_recall", "selective_copying"] = (
        "parity"
    )
    min_length: int = Field(3, ge=2)
    max_length: int = Field(40, ge=2)
    longer: tuple[int, ...] = (
        64,
        128,
        256,
    )  # evaluated after training: does it generalise in length?
    batch_size: int = Field(64, gt=0)
    eval_batches: int = Field(8, gt=0)


class Config(BaseExperimentConfig):
    task: TaskConfig = TaskConfig()
    model: DecoderConfig = DecoderConfig(positions="none", context_length=512)


def build(config: Config) -> Experiment:
    from common.models import Decoder
    from common.training import Experiment, NextToken
    from projects.synthetic.tasks import TASKS, TaskBatches

    task = config.task

    def drawn(lengths: tuple[int, int], stream: int) -> TaskBatches:
        return TaskBatches(task.name, task.batch_size, lengths, config.seed, stream)

    def to_evaluate(lengths: tuple[int, int], stream: int) -> list[object]:
        return [drawn(lengths, stream).batch(index) for index in range(task.eval_batches)]

    trained = task.min_length, task.max_length
    model = Decoder(TASKS[task.name][1], **config.model.model_dump())
    return Experiment(
        model,
        drawn(trained, 0),
        to_evaluate(trained, 1),
        NextToken(model.vocab_size, accuracy=True),
        other_val_data={
            f"length {length}": to_evaluate((length, length), 2 + number)
            for number, length in enumerate(task.longer)
        },
    )


if __name__ == "__main__":
    train_main(Config, build, __file__)
