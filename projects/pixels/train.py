"""Train a Decoder on images as sequences of grey levels: it writes digits pixel by pixel."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from common.cli import train_main
from common.config import Config as ConfigSection
from common.data.config import ImageConfig
from common.models.config import DecoderConfig
from common.training.config import BaseExperimentConfig

if TYPE_CHECKING:
    from common.training.experiment import Experiment


class SamplesConfig(ConfigSection):
    """Pictures in the run's folder, at every evaluation."""

    num_images: int = Field(20, ge=0)  # 0: none
    temperature: float = Field(1.0, ge=0)


class Config(BaseExperimentConfig):
    model: DecoderConfig = DecoderConfig()  # its context is that of an image
    data: ImageConfig = ImageConfig()
    samples: SamplesConfig = SamplesConfig()
    levels: int = Field(256, ge=2, le=256)  # grey levels; bits per dimension compare at 256 only
    by_class: bool = True  # images are predicted, and drawn, given their class

    @model_validator(mode="after")
    def _only_the_past_is_seen(self) -> Config:
        if not self.model.causal:
            raise ValueError("model.causal=false: a pixel would see itself")
        return self

    def check_inputs(self) -> None:
        from common.data.image_sources import check_images

        check_images(self.data)


def build(config: Config) -> Experiment:
    from common.data.image_batches import OrderedImages, ShuffledImages
    from common.data.image_sources import open_images
    from common.models import Decoder
    from common.training import Experiment
    from common.training.pixel_likelihood import PixelLikelihood
    from projects.pixels.drawing import ImageSamples

    data = config.data
    images = open_images(data)
    channels, height, width = images.shape
    context = {"context_length": 1 + channels * height * width}
    classes = len(images.classes) if config.by_class else None
    return Experiment(
        Decoder(config.levels, **(config.model.model_dump() | context)),
        ShuffledImages(
            images.train, batch_size=data.batch_size, seed=config.seed, augment=data.augment
        ),
        OrderedImages(images.val, data.eval_batch_size),
        PixelLikelihood(config.levels, classes),
        callbacks=[ImageSamples(images, config)] if config.samples.num_images else [],
        fingerprint={**images.fingerprint, "levels": config.levels},
        facts={**images.facts, "tokenizer": f"{config.levels} grey levels, classes {classes}"},
    )


if __name__ == "__main__":
    train_main(Config, build, __file__)
