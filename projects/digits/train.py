"""Classify scikit-learn's 1,797 handwritten digits of 8 x 8 pixels with an MLP or a small CNN."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from common.cli import train_main
from common.config import Config as ConfigSection
from common.training.config import BaseExperimentConfig

if TYPE_CHECKING:
    from torch import nn

    from common.training.experiment import Experiment


class ModelConfig(ConfigSection):
    kind: Literal["mlp", "cnn"] = "mlp"
    width: int = Field(128, gt=0)  # hidden units of the MLP, channels of the CNN
    dropout: float = Field(0.2, ge=0, lt=1)


class Config(BaseExperimentConfig):
    model: ModelConfig = ModelConfig()
    batch_size: int = Field(64, gt=0)
    test_images: int = Field(360, gt=0)


def build(config: Config) -> Experiment:
    import torch
    from torch.utils.data import DataLoader, TensorDataset, random_split

    from common.models import Classifier
    from common.training import Classification, Experiment
    from common.utils.packages import require

    digits = require("sklearn.datasets", extra="digits").load_digits()
    images = torch.tensor(digits.images / 16, dtype=torch.float32)[:, None]  # (images, 1, 8, 8)
    data = TensorDataset(images, torch.tensor(digits.target))
    # The same test images for every seed of the weights.
    sizes = [len(data) - config.test_images, config.test_images]
    train, test = random_split(data, sizes, torch.Generator().manual_seed(0))
    order = torch.Generator().manual_seed(config.seed)
    return Experiment(
        Classifier(create_network(config.model)),
        DataLoader(train, config.batch_size, shuffle=True, generator=order),
        DataLoader(test, batch_size=config.test_images),
        Classification(num_classes=10, unit="images"),
        fingerprint={"images": hashlib.sha256(digits.images.tobytes()).hexdigest()},
    )


def create_network(config: ModelConfig) -> nn.Module:
    from torch import nn

    width, drop = config.width, nn.Dropout(config.dropout)
    if config.kind == "mlp":
        layers = [nn.Flatten(), nn.Linear(64, width), nn.ReLU(), drop, nn.Linear(width, 10)]
        return nn.Sequential(*layers)
    first = [nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]  # 4 x 4
    second = [nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*first, *second, drop, nn.Linear(16 * width, 10))


if __name__ == "__main__":
    train_main(Config, build, __file__)
