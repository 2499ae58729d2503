"""Time generation by our Decoder and Hugging Face's GPT-2 with equal weights, alternating; prints one JSON line.

    python -m tools.benchmarks.generate_both --layers 4 --hidden-size 128 --heads 4 --batch-size 1

`weights` in the result are the times to read the bytes of the weights once: the sum of a tensor of
that size.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from common.models.decoder import Decoder

VOCAB_SIZE, CONTEXT_LENGTH, PROMPT_TOKENS = 50_257, 1024, 16
_NORMS = {"ln_1": "mixer_norm", "ln_2": "feedforward_norm"}
_PRODUCTS = {
    "attn.c_attn": "mixer.query_key_value",
    "attn.c_proj": "mixer.output",
    "mlp.c_fc": "feedforward.input",
    "mlp.c_proj": "feedforward.output",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    for name in ("layers", "hidden-size", "heads", "batch-size"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--tokens", type=int, default=512, help="new ones per row")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    theirs = create_theirs(arguments.layers, arguments.hidden_size, arguments.heads)
    ours = take_weights(theirs)
    prompt = torch.randint(0, VOCAB_SIZE, (arguments.batch_size, PROMPT_TOKENS))
    same = torch.equal(
        ours.generate(prompt, 8, temperature=0), _theirs(theirs, prompt, 8, do_sample=False)
    )
    weights = torch.ones(
        sum(p.numel() for p in ours.parameters()) - CONTEXT_LENGTH * ours.config.hidden_size
    )
    contestants: dict[str, Callable[[], object]] = {
        "ours greedy": lambda: ours.generate(prompt, arguments.tokens, temperature=0),
        "theirs greedy": lambda: _theirs(theirs, prompt, arguments.tokens, do_sample=False),
        "ours sampled": lambda: ours.generate(prompt, arguments.tokens, top_k=50, seed=0),
        "theirs sampled": lambda: _theirs(
            theirs, prompt, arguments.tokens, do_sample=True, top_k=50
        ),
        "weights": weights.sum,
    }
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(arguments.rounds):
        for name, run in contestants.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    print(json.dumps({"same": same, "seconds": seconds}))


def create_theirs(layers: int, hidden_size: int, heads: int) -> Any:  # typed for all models
    config = GPT2Config(n_layer=layers, n_embd=hidden_size, n_head=heads)
    model: Any = GPT2LMHeadModel(config)
    model.eval()
    model.generation_config.eos_token_id = None  # generate all tokens in every row
    return model


def take_weights(theirs: Any) -> Decoder:
    """A Decoder with the weights of a GPT-2."""
    config = theirs.config
    ours = Decoder(
        config.vocab_size,
        preset="gpt2",
        num_layers=config.n_layer,
        num_heads=config.n_head,
        hidden_size=config.n_embd,
        context_length=config.n_positions,
    )
    source = theirs.transformer.state_dict()
    renamed = {
        "token_embedding.weight": source["wte.weight"],
        "position_embedding.weight": source["wpe.weight"],
        "final_norm.weight": source["ln_f.weight"],
        "final_norm.bias": source["ln_f.bias"],
    }
    for layer in range(config.n_layer):
        for part in ("weight", "bias"):
            for old, new in _NORMS.items():
                renamed[f"blocks.{layer}.{new}.{part}"] = source[f"h.{layer}.{old}.{part}"]
            for old, new in _PRODUCTS.items():
                value = source[f"h.{layer}.{old}.{part}"]
                renamed[f"blocks.{layer}.{new}.{part}"] = value.t() if part == "weight" else value
    ours.load_state_dict(renamed)
    return ours.eval()


def _theirs(model: Any, prompt: torch.Tensor, tokens: int, **options: object) -> torch.Tensor:
    ids: torch.Tensor = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=tokens,
        use_cache=True,
        pad_token_id=0,
        **options,
    )
    return ids


if __name__ == "__main__":
    main()
