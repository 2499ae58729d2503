"""What a family of models declares: its config.json, read and written, and the names of its tensors."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from common.models.config import DecoderConfig
from common.models.hub.keys import Keys


@dataclass(frozen=True)
class Rows:
    """Consecutive rows of one of our parameters, which are rows of one tensor of the file.

    Attributes:
        name: of the tensor; of its module, if the parameter ends with `.weight` or `.bias`. `*` is the layer.
        count: number of rows.
        start, total: of the rows in the tensor, and the number of all its rows; None: `count`.
        order: computes the index in the tensor of each row; None: consecutive from `start`.
        transposed: the tensor is (in, out), as transformers' Conv1D.
    """

    name: str
    count: int
    start: int = 0
    total: int | None = None
    order: Callable[[], Sequence[int]] | None = None
    transposed: bool = False


Layout = Callable[[DecoderConfig, int], list[Rows]]


class Family(ABC):
    """An architecture of transformers. The subclasses are in the other files of this folder."""

    model_type: ClassVar[str]
    architecture: ClassVar[str]
    root: ClassVar[str] = "model."  # prefix of all names but the head's; may be absent in a file
    head: ClassVar[str] = "lm_head"
    unread: ClassVar[frozenset[str]] = frozenset()  # keys that the family's code ignores
    layers: ClassVar[frozenset[str]] = frozenset()  # mixers and feed-forward layers it may have ...
    required: ClassVar[frozenset[str]] = frozenset()  # ... and must have
    divides_width: ClassVar[bool] = False  # whether hidden_size must be a multiple of num_heads
    # Settings of a Decoder that config.json does not have.
    free: ClassVar[frozenset[str]] = frozenset()
    # By our module, or by our whole parameter name: the module or name in the file.
    names: ClassVar[Mapping[str, str]] = {}
    fewest_tensors: ClassVar[int] = 9  # of a layer

    @abstractmethod
    def arguments(self, keys: Keys) -> dict[str, Any]:
        """The arguments of a Decoder. Raises ModelError for what a Decoder does not compute."""

    @abstractmethod
    def config(self, config: DecoderConfig, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The keys of config.json; `settings`: `config` with its defaults resolved (see `settings` in hub/config.py)."""

    def is_other_task(self, name: str, config: DecoderConfig) -> bool:
        """Whether a tensor of the file belongs to layers that a Decoder leaves out."""
        return False

    def layouts(self) -> Mapping[str, Layout]:
        """By our module or parameter: layouts of parameters that are not one whole tensor of the file, given the
        configuration and the number of rows of the parameter."""
        return {}

    def rows(self, config: DecoderConfig, name: str, count: int) -> list[Rows]:
        """The rows of the file that make up our parameter `name` with `count` rows; empty if there are none.

        Names and layouts are found by the whole parameter name, else by its module. `mixer.` may be the name of
        the mixer: `gated_delta_net.output`.
        """
        block = re.match(r"blocks\.(\d+)\.", name)
        path, layer = (name[block.end() :], block[1]) if block else (name, "")
        layouts = self.layouts()
        paths = [path]
        if block and path.startswith("mixer."):
            paths.insert(0, config.mixers[int(layer)] + path.removeprefix("mixer"))
        for whole in paths:
            module, _, kind = whole.rpartition(".")
            if whole in layouts:
                return [_named(rows, layer) for rows in layouts[whole](config, count)]
            if whole in self.names:
                return [_named(Rows(self.names[whole], count), layer)]
            if module in self.names:
                return [_named(Rows(self.names[module], count), layer, kind)]
            if module in layouts:
                return [_named(rows, layer, kind) for rows in layouts[module](config, count)]
        return []


def _named(rows: Rows, layer: str, kind: str = "") -> Rows:
    """`rows` of one layer; `kind`: weight or bias, if the name is of a module."""
    name = rows.name.replace("*", layer) + (f".{kind}" if kind else "")
    return replace(rows, name=name)


def shortest_pattern(names: Sequence[str]) -> str:
    """The shortest pattern that `layers` tiles to `names`."""
    count = len(names)
    for size in range(1, count + 1):
        if all(names[index] == names[index % size] for index in range(count)):
            return " ".join(names[:size])
    return ""
