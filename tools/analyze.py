"""Analyse a trained run: surprisal, attention, token embeddings, routing, states, order of unmasking."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from common.cli import add_unmasking_arguments, unmasking_options
from common.errors import ConfigError, DataError, exit_on_error
from common.training.trained_run import TrainedRun, load_run
from common.utils.arguments import positive_int, seed, utf8_text
from common.utils.paths import display_path, get_runs_dir
from common.utils.tables import FORMATS, format_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from apps.analysis.page import Page
    from common.data.token_files import Tokens
    from common.training.prediction_metrics import Counts

EXAMPLES = """examples:
  python tools/analyze.py surprisal --name exp_001 --text story.txt
  echo "Once upon a time" | python tools/analyze.py surprisal --name exp_001 --text -
  python tools/analyze.py attention --name exp_001 --prompt "The fox met the owl. The fox" --output heads.png
  python tools/analyze.py routing --name exp_moe --text story.txt
  python tools/analyze.py states --name exp_gru --text story.txt --context-length 512
  python tools/analyze.py unmasking --name exp_diffusion --prompt "Once upon" --suffix "the end." --steps 20
  python tools/analyze.py embeddings --name exp_001
  python tools/analyze.py neighbors --name exp_001 --token " the"
  python tools/analyze.py lit --name exp_001 --output exp_001_lit

Pages are self-contained HTML files, by default in analysis/ of the run's folder."""


def main() -> None:
    arguments = _parser().parse_args()
    with exit_on_error():
        arguments.answer(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True)

    def action(
        name: str, answer: Callable[[argparse.Namespace], None], text: str
    ) -> Callable[..., argparse.Action]:
        added = actions.add_parser(name, help=text, description=text, allow_abbrev=False)
        added.set_defaults(answer=answer)
        added.add_argument("--name", required=True, help="the experiment")
        added.add_argument(
            "--checkpoint", default="best", help="best (default), last, or a step such as 500"
        )
        return added.add_argument

    def text_action(
        name: str, answer: Callable[[argparse.Namespace], None], text: str
    ) -> Callable[..., argparse.Action]:
        add = action(name, answer, text)
        help_text = "a text file or a folder; - is standard input"
        add("--text", required=True, metavar="FILE", help=help_text)
        return add

    add = text_action(
        "surprisal", _surprisal, "the surprisal of each token of a text, as a coloured page"
    )
    window = {"type": positive_int, "metavar": "N"}
    add("--context-length", **window, help="tokens per window (as in training)")
    add("--output", type=Path, metavar="FILE", help="an .html file")
    add = text_action("routing", _routing, "the experts that each token of a text is sent to")
    add("--context-length", **window, help="tokens per window (as in training)")
    add("--output", type=Path, metavar="FILE", help="an interactive .html file, or a .png figure")
    add = text_action(
        "states", _states, "the states of recurrent layers over a text, and how long they remember"
    )
    add("--context-length", **window, help="first tokens of the text to read (as in training)")
    add("--output", type=Path, metavar="FILE", help="an interactive .html file, or a .png figure")
    add = action(
        "unmasking", _unmasking, "the order in which a masked diffusion model fills in a text"
    )
    add("--prompt", type=utf8_text, default="", metavar="TEXT", help="(default: a new document)")
    add_unmasking_arguments(add)
    add("--max-new-tokens", type=positive_int, default=60, metavar="N", help="(default 60)")
    add("--temperature", type=float, default=0.8, help="0 is greedy (default 0.8)")
    add("--seed", type=seed, default=0, help="sampling seed (default 0)")
    add("--output", type=Path, metavar="FILE", help="an interactive .html file, or a .png figure")
    add = action("attention", _attention, "the attention of every layer and head for a prompt")
    add("--prompt", required=True, type=utf8_text, metavar="TEXT")
    add("--output", type=Path, metavar="FILE", help="an interactive .html file, or a .png figure")
    add = action("embeddings", _embeddings, "the token embeddings in the plane (PCA)")
    add("--output", type=Path, metavar="FILE", help="an interactive .html file, or a .png figure")
    add = action("neighbors", _neighbors, "the tokens whose embeddings are nearest by cosine")
    add(
        "--token",
        required=True,
        type=utf8_text,
        metavar="TEXT",
        help="one token; words often start with a space",
    )
    add(
        "--top",
        type=positive_int,
        default=10,
        metavar="N",
        help="number of neighbours (default 10)",
    )
    add("--format", choices=FORMATS, default="table", help="output format (default table)")
    add = action("lit", _lit, "a folder for Google's Learning Interpretability Tool")
    add("--output", type=Path, required=True, metavar="FOLDER", help="a new folder")
    add("--text", metavar="FILE", help="a text file or folder (default: the validation text)")
    add("--examples", type=positive_int, default=100, metavar="N", help="pieces of text (100)")
    return parser


def _surprisal(arguments: argparse.Namespace) -> None:
    _check_ending(arguments.output, ".html")
    run = load_run(arguments.name, arguments.checkpoint)
    from apps.analysis.surprisal import measure_surprisal
    from apps.analysis.surprisal_page import most_surprising, summary, surprisal_page

    tokens, title = _read_tokens(arguments.text, run)
    tokenizer = run.text.tokenizer
    found = measure_surprisal(
        run.model,
        tokens,
        token_bytes=tokenizer.token_bytes,
        context_length=arguments.context_length or run.config.context_length,
    )
    page = surprisal_page(found, tokenizer, f"{title} as {_title(run)} reads it")
    for fact, value in summary(found).items():
        print(f"{fact:28}{value}")
    print(f"\n{most_surprising(found, tokenizer)}\n")
    _write(page, arguments.output or _default(run, f"surprisal_{Path(title).stem}.html"))


def _read_tokens(text: str, run: TrainedRun) -> tuple[Tokens, str]:
    """Return (tokens, title); files are read like evaluate.py --data."""
    import numpy as np

    from common.data.texts import read_texts

    if text != "-":
        (tokens,) = read_texts([Path(text)], run.text.tokenizer).values()
        return tokens, Path(text).name or text
    try:
        content = sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"standard input is not UTF-8 text (byte {error.start})") from error
    return run.text.tokenizer.encode(content).astype(np.uint32), "standard input"


def _attention(arguments: argparse.Namespace) -> None:
    _check_ending(arguments.output, ".html", ".png")
    run = load_run(arguments.name, arguments.checkpoint)
    import torch

    from apps.analysis.attention import attention_maps
    from apps.analysis.attention_page import attention_page, plot_attention, statistics_table
    from apps.analysis.tokens import label, vocabulary_texts

    ids = run.text.tokenizer.encode(arguments.prompt).tolist()
    words = vocabulary_texts(run.text.tokenizer)
    labels = [label(words[i], i) for i in ids]
    maps = attention_maps(run.model, torch.tensor([ids], dtype=torch.int64))
    output = arguments.output or _default(run, "attention.html")
    title = f"attention of {_title(run)}"
    if output.suffix == ".png":
        _write(plot_attention(maps, labels, title), output)
    else:
        _write(attention_page(maps, labels, title), output)
    print(f"\n{statistics_table(maps)}")


def _routing(arguments: argparse.Namespace) -> None:
    _check_ending(arguments.output, ".html", ".png")
    run = load_run(arguments.name, arguments.checkpoint)
    from apps.analysis.routing import trace_routing
    from apps.analysis.routing_page import load_table, plot_routing, routing_page

    tokens, text = _read_tokens(arguments.text, run)
    context_length = arguments.context_length or run.config.context_length
    routing = trace_routing(run.model, tokens, context_length=context_length)
    output = arguments.output or _default(run, f"routing_{Path(text).stem}.html")
    title = f"{text} as {_title(run)} routes it"
    if output.suffix == ".png":
        _write(plot_routing(routing, title), output)
    else:
        _write(routing_page(routing, run.text.tokenizer, title), output)
    print(f"\n{load_table(routing)}")


def _unmasking(arguments: argparse.Namespace) -> None:
    _check_ending(arguments.output, ".html", ".png")
    run = load_run(arguments.name, arguments.checkpoint)
    from apps.analysis.unmasking_page import plot_unmasking, summary, unmasking_page
    from common.training.generation import trace_unmasking

    found = trace_unmasking(
        run,
        arguments.prompt,
        max_new_tokens=arguments.max_new_tokens,
        temperature=arguments.temperature,
        seed=arguments.seed,
        **unmasking_options(arguments),
    )
    output = arguments.output or _default(run, "unmasking.html")
    title = f"the order in which {_title(run)} writes"
    for fact, value in summary(found).items():
        print(f"{fact:28}{value}")
    if output.suffix == ".png":
        _write(plot_unmasking(found, run.text.tokenizer, title), output)
    else:
        _write(unmasking_page(found, run.text.tokenizer, title), output)


def _states(arguments: argparse.Namespace) -> None:
    _check_ending(arguments.output, ".html", ".png")
    run = load_run(arguments.name, arguments.checkpoint)
    from apps.analysis.states import measure_states
    from apps.analysis.states_page import plot_states, states_page, states_table

    tokens, text = _read_tokens(arguments.text, run)
    first = tokens[: arguments.context_length or run.config.context_length]
    states = measure_states(run.model, first)
    output = arguments.output or _default(run, f"states_{Path(text).stem}.html")
    title = f"states of {_title(run)} over {text}"
    if output.suffix == ".png":
        _write(plot_states(states, title), output)
    else:
        _write(states_page(states, run.text.tokenizer, title), output)
    if len(first) < len(tokens):
        print(f"note        the first {len(first):,} of {len(tokens):,} tokens: --context-length")
    print(f"\n{states_table(states)}")


def _embeddings(arguments: argparse.Namespace) -> None:
    _check_ending(arguments.output, ".html", ".png")
    run = load_run(arguments.name, arguments.checkpoint)
    from apps.analysis.embeddings import embedding_table, project
    from apps.analysis.embeddings_page import embeddings_page, plot_embeddings
    from apps.analysis.tokens import label, vocabulary_texts

    projection = project(embedding_table(run.model))
    texts = vocabulary_texts(run.text.tokenizer)
    labels = [label(text, index) for index, text in enumerate(texts)]
    output = arguments.output or _default(run, "embeddings.html")
    shown = (projection, texts, labels, _counts(run), f"token embeddings of {_title(run)}")
    _write(plot_embeddings(*shown) if output.suffix == ".png" else embeddings_page(*shown), output)
    first, second = projection.explained
    print(f"variance    {first:.1%} along the first axis, {second:.1%} along the second")


def _neighbors(arguments: argparse.Namespace) -> None:
    run = load_run(arguments.name, arguments.checkpoint)
    from apps.analysis.embeddings import embedding_table, neighbours
    from apps.analysis.tokens import label, vocabulary_texts

    texts = vocabulary_texts(run.text.tokenizer)
    ids = run.text.tokenizer.encode(arguments.token).tolist()
    if len(ids) != 1:
        pieces = " ".join(label(texts[i], i) for i in ids) or "none"
        raise DataError(
            f"{arguments.token!r} is {len(ids)} tokens: {pieces}",
            "pass one of them; a word within a text usually starts with its space: ' the'",
        )
    order, cosines = neighbours(embedding_table(run.model), ids[0], arguments.top)
    counts = _counts(run)
    rows: list[list[object]] = [
        [rank, label(texts[i], int(i)), int(i), float(cosine), int(counts[i])]
        for rank, (i, cosine) in enumerate(zip(order, cosines, strict=True), start=1)
    ]
    print(format_rows(["rank", "token", "id", "cosine", "in_training"], rows, arguments.format))


def _lit(arguments: argparse.Namespace) -> None:
    run = load_run(arguments.name, arguments.checkpoint)
    from apps.analysis.lit import write_lit_folder

    tokens, text = run.text.tokens("val"), "the validation text"
    if arguments.text is not None:
        tokens, text = _read_tokens(arguments.text, run)
    count, why_no_embedding = write_lit_folder(
        arguments.output,
        run.model,
        run.text.tokenizer,
        tokens,
        context_length=run.config.context_length,
        num_examples=arguments.examples,
        title=f"{text} as {_title(run)} reads it",
        about={"name": run.name, "checkpoint": run.checkpoint.name, "text": text},
    )
    if why_no_embedding:
        print(f"note        the examples have no embedding: {why_no_embedding}")
    print(f"examples    {count} in {display_path(arguments.output)}")
    print(f"next        uv run {display_path(arguments.output / 'run_lit.py')}")


def _counts(run: TrainedRun) -> Counts:
    """(vocab_size,) occurrences of each token in the training text."""
    import numpy as np

    size = run.text.tokenizer.vocab_size
    counts = np.zeros(size, dtype=np.int64)
    tokens = run.text.tokens("train")
    for start in range(0, len(tokens), 2**24):  # bincount needs 8 bytes per token
        counts += np.bincount(tokens[start : start + 2**24], minlength=size)
    return counts


def _title(run: TrainedRun) -> str:
    return f"{run.name} ({run.checkpoint.name})"


def _default(run: TrainedRun, name: str) -> Path:
    return get_runs_dir() / run.name / "analysis" / name


def _check_ending(path: Path | None, *endings: str) -> None:
    """Validate the ending, which selects the format, before computing anything."""
    if path is not None and path.suffix not in endings:
        raise ConfigError(f"--output {path}: the name must end in {' or '.join(endings)}")


def _write(shown: Page | Figure, path: Path) -> None:
    from apps.analysis.page import Page
    from common.utils.files import atomic_path

    if isinstance(shown, Page):
        shown.write(path)
    else:
        with atomic_path(path) as temporary:
            shown.savefig(temporary, dpi=150, format="png")
    print(f"{'page' if isinstance(shown, Page) else 'picture':12}{display_path(path)}")


if __name__ == "__main__":
    main()
