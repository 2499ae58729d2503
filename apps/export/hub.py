"""Export a trained run to a folder for transformers, with a model card."""

from __future__ import annotations

import shutil
from pathlib import Path

from apps.export.hub_format import hub_config, save_pretrained
from apps.export.model_card import CardFacts, model_card
from common.experiments.catalogue import Catalogue
from common.models.checkpoint import load_checkpoint
from common.training.trained_run import TrainedRun
from common.utils.files import write_text_atomic


def export_to_hub_format(run: TrainedRun, folder: Path, repo_id: str) -> Path:
    """Write `run` with a model card to the new `folder`; return it.

    Measures the metrics of the card on the whole validation split.
    Raises ModelError for a model without an architecture in transformers.
    """
    model = run.model
    save_pretrained(model, folder, run.text.tokenizer)
    try:
        metrics = run.evaluate()
        written = hub_config(model)  # type: ignore[arg-type]  # checked by save_pretrained
        facts = CardFacts(
            repo_id=repo_id,
            family=written["model_type"],
            checkpoint=run.checkpoint.name,
            parameters=model.num_parameters(),
            vocab_size=model.vocab_size,
            context_length=model.context_limit or run.config.context_length,
            manifest=Catalogue().manifest(run.name),
            metrics=metrics,
            fingerprint=load_checkpoint(run.checkpoint).state["fingerprint"],
        )
        write_text_atomic(folder / "README.md", model_card(facts))
    except BaseException:
        shutil.rmtree(folder)
        raise
    return folder
