"""Networks that classify images: an MLP, a small CNN, and patches or pixels through a stack of any mixers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from common.errors import ModelError
from common.models.base import BaseModel
from common.models.classifier import Classifier
from common.models.decoder import Decoder
from common.models.mixers.base import ParameterRole
from projects.digits.train import ModelConfig


def create_model(config: ModelConfig, shape: tuple[int, int, int], num_classes: int) -> BaseModel:
    """A model for inputs (batch, *shape), shape: (channels, height, width)."""
    if config.kind == "sequence":
        return SequenceClassifier(config, shape, num_classes)
    create = _mlp if config.kind == "mlp" else _cnn
    return Classifier(create(config, shape, num_classes))


def _mlp(config: ModelConfig, shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    channels, height, width = shape
    hidden = [nn.Linear(channels * height * width, config.width), nn.ReLU()]
    drop = nn.Dropout(config.dropout)
    return nn.Sequential(nn.Flatten(), *hidden, drop, nn.Linear(config.width, num_classes))


def _cnn(config: ModelConfig, shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """Convolutions, halving the resolution until 7 pixels or fewer are left, at least once."""
    channels, size, halvings = shape[0], shape[1:], 0
    layers: list[nn.Module] = []
    while halvings == 0 or min(size) > 7:
        layers += [nn.Conv2d(channels, config.width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        channels, size, halvings = config.width, (size[0] // 2, size[1] // 2), halvings + 1
    layers += [nn.Conv2d(channels, config.width, 3, padding=1), nn.ReLU(), nn.Flatten()]
    drop = nn.Dropout(config.dropout)
    return nn.Sequential(*layers, drop, nn.Linear(size[0] * size[1] * channels, num_classes))


class SequenceClassifier(BaseModel):
    """Square patches of an image as a sequence, row by row, through the layers of a Decoder.

    With attention in both directions it is a Vision Transformer (Dosovitskiy et al. 2021, "An Image
    is Worth 16x16 Words") with pooling; patches of one pixel make a recurrent mixer read pixels. The
    classes are the vocabulary of the Decoder.
    """

    def __init__(self, config: ModelConfig, shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        channels, height, width = shape
        self.patch_size, self.pool = config.patch_size, config.pool
        if height % self.patch_size or width % self.patch_size:
            raise ModelError(
                f"images of {height} x {width} pixels have no whole patches of {self.patch_size}",
                "set model.patch_size to a divisor of both, or data.size",
            )
        if "moe" in config.decoder.feedforward_kinds:
            raise ModelError("experts balance with the loss of next tokens", "use another layer")
        count = height * width // self.patch_size**2
        arguments = {"context_length": count, "tie_embeddings": True}
        self.embedding = nn.Linear(channels * self.patch_size**2, config.decoder.hidden_size)
        # As the positions that are added to it, which the bias of a Linear would drown.
        nn.init.normal_(self.embedding.weight, std=0.02)
        nn.init.zeros_(self.embedding.bias)
        self.decoder = Decoder(num_classes, **(config.decoder.model_dump() | arguments))

    def forward(self, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """inputs: (batch, channels, height, width). Returns {"logits": (batch, num_classes)}."""
        patches = F.unfold(inputs, self.patch_size, stride=self.patch_size).transpose(1, 2)
        hidden = self.decoder.encode(self.embedding(patches))
        pooled = hidden[:, -1] if self.pool == "last" else hidden.mean(dim=1)
        return {"logits": F.linear(pooled, self.decoder.token_embedding.weight)}

    @property
    def blocks(self) -> nn.ModuleList:
        """The layers, which FSDP shards one by one."""
        return self.decoder.blocks

    def set_compile(self, on: bool) -> None:
        """Compile only the blocks."""
        self.decoder.set_compile(on)

    def parameter_roles(self) -> dict[str, ParameterRole]:
        """Roles as in a Decoder; the projection of patches is its embedding."""
        roles = {f"decoder.{name}": role for name, role in self.decoder.parameter_roles().items()}
        return roles | {"embedding.weight": "embedding", "embedding.bias": "vector"}
