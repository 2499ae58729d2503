"""Classify images: scikit-learn's digits, MNIST, Fashion-MNIST or a folder, with an MLP, a CNN, a ViT or any mixer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from common.cli import train_main
from common.config import Config as ConfigSection
from common.data.config import ImageConfig
from common.models.config import DecoderConfig
from common.training.config import BaseExperimentConfig

if TYPE_CHECKING:
    from common.training.experiment import Experiment


class ModelConfig(ConfigSection):
    kind: Literal["mlp", "cnn", "sequence"] = "mlp"
    width: int = Field(128, gt=0)  # hidden units of the MLP, channels of the CNN
    dropout: float = Field(0.2, ge=0, lt=1)  # of both
    # Of `sequence`: a ViT, or any mixers over patches; patches of 1 are pixels
    patch_size: int = Field(4, gt=0)
    pool: Literal["mean", "last"] = "mean"  # of the tokens that the class is read from
    decoder: DecoderConfig = DecoderConfig(causal=False)


class Config(BaseExperimentConfig):
    model: ModelConfig = ModelConfig()
    data: ImageConfig = ImageConfig()

    @model_validator(mode="before")
    @classmethod
    def _earlier_keys(cls, values: Any) -> Any:
        """Runs of earlier versions have `batch_size` and `test_images` outside of `data`."""
        if not isinstance(values, dict):
            return values
        earlier = {key: values[key] for key in ("batch_size", "test_images") if key in values}
        rest = {key: value for key, value in values.items() if key not in earlier}
        return rest | {"data": {**rest.get("data", {}), **earlier}} if earlier else values

    def check_inputs(self) -> None:
        from common.data.image_sources import check_images

        check_images(self.data)


def build(config: Config) -> Experiment:
    from common.data.image_batches import OrderedImages, ShuffledImages
    from common.data.image_sources import open_images
    from common.training import Classification, Experiment
    from projects.digits.networks import create_model

    data = config.data
    images = open_images(data)
    return Experiment(
        create_model(config.model, images.shape, len(images.classes)),
        ShuffledImages(
            images.train, batch_size=data.batch_size, seed=config.seed, augment=data.augment
        ),
        OrderedImages(images.val, data.eval_batch_size),
        Classification(len(images.classes), "images", images.classes),
        fingerprint=images.fingerprint,
        facts=images.facts,
    )


if __name__ == "__main__":
    train_main(Config, build, __file__)
