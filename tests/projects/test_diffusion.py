"""Masked diffusion from training to the drawn order of unmasking."""

from __future__ import annotations

import itertools
import math
import signal
import statistics
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from common.config import load_config
from common.data.grammar import Grammar
from common.errors import ConfigError
from common.generation.unmasking import ORDERS, Order
from common.models.masked_decoder import MaskedDecoder
from common.training import (
    Evaluator,
    Experiment,
    OptimizerConfig,
    Trainer,
    TrainingConfig,
    load_run,
)
from common.training.callbacks.base import Callback
from common.training.masked_diffusion import MaskedDiffusion
from common.utils import query_experiments
from common.utils.paths import get_runs_dir
from projects.diffusion.train import Config
from tests.budget import budget
from tests.fork_server import ForkServer

PROJECT = Path(__file__).parents[2] / "projects" / "diffusion"
TINY = [
    *("--config", "configs/stories.yaml", "data.num_stories=200", "data.vocab_size=300"),
    *("training.device=cpu", "training.precision=fp32", "training.compile=false"),
    *("training.max_steps=6", "training.eval_every_steps=3", "training.eval_batches=1"),
    *("model.num_layers=1", "model.hidden_size=32", "model.num_heads=2", "model.context_length=32"),
]


def test_the_objective_decides_whether_the_model_is_causal() -> None:
    path = PROJECT / "configs" / "stories.yaml"
    assert not load_config(path, Config).model.causal
    assert load_config(path, Config, ["objective=next_token"]).model.causal
    for wrong in (["model.causal=true"], ["objective=next_token", "model.causal=false"]):
        with pytest.raises(ConfigError, match="does not fit objective"):
            load_config(path, Config, wrong)


@pytest.mark.slow
def test_a_run_from_training_to_analysis(run_tool, tmp_path: Path) -> None:
    trained = run_tool(PROJECT / "train.py", *TINY, "--name", "masked")
    assert trained.returncode == 0, trained.stderr
    assert "loss <= " in trained.stdout and "(standard error 0." in trained.stdout
    rows = query_experiments("SELECT * FROM experiments WHERE split = 'val'").dropna(axis=1)
    assert {"bits_per_byte_bound", "loss_standard_error"} <= {*rows.columns}
    run = load_run("masked", "last")
    assert isinstance(run.model, MaskedDecoder)
    assert run.evaluate()["loss"] == pytest.approx(rows["loss"].iloc[0], rel=1e-5)
    ranked = run_tool("tools/query_experiments.py", "--best", "loss")
    assert "upper bounds (<=), ranked after the others: masked" in ranked.stdout + ranked.stderr

    between = ("--prompt", "Once", "--suffix", " end.", "--max-new-tokens", "8", "--steps", "3")
    sampled = run_tool(PROJECT / "sample.py", "masked", *between)
    assert sampled.returncode == 0, sampled.stderr
    assert sampled.stdout.startswith("Once") and sampled.stdout.endswith(" end.\n")
    page = tmp_path / "order.html"
    analysed = run_tool(
        "tools/analyze.py",
        "unmasking",
        "--name",
        "masked",
        "--max-new-tokens",
        "20",
        "--output",
        page,
    )
    assert analysed.returncode == 0, analysed.stderr
    assert '"steps":[-1,' in page.read_text()
    compared = run_tool(
        PROJECT / "quality.py", "--name", "masked", "--samples", "2", "--steps", "2"
    )
    assert compared.returncode == 2 and "no validation text has" in compared.stderr
    refused = run_tool(PROJECT / "evaluate.py", "masked", "--full-report")
    assert refused.returncode == 2 and "predict the next token" in refused.stderr


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_bits(
    fork_server: ForkServer, run_tool, tmp_path: Path
) -> None:
    assert run_tool(PROJECT / "train.py", *TINY, "--name", "whole").returncode == 0
    kill = {"count": 1, "signal": signal.SIGKILL, "change": "step_3", "reads": False}
    with (tmp_path / "log").open("w+") as log:
        streams = {"stdin": log, "stdout": log, "stderr": log}
        arguments = (*TINY, "--name", "cut")
        cut = fork_server.start(PROJECT / "train.py", *arguments, **streams, strikes=[kill])
        assert cut.wait() == -signal.SIGKILL
    resumed = run_tool(PROJECT / "train.py", "--name", "cut", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    whole, cut_short = (
        load_file(get_runs_dir() / name / "checkpoints" / "step_6" / "model.safetensors")
        for name in ("whole", "cut")
    )
    assert all(torch.equal(cut_short[name], expected) for name, expected in whole.items())


@pytest.mark.slow
def test_the_bound_of_a_deterministic_text_goes_to_0() -> None:
    torch.manual_seed(0)

    class Cycle:
        """Rows that count upwards, modulo 8."""

        def batch(self, index: int) -> torch.Tensor:
            starts = torch.randint(0, 8, (16, 1), generator=torch.Generator().manual_seed(index))
            return (starts + torch.arange(16)) % 8

    shape = {"preset": "llama", "hidden_size": 32, "num_layers": 2, "num_heads": 2}
    model = MaskedDecoder(8, **shape, context_length=16)
    data = Cycle()
    objective = MaskedDiffusion(8, draws=8)
    experiment = Experiment(model, data, [data.batch(10**6)], objective)
    training = TrainingConfig(max_steps=500, device="cpu", precision="fp32", compile=False)
    metrics = Trainer(experiment, training, optimizer=OptimizerConfig(lr=3e-3)).fit()
    assert 0 <= metrics["loss"] < 0.05
    given = torch.tensor([[3, 4]])
    found = model.generate(given, 9, suffix=torch.tensor([[6, 7]]), temperature=0, steps=5)
    assert found[0].tolist() == [(3 + i) % 8 for i in range(13)]


GRAMMAR = Grammar(
    "text",
    {"text": [(0.6, "{name:n} {verb}, {=n} {verb}."), (0.4, "{name} {verb}.")]},
    {"name": "ann|bob|cyd", "verb": "hops|runs|sits"},
    {},
)
TEXTS, SURPRISALS = zip(*GRAMMAR.generate(8_000, seed=0), strict=True)
LETTERS = sorted({*"".join(TEXTS), "\n"})  # the first one, "\n", begins a text and fills it up
LENGTH = max(map(len, TEXTS)) + 1  # at least one "\n" follows
NUM_VAL = 2_000


def encode(text: str) -> list[int]:
    return [LETTERS.index(letter) for letter in text]


class Texts:
    """A text of the grammar in each row, from its first letter."""

    rows = torch.tensor([encode("\n" + text.ljust(LENGTH, "\n")) for text in TEXTS])

    def batch(self, index: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(index)
        return self.rows[torch.randint(NUM_VAL, len(self.rows), (32,), generator=generator)]


class Bounds(Callback):
    """The bound of the first texts and its standard error, in nats per text, some times in a run."""

    def __init__(self) -> None:
        self.found: list[tuple[float, float]] = []

    def on_step(self, trainer: Trainer) -> None:
        if trainer.step in (100, 300, 600, 3_000):
            metrics = trainer.evaluator.evaluate([Texts.rows[:NUM_VAL]])
            self.found.append((metrics["loss"] * LENGTH, metrics["loss_standard_error"] * LENGTH))


@pytest.fixture(scope="module")
def trained() -> tuple[MaskedDecoder, Bounds]:
    torch.manual_seed(0)
    shape = {"preset": "qwen3", "positions": "learned", "hidden_size": 32, "num_layers": 2}
    model = MaskedDecoder(len(LETTERS), **shape, num_heads=2, context_length=LENGTH + 1)
    objective, bounds = MaskedDiffusion(len(LETTERS), draws=4), Bounds()
    experiment = Experiment(model, Texts(), None, objective, callbacks=[bounds])
    steps = budget(600, 3_000)
    training = TrainingConfig(max_steps=steps, device="cpu", precision="fp32", compile=False)
    Trainer(experiment, training, optimizer=OptimizerConfig(lr=1e-2)).fit()
    return model.eval(), bounds


@pytest.mark.slow
@pytest.mark.attack
def test_the_bound_never_lies_below_the_entropy_and_approaches_it(
    trained: tuple[MaskedDecoder, Bounds],
) -> None:
    entropy = GRAMMAR.entropy()[0]
    of_texts = statistics.stdev(SURPRISALS[:NUM_VAL]) / math.sqrt(NUM_VAL)
    for bound, error in trained[1].found:
        assert bound > entropy - 3 * math.hypot(error, of_texts)
    assert trained[1].found[0][0] > 2 * entropy
    assert trained[1].found[-1][0] < budget(1.2, 1.06) * entropy


@pytest.mark.slow
@pytest.mark.attack
def test_bounds_of_few_and_many_draws_of_a_trained_model_agree(
    trained: tuple[MaskedDecoder, Bounds],
) -> None:
    found = {}
    for draws in (8, 32, 128):
        objective = MaskedDiffusion(len(LETTERS), seed=draws, draws=draws)
        found[draws] = Evaluator(trained[0], objective=objective).evaluate([Texts.rows[:100]])
        print(f"{draws} draws: {objective.describe(found[draws])}")
    for a, b in itertools.combinations(found.values(), 2):
        error = math.hypot(a["loss_standard_error"], b["loss_standard_error"])
        assert abs(a["loss"] - b["loss"]) < 3 * error


@pytest.mark.slow
@pytest.mark.attack
def test_infilling_respects_both_sides(trained: tuple[MaskedDecoder, Bounds]) -> None:
    """Each name stands twice. With one of them hidden, a model that sees only the prefix is right in a third of
    the texts if it is the first, and one that sees only the suffix if it is the second."""
    names, verbs = ("ann", "bob", "cyd"), ("hops", "runs", "sits")
    right = {0: 0, 10: 0}  # place of the name: texts filled in correctly
    texts = [f"{n} {v}, {n} {w}." for n, v, w in itertools.product(names, verbs, verbs)]
    for text, start in itertools.product(texts, right):
        row = torch.tensor([encode("\n" + text.ljust(LENGTH, "\n"))])
        prefix, suffix = row[:, : 1 + start], row[:, 1 + start + 3 :]
        filled = trained[0].generate(prefix, 3, suffix=suffix, temperature=0)
        right[start] += torch.equal(filled, row)
    print(f"filled in correctly: {right} of {len(texts)}")
    assert min(right.values()) >= budget(0.9, 1.0) * len(texts)


@pytest.mark.slow
@pytest.mark.attack
@pytest.mark.parametrize("order", ORDERS)
def test_texts_written_in_any_order_are_those_of_the_grammar(
    trained: tuple[MaskedDecoder, Bounds], order: Order
) -> None:
    start = torch.tensor([encode("\n")])
    rows = trained[0].generate(start, LENGTH, num_sequences=500, seed=0, order=order)
    texts = ["".join(LETTERS[i] for i in row).strip("\n") for row in rows.tolist()]
    surprisals = [GRAMMAR.surprisal(text) for text in texts]
    accepted = [nats for nats in surprisals if nats < math.inf]
    print(f"{order}: {len(accepted) / len(texts):.1%} grammatical, {len({*texts})} different")
    assert len(accepted) > 0.8 * len(texts)
    # an order that prefers likely tokens would write likely texts only
    assert statistics.mean(accepted) == pytest.approx(GRAMMAR.entropy()[0], rel=0.1)
