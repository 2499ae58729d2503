"""`tools/benchmarks/training.py` on a tiny network: it measures, verifies, and leaves nothing behind."""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from common.data.loader import EvalWindows
from common.data.tokenizers import CharTokenizer
from common.errors import ExperimentError
from common.models import Decoder
from common.training import Evaluator
from tests.budget import budget
from tools.benchmarks import evaluate_checkpoint, measure_memory, networks
from tools.benchmarks.agreement import measure_agreement
from tools.benchmarks.measure_cuda import peak_flops
from tools.benchmarks.measure_time_to_loss import _rows as time_rows
from tools.benchmarks.measure_tokens import _rows as token_rows
from tools.benchmarks.plan import Plan
from tools.benchmarks.ratios import as_table, at_least, at_most, compared, limited, ratio_of
from tools.benchmarks.turns import Contestant, Record, take_turns

SCRIPT = "tools/benchmarks/training.py"
DOUBLE = Path(__file__).with_name("nanogpt_double")
QUICK = ("--networks", "tiny", "--seconds", 0.02, "--warmup-seconds", 0.02, "--no-huggingface")
TEXT = "to be or not to be, that is the question; " * 60
TRAIN = (
    "{python} projects/baseline/train.py --config configs/char_gpt2.yaml data.path={text} seed={seed} "
    "model.num_layers=1 model.hidden_size=16 model.num_heads=2 model.context_length=16 "
    "training.max_steps=3 training.eval_every_steps=3 training.device=cpu"
)


@pytest.fixture(autouse=True)
def compile_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each contestant compiles for itself, which takes a minute: in `make attack` alone."""
    if not budget(False, True):
        monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    folder = tmp_path / "plan"
    folder.mkdir()
    return Plan(folder, nanogpt=DOUBLE, networks=("tiny",), warmup_seconds=0.02, agreement_steps=5)


def children() -> list[psutil.Process]:
    """Processes of the benchmark; other tests of this session may have left servers of their own."""
    every = psutil.Process().children(recursive=True)
    return [child for child in every if "tools.benchmarks" in " ".join(child.cmdline())]


def test_a_ratio_compares_what_was_measured_in_the_same_round() -> None:
    # The machine was twice as fast in the second round; in each we took half of their time.
    assert ratio_of([10.0, 5.0], [20.0, 10.0]) == (0.5, None, None)
    found = ratio_of([1.0, 2.0, 3.0, 4.0, 5.0, 10.0], [1.0] * 6)
    assert found.value == 3.5 and found.low is not None and found.high is not None
    assert 1.0 <= found.low < 3.5 < found.high <= 10.0
    assert ratio_of([3.0], [2.0]) == (1.5, None, None)


def test_a_row_says_whether_its_target_is_reached() -> None:
    rows = [
        compared("fast", "tokens/s", [3.0, 3.0], "peer", [2.0, 2.0], at_least(1.5)),
        compared("slow", "tokens/s", [1.4], "peer", [1.0], at_least(1.5)),
        compared("lean", "MiB", [1.01], "peer", [1.0], at_most(1.02)),
        limited("loss", "nats", 1.8851, at_most(1.885)),
        compared("no target", "ms", [1.0], "peer", [4.0]),
    ]
    columns, cells = as_table(rows)
    assert columns[-3:] == ["ratio", "target", ""]
    assert [row[-1] for row in cells] == ["reached", "missed", "reached", "missed", None]
    assert cells[0][-3:-1] == ["1.5", ">= 1.5"] and cells[4][-3] == "0.25"


def test_the_best_of_a_peer_is_found_and_compared() -> None:
    records = {
        "ours": Record(3.0, 2, [1.0, 1.0]),
        "nanoGPT eager fp32": Record(4.0, 2, [2.0, 2.0]),
        "nanoGPT compiled fp32": Record(30.0, 2, [1.5, 1.5]),
        "nanoGPT compiled bf16": Record(35.0, 2, [0.5, 0.5]),
        "HF Trainer eager fp32": Record(5.0, 2, [4.0, 4.0]),
    }
    speeds = {name: [10 / turn for turn in record.turns] for name, record in records.items()}
    found = {row.work: row for row in token_rows("tiny", speeds, records)}
    best = found["tiny: training, nanoGPT at its best"]
    assert best.peer == "nanoGPT compiled bf16" and best.ratio and best.ratio.value == 0.5
    assert best.reached is False
    assert found["tiny: training, nanoGPT by default"].theirs == pytest.approx(10 / 1.5)
    readme = found["tiny: training, nanoGPT as in its README for CPUs"]
    assert readme.ratio and readme.ratio.value == 2 and readme.reached is True
    assert found["tiny: training, HF Trainer at its best"].ours == 10
    assert records["nanoGPT compiled bf16"].preparation_seconds == 34


@pytest.mark.slow
def test_peers_read_the_windows_that_our_trainer_reads(tmp_path: Path) -> None:
    network = networks.NETWORKS["tiny"]
    networks.write_tokens(network, tmp_path / "tokens")
    tokens = networks.open_tokens(tmp_path / "tokens")
    assert tokens.max() < network.vocab_size
    for accumulation in (1, 2):
        networks.write_starts(tokens, network, accumulation, tmp_path / "starts.npy")
        starts = np.load(tmp_path / "starts.npy")
        source = networks.windows(tokens, network, accumulation)
        for index in (0, 1, 77):
            rows = [tokens[start : start + network.context_length] for start in starts[index]]
            assert np.array_equal(source.batch(index)["input_ids"], rows)
        assert starts.max() + network.context_length < len(
            tokens
        )  # the target after the last input


@pytest.mark.attack
@pytest.mark.slow
def test_ours_alone_is_measured(run_tool, tmp_path: Path) -> None:
    file = tmp_path / "measured.json"
    rounds = ("--rounds", 2, "--only", "tokens", "--format", "json", "--json", file)
    result = run_tool(SCRIPT, *QUICK, *rounds)
    assert result.returncode == 0, result.stderr
    rows: dict[str, dict[str, Any]] = {row["work"]: row for row in json.loads(result.stdout)}
    assert rows["tiny: training"]["ours"] > 0 and rows["tiny: training"]["ratio"] is None
    assert "round 2 of 2" in result.stderr
    content = json.loads(file.read_text())
    record = content["works"]["tokens"]["measured"]["tiny"]["records"]["ours"]
    assert len(record["turns"]) == 2 and record["startup_seconds"] > 0
    assert content["manifest"]["packages"]["torch"] and not content["failures"]


@pytest.mark.attack
@pytest.mark.slow
def test_nanogpt_takes_turns_with_us_and_trains_the_same_network(plan: Plan) -> None:
    _check_with_nanogpt(plan)


@pytest.mark.attack
@pytest.mark.slow
def test_the_real_nanogpt_trains_the_same_network(plan: Plan, tmp_path: Path) -> None:
    folder = os.environ.get("NANOGPT_DIR")
    if not folder:
        pytest.skip("NANOGPT_DIR names no clone of nanoGPT")
    _check_with_nanogpt(Plan(tmp_path, nanogpt=Path(folder), networks=("tiny",), agreement_steps=5))


def _check_with_nanogpt(plan: Plan) -> None:
    measured = measure_agreement(plan, "tiny")
    assert [row.reached for row in measured.rows] == [None, True, True]
    assert len(measured.raw["nanoGPT"]) == 5
    assert len(set(measured.raw["nanoGPT"])) == 5  # it trains
    contestants = {"ours": plan.ours("tiny"), "nanoGPT": plan.of_nanogpt("tiny")}
    records, failures = take_turns(contestants, 2, 0.02, "test")
    assert not failures and not children()
    assert all(len(r.turns) == 2 and min(r.turns) > 0 for r in records.values())


@pytest.mark.slow
def test_other_losses_do_not_agree(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    # nanoGPT, ours in fp32, ours as measured: the differences lie beyond and within the limits.
    found = iter([[4.0, 3.0, 2.0], [4.0, 3.0003, 2.0], [4.0, 3.01, 2.0]])
    monkeypatch.setattr("tools.benchmarks.agreement.losses", lambda contestant: next(found))
    assert [row.reached for row in measure_agreement(plan, "tiny").rows] == [None, False, True]


def test_a_peer_that_does_not_run_is_left_out_but_we_are_not() -> None:
    talk = "import json; print(json.dumps({'seconds': 1, 'steps': 2}), flush=True); input()"
    works = talk + f"\nwhile True: {talk}"
    silent = [sys.executable, "-c", "import sys; sys.exit('no such kernel')"]
    contestants = {
        "works": Contestant([sys.executable, "-c", works], may_fail=False),
        "fails": Contestant(silent),
        "ends": Contestant([sys.executable, "-c", talk + "; raise SystemError('out of memory')"]),
    }
    records, failures = take_turns(contestants, 3, 0.1, "test")
    assert {name: record.turns for name, record in records.items()} == {"works": [0.5, 0.5, 0.5]}
    assert "no such kernel" in failures["fails"] and "out of memory" in failures["ends"]
    assert not children()
    with pytest.raises(ExperimentError, match="no such kernel"):
        take_turns({"ours": Contestant(silent, may_fail=False)}, 1, 0.1, "test")
    assert not children()


@pytest.mark.attack
@pytest.mark.slow
def test_memory_of_every_setting_is_measured(tmp_path: Path) -> None:
    plan = Plan(tmp_path, networks=("tiny",), memory_steps=1)
    found = measure_memory._peaks(plan.ours("tiny", steps=1))
    assert found["process"] > 100 and found["tree"] > 0  # MiB: torch alone takes more
    peaks = {
        "ours": {"process": 300.0, "tree": 200.0},
        "ours bf16": {"process": 250.0, "tree": 210.0},
        "nanoGPT eager fp32": {"process": 600.0, "tree": 800.0},
        "nanoGPT compiled fp32": {"process": 200.0, "tree": 180.0},
    }
    rows = {row.work: row for row in measure_memory._rows("tiny", peaks)}
    default = rows["tiny: peak memory, nanoGPT as in its README for CPUs"]
    assert default.ratio and default.ratio.value == 0.5 and default.reached is True
    assert rows["tiny: peak memory, both at their leanest (ours bf16)"].reached is False
    assert "tiny: peak memory, compilers counted, both at their leanest (ours)" in rows


@pytest.mark.attack
@pytest.mark.slow
def test_the_overhead_is_measured_in_pairs(run_tool, tmp_path: Path) -> None:
    file = tmp_path / "measured.json"
    blocks = ("--overhead-pairs", 2, "--overhead-steps", 10, "--only", "overhead", "--json", file)
    result = run_tool(SCRIPT, *QUICK, *blocks)
    assert result.returncode == 0, result.stderr
    measured = json.loads(file.read_text())["works"]["overhead"]["measured"]
    assert len(measured["with"]) == len(measured["without"]) == 2 and "<= 1.02" in result.stdout
    assert (
        run_tool(SCRIPT, *QUICK, *blocks[:2], "--overhead-steps", 7, *blocks[4:6]).returncode == 2
    )


def test_the_time_to_a_loss_counts_only_where_every_repetition_keeps_the_loss(plan: Plan) -> None:
    good = {"seconds": 10.0, "loss": 1.88, "parameters": 800_000}
    nanogpt = [{"seconds": 100.0, "loss": 1.9, "parameters": 804_096}] * 2

    def reached(*ours: dict[str, float]) -> list[bool | None]:
        return [row.reached for row in time_rows(plan, {"ours": [*ours], "nanoGPT": nanogpt})]

    assert reached(good, good) == [True, True, True]
    assert reached(good, good | {"loss": 1.886}) == [False, False, True]
    assert reached(good, good | {"parameters": 900_001}) == [False, True, False]
    assert reached(good | {"seconds": 90.0}, good | {"seconds": 90.0}) == [False, True, True]


@pytest.mark.attack
@pytest.mark.slow
def test_a_training_is_timed_and_its_checkpoint_judged(run_tool, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    given = ("--only", "time-to-loss", "--text", text, "--ours-command", TRAIN, "--format", "json")
    result = run_tool(SCRIPT, *QUICK, *given, "--repetitions", budget(1, 2), "--loss", 3.1)
    assert result.returncode == 0, result.stderr
    time, loss, size = json.loads(result.stdout)
    assert time["ours"] > 0 and size[""] == "reached"
    assert 1 < loss["ours"] < 3.5
    assert loss[""] == ("reached" if loss["ours"] <= 3.1 else "missed")


def test_every_character_but_the_first_is_judged_once() -> None:
    ids = torch.arange(50) % 7
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(7, 7, generator=generator)
    for context in (1, 4, 7, 49, 64):
        found = evaluate_checkpoint.mean_loss(lambda inputs: table[inputs], ids, context)
        log = table.double().log_softmax(-1)
        expected = -sum(float(log[ids[i], ids[i + 1]]) for i in range(49)) / 49
        assert found == pytest.approx(expected, rel=1e-12)


def test_a_checkpoint_of_ours_is_judged_as_our_evaluator_does(tmp_path: Path) -> None:
    tokenizer = CharTokenizer.train([TEXT])
    model = Decoder(tokenizer.vocab_size, num_layers=1, hidden_size=16, num_heads=2)
    torch.nn.init.normal_(model.token_embedding.weight)  # far from uniform
    path = model.save_checkpoint(tmp_path / "checkpoint")
    _, logits, context = evaluate_checkpoint._ours(path)
    validation = TEXT[int(len(TEXT) * 0.9) :]
    ids = torch.from_numpy(tokenizer.encode(validation))
    assert context == 256 > len(ids) - 2  # one window: both see the same context
    windows = EvalWindows(ids.numpy().astype(np.uint16), batch_size=1, context_length=context)
    expected = Evaluator(model).evaluate(windows)
    assert expected["num_tokens"] == len(ids) - 1
    assert evaluate_checkpoint.mean_loss(logits, ids, context) == pytest.approx(expected["loss"])


def test_a_checkpoint_of_nanogpt_is_judged(tmp_path: Path) -> None:
    sizes = {"block_size": 8, "vocab_size": len(set(TEXT)), "n_layer": 1, "n_head": 2, "n_embd": 8}
    arguments = {**sizes, "dropout": 0.0, "bias": False}
    module = evaluate_checkpoint.import_nanogpt(DOUBLE)
    model = module.GPT(module.GPTConfig(**arguments))
    weights = {f"_orig_mod.{name}": value for name, value in model.state_dict().items()}
    torch.save({"model": weights, "model_args": arguments}, tmp_path / "ckpt.pt")
    _, logits, context = evaluate_checkpoint._nanogpt(tmp_path / "ckpt.pt", DOUBLE)
    ids = evaluate_checkpoint._sorted_ids(TEXT[:100], TEXT)
    loss = evaluate_checkpoint.mean_loss(logits, ids, context)
    assert context == 8 and loss == pytest.approx(math.log(sizes["vocab_size"]), rel=0.02)


def test_the_arithmetic_of_a_network_is_counted() -> None:
    # GPT-2 small: 124 million parameters; the PaLM formula at its context of 1024.
    network = networks.NETWORKS["124M"]
    parameters = (network.flops_per_token - 12 * 12 * 768 * 1024) / 6
    assert parameters == pytest.approx(123.6e6, rel=0.001)
    assert peak_flops("NVIDIA H200") == 989e12 and peak_flops("NVIDIA H100 PCIe") == 756e12
    assert peak_flops("NVIDIA GeForce GTX 1080") is None


def test_what_is_missing_is_told_in_a_line(run_tool, tmp_path: Path) -> None:
    result = run_tool(SCRIPT, "--nanogpt", tmp_path)
    assert result.returncode == 2 and "has no model.py" in result.stderr
    assert "git clone" in result.stderr
    result = run_tool(SCRIPT, "--only", "time-to-loss", "--no-huggingface")
    assert result.returncode == 2 and "--text FILE" in result.stderr
