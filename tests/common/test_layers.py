"""No circle of files in the library: what a file imports, also inside a function, never imports it back."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import grimp


def circles(nodes: Iterable[str], imported_by: Callable[[str], Iterable[str]]) -> list[set[str]]:
    """The strongly connected components of more than one node (Tarjan 1972)."""
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    path: list[str] = []
    found = []

    def visit(node: str) -> None:
        number[node] = lowest[node] = len(number)
        path.append(node)
        for other in imported_by(node):
            if other not in number:
                visit(other)
            if other in path:
                lowest[node] = min(lowest[node], lowest[other])
        if lowest[node] == number[node]:
            start = path.index(node)
            if len(component := path[start:]) > 1:
                found.append({*component})
            del path[start:]

    for node in nodes:
        if node not in number:
            visit(node)
    return found


def test_circles_are_found() -> None:
    graph = {"a": "b", "b": "cd", "c": "a", "d": "e", "e": "", "f": "gh", "g": "f", "h": "h"}
    assert circles(graph, graph.__getitem__) == [{"a", "b", "c"}, {"f", "g"}]


def test_no_files_of_the_library_import_one_another_in_a_circle() -> None:
    graph = grimp.build_graph("common", exclude_type_checking_imports=True, cache_dir=None)
    assert not circles(sorted(graph.modules), graph.find_modules_directly_imported_by)
