"""Map the tensors of a family to parameters of a Decoder, both ways."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from common.errors import ModelError
from common.models.config import DecoderConfig
from common.models.decoder import Decoder
from common.models.hub.families.base import Family, Rows
from common.models.weight_files import NO_WEIGHTS, WeightFiles, shown


@dataclass(frozen=True)
class Part:
    """`rows` of a tensor of the file, with the shape of that tensor."""

    rows: Rows
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        """The name of the tensor in the file."""
        return self.rows.name


def weights_of(model: Decoder) -> dict[str, torch.Tensor]:
    """Parameters, and the biases that select experts, by name."""
    biases = {
        name: buffer for name, buffer in model.named_buffers() if name.endswith(".feedforward.bias")
    }
    return {**dict(model.named_parameters()), **biases}


def parts_of(family: Family, config: DecoderConfig, name: str, weight: torch.Tensor) -> list[Part]:
    """The rows of the file that make up one of our weights."""
    count, *columns = as_rows(weight).shape
    if name == "position_embedding.weight":  # the model's own context may be shorter
        count = config.context_length
    parts = []
    for rows in family.rows(config, name, count):
        shape = (rows.total or rows.count, *columns)
        parts.append(Part(rows, shape[::-1] if rows.transposed else shape))
    return parts


def as_rows(weight: torch.Tensor) -> torch.Tensor:
    """A view whose first dimension counts rows: the matrices of experts, (experts, rows, columns), are stacked."""
    is_stack = weight.ndim == 3 and weight.shape[1] > 1
    return weight.flatten(0, 1) if is_stack else weight


def check_weights(
    family: Family, config: DecoderConfig, parts: dict[str, list[Part]], tensors: WeightFiles
) -> None:
    """Raise ModelError unless the files contain exactly the tensors of the model."""
    expected = {part.name: part.shape for parts_of in parts.values() for part in parts_of}
    for name, shape in expected.items():
        if name not in tensors.shapes:
            raise ModelError(f"{tensors.folder} has no tensor '{name}'")
        if tensors.shapes[name] != shape:
            found = list(tensors.shapes[name])
            raise ModelError(
                f"{tensors.folder}: '{name}' has the shape {found}, config.json implies {list(shape)}"
            )
    head = f"{family.head}.weight"
    if config.tie_embeddings and head in tensors.shapes:
        (embedding,) = parts["token_embedding.weight"]
        if not tensors.are_equal(head, embedding.name):
            raise ModelError(
                f"{tensors.folder}: '{head}' is not '{embedding.name}', to which config.json ties it",
                'set "tie_word_embeddings": false if the model was trained so',
            )
        expected[head] = expected[embedding.name]
    for name in tensors.shapes:
        if (
            name not in expected
            and not NO_WEIGHTS.fullmatch(name)
            and not family.is_other_task(name, config)
        ):
            raise ModelError(f"{tensors.folder}: {shown(name)} belongs to no part of the model")


def turned(tensor: torch.Tensor, rows: Rows) -> torch.Tensor:
    """The tensor, transposed if it is a matrix that the file and we keep the other way round."""
    return tensor.mT if rows.transposed and tensor.ndim == 2 else tensor


@torch.no_grad()
def fill(weight: torch.Tensor, parts: list[Part], tensors: WeightFiles) -> None:
    """Copy rows of the files into one of our weights, which has fewer rows if the context is cut."""
    into, start = as_rows(weight), 0
    for part in parts:
        rows = part.rows
        room = into[start : start + rows.count]
        start += rows.count
        if rows.order is None:
            tensors.copy_rows(part.name, turned(room, rows), rows.start)
        else:
            room.copy_(turned(tensors.read(part.name), rows)[torch.tensor(rows.order())])


@torch.no_grad()
def take(weight: torch.Tensor, parts: list[Part], tensors: dict[str, torch.Tensor]) -> None:
    """Copy our weight into `tensors` of the file, which are created in memory of their own."""
    ours, start = as_rows(weight), 0
    for part in parts:
        rows = part.rows
        if part.name not in tensors:
            tensors[part.name] = torch.empty(part.shape, dtype=weight.dtype)
        into = turned(tensors[part.name], rows)
        values = ours[start : start + rows.count].cpu()
        start += rows.count
        if rows.order is None:
            into[rows.start : rows.start + rows.count] = values
        else:
            into[torch.tensor(rows.order())] = values
