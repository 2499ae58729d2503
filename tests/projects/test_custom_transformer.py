"""The hand-written backward pass against autograd, layer by layer and whole; its scripts."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel

from common.config import load_config
from common.data.batch import Batch
from common.training import TrainingConfig
from common.training.config import OptimizerConfig, ScheduleConfig
from common.utils.paths import REPOSITORY_ROOT
from projects.custom_transformer import layers
from projects.custom_transformer.model import CustomTransformer
from projects.custom_transformer.reference import AutogradTransformer
from projects.custom_transformer.train import Config
from tests.budget import examples
from tests.fork_server import ForkServer
from tests.trainers import make_trainer

F64 = torch.float64


def twins(dtype: torch.dtype = F64, seed: int = 0, **shape: Any) -> tuple[Any, Any]:
    """The model and its autograd twin with the same weights, none of them at a special value."""
    torch.manual_seed(seed)
    ours, theirs = CustomTransformer(**shape).to(dtype), AutogradTransformer(**shape).to(dtype)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


shapes = st.fixed_dictionaries(
    {
        "vocab_size": st.integers(2, 13),
        "num_layers": st.integers(1, 3),
        "num_heads": st.integers(1, 3),
        "head_size": st.integers(1, 4),
        "context_length": st.integers(2, 9),
        "batch": st.integers(1, 4),
        "seed": st.integers(0, 10_000),
    }
)


def build(drawn: dict[str, int]) -> tuple[Any, Any, torch.Tensor, torch.Generator]:
    """(model, twin, input ids, generator)"""
    ours, theirs = twins(
        seed=drawn["seed"],
        vocab_size=drawn["vocab_size"],
        num_layers=drawn["num_layers"],
        num_heads=drawn["num_heads"],
        hidden_size=drawn["num_heads"] * drawn["head_size"],
        context_length=drawn["context_length"],
    )
    generator = torch.Generator().manual_seed(drawn["seed"])
    time = int(torch.randint(1, drawn["context_length"] + 1, (), generator=generator))
    ids = torch.randint(0, drawn["vocab_size"], (drawn["batch"], time), generator=generator)
    return ours, theirs, ids, generator


def assert_same_gradients(ours: torch.nn.Module, theirs: torch.nn.Module) -> None:
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        reference = expected[name].grad
        if reference is None:
            reference = torch.zeros_like(parameter)
        assert parameter.grad is not None, name
        error = (parameter.grad - reference).norm()
        assert error <= 1e-9 * reference.norm() + 1e-13, name


Objective = Callable[[Any, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
OBJECTIVES: dict[str, Objective] = {
    "loss": lambda model, ids, labels, weight: model(ids, labels=labels)["loss"],
    "compute_loss": lambda model, ids, labels, weight: model.compute_loss(ids, labels) * 3,
    "logits": lambda model, ids, labels, weight: (model(ids)["logits"] * weight).sum(),
    "logits, unused loss": lambda model, ids, labels, weight: (
        model(ids, labels=labels)["logits"] * weight
    ).sum(),
    "both": lambda model, ids, labels, weight: both(model(ids, labels=labels), weight),
}


def both(output: dict[str, torch.Tensor], weight: torch.Tensor) -> torch.Tensor:
    return output["loss"] * 0.7 + (output["logits"] * weight).sin().sum()


@pytest.mark.parametrize("name", OBJECTIVES)
@given(drawn=shapes, ignored=st.sampled_from([0.0, 0.5, 1.0]))
@examples(20)
def test_gradients_of_every_parameter_equal_those_of_autograd(
    name: str, drawn: dict[str, int], ignored: float
) -> None:
    ours, theirs, ids, generator = build(drawn)
    labels = ids.clone()
    labels[torch.rand(ids.shape, generator=generator) < ignored] = -100
    weight = torch.randn((*ids.shape, drawn["vocab_size"]), generator=generator, dtype=F64)
    values = []
    for model in (ours, theirs):
        value = OBJECTIVES[name](model, ids, labels, weight)
        value.backward()
        values.append(value.detach())
    torch.testing.assert_close(values[0], values[1], rtol=1e-10, atol=1e-12)
    assert_same_gradients(ours, theirs)


@given(drawn=shapes, chunk=st.integers(1, 40))
@examples(25)
def test_chunks_of_the_cross_entropy_change_nothing(drawn: dict[str, int], chunk: int) -> None:
    ours, theirs, ids, generator = build(drawn)
    labels = ids.clone()
    labels[torch.rand(ids.shape, generator=generator) < 0.3] = -100
    whole = layers.CHUNK_LOGITS
    layers.CHUNK_LOGITS = chunk
    try:
        loss = ours.compute_loss(ids, labels)
        loss.backward()
        with torch.no_grad():
            unlearned = ours.compute_loss(ids, labels)
    finally:
        layers.CHUNK_LOGITS = whole
    expected = theirs.compute_loss(ids, labels)
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(unlearned, expected.detach(), rtol=1e-11, atol=1e-13)
    assert_same_gradients(ours, theirs)


def test_gradients_add_up_over_batches_and_are_not_shared_with_each_other() -> None:
    ours, theirs = twins(vocab_size=9, num_layers=2, num_heads=2, hidden_size=8, context_length=6)
    for seed in range(3):
        ids = torch.randint(0, 9, (2, 6), generator=torch.Generator().manual_seed(seed))
        for model in (ours, theirs):
            model.compute_loss(ids, ids).backward()
    assert_same_gradients(ours, theirs)


def test_two_losses_in_one_graph_keep_their_own_activations() -> None:
    ours, theirs = twins(vocab_size=9, num_layers=2, num_heads=2, hidden_size=8, context_length=6)
    first, second = torch.randint(0, 9, (2, 3, 6))
    for model in (ours, theirs):
        (model.compute_loss(first, first) + 2 * model.compute_loss(second, second)).backward()
    assert_same_gradients(ours, theirs)


@pytest.mark.parametrize("frozen", ["token_embedding", "blocks.0.qkv", "last_norm", "blocks"])
def test_frozen_parameters_get_no_gradient_and_the_others_the_right_one(frozen: str) -> None:
    ours, theirs = twins(vocab_size=9, num_layers=2, num_heads=2, hidden_size=8, context_length=6)
    ids = torch.randint(0, 9, (2, 6))
    for model in (ours, theirs):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not name.startswith(frozen))
        model.compute_loss(ids, ids).backward()
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        if name.startswith(frozen):
            assert parameter.grad is None
        else:
            torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-9, atol=1e-13)


def test_a_second_backward_is_refused() -> None:
    ours, _ = twins(vocab_size=9, num_layers=1, num_heads=2, hidden_size=8, context_length=6)
    ids = torch.randint(0, 9, (2, 6))
    loss = ours.compute_loss(ids, ids)
    loss.backward(retain_graph=True)
    before = [parameter.grad.clone() for parameter in ours.parameters()]
    with pytest.raises(RuntimeError, match="already been run"):
        loss.backward()
    for parameter, gradient in zip(ours.parameters(), before, strict=True):
        assert torch.equal(parameter.grad, gradient)


def test_a_gradient_of_the_gradient_is_right_or_refused() -> None:
    """Never a number that is silently wrong."""
    ours, theirs = twins(vocab_size=9, num_layers=1, num_heads=2, hidden_size=8, context_length=6)
    ids = torch.randint(0, 9, (2, 6), generator=torch.Generator().manual_seed(0))

    def penalty(model: Any) -> None:
        loss = model(ids, labels=ids)["loss"]
        gradients = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
        sum(gradient.square().sum() for gradient in gradients).backward()

    with sdpa_kernel(SDPBackend.MATH):  # the others have no second derivative
        penalty(theirs)
    try:
        penalty(ours)
    except RuntimeError:
        return
    assert_same_gradients(ours, theirs)


def test_no_gradient_is_prepared_where_none_is_wanted() -> None:
    ours, _ = twins(vocab_size=9, num_layers=1, num_heads=2, hidden_size=8, context_length=6)
    ids = torch.randint(0, 9, (2, 6))
    with torch.no_grad():
        output = ours(ids, labels=ids)
    assert not output["logits"].requires_grad and not output["loss"].requires_grad


def test_nothing_is_computed_in_half_precision_under_autocast() -> None:
    ours, _ = twins(
        torch.float32, vocab_size=9, num_layers=1, num_heads=2, hidden_size=8, context_length=6
    )
    ids = torch.randint(0, 9, (2, 6))
    plain = ours.compute_loss(ids, ids)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ours.compute_loss(ids, ids), plain)
        assert ours(ids)["logits"].dtype == torch.float32


# Single layers: finite differences


class Layer(torch.autograd.Function):
    """Any of the pairs in layers.py, for gradcheck."""

    @staticmethod
    def forward(
        ctx: Any, forward: Callable[..., Any], backward: Callable[..., Any], *inputs: torch.Tensor
    ) -> torch.Tensor:
        result = forward(*inputs)
        output, kept = result if isinstance(result, tuple) else (result, None)
        ctx.backward_function, ctx.inputs, ctx.kept = backward, inputs, kept
        return output

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[Any, ...]:
        gradients = ctx.backward_function(dy.clone(), ctx.inputs, ctx.kept)
        return (None, None, *gradients)


def random_inputs(*sizes: tuple[int, ...]) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(size, dtype=F64, requires_grad=True) for size in sizes]


def check(
    forward: Callable[..., Any], backward: Callable[..., Any], *sizes: tuple[int, ...]
) -> None:
    inputs = random_inputs(*sizes)
    assert torch.autograd.gradcheck(
        lambda *arguments: Layer.apply(forward, backward, *arguments), inputs
    )


def test_rms_norm_backward_agrees_with_finite_differences() -> None:
    check(
        layers.rms_norm_forward,
        lambda dy, inputs, r: layers.rms_norm_backward(dy, *inputs, r),
        (5, 4),
        (4,),
    )


def test_attention_backward_agrees_with_finite_differences() -> None:
    check(
        layers.attention_forward,
        lambda dy, inputs, _: layers.attention_backward(dy, *inputs),
        *[(3, 5, 2)] * 3,
    )


def test_mlp_backward_agrees_with_finite_differences() -> None:
    check(
        layers.mlp_forward,
        lambda dy, inputs, z: layers.mlp_backward(dy, inputs[0], z, *inputs[1:]),
        (5, 3),
        (12, 3),
        (3, 12),
    )


def test_embedding_backward_agrees_with_finite_differences() -> None:
    ids = torch.tensor([[1, 1, 4], [0, 4, 1]])  # some tokens twice, some never

    def backward(dy: torch.Tensor, inputs: Any, _: None) -> tuple[torch.Tensor, ...]:
        gradients = [torch.zeros_like(table) for table in inputs]
        layers.embedding_backward(dy, ids, *gradients)
        return tuple(gradients)

    check(lambda e, p: layers.embedding_forward(ids, e, p, 0), backward, (6, 3), (4, 3))


@pytest.mark.parametrize("chunk", [1, 10, 14, 1000])
def test_cross_entropy_gradients_agree_with_finite_differences(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "CHUNK_LOGITS", chunk)
    targets = torch.tensor([3, 0, 3, 6, 1])

    def backward(dy: torch.Tensor, inputs: Any, _: None) -> tuple[torch.Tensor, ...]:
        x, tokens = inputs
        dtokens = torch.zeros_like(tokens)
        _, dx = layers.cross_entropy_with_gradients(x, tokens, targets, dtokens)
        return dx * dy, dtokens * dy

    check(lambda x, e: layers.cross_entropy(x, e, targets), backward, (5, 3), (7, 3))


@given(rows=st.integers(0, 50), words=st.integers(1, 60), chunk=st.integers(1, 500))
@examples(60)
def test_chunks_cover_every_row_once_and_hold_no_more_logits_than_allowed(
    rows: int, words: int, chunk: int
) -> None:
    whole, layers.CHUNK_LOGITS = layers.CHUNK_LOGITS, chunk
    try:
        spans = layers._chunks(rows, words)
    finally:
        layers.CHUNK_LOGITS = whole
    assert [row for start, end in spans for row in range(start, end)] == list(range(rows))
    assert all((end - start) * words <= max(chunk, words) for start, end in spans)


@given(
    batch=st.integers(1, 3), time=st.integers(1, 4), heads=st.integers(1, 3), size=st.integers(1, 3)
)
@examples(20)
def test_join_heads_is_the_inverse_of_split_heads(
    batch: int, time: int, heads: int, size: int
) -> None:
    x = torch.randn(batch * time, 3 * heads * size)
    assert torch.equal(layers.join_heads(layers.split_heads(x, batch, heads), batch), x)


def test_extreme_logits_give_a_finite_loss_and_gradient() -> None:
    x = torch.tensor([[300.0, 0.0], [0.0, -300.0]])
    tokens = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    dtokens = torch.zeros_like(tokens)
    total, dx = layers.cross_entropy_with_gradients(x, tokens, torch.tensor([2, 1]), dtokens)
    expected = torch.nn.functional.cross_entropy(
        x @ tokens.T, torch.tensor([2, 1]), reduction="sum"
    )
    torch.testing.assert_close(total, expected)
    assert dx.isfinite().all() and dtokens.isfinite().all()


# Training


class Batches:
    def batch(self, index: int) -> Batch:
        generator = torch.Generator().manual_seed(index)
        ids = torch.randint(0, 5, (4, 12), generator=generator).cumsum(1) % 11
        labels = ids.clone()
        labels[torch.rand(ids.shape, generator=generator) < 0.1 * (index % 3)] = -100
        return {"input_ids": ids, "labels": labels}


@pytest.mark.slow
def test_training_follows_the_loss_curve_of_the_autograd_twin() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    curves: list[list[float]] = []
    for model in twins(vocab_size=11, num_layers=2, num_heads=2, hidden_size=16, context_length=12):
        losses: list[float] = []
        trainer = make_trainer(
            model,
            Batches(),
            TrainingConfig(
                max_steps=60, device="cpu", eval_every_steps=5, gradient_accumulation_steps=2
            ),
            optimizer=OptimizerConfig(lr=3e-3),
            schedule=ScheduleConfig(warmup_steps=5),
            val_data=[Batches().batch(1000)],
        )
        evaluate = trainer._evaluate
        trainer._evaluate = lambda full, e=evaluate, kept=losses: kept.append(e(full)["loss"]) or {
            "loss": kept[-1]
        }
        trainer.fit()
        curves.append(losses)
    torch.set_num_threads(threads)
    assert len(curves[0]) == 12 and curves[0][-1] < curves[0][0] - 0.3
    assert curves[0] == pytest.approx(curves[1], rel=1e-7)


# The scripts


SMALL = [
    "data.tokenizer=char",
    "data.batch_size=4",
    "model.num_layers=1",
    "model.num_heads=2",
    "model.hidden_size=16",
    "model.context_length=16",
    "training.max_steps=20",
    "training.eval_every_steps=10",
    "training.device=cpu",
    "samples.prompts=[the]",
    "samples.max_new_tokens=8",
]


@pytest.mark.slow
def test_train_evaluate_and_sample_run_from_any_folder(tmp_path: Path, run_tool: Any) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "text.txt").write_text("the cat sat on the mat. " * 200)
    arguments = [*SMALL, f"data.path={folder / 'text.txt'}"]
    options = {"cwd": folder, "env": {"OMP_NUM_THREADS": "1"}}
    scripts = "projects/custom_transformer"
    trained = run_tool(
        f"{scripts}/train.py",
        "--config",
        "configs/quickstart.yaml",
        "--name",
        "a",
        *arguments,
        **options,
    )
    assert trained.returncode == 0, trained.stderr
    assert "validation  loss" in trained.stdout and "--- sample ---\nthe" in trained.stdout
    loss = trained.stdout.split("validation  loss ")[1].split()[0]
    evaluated = run_tool(f"{scripts}/evaluate.py", "--name", "a", "--checkpoint", "last", **options)
    assert evaluated.returncode == 0, evaluated.stderr
    assert f"loss {loss} " in evaluated.stdout and "step_20" in evaluated.stdout
    sampled = run_tool(
        f"{scripts}/sample.py", "--name", "a", "--prompt", "the", "--max-new-tokens", 9, **options
    )
    assert sampled.returncode == 0, sampled.stderr
    assert sampled.stdout.startswith("the") and len(sampled.stdout.rstrip("\n")) <= 12
    assert [path.name for path in folder.iterdir()] == ["text.txt"]


@pytest.mark.slow
def test_train_runs_as_a_module_and_says_what_is_wrong_in_one_line(fork_server: ForkServer) -> None:
    def module(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = ("-m", "projects.custom_transformer.train", *arguments)
        return fork_server.run(*command, cwd=REPOSITORY_ROOT)

    printed = module("--config", "configs/quickstart.yaml", "--print-config", "optimizer.lr=0.25")
    assert printed.returncode == 0 and "lr: 0.25" in printed.stdout
    wrong = module("--config", "configs/quickstart.yaml", "model.num_head=3")
    assert wrong.returncode == 2 and "did you mean 'num_heads'" in wrong.stderr
    assert "Traceback" not in wrong.stderr


def test_every_configuration_of_the_project_is_valid() -> None:
    found = sorted((REPOSITORY_ROOT / "projects/custom_transformer/configs").glob("*.yaml"))
    assert found
    for path in found:
        assert load_config(path, Config).model.num_layers > 0
