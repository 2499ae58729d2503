"""What the harness is told equals a direct computation in float64, one token after the other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from common.data.tokenizers import BPETokenizer, CharTokenizer, Tokenizer
from common.errors import ConfigError, DataError, ModelError
from common.models import BaseLanguageModel, Decoder
from common.training import prediction_metrics

pytest.importorskip("lm_eval", reason="the evaluation harness is not installed")
from lm_eval.api.instance import Instance

from apps.evaluation.lm_eval_adapter import HarnessModel, run_tasks

LETTERS = "abcdefghij .\n"
CHAR = CharTokenizer.train([LETTERS])
BPE = BPETokenizer.train(["the cat sat on the mat. 12 12 the dog " * 30], 290)
LIMIT = 8


def model_for(tokenizer: Tokenizer, **options: Any) -> Decoder:
    torch.manual_seed(0)
    shape: dict[str, Any] = {"num_layers": 1, "hidden_size": 16, "num_heads": 2}
    model = Decoder(tokenizer.vocab_size, **shape, context_length=LIMIT, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
        head = model.token_embedding if model.head is None else model.head
        head.weight[tokenizer.end_of_text] = 0  # never the likeliest: texts go on
    return model.double()


def asked(kind: str, arguments: Sequence[tuple[Any, ...]]) -> list[Instance]:
    return [Instance(kind, {}, each, index) for index, each in enumerate(arguments)]


@torch.no_grad()
def direct(
    model: BaseLanguageModel, tokens: list[int], start: int, limit: int
) -> tuple[float, bool]:
    """Log-probability of tokens[start:], a forward pass for each, and whether each is the likeliest.

    All see the same window: the `limit` tokens before the last one.
    """
    first = max(0, len(tokens) - 1 - limit)
    total, greedy = 0.0, True
    for position in range(start, len(tokens)):
        logits = model(torch.tensor([tokens[first:position]]))["logits"][0, -1].double()
        total += float(logits[tokens[position]] - logits.logsumexp(0))
        greedy &= int(logits.argmax()) == tokens[position]
    return total, greedy


PAIRS = [
    ("abc", "d"),
    ("abc", "defg"),
    ("a", "bcdefghi"),  # as long as the window
    ("", "abc"),
    ("abcdefghijabcdefghij", "ab"),  # the context is longer than the window
    ("ab ", "c"),
    (" \n", "c"),  # nothing but spaces: they belong to the continuation
    ("abc", ""),
]


@pytest.mark.parametrize("options", [{}, {"mixer": "lstm", "positions": "none"}])
@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_loglikelihood_equals_a_direct_computation_whatever_the_batches(
    batch_size: int, options: dict[str, Any]
) -> None:
    model = model_for(CHAR, **options)
    harness = HarnessModel(model, CHAR, batch_size=batch_size, max_length=LIMIT)
    found = harness.loglikelihood(asked("loglikelihood", PAIRS), disable_tqdm=True)
    for (context, continuation), answer in zip(PAIRS, found, strict=True):
        before = CHAR.encode(context).tolist()
        # One token a character: moving spaces to the continuation moves the border only.
        moved = len(context) - len(context.rstrip())
        start = len(before) - moved
        tokens = [*before, *CHAR.encode(continuation).tolist()]
        if start == 0:
            tokens, start = [CHAR.end_of_text, *tokens], 1
        total, greedy = direct(model, tokens, start, LIMIT)
        assert answer == (pytest.approx(total, rel=1e-9, abs=1e-12), greedy), (
            context,
            continuation,
        )


def test_fp32_models_are_scored_to_fp32() -> None:
    model = model_for(CHAR)
    exact = HarnessModel(model, CHAR).loglikelihood(asked("loglikelihood", PAIRS), True)
    single = HarnessModel(model.float(), CHAR).loglikelihood(asked("loglikelihood", PAIRS), True)
    assert [a for a, _ in single] == pytest.approx([a for a, _ in exact], rel=1e-5)


def test_a_continuation_longer_than_the_window_is_scored_in_pieces_with_half_a_window_each() -> (
    None
):
    model = model_for(CHAR)
    context, continuation = "abc", "defghijabcd"  # 11 tokens, a window of 8
    ((found, _),) = HarnessModel(model, CHAR).loglikelihood(
        asked("loglikelihood", [(context, continuation)]), True
    )
    tokens = CHAR.encode(context + continuation).tolist()
    pieces = [(3, 7), (7, 11), (11, 14)]
    expected = sum(direct(model, tokens[:end], start, LIMIT)[0] for start, end in pieces)
    assert found == pytest.approx(expected, rel=1e-9)


def test_all_continuations_and_the_end_of_text_share_one_unit_of_probability() -> None:
    model = model_for(CHAR)
    harness = HarnessModel(model, CHAR)
    pairs = [("abcab", letter) for letter in LETTERS]
    found = harness.loglikelihood(asked("loglikelihood", pairs), True)
    with torch.no_grad():
        last = model(torch.tensor([CHAR.encode("abcab").tolist()]))["logits"][0, -1].softmax(0)
    rest = float(last[CHAR.end_of_text])
    assert math.fsum(math.exp(total) for total, _ in found) + rest == pytest.approx(1, rel=1e-9)
    assert sum(greedy for _, greedy in found) == 1


def test_the_greedy_flag_says_what_greedy_decoding_writes() -> None:
    model = model_for(CHAR)
    harness = HarnessModel(model, CHAR)
    ids = model.generate(torch.tensor([CHAR.encode("abc").tolist()]), 4, temperature=0)[0, 3:]
    own = CHAR.decode(ids.tolist())
    assert len(own) == 4
    other = ("b" if own[0] == "a" else "a") + own[1:]
    found = harness.loglikelihood(asked("loglikelihood", [("abc", own), ("abc", other)]), True)
    assert [greedy for _, greedy in found] == [True, False]


def test_bpe_tokens_are_split_as_the_harness_splits_them() -> None:
    model = model_for(BPE)
    harness = HarnessModel(model, BPE, batch_size=2)
    pairs = [("the cat", " sat on"), ("the cat ", "sat on"), ("1", "2"), ("", "the dog")]
    assert len(BPE.encode("12")) == 1 and len(BPE.encode("the cat sat on")) < 8
    found = [total for total, _ in harness.loglikelihood(asked("loglikelihood", pairs), True)]
    sat = direct(model, BPE.encode("the cat sat on").tolist(), len(BPE.encode("the cat")), LIMIT)
    assert found[:2] == pytest.approx([sat[0]] * 2, rel=1e-9)
    apart = [*BPE.encode("1").tolist(), *BPE.encode("2").tolist()]
    assert found[2] == pytest.approx(direct(model, apart, 1, LIMIT)[0], rel=1e-9)
    dog = [BPE.end_of_text, *BPE.encode("the dog").tolist()]
    assert found[3] == pytest.approx(direct(model, dog, 1, LIMIT)[0], rel=1e-9)


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 16, 21])
def test_a_whole_text_is_scored_in_windows_each_token_once(length: int) -> None:
    model = model_for(CHAR)
    text = (LETTERS * 3)[:length]
    (found,) = HarnessModel(model, CHAR, batch_size=2).loglikelihood_rolling(
        asked("loglikelihood_rolling", [(text,)]), True
    )
    # The windows of LM.loglikelihood_rolling's description: full ones, the last with full context.
    tokens = [CHAR.end_of_text, *CHAR.encode(text).tolist()]
    expected = 0.0
    for start in range(1, len(tokens), LIMIT):
        end = min(start + LIMIT, len(tokens))
        expected += direct(model, tokens[:end], start, LIMIT)[0]
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_large_batches_are_cut_to_the_memory_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    requests = asked("loglikelihood", PAIRS * 3)
    model = model_for(CHAR)
    expected = HarnessModel(model, CHAR).loglikelihood(requests, True)
    sizes: list[int] = []
    model.register_forward_pre_hook(lambda _, arguments: sizes.append(len(arguments[0])))
    monkeypatch.setattr(prediction_metrics, "_LOGITS_AT_A_TIME", 2 * LIMIT * CHAR.vocab_size)
    found = HarnessModel(model, CHAR).loglikelihood(requests, True)
    assert max(sizes) > 2 and sizes[0] == 2  # long texts two at a time, short ones more
    for one, other in zip(found, expected, strict=True):
        assert one == (pytest.approx(other[0], rel=1e-9), other[1])


# Writing


def test_greedy_writing_equals_the_models_own_in_batches_of_unlike_contexts() -> None:
    model = model_for(CHAR)
    contexts = ["a", "abc", "", "bcd", "abcdefghijabc", "cab"]
    requests = asked("generate_until", [(c, {"until": [], "max_gen_toks": 6}) for c in contexts])
    found = HarnessModel(model, CHAR, batch_size=2).generate_until(requests, True)
    for context, text in zip(contexts, found, strict=True):
        ids = CHAR.encode(context).tolist()[-LIMIT:] or [CHAR.end_of_text]
        end = CHAR.end_of_text
        output = model.generate(torch.tensor([ids]), 6, temperature=0, stop_tokens=[end])[0]
        assert text == CHAR.decode(output.tolist()[len(ids) :]) and len(text) == 6, context
    assert len(set(found)) > 3


class Alphabet(BaseLanguageModel):
    """Goes on with the next letter, and after `j` ends the text."""

    def __init__(self) -> None:
        super().__init__(CHAR.vocab_size)
        self.nothing = torch.nn.Parameter(torch.zeros(()))
        self.steps = 0

    def forward(
        self, input_ids: torch.Tensor, labels: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        self.steps += 1
        following = input_ids + 1
        following[input_ids == CHAR.encode("j")[0]] = CHAR.end_of_text
        return {"logits": torch.nn.functional.one_hot(following, self.vocab_size) * 100.0}


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"until": ["f"]}, "bcde"),
        ({"until": "f"}, "bcde"),
        ({"until": ["h", "de", "zz"]}, "bc"),  # the first that comes, of several letters
        ({"until": ["d", "cd"]}, "b"),  # both are whole at once: the one that begins first
        ({"until": ["b"]}, ""),
        ({"until": []}, "bcdefghij"),  # to the end of the text
        ({"until": ["\n"], "max_gen_toks": 3}, "bcd"),
        ({"max_new_tokens": 2, "do_sample": False, "temperature": 0.7}, "bc"),
        ({"max_gen_toks": 2, "do_sample": True, "top_k": 1, "top_p": 0.9}, "bc"),
    ],
)
def test_writing_ends_where_the_task_says(options: dict[str, Any], text: str) -> None:
    requests = asked("generate_until", [("a", options), ("ca", options)])
    assert HarnessModel(Alphabet(), CHAR).generate_until(requests, True) == [text, text]


def test_writing_stops_computing_when_every_text_has_ended() -> None:
    model = Alphabet()
    requests = asked("generate_until", [("a", {"until": ["d"]}), ("b", {"until": ["d"]})])
    assert HarnessModel(model, CHAR).generate_until(requests, True) == ["bc", "c"]
    assert model.steps == 3


def test_draws_are_reproducible_and_a_repeated_question_gets_other_answers() -> None:
    options = {"until": [], "max_gen_toks": 12, "do_sample": True}
    requests = asked("generate_until", [("abc", options)] * 6)
    model = model_for(CHAR)
    first = HarnessModel(model, CHAR, batch_size=2).generate_until(requests, True)
    assert first == HarnessModel(model, CHAR, batch_size=2).generate_until(requests, True)
    assert first != HarnessModel(model, CHAR, batch_size=2, seed=9).generate_until(requests, True)
    assert len(set(first)) == 6


@pytest.mark.parametrize(
    ("options", "error"),
    [({"num_beams": 4}, ConfigError), ({"temprature": 1}, ConfigError), ({"top_p": 7}, ModelError)],
)
def test_what_the_models_cannot_do_is_refused(
    options: dict[str, Any], error: type[Exception]
) -> None:
    requests = asked("generate_until", [("abc", options)])
    with pytest.raises(error, match=next(iter(options))):
        HarnessModel(Alphabet(), CHAR).generate_until(requests, True)


def test_a_task_in_unknown_characters_is_told() -> None:
    harness = HarnessModel(model_for(CHAR), CHAR)
    with pytest.raises(DataError, match="cannot encode the task: the character 'Q'"):
        harness.loglikelihood(asked("loglikelihood", [("abc", "Q")]), True)


def test_a_window_that_the_model_does_not_have_is_refused() -> None:
    with pytest.raises(ConfigError, match="exceeds the model's context 8"):
        HarnessModel(model_for(CHAR), CHAR, max_length=9)


# Tasks


def test_tasks_that_are_not_there_are_told_with_the_way_out(tmp_path: Path) -> None:
    harness = HarnessModel(model_for(CHAR), CHAR)
    (tmp_path / "empty").mkdir()
    (tmp_path / "t.yaml").write_text(
        "task: letters\ndataset_path: json\noutput_type: multiple_choice\ntest_split: test\n"
        f"dataset_kwargs: {{data_files: {{test: {tmp_path}/nothing.jsonl}}}}\n"
    )
    with pytest.raises(ConfigError, match="no task 'leters'") as error:
        run_tasks(harness, ["leters"], include_paths=[tmp_path])
    assert "letters" in error.value.hint
    with pytest.raises(ConfigError, match="no task in"):
        run_tasks(harness, [str(tmp_path / "empty")])
    with pytest.raises(ConfigError, match="no folder"):
        run_tasks(harness, ["letters"], include_paths=[tmp_path / "none"])
    with pytest.raises(ConfigError, match=r"cannot load letters: .*nothing\.jsonl"):
        run_tasks(harness, ["letters"], include_paths=[tmp_path])
