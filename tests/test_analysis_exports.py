"""What `hooked_whisper.analysis` gives: public names, loaded on first use."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from hooked_whisper import analysis


def test_every_public_name_is_there() -> None:
    for name in analysis.__all__:
        value = getattr(analysis, name)
        assert not isinstance(value, ModuleType), name
        assert value.__module__.startswith("hooked_whisper.analysis."), name
    assert dir(analysis) == sorted(analysis.__all__)


def test_types_are_those_of_the_same_names(root: Path) -> None:
    """What a type checker reads is what is loaded."""
    tree = ast.parse((root / "analysis" / "__init__.py").read_text(encoding="utf-8"))
    typed = {
        alias.name: str(found.module).rpartition(".")[2]
        for found in ast.walk(tree)
        if isinstance(found, ast.ImportFrom) and str(found.module).startswith("hooked_whisper.analysis.")
        for alias in found.names
        if alias.asname == alias.name
    }
    assert typed == analysis._EXPORTS


def test_no_module_is_called_like_a_public_name(root: Path) -> None:
    """Once such a module is imported, the package's attribute is the module and no longer what it should be."""
    modules = {path.stem for path in (root / "analysis").glob("*.py")}
    assert not modules & set(analysis.__all__)
    importlib.import_module("hooked_whisper.analysis.patching")
    from hooked_whisper.analysis import patch

    assert callable(patch)


def test_unknown_names() -> None:
    with pytest.raises(AttributeError, match=r"module 'hooked_whisper.analysis' has no attribute 'atribute'"):
        _ = analysis.atribute
    with pytest.raises(ImportError, match="cannot import name 'atribute'"):
        exec("from hooked_whisper.analysis import atribute")


def test_importing_it_costs_nothing() -> None:
    heavy = ("torch", "numpy", "sae_lens", "sklearn", "matplotlib", "captum")
    code = f"import sys, hooked_whisper.analysis; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_using_it_brings_only_what_is_used() -> None:
    heavy = ("sae_lens", "sklearn", "matplotlib", "jiwer")
    code = (
        "import sys\nfrom hooked_whisper.analysis import Circuit, Contrast, Edge, attribute, patch, patch_edges\n"
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
