"""What `tools/export.py` and `cli export` do: checks that need no torch, then the export."""

from __future__ import annotations

from pathlib import Path

from apps.export.config import FORMATS, check_dtype
from common.cli import check_data, config_file
from common.errors import UsageError, did_you_mean
from common.projects import project_of_run, recorded_config


def export(
    name: str, *, format: str, checkpoint: str, dtype: str | None, output: Path | None
) -> list[Path]:
    """Write a run for other programs, and return the files. Raises ResearchErrors."""
    if format not in FORMATS:
        raise UsageError(f"no format '{format}'", did_you_mean(format, list(FORMATS)))
    check_dtype(format, dtype)
    project = project_of_run(name)
    schema, build_model = project.load()
    config = recorded_config(name, schema)
    check_data(config, project, config_file(name))
    from apps.export.run import export_run

    return export_run(
        config, build_model, name, checkpoint, format=format, dtype=dtype, output=output
    )
