"""What `sample` shows: the text of the tokens, up to stop strings, however tokens cut both."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.cli import sample, sample_parser
from common.data.tokenizers import BPETokenizer, CharTokenizer
from common.errors import DataError
from common.generation.text import decode_stream, stream_text, until_stop
from common.models import BaseLanguageModel
from common.utils.paths import REPOSITORY_ROOT
from tests.untrained_run import make_run

SAMPLE = "projects/baseline/sample.py"
TEXT = "Grüße über Straßen, 漢字 und 🙂. Once upon a time, once more.\n" * 20
BPE = BPETokenizer.train([TEXT], 280)


@pytest.fixture
def run(tmp_path: Path) -> str:
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat.\n" * 60)
    make_run("exp_001", text)
    return "exp_001"


@given(st.lists(st.integers(1, 279), max_size=30), st.text(max_size=5))
def test_the_pieces_are_the_text_of_all_tokens_whatever_these_are(
    drawn: list[int], prompt: str
) -> None:
    before = [int(i) for i in BPE.encode(prompt)] or [BPE.end_of_text]
    shown = "".join(decode_stream(BPE, before, drawn))
    assert BPE.decode(before) + shown == BPE.decode([*before, *drawn])


def test_a_character_of_several_tokens_comes_whole_and_a_new_document_ends_the_text() -> None:
    ids = [int(i) for i in BPE.encode("a漢🙂")]
    assert len(ids) > 3, "the characters are of several tokens"
    assert list(decode_stream(BPE, [BPE.end_of_text], ids)) == ["a", "漢", "🙂"]
    assert list(decode_stream(BPE, ids, [*ids[:1], BPE.end_of_text, *ids])) == ["a"]


def cut_naively(text: str, stop: list[str]) -> str:
    """Read character by character; stop when one is complete."""
    for end in range(1, len(text) + 1):
        done = [s for s in stop if text[:end].endswith(s)]
        if done:
            return text[: end - max(map(len, done))]
    return text


@given(
    st.lists(st.text("ab\n", max_size=4), max_size=12),
    st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3),
)
def test_a_stop_string_ends_the_text_however_it_is_cut_into_pieces(
    pieces: list[str], stop: list[str]
) -> None:
    assert "".join(until_stop(pieces, stop)) == cut_naively("".join(pieces), stop)


def test_what_can_begin_no_stop_string_is_shown_at_once() -> None:
    shown = []
    for piece in until_stop(iter(["one ", "two EN", "D", "ING", " END", "after"]), ["THE END"]):
        shown.append(piece)
    assert shown[0] == "one "
    assert next(until_stop(["two EN"], ["END"])) == "two ", "EN is held back"
    assert "".join(until_stop(["two EN", "DLESS"], ["ENDS"])) == "two ENDLESS"


class Dictated(BaseLanguageModel):
    """Writes one text after any prompt, whatever the seed."""

    def __init__(self, vocab_size: int, ids: list[int]) -> None:
        super().__init__(vocab_size)
        self.ids = ids
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(
        self,
        input_ids: torch.Tensor,
        labels: torch.Tensor | None = None,
        cache: object = None,
    ) -> dict[str, torch.Tensor]:
        logits = torch.zeros(*input_ids.shape, self.vocab_size)
        logits[:, -1, self.ids[(input_ids.shape[1] - 1) % len(self.ids)]] = 9.0
        return {"logits": logits}


def test_a_stop_string_that_spans_tokens_is_not_shown() -> None:
    tokenizer = CharTokenizer.train(["say END"])
    model = Dictated(tokenizer.vocab_size, [int(i) for i in tokenizer.encode("say END ")])
    options = {"max_new_tokens": 30, "temperature": 0.0}
    whole = "".join(stream_text(model, tokenizer, "", **options))
    assert whole == "say END say END say END say EN"
    for stop, shown in (["END"], "say "), (["D s", "zz"], "say EN"), (["y"], "sa"), ([], whole):
        assert "".join(stream_text(model, tokenizer, "", stop=stop, **options)) == shown


class Answer(NamedTuple):
    out: str
    err: str


@pytest.fixture
def ask(
    run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Answer]:
    """`ask("--seed", "3", stdin="text")`: sample.py in this process, standard input from a real file."""

    def run_sample(*arguments: str, stdin: str = "") -> Answer:
        (tmp_path / "stdin").write_text(stdin)
        with (tmp_path / "stdin").open() if stdin else Path(os.devnull).open() as file:
            monkeypatch.setattr(sys, "stdin", file)
            parsed = sample_parser("sample.py").parse_args([run, *arguments])
            sample(parsed)
        return Answer(*capsys.readouterr())

    return run_sample


def test_a_prompt_comes_from_an_option_a_file_or_a_pipe_and_the_seed_decides(
    ask: Callable[..., Answer], tmp_path: Path
) -> None:
    (tmp_path / "prompt.txt").write_text("the cat\n")
    options = ("--max-new-tokens", "12", "--seed", "1")
    told = ask("--prompt", "the cat", *options).out
    assert told.startswith("the cat") and len(told) == len("the cat") + 12 + 1
    assert ask("--prompt-file", str(tmp_path / "prompt.txt"), *options).out == told
    assert ask(*options, stdin="the cat\n").out == told
    assert ask("--prompt", "-", *options, stdin="the cat").out == told
    assert ask("--prompt", "the cat", *options, stdin="something else").out == told
    two = ask("--prompt", "the cat", "--num-samples", "2", *options).out
    other = ask("--prompt", "the cat", "--max-new-tokens", "12", "--seed", "2").out
    assert two == f"--- sample 1 (seed 1) ---\n{told}--- sample 2 (seed 2) ---\n{other}"
    assert other != told
    assert ask(*options).out == ask("--prompt", "", *options).out, "no input: a new document"


def test_text_that_is_not_utf8_is_told(ask: Callable[..., Answer], tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_bytes("caf\u00e9".encode("latin-1"))
    with pytest.raises(DataError, match=r"prompt\.txt is not UTF-8 text \(byte 3\)"):
        ask("--prompt-file", str(tmp_path / "prompt.txt"))


def test_a_conversation_goes_on_from_what_was_written_until_it_is_reset(
    ask: Callable[..., Answer],
) -> None:
    greedy = ("--max-new-tokens", "8", "--temperature", "0")
    options = (*greedy, "--interactive", "--prompt", "the")
    result = ask(*options, stdin="cat\nMAT\nsat\n/reset\ncat\n")
    assert "the character 'M'" in result.err, "a mistake is told and the conversation goes on"
    # The same by hand, each time with everything before it as the prompt.
    first = ask(*greedy, "--prompt", "the\ncat").out.removeprefix("the\ncat")
    context = f"the\ncat{first.removesuffix(chr(10))}"
    context += "sat" if context.endswith("\n") else "\nsat"
    second = ask(*greedy, "--prompt", context).out.removeprefix(context)
    assert result.out == first + second + first
    drawn = ("--interactive", "--max-new-tokens", "8")  # the n-th continuation has the n-th seed
    assert ask(*drawn, stdin="/reset\ncat\n").out == ask(*drawn, "--seed", "1", stdin="cat\n").out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--stop", ""], "--stop"),
        (["--num-samples", "0"], "--num-samples"),
        (["--interactive", "--prompt", "-"], "--interactive"),
        (["--prompt-file", "nothing.txt"], "nothing.txt"),
        (["--prompt", "a", "--prompt-file", "b"], "not allowed with"),
        (["--name", "other"], "pass one experiment"),
    ],
)
def test_a_mistake_is_told_before_torch_is_loaded(
    run: str, arguments: list[str], reason: str
) -> None:
    code = (
        f"import runpy, sys; sys.argv = {['sample.py', 'exp_001', *arguments]!r}\n"
        f"try: runpy.run_path({str(REPOSITORY_ROOT / SAMPLE)!r}, run_name='__main__')\n"
        "finally: print('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 2 and reason in result.stderr, result.stderr
    assert result.stderr.startswith("error [") and result.stdout == "False\n"


@pytest.mark.slow
def test_a_reader_that_leaves_and_ctrl_c_end_it_quietly(run: str) -> None:
    command = [
        sys.executable,
        str(REPOSITORY_ROOT / SAMPLE),
        run,
        "--prompt",
        "the",
        "--temperature",
        "0",
    ]
    pipe = subprocess.Popen(
        [*command, "--max-new-tokens", "100000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert pipe.stdout is not None and pipe.stderr is not None
    assert pipe.stdout.read(3) == b"the"
    pipe.stdout.close()
    assert pipe.wait(timeout=60) == 0 and pipe.stderr.read() == b""
    pipe.stderr.close()

    stopped = subprocess.Popen(
        [*command, "--max-new-tokens", "1000000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert stopped.stdout is not None
    assert len(stopped.stdout.read(20)) == 20, "it is writing"
    stopped.send_signal(signal.SIGINT)
    written, told = stopped.communicate(timeout=60)
    assert stopped.returncode == 130 and told == b"interrupted\n" and written.endswith(b"\n")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_at_a_terminal_ctrl_d_ends_the_conversation(run: str) -> None:
    leader, follower = pty.openpty()
    command = [sys.executable, str(REPOSITORY_ROOT / SAMPLE), run, "--interactive"]
    process = subprocess.Popen(
        [*command, "--max-new-tokens", "5", "--stop", "\n"],
        stdin=follower,
        stdout=follower,
        stderr=subprocess.PIPE,
        env=os.environ | {"TERM": "dumb"},
    )
    os.close(follower)
    seen = b""

    def read_until(expected: bytes) -> None:
        nonlocal seen
        deadline = time.monotonic() + 60
        while expected not in seen and time.monotonic() < deadline:
            seen += os.read(leader, 1000)
        assert expected in seen, seen

    read_until(b"> ")
    assert b"Ctrl-D exits" in seen
    os.write(leader, b"the cat\n")
    seen = seen.partition(b"> ")[2]
    read_until(b"> ")
    os.write(leader, b"\x04")
    assert process.wait(timeout=60) == 0
    assert process.stderr is not None and process.stderr.read() == b""
    process.stderr.close()
    os.close(leader)
