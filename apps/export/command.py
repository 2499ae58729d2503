"""The command of `tools/export.py` and `cli export`: checks without torch, then the export."""

from __future__ import annotations

from pathlib import Path

from apps.export.config import FORMATS, check_dtype
from common.errors import UsageError, did_you_mean
from common.training.trained_run import load_run


def export(
    name: str, *, format: str, checkpoint: str, dtype: str | None, output: Path | None
) -> list[Path]:
    """Export a run and return the written files. Raises ResearchError."""
    if format not in FORMATS:
        raise UsageError(f"no format '{format}'", did_you_mean(format, list(FORMATS)))
    check_dtype(format, dtype)
    run = load_run(name, checkpoint)
    from apps.export.run import export_run

    return export_run(run, format=format, dtype=dtype, output=output)
