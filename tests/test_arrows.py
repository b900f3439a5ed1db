"""Every import of the four rooms (read with ast, nothing is run) against the arrows between the rooms."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
ROOMS = ("trainables", "search_spaces", "sweeps", "analysis")

# What a room may not import, wherever in a module the import stands.
SERVICES = {"mlflow", "hydra", "omegaconf", "optuna", "ray"}
FORBIDDEN: dict[str, set[str]] = {
    "trainables": {"search_spaces", "sweeps", "analysis", "tests"} | SERVICES,
    "search_spaces": {"trainables", "sweeps", "analysis", "tests", "mlflow", "hydra", "ray", "torch"},
    "analysis": {"trainables", "search_spaces", "sweeps", "tests", "torch"} | SERVICES,
    "sweeps": {"tests"},
}
# The one module of a room that may.
ALLOWED = {"trainables/ray_train.py": {"ray"}}


def imported(tree: ast.Module, package: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """(line, full dotted name) of every import of a module that lies in `package`; relative ones are resolved.

    >>> list(imported(ast.parse("from .engine import plan; import torch.nn as nn"), ("sweeps",)))
    [(1, 'sweeps.engine'), (1, 'torch.nn')]
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = (*base, node.module) if node.module else base
            if node.module is None:  # `from .. import x` names modules
                yield from ((node.lineno, ".".join((*module, name.name))) for name in node.names)
            else:
                yield node.lineno, ".".join(module)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if function in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.lineno, node.args[0].value


def violations(repository: Path) -> list[str]:
    """One line per import that goes against the arrows, with file and line."""
    found = []
    for room in ROOMS:
        for file in sorted((repository / room).rglob("*.py")):
            place = file.relative_to(repository)
            forbidden = FORBIDDEN[room] - ALLOWED.get(place.as_posix(), set())
            for line, name in imported(ast.parse(file.read_text(), str(file)), place.parent.parts):
                if name.split(".")[0] in forbidden:
                    found.append(f"{place.as_posix()}:{line} imports {name}, which {room} must not")
    return found


def test_the_rooms_keep_the_arrows():
    assert violations(REPOSITORY) == []


def test_every_room_is_there_and_is_read():
    assert all(list((REPOSITORY / room).rglob("*.py")) for room in ROOMS)


@pytest.mark.parametrize(
    ("file", "line", "refused"),
    [
        ("trainables/wsd.py", "from search_spaces import wsd", True),
        ("trainables/wsd.py", "import ray.train", True),
        ("trainables/wsd.py", "def f():\n    import optuna", True),
        ("trainables/wsd.py", "from importlib import import_module\nimport_module('mlflow')", True),
        ("trainables/common/data/text.py", "from ... import analysis", False),  # beyond the top: Python refuses it
        ("trainables/common/data/text.py", "from ..models import llama", False),
        ("trainables/ray_train.py", "import ray.train", False),
        ("trainables/ray_train.py", "import optuna", True),
        ("trainables/common/ray_train.py", "import ray", True),
        ("search_spaces/wsd.py", "from trainables.wsd import Config", True),
        ("search_spaces/wsd.py", "from optuna.distributions import FloatDistribution", False),
        ("analysis/frontier.py", "import torch", True),
        ("analysis/frontier.py", "from ray import data", True),
        ("analysis/frontier.py", "from sweeps.engine import plan", True),
        ("analysis/frontier.py", "from analysis.records import open", False),
        ("analysis/frontier.py", "from mlflow import MlflowClient", True),
        ("sweeps/engine/worker.py", "import mlflow, hydra, torch, ray\nfrom analysis import frontier", False),
        ("sweeps/engine/worker.py", "from tests import conftest", True),
    ],
)
def test_a_made_up_module_is_judged(tmp_path: Path, file: str, line: str, refused: bool):
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(line + "\n")
    found = violations(tmp_path)
    assert bool(found) == refused
    assert all(report.startswith(f"{file}:") for report in found)
