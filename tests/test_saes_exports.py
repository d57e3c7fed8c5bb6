"""What `hooked_whisper.saes` gives: public names, loaded on first use."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from hooked_whisper import saes


def test_every_public_name_is_there() -> None:
    for name in saes.__all__:
        value = getattr(saes, name)
        assert not isinstance(value, ModuleType), name
        assert value.__module__.startswith("hooked_whisper.saes."), name
    assert dir(saes) == sorted(saes.__all__)


def test_no_module_is_called_like_a_public_name(root: Path) -> None:
    """Once such a module is imported, the package's attribute is the module and no longer what it should be."""
    modules = {path.stem for path in (root / "saes").glob("*.py")}
    assert not modules & set(saes.__all__)
    importlib.import_module("hooked_whisper.saes.harvesting")
    from hooked_whisper.saes import harvest

    assert callable(harvest)


def test_unknown_names() -> None:
    with pytest.raises(AttributeError, match=r"module 'hooked_whisper.saes' has no attribute 'harvset'"):
        _ = saes.harvset
    with pytest.raises(ImportError, match="cannot import name 'harvset'"):
        exec("from hooked_whisper.saes import harvset")


def test_importing_it_costs_nothing() -> None:
    heavy = ("torch", "numpy", "sae_lens", "pyarrow")
    code = f"import sys, hooked_whisper.saes; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
