"""Shipping an SAE: half precision, and latents that keep their numbers."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from sae_files import random_sae

from hooked_whisper.saes import load_sae


@pytest.fixture(scope="module")
def tool(root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("ship_sae", root / "tools" / "ship_sae.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["ship_sae"] = module
    spec.loader.exec_module(module)
    return module


def test_latents_keep_their_numbers(tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = random_sae("topk", d_in=16, hook="encoder.hook_out", dtype="float32")
    shipped = tmp_path / "shipped"
    (shipped / "tiny" / "hook").mkdir(parents=True)
    before.save_model(shipped / "tiny" / "hook")
    (shipped / "tiny" / "hook" / "README.md").write_text("by hand", encoding="utf-8")
    rows = torch.randn(20, 16)
    wanted, codes = before(rows), before.encode(rows)

    run = tmp_path / "run"
    run.mkdir()
    order = torch.randperm(before.cfg.d_sae)
    with torch.no_grad():
        before.W_dec.copy_(before.W_dec[order])
        before.W_enc.copy_(before.W_enc[:, order])
        before.b_enc.copy_(before.b_enc[order])
    before.save_model(run)
    (run / "training.json").write_text("{}", encoding="utf-8")
    (run / "log.csv").write_text("step", encoding="utf-8")

    folder = tool.ship(run, "tiny/hook", shipped)
    assert "100.0% of the latents keep their number" in capsys.readouterr().out
    sae = load_sae(folder).to(dtype=torch.float32)
    torch.testing.assert_close(sae.encode(rows), codes, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(sae(rows), wanted, rtol=1e-2, atol=1e-2)
    assert (folder / "README.md").read_text(encoding="utf-8") == "by hand"
    assert (folder / "log.csv").is_file() and (folder / "training.json").is_file()


def test_a_finetuned_one_keeps_what_is_told_of_its_training(tool: ModuleType, tmp_path: Path) -> None:
    sae = random_sae("topk", d_in=16, hook="encoder.hook_out", dtype="float32")
    there, finetuned = tmp_path / "shipped" / "hook", tmp_path / "finetuned"
    for folder in (there, finetuned):
        folder.mkdir(parents=True)
        sae.save_model(folder)
    for name in ("training.json", "log.csv", "evaluation.md"):
        (there / name).write_text(name, encoding="utf-8")
    folder = tool.ship(finetuned, "hook", tmp_path / "shipped")
    assert (folder / "training.json").read_text() == "training.json" and (folder / "log.csv").read_text() == "log.csv"
    assert not (folder / "evaluation.md").exists()  # it is of the SAE that stood there before
