"""Measure the size of the library, and the part that projects and papers reach.

The rule (DESIGN section 2): `common/` contains what a project or paper imports, or what two apps
need. A file is reached by a chain of imports from `projects/` or `papers/`, including imports
inside functions, excluding those for type checking only. A name of a lazy package (with an
`__init__.pyi` beside its `__init__.py`) counts as an import of its module.
"""

from __future__ import annotations

import argparse
import ast
import re
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from common.errors import exit_on_error
from common.models import registry
from common.utils.paths import REPOSITORY_ROOT
from common.utils.tables import FORMATS, format_rows

if TYPE_CHECKING:
    from grimp import ImportGraph

_TOPS = ("common", "apps", "projects", "papers", "tools")


class LibrarySize(NamedTuple):
    """Lines of every module of `common/`, and the modules reached by projects and papers."""

    lines: dict[str, int]
    reached: set[str]

    @property
    def share(self) -> float:
        """Fraction of lines in reached modules."""
        return sum(self.lines[module] for module in self.reached) / sum(self.lines.values())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="examples:\n  python tools/library_size.py\n  python tools/library_size.py --format markdown",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--format", choices=FORMATS, default="table")
    arguments = parser.parse_args()
    with exit_on_error():
        size = measure()
        totals, reached = Counter[str](), Counter[str]()
        for module, lines in size.lines.items():
            totals[_package(module)] += lines
            reached[_package(module)] += lines if module in size.reached else 0
        rows = [[name, count, reached[name] / count] for name, count in sorted(totals.items())]
        rows.append(["all", totals.total(), size.share])
        print(format_rows(["package", "lines", "reached"], rows, arguments.format))
        if arguments.format == "table":
            left = sorted(size.lines.keys() - size.reached)
            print("\nnot reached by projects and papers:")
            print("\n".join(f"  {module} ({size.lines[module]} lines)" for module in left))


def measure() -> LibrarySize:
    """Read the sources; imports none of them."""
    import grimp

    graph = grimp.build_graph(*_TOPS, exclude_type_checking_imports=True, cache_dir=None)
    lines = {module: _num_lines(module) for module in graph.modules if module.startswith("common")}
    found, waiting = set[str](), [m for m in graph.modules if m.startswith(("projects", "papers"))]
    while waiting:
        if (module := waiting.pop()) not in found:
            found.add(module)
            waiting += _imported_by(module, graph)
    return LibrarySize(lines, found & lines.keys())


def _imported_by(module: str, graph: ImportGraph) -> list[str]:
    """The modules imported by `module`, with names of lazy packages resolved, and their packages."""
    found = set(graph.find_modules_directly_imported_by(module))
    if module == registry.__name__:  # imports layers by their names in a configuration
        layers = [*registry.MIXERS.values(), *registry.FEEDFORWARDS.values()]
        found |= {layer.partition(":")[0] for layer in layers}
    for package in [each for each in found if _lazy_names(each)]:
        names = _lazy_names(package)
        lines = graph.get_import_details(importer=module, imported=package)
        text = "\n".join(str(line["line_contents"]) for line in lines)
        found |= {names[name] for name in names.keys() & re.findall(r"\w+", text)}
    parents = {name.rpartition(".")[0] for name in (module, *found)}
    return sorted(found | (parents & graph.modules))


def _lazy_names(package: str) -> dict[str, str]:
    """{name: the module that it is imported from} of the stub of a package; empty without one."""
    stub = REPOSITORY_ROOT.joinpath(*package.split("."), "__init__.pyi")
    if not stub.exists():
        return {}
    imports = [n for n in ast.parse(stub.read_text()).body if isinstance(n, ast.ImportFrom)]
    return {
        alias.name: f"{package}.{node.module}" if node.level else str(node.module)
        for node in imports
        for alias in node.names
    }


def _num_lines(module: str) -> int:
    path = REPOSITORY_ROOT.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return len(file.read_text(encoding="utf-8").splitlines())


def _package(module: str) -> str:
    """`common.data.loader` -> `common.data`; files of `common/` itself are one."""
    parts = module.split(".")
    return ".".join(parts[:2]) if REPOSITORY_ROOT.joinpath(*parts[:2]).is_dir() else "common"


if __name__ == "__main__":
    main()
