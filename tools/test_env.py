"""Check the environment: Python, packages, accelerator, assets folder."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, requires, version

from common.errors import exit_on_error
from common.utils.paths import get_assets_dir
from common.utils.tables import format_rows

PASS, WARN, FAIL = "pass", "warn", "FAIL"
Result = tuple[str, str]  # (status, what was found or how to fix it)


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__,
        epilog="examples:\n  python tools/test_env.py    exits with 1 when a check fails",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args()
    checks: dict[str, Callable[[], Result]] = {
        "Python": check_python,
        "packages": check_packages,
        "import common": check_common,
        "accelerator": check_accelerator,
        "assets folder": check_assets,
        "disk space": check_disk,
        "git": check_git,
    }
    with exit_on_error():
        results = [(name, *check()) for name, check in checks.items()]
        print(format_rows(["check", "result", "details"], results, "table"))
        failed = [name for name, status, _ in results if status == FAIL]
    if failed:
        print(f"\n{len(failed)} failed: {', '.join(failed)}", file=sys.stderr)
        sys.exit(1)


def check_python() -> Result:
    found = ".".join(map(str, sys.version_info[:3]))
    return (PASS, found) if sys.version_info >= (3, 11) else (FAIL, f"{found}, needs 3.11 or newer")


def check_packages() -> Result:
    """Check that every required package has a version allowed by pyproject.toml."""
    from packaging.requirements import Requirement

    try:
        declared = [Requirement(text) for text in requires("research-monorepo") or []]
    except PackageNotFoundError:
        return FAIL, "the project is not installed: make setup"
    required = [r for r in declared if r.marker is None or r.marker.evaluate({"extra": ""})]
    wrong = []
    for requirement in required:
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            wrong.append(f"{requirement.name} {found} is not {requirement.specifier}")
    return (
        (FAIL, f"{'; '.join(wrong)}: make setup") if wrong else (PASS, f"{len(required)} required")
    )


def check_common() -> Result:
    try:
        import common.data
        import common.models
        import common.training
        import common.utils
        import common.visualization

        names = (common.models.BaseLanguageModel, common.training.Trainer, common.data.prepare)
    except ImportError as error:
        return FAIL, f"{error}: make setup"
    return PASS, ", ".join(name.__name__ for name in names)


def check_accelerator() -> Result:
    import torch

    if torch.cuda.is_available():
        return PASS, f"CUDA: {torch.cuda.get_device_name()}, torch {torch.__version__}"
    if torch.backends.mps.is_available():
        return PASS, f"MPS (Apple), torch {torch.__version__}"
    threads = torch.get_num_threads()
    return WARN, f"none: training runs on {threads} CPU threads, torch {torch.__version__}"


def check_assets() -> Result:
    directory = get_assets_dir()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory) as file:
            file.write(b"x")
    except OSError as error:
        return FAIL, f"cannot write to {directory} ({error.strerror}); set RESEARCH_ASSETS_DIR"
    return PASS, str(directory)


def check_disk() -> Result:
    directory = get_assets_dir()
    while not directory.exists():
        directory = directory.parent
    free = shutil.disk_usage(directory).free / 1e9
    return (PASS if free >= 5 else WARN), f"{free:.1f} GB free"


def check_git() -> Result:
    if shutil.which("git"):
        return PASS, "experiments record their commit"
    return WARN, "git is not installed: experiments cannot record their commit"


if __name__ == "__main__":
    main()
