"""The house: budgets of lines, who may import whom, no circles, and how many rooms one run enters."""

from __future__ import annotations

import ast
import sys
from functools import cache
from pathlib import Path

import pytest
import torch

from w2s import train
from w2s.params import PACKAGE
from w2s.runs import cluster, store

WINGS = {"sources", "runs", "analysis", "report", "course", "fast", "app"}
MODULES = sorted(PACKAGE.rglob("*.py"))
TRAINS = {"batches", "models", "train", "predict", "zoo", "data", "study", "spec", "runs", "fast", "sources"}
# What a room may import of a wing. Nothing else of the core does; lab, zoo and app start things and may.
INTO_WINGS = {"data": {"sources"}, "models": {"sources", "fast"}, "lab": {"runs", "report"}, "zoo": {"sources"}}


def lines(path: Path) -> int:
    return path.read_text(encoding="utf-8").count("\n")


def room(dotted: str) -> str:
    """A module of the core, or a folder."""
    return dotted.removeprefix("w2s.").partition(".")[0]


def dotted(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def imports() -> dict[str, set[str]]:
    """Module -> modules of the package that it imports, at its head or inside a function."""
    names = {dotted(path) for path in MODULES}
    found = {}
    for path in MODULES:
        used = found.setdefault(dotted(path), set())
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("w2s"):
                used |= {
                    f"{node.module}.{a.name}" if f"{node.module}.{a.name}" in names else node.module for a in node.names
                }
        used -= {"w2s", dotted(path)}
    return found


def between_rooms() -> dict[str, set[str]]:
    graph: dict[str, set[str]] = {}
    for module, used in imports().items():
        graph.setdefault(room(module), set()).update(room(name) for name in used)
    return {name: used - {name} for name, used in graph.items() if name != "w2s"}


def needed_by(module: str) -> set[str]:
    """A module and all that it imports, however indirectly."""
    found, todo = set(), [module]
    while todo:
        found.add(name := todo.pop())
        todo += imports()[name] - found
    return found


def floors(graph: dict[str, set[str]]) -> int:
    """The longest way down; a circle is an error that names it."""
    heights: dict[str, int] = {}

    def height(name: str, above: tuple[str, ...] = ()) -> int:
        assert name not in above, " -> ".join([*above[above.index(name) :], name])
        if name not in heights:
            heights[name] = 1 + max((height(n, (*above, name)) for n in graph.get(name, ())), default=0)
        return heights[name]

    return max(height(name) for name in graph)


def test_the_budgets_of_lines():
    core = sum(map(lines, PACKAGE.glob("*.py")))
    everything = sum(map(lines, MODULES))
    assert core <= 2502 and everything <= 9253, (core, everything)  # on the way to 7,000
    assert {str(path): lines(path) for path in MODULES if lines(path) > 300} == {}
    tests = Path(__file__).parent
    assert sum(map(lines, tests.glob("*.py"))) <= 10127  # on the way to 5,000
    assert {path.name: lines(path) for path in tests.rglob("*.py") if lines(path) > 400} == {}


def test_no_circles_and_at_most_eight_floors_between_rooms():
    floors(imports())
    graph = between_rooms()
    print(floors(imports()), floors(graph), sum(map(len, graph.values())))
    assert floors(graph) <= 8 and sum(map(len, graph.values())) <= 75


def test_who_imports_whom():
    graph = between_rooms()
    assert not graph["analysis"] & (TRAINS | WINGS)
    assert not graph["report"] & (TRAINS | WINGS - {"analysis"})
    core = {name: used & WINGS for name, used in graph.items() if name not in WINGS and used & WINGS}
    assert core == INTO_WINGS
    assert not graph["sources"] & WINGS and not graph["fast"] & WINGS and graph["runs"] & WINGS <= {"fast", "analysis"}


def test_one_run_enters_at_most_ten_rooms(small_study, monkeypatch):
    """From the function that runs a study's runs to the loss: which rooms, and how often it changes between them."""
    spec = next(iter(small_study.gold_runs(small_study.params.weak_models)))
    root = small_study.root
    store.store_data(root, small_study.data)
    entered: list[str] = []

    class Reached(BaseException):  # not the failure of a run
        pass

    def reached(*args):
        raise Reached

    def watch(frame, event, arg):
        file = frame.f_code.co_filename
        if event == "call" and file.startswith(str(PACKAGE)):
            here = room(dotted(Path(file)))
            if entered[-1:] != [here]:
                entered.append(here)

    monkeypatch.setattr(train, "reward_loss", reached)
    sys.setprofile(watch)
    try:
        with pytest.raises(Reached):
            cluster.run_all([spec], root)
    finally:
        sys.setprofile(None)
        torch.set_num_threads(1)
    print(len(set(entered)), "rooms,", len(entered) - 1, "moves:", *entered)
    assert len(set(entered)) <= 10 and len(entered) - 1 <= 60, entered
