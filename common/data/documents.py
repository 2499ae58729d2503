"""Documents, the items of every text source, and progress while reading them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from common.utils.progress import with_progress


@dataclass(frozen=True)
class Document:
    """A document, or a part of one: with `ends=False` the next `Document` continues it.

    Args:
        key: stable identifier of the document, which alone determines its split.
        split: `train` or `val` if the source has splits, else None.
        surprisal: nats, if the source knows its distribution.
    """

    key: str
    text: str
    split: str | None = None
    surprisal: float | None = None
    ends: bool = True


@dataclass(frozen=True)
class Corpus:
    """A named source of text that can be read repeatedly.

    Args:
        fingerprint: JSON that changes when the content does.
        documents: starts a new pass.
        num_bytes: approximate size of a pass, if known.
    """

    name: str
    fingerprint: dict[str, Any]
    documents: Callable[[], Iterator[Document]]
    num_bytes: Callable[[], int] | None = None


@contextmanager
def reading_progress(
    title: str, total_bytes: int | None = None
) -> Iterator[Callable[[Iterator[Document]], Iterator[Document]]]:
    """Yield `watch(documents)`, which passes documents on and reports the MB read so far.

    It draws a bar on a terminal, and logs periodically elsewhere.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task(title, total=total_bytes)

        def watch(documents: Iterator[Document]) -> Iterator[Document]:
            if not console.is_terminal:
                total = total_bytes and total_bytes / 1e6
                documents = with_progress(
                    documents, title, amount=lambda d: len(d.text) / 1e6, total=total, unit="MB"
                )
            for document in documents:
                yield document
                bar.advance(task, len(document.text))

        yield watch
