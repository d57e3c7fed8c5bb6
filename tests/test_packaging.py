"""What pip installs: wheel and sdist hold every module, editable or not, inside and outside a clone.

Each build starts from a copy without `build/`: setuptools would put what lies there into the wheel.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli

import hooked_whisper

PACKAGES = {"hooked_whisper": "hooked_whisper", "hooked_whisper.saes": "saes", "hooked_whisper.analysis": "analysis"}
SOURCE = [*PACKAGES.values(), "docs", "examples", "benchmarks"]


@pytest.fixture(scope="module")
def pyproject(root: Path) -> dict[str, Any]:
    return tomli.loads((root / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def source(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository, symlinks kept, with a test that must not be shipped."""
    copy = tmp_path_factory.mktemp("source") / "repo"
    for folder in SOURCE:
        shutil.copytree(root / folder, copy / folder, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for file in root.iterdir():
        if file.is_file():
            shutil.copy(file, copy)
    (copy / "tests").mkdir()
    (copy / "tests" / "test_something.py").touch()
    return copy


@pytest.fixture(scope="module")
def built(source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist, and the wheel that is built from the sdist."""
    out = tmp_path_factory.mktemp("dist")
    run([sys.executable, "-m", "build", "--no-isolation", "--outdir", out, source])
    return next(out.glob("*.tar.gz")), next(out.glob("*.whl"))


def run(command: list[Any], **options: Any) -> str:
    """Runs a command without a network and returns what it printed; its whole output is the failure."""
    env = {**os.environ, "PIP_NO_INDEX": "1", "PYTHONDONTWRITEBYTECODE": "1", **options.pop("env", {})}
    done = subprocess.run(
        [str(part) for part in command], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )
    assert done.returncode == 0, f"{command} failed:\n{done.stdout}"
    return done.stdout


def packages_on_disk(root: Path) -> Iterator[tuple[str, str]]:
    """Every folder with Python in it that users import, with its folder: (hooked_whisper.saes, saes)."""
    for name, folder in PACKAGES.items():
        for path in sorted((root / folder).rglob("*.py")):  # rglob does not follow the symlinked folders
            inside = path.parent.relative_to(root / folder).parts
            if "saes" in inside or "analysis" in inside:
                continue
            yield ".".join((name, *inside)), "/".join((folder, *inside))


def installed_files(root: Path) -> set[str]:
    """Paths, inside site-packages, of all files that the packages must bring."""
    files = {"hooked_whisper/py.typed"}
    shipped = (root / "saes" / "shipped").rglob("*")
    files |= {f"hooked_whisper/{path.relative_to(root)}" for path in shipped if path.is_file()}
    for name, folder in PACKAGES.items():
        for path in (root / folder).rglob("*.py"):
            inside = path.relative_to(root / folder)
            if inside.parts[0] not in ("saes", "analysis"):
                files.add("/".join((*name.split("."), *inside.parts)))
    return files


def test_every_package_on_disk_is_listed(root: Path, pyproject: dict[str, Any]) -> None:
    on_disk = dict(packages_on_disk(root))
    assert set(pyproject["tool"]["setuptools"]["packages"]) == set(on_disk)
    listed = pyproject["tool"]["setuptools"]["package-dir"]
    nested = {name: folder for name, folder in on_disk.items() if name not in listed}
    assert {name: folder for name, folder in on_disk.items() if name in listed} == listed
    assert all(name.rpartition(".")[0] in on_disk for name in nested)


def test_symlinks_lead_to_the_folders(root: Path) -> None:
    for folder in ("saes", "analysis"):
        link = root / "hooked_whisper" / folder
        assert link.is_symlink(), f"{link} must be a symlink, so that editors resolve hooked_whisper.{folder}"
        assert os.readlink(link) == f"../{folder}"


def test_wheel_holds_every_module_and_nothing_else(root: Path, built: tuple[Path, Path]) -> None:
    names = set(zipfile.ZipFile(built[1]).namelist())
    code = {name for name in names if ".dist-info/" not in name}
    assert code == installed_files(root)
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_sdist_holds_every_module_and_no_tests(root: Path, built: tuple[Path, Path]) -> None:
    with tarfile.open(built[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for installed in installed_files(root):
        shipped = re.sub(r"^hooked_whisper/(?=saes/|analysis/)", "", installed)
        assert shipped in names, f"{shipped} is missing from the sdist"
    assert {"README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "pyproject.toml"} <= names
    assert not [name for name in names if name.startswith("tests")]
    assert not [name for name in names if name.startswith(("hooked_whisper/saes", "hooked_whisper/analysis"))]


WHERE = "import hooked_whisper, hooked_whisper.{part} as part; print(hooked_whisper.__file__); print(part.__file__)"


@pytest.mark.parametrize("part", ["saes", "analysis", "errors", "cli"])
def test_wheel_works_outside_the_repository(
    part: str, built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    target = tmp_path_factory.getbasetemp() / "installed"
    if not target.exists():
        run([sys.executable, "-m", "pip", "install", "--no-deps", "--target", target, built[1]])
    out = run([sys.executable, "-c", WHERE.format(part=part)], cwd=tmp_path, env={"PYTHONPATH": str(target)})
    assert all(Path(line).is_relative_to(target) for line in out.split()), out


def test_editable_install_works_inside_and_outside(source: Path, tmp_path: Path) -> None:
    site_packages = Path(pytest.__file__).parent.parent
    setuptools = tmp_path / "setuptools"
    setuptools.mkdir()
    for pattern in ("setuptools*", "_distutils_hack"):  # the build backend, and nothing else of this environment
        for part in site_packages.glob(pattern):
            (setuptools / part.name).symlink_to(part)
    venv = tmp_path / "venv"
    run([sys.executable, "-m", "venv", "--without-pip", venv])
    python = venv / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-build-isolation"]
    run([*install, "--editable", source], env={"PYTHONPATH": str(setuptools)})
    purelib = run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).strip()
    Path(purelib, "dependencies.pth").write_text(f"{site_packages}\n", encoding="utf-8")
    for where in (tmp_path, source):
        for part in ("saes", "analysis"):
            out = run([python, "-c", WHERE.format(part=part)], cwd=where).split()
            assert [Path(line).resolve() for line in out] == [
                source / "hooked_whisper" / "__init__.py",
                source / part / "__init__.py",
            ]


@pytest.mark.parametrize("folder", ["saes", "analysis"])
def test_second_copy_at_the_root_is_refused(folder: str, root: Path) -> None:
    done = subprocess.run([sys.executable, "-c", f"import {folder}"], cwd=root, capture_output=True, text=True)
    assert done.returncode != 0
    assert "ImportError" in done.stderr
    assert f"`import hooked_whisper.{folder}`" in done.stderr


def test_one_version_everywhere(root: Path, built: tuple[Path, Path]) -> None:
    version = hooked_whisper.__version__
    assert built[1].name.startswith(f"hooked_whisper-{version}-")
    assert f"version: {version}\n" in (root / "CITATION.cff").read_text(encoding="utf-8")
    assert version in (root / "CHANGELOG.md").read_text(encoding="utf-8")


def test_torchaudio_is_asked_for_by_its_own_extra_alone(pyproject: dict[str, Any], root: Path) -> None:
    # Beside a CPU build of torch it fails to import, and transformers' Whisper with it.
    extras = pyproject["project"]["optional-dependencies"]
    others = [pyproject["project"]["dependencies"], *(extras[name] for name in extras if name != "torchaudio")]
    assert not [line for lines in others for line in lines if line.startswith("torchaudio")]
    assert "torchaudio" not in (root / "constraints.txt").read_text(encoding="utf-8")


def test_constraints_allow_what_pyproject_asks_for(pyproject: dict[str, Any], root: Path) -> None:
    from packaging.requirements import Requirement

    lines = (root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    requirements = [Requirement(line) for line in lines if not line.startswith("#")]
    pins = {pin.name.lower().replace("_", "-"): pin for pin in requirements}
    extras = pyproject["project"]["optional-dependencies"]
    wanted = [*pyproject["project"]["dependencies"], *(line for name in extras for line in extras[name])]
    for line in wanted:
        requirement = Requirement(line)
        name = requirement.name.lower().replace("_", "-")
        # torchaudio's wheels do not go with a CPU-only torch; gradio asks for an older Pillow than the one pinned.
        if name in ("hooked-whisper", "torchaudio", "gradio"):
            continue
        assert name in pins, f"{name} is not pinned in constraints.txt"
        version = str(pins[name].specifier).removeprefix("==")
        assert requirement.specifier.contains(version), f"{line} does not admit the tested {version}"
