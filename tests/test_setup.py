"""What a fresh machine meets first: the Makefile and the scripts that it calls."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

# Printed by `python3 --version` of the stand-ins below; they fail whatever else they are asked.
OLD = '#!/bin/bash\n[ "$1" = --version ] && echo "Python 3.8.18" && exit 0\nexit 1\n'


def bash(root: Path, script: str, *arguments: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Runs one of the scripts; with `path`, nothing but what lies there can be called."""
    env = None if path is None else {"PATH": str(path)}
    return subprocess.run(
        ["/bin/bash", str(root / "tools" / script), *arguments], env=env, capture_output=True, text=True
    )


@pytest.fixture
def commands(tmp_path: Path) -> Path:
    """An empty folder to put commands into."""
    (tmp_path / "bin").mkdir()
    return tmp_path / "bin"


def put(folder: Path, name: str, content: str) -> None:
    (folder / name).write_text(content, encoding="utf-8")
    (folder / name).chmod(0o755)


def test_python_is_found(root: Path) -> None:
    found = bash(root, "find_python.sh", sys.executable)
    assert (found.returncode, found.stdout.strip()) == (0, sys.executable)


def test_newer_python_is_taken_where_python3_is_old(root: Path, commands: Path) -> None:
    put(commands, "python3", OLD)
    put(commands, "python3.12", f'#!/bin/bash\nexec "{sys.executable}" "$@"\n')
    found = bash(root, "find_python.sh", path=commands)
    assert (found.returncode, found.stdout.strip()) == (0, str(commands / "python3.12"))


def test_old_python_is_refused_with_what_to_do(root: Path, commands: Path) -> None:
    put(commands, "python3", OLD)
    found = bash(root, "find_python.sh", path=commands)
    assert found.returncode == 1
    assert "3.10 or newer" in found.stderr
    assert "python3 is: Python 3.8.18" in found.stderr
    assert "make demo PYTHON=" in found.stderr


def test_no_python_is_refused_with_what_to_do(root: Path, commands: Path) -> None:
    found = bash(root, "find_python.sh", path=commands)
    assert found.returncode == 1
    assert "no python3 at all" in found.stderr


def test_python_asked_for_is_the_only_candidate(root: Path) -> None:
    found = bash(root, "find_python.sh", "python-of-my-own")
    assert found.returncode == 1
    assert "tried: python-of-my-own" in found.stderr


def test_python_without_venv_is_refused_with_what_to_do(root: Path, commands: Path) -> None:
    put(commands, "python3", '#!/bin/bash\n[[ "$2" == *ensurepip* ]] && exit 1\nexit 0\n')
    found = bash(root, "find_python.sh", path=commands)
    assert found.returncode == 1
    assert "apt install python3-venv" in found.stderr


def test_no_advice_on_torch_for_who_has_chosen(root: Path) -> None:
    assert bash(root, "torch_notice.sh", "--index-url something").stdout == ""


def test_help_lists_every_target(root: Path) -> None:
    shown = subprocess.run(["make", "help"], cwd=root, capture_output=True, text=True, check=True).stdout
    targets = re.findall(r"^([a-z]+):", (root / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert {"demo", "test", "setup", "lint", "types", "docs", "bench", "clean", "help"} <= set(targets)
    assert re.findall(r"make (\w+)", shown) == targets


def test_help_is_what_make_does_by_itself(root: Path) -> None:
    shown = [
        subprocess.run(["make", *target], cwd=root, capture_output=True, text=True).stdout for target in ([], ["help"])
    ]
    assert shown[0] == shown[1] != ""


def test_ci_runs_what_the_readme_promises(root: Path) -> None:
    script = (root / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert "set -euo pipefail" in script
    assert [line for line in script if line.startswith("make ")] == ["make demo", "make test"]
