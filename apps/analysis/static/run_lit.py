# /// script
# requires-python = ">=3.10,<3.13"
# dependencies = ["lit-nlp==1.3.1"]
# ///
"""Show examples.jsonl in Google's Learning Interpretability Tool (Tenney et al. 2020), on this machine.

    uv run run_lit.py

creates an environment for it and serves on http://127.0.0.1:5432. Predictions are precomputed and
only read here: no model is loaded, and edited text has no predictions.
"""

from __future__ import annotations

import argparse
import json
import socket
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

# From a separate environment with NumPy below 2: the project's has no lit_nlp.
import lit_nlp  # type: ignore[import-not-found]
from lit_nlp import dev_server
from lit_nlp.api import (  # type: ignore[import-not-found]
    components,
    dataset,
    dtypes,
    layout,
    model,
    types,
)
from lit_nlp.components import pca, projection  # type: ignore[import-not-found]

HERE = Path(__file__).resolve().parent
FULL_COLOUR_BITS = 12.0  # of the salience map


class Examples(dataset.Dataset):  # type: ignore[misc]  # lit_nlp is unknown to mypy
    """Pieces of a text."""

    def __init__(self, records: list[dict[str, Any]]) -> None:
        self._examples = [
            {key: record[key] for key in ("id", "text", "bits_per_token")}
            | {"most_surprising": _most_surprising(record)}
            for record in records
        ]

    def spec(self) -> dict[str, Any]:
        highest = max(example["bits_per_token"] for example in self._examples)
        return {
            "id": types.CategoryLabel(),
            "text": types.TextSegment(),
            "bits_per_token": types.Scalar(min_val=0, max_val=highest),
            "most_surprising": types.TextSegment(),
        }


class Replay(model.Model):  # type: ignore[misc]  # as above
    """A trained model with precomputed predictions."""

    def __init__(self, records: list[dict[str, Any]], title: str) -> None:
        self._records = {record["id"]: record for record in records}
        self._has_embedding = all("embedding" in record for record in records)
        self._title = title

    def description(self) -> str:
        return self._title

    def input_spec(self) -> dict[str, Any]:
        return {"id": types.CategoryLabel(), "text": types.TextSegment()}

    def output_spec(self) -> dict[str, Any]:
        spec = {
            "tokens": types.Tokens(parent="text", token_prefix=None),
            "expected": types.TokenTopKPreds(align="tokens", parent="text"),
            "surprisal_bits": types.TokenScores(align="tokens"),
        }
        return spec | ({"embedding": types.Embeddings()} if self._has_embedding else {})

    def predict(self, inputs: Iterable[dict[str, Any]], **_: Any) -> Iterator[dict[str, Any]]:
        for example in inputs:
            record = self._records.get(example["id"])
            if record is None or record["text"] != example["text"]:
                raise ValueError("only the texts of examples.jsonl have predictions here")
            answer = {
                "tokens": record["tokens"],
                "expected": [[tuple(pair) for pair in pairs] for pairs in record["expected"]],
                "surprisal_bits": [0.0 if b is None else b for b in record["surprisal_bits"]],
            }
            yield answer | ({"embedding": record["embedding"]} if self._has_embedding else {})


def _most_surprising(record: dict[str, Any]) -> str:
    """The three tokens with the highest surprisal, and the expected ones: LIT has no view for the latter."""
    costs = list(enumerate(record["surprisal_bits"]))[1:]
    found = []
    for place, bits in sorted(costs, key=lambda pair: -pair[1])[:3]:
        pairs = record["expected"][place][:3]
        expected = ", ".join(f"{token} {probability:.0%}" for token, probability in pairs)
        found.append(f"{record['tokens'][place]} {bits:.1f} bits (expected {expected})")
    return "; ".join(found)


class Surprisal(components.Interpreter):  # type: ignore[misc]  # as above
    """Surprisal of every token; the full colour is 12 bits."""

    def is_compatible(self, model: Any, dataset: Any) -> bool:
        return isinstance(model.wrapped if hasattr(model, "wrapped") else model, Replay)

    def meta_spec(self) -> dict[str, Any]:
        return {"surprisal": types.TokenSalience(autorun=True, signed=False)}

    def run(
        self,
        inputs: list[dict[str, Any]],
        model: Any,
        dataset: Any,
        model_outputs: list[dict[str, Any]] | None = None,
        config: dict[str, Any] | None = None,
    ) -> list[dict[str, Any]]:
        outputs = list(model.predict(inputs)) if model_outputs is None else model_outputs
        return [
            {
                "surprisal": dtypes.TokenSalience(
                    output["tokens"],
                    [min(bits / FULL_COLOUR_BITS, 1.0) for bits in output["surprisal_bits"]],
                )
            }
            for output in outputs
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Show examples.jsonl in LIT.")
    parser.add_argument("--port", type=int, default=5432)
    port: int = parser.parse_args().port
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            sys.exit(f"port {port} cannot be used: {error.strerror}; choose another with --port")
    lines = (HERE / "examples.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    title = json.loads((HERE / "about.json").read_text(encoding="utf-8"))["title"]
    modules = layout.modules
    page = layout.LitCanonicalLayout(
        left={"Embeddings": [modules.EmbeddingsModule], "Scores": [modules.ScalarModule]},
        upper={
            "Examples": [modules.DataTableModule],
            "Text": [modules.DatapointEditorModule],
        },
        lower={"Surprisal": [modules.SalienceMapModule]},
        description="Surprisal and predictions of every token",
    )
    server = dev_server.Server(
        {"model": Replay(records, title)},
        {"examples": Examples(records)},
        generators={},  # new text cannot be predicted here
        interpreters={"surprisal": Surprisal(), "pca": projection.ProjectionManager(pca.PCAModel)},
        layouts={"tokens": page},
        default_layout="tokens",
        client_root=str(Path(lit_nlp.__file__).parent / "client" / "build" / "default"),
        page_title=title,
        host="127.0.0.1",
        port=port,
    )
    print(f"serving on http://127.0.0.1:{port} (Ctrl-C ends it)", flush=True)
    server.serve()


if __name__ == "__main__":
    main()
