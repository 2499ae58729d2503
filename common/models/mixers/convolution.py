"""Causal dilated convolutions over time: the block of a TCN, and a gated one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from common.models.config import DecoderConfig
from common.models.mixers.base import Mixer, Positions
from common.models.mixers.options import ConvolutionOptions
from common.models.mixers.short_convolution import extended, taps
from common.models.mixers.state import Past, zeros


class CausalConvolution(nn.Module):
    """y_t = sum over j of W_j x_{t - j * dilation}: one matrix product over concatenated taps."""

    def __init__(
        self, inputs: int, outputs: int, kernel_size: int, dilation: int, bias: bool = True
    ) -> None:
        super().__init__()
        self.inputs, self.kernel_size, self.dilation = inputs, kernel_size, dilation
        self.projection = nn.Linear(kernel_size * inputs, outputs, bias=bias)

    def new_past(self, batch_size: int) -> Past:
        """(kernel_size - 1) * dilation inputs of zeros."""
        reach = (self.kernel_size - 1) * self.dilation
        return Past(zeros(self.projection.weight, batch_size, reach, self.inputs))

    def forward(self, x: torch.Tensor, where: Positions, past: Past | None = None) -> torch.Tensor:
        """(batch, time, inputs) -> (batch, time, outputs); past: the inputs before x."""
        if where.documents is None and x.shape[1] > 1:
            return self._convolved(extended(x, (self.kernel_size - 1) * self.dilation, past))
        seen = taps(x, self.kernel_size, where, past, self.dilation)
        output: torch.Tensor = self.projection(torch.cat(seen, dim=-1))
        return output

    def _convolved(self, padded: torch.Tensor) -> torch.Tensor:
        """The same as a convolution, in half the time; its memory format is channels last, as ours is."""
        weight = self.projection.weight.view(-1, self.kernel_size, self.inputs).transpose(1, 2)
        output = F.conv2d(
            padded.mT[:, :, None],
            weight[:, :, None].contiguous(memory_format=torch.channels_last),
            self.projection.bias,
            dilation=(1, self.dilation),
        )
        return output[:, :, 0].mT


class Convolution(Mixer):
    """relu(conv(relu(conv(x)))), with dilation that grows per layer (Bai et al. 2018, section 3.4, without weight norm)."""

    Options = ConvolutionOptions

    def __init__(self, config: DecoderConfig, options: ConvolutionOptions, layer: int) -> None:
        super().__init__()
        dilation = 2 ** (layer % options.dilation_cycle)
        size = config.hidden_size
        self.input = CausalConvolution(size, size, options.kernel_size, dilation, config.bias)
        self.output = CausalConvolution(size, size, options.kernel_size, dilation, config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def new_state(self, batch_size: int, max_length: int) -> list[Past]:
        """See Mixer.new_state; the last inputs of both layers."""
        return [self.input.new_past(batch_size), self.output.new_past(batch_size)]

    def forward(
        self, x: torch.Tensor, where: Positions, state: list[Past] | None = None
    ) -> torch.Tensor:
        """See Mixer.forward."""
        for index, layer in enumerate((self.input, self.output)):
            x = self.dropout(F.relu(layer(x, where, state[index] if state else None)))
        return x


class GatedConvolution(Mixer):
    """(W * x) sigmoid(V * x), then a projection (Dauphin et al. 2017, "Gated Convolutional Networks", eq. 1)."""

    Options = ConvolutionOptions

    def __init__(self, config: DecoderConfig, options: ConvolutionOptions, layer: int) -> None:
        super().__init__()
        dilation = 2 ** (layer % options.dilation_cycle)
        size = config.hidden_size
        self.input = CausalConvolution(size, 2 * size, options.kernel_size, dilation, config.bias)
        self.output = nn.Linear(size, size, bias=config.bias)

    def new_state(self, batch_size: int, max_length: int) -> list[Past]:
        """See Mixer.new_state; the last inputs."""
        return [self.input.new_past(batch_size)]

    def forward(
        self, x: torch.Tensor, where: Positions, state: list[Past] | None = None
    ) -> torch.Tensor:
        """See Mixer.forward."""
        gated = F.glu(self.input(x, where, state[0] if state else None), dim=-1)
        output: torch.Tensor = self.output(gated)
        return output
