"""A trained run as a folder that transformers reads, with a model card."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from apps.export.model_card import CardFacts, model_card
from common.experiments.catalogue import Catalogue
from common.models.base import BaseLanguageModel
from common.models.checkpoint import load_checkpoint
from common.models.hub_config import hub_config
from common.models.hub_format import save_pretrained
from common.training.config import ExperimentConfig
from common.training.evaluator import Evaluator
from common.training.experiment import eval_windows, load_run
from common.utils.files import write_text_atomic

C = TypeVar("C", bound=ExperimentConfig)


def export_run(
    config: C,
    build_model: Callable[[C, int], BaseLanguageModel],
    name: str,
    which: str,
    folder: Path,
    repo_id: str,
) -> Path:
    """Write checkpoint `which` (best, last or a step) of run `name` to the new `folder`; return it.

    The metrics of the card are measured here, on the whole validation split.
    Raises ModelError for a model that transformers has no architecture for, and what `load_run` does.
    """
    model, data, checkpoint = load_run(config, build_model, name, which)
    save_pretrained(model, folder, data.tokenizer)
    try:
        evaluator = Evaluator(model, token_bytes=data.tokenizer.token_bytes)
        metrics = evaluator.evaluate(eval_windows(config, data, "val"))
        written = hub_config(model)  # type: ignore[arg-type]  # save_pretrained has seen to it
        facts = CardFacts(
            repo_id=repo_id,
            family=written["model_type"],
            checkpoint=checkpoint.name,
            parameters=model.num_parameters(),
            vocab_size=model.vocab_size,
            context_length=model.context_limit or config.context_length,
            manifest=Catalogue().manifest(name),
            metrics=metrics,
            fingerprint=load_checkpoint(checkpoint).state["fingerprint"],
        )
        write_text_atomic(folder / "README.md", model_card(facts))
    except BaseException:
        shutil.rmtree(folder)
        raise
    return folder
