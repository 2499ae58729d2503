"""The same network with PyTorch layers and autograd, as reference for tests and benchmark.py."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from common.models.loss import next_token_loss
from projects.custom_transformer.layers import EPSILON
from projects.custom_transformer.model import CustomTransformer


class AutogradTransformer(CustomTransformer):
    """Has the same parameter names and shapes as CustomTransformer; only the computation differs."""

    def forward(
        self, input_ids: torch.Tensor, labels: torch.Tensor | None = None, cache: object = None
    ) -> dict[str, torch.Tensor]:
        batch, time = input_ids.shape
        size = (self.token_embedding.shape[1],)
        x = F.embedding(input_ids, self.token_embedding) + self.position_embedding[:time]
        for block in self.blocks:
            normalised = F.rms_norm(x, size, block["norm1"], EPSILON)
            qkv = F.linear(normalised, block["qkv"]).view(batch, time, 3, self.num_heads, -1)
            query, key, value = qkv.permute(2, 0, 3, 1, 4)
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
            x = x + F.linear(mixed.transpose(1, 2).reshape(batch, time, *size), block["out"])
            normalised = F.rms_norm(x, size, block["norm2"], EPSILON)
            x = x + F.linear(F.relu(F.linear(normalised, block["mlp1"])).square(), block["mlp2"])
        hidden = F.rms_norm(x, size, self.last_norm, EPSILON)
        output = {"logits": F.linear(hidden, self.token_embedding)}
        if labels is not None:
            output["loss"] = next_token_loss(output["logits"], labels)
        return output

    def compute_loss(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self(input_ids, labels)["loss"]
