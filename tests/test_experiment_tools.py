"""The tools behind committed results, each on something small whose answer is known."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from sae_files import random_sae
from short_windows import short_windows

from hooked_whisper import HookedWhisper
from hooked_whisper.saes import Corpus
from hooked_whisper.saes.coding import reconstruct
from hooked_whisper.saes.error_rates import TranscriptErrors
from hooked_whisper.saes.estimates import Estimate
from hooked_whisper.speech import clips


@pytest.fixture
def tool(root: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a tool by its name, as running it would: its own folder first."""
    monkeypatch.syspath_prepend(str(root / "tools"))
    there = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - there:
        if Path(getattr(sys.modules[name], "__file__", None) or "").parent == root / "tools":
            del sys.modules[name]


def test_errors_of_chance_are_as_long_as_the_saes(tool: Any) -> None:
    noise: ModuleType = tool("noise_floor")
    sae = random_sae("topk", d_in=16, dtype="float32")
    rows = torch.randn(200, 16, generator=torch.Generator().manual_seed(0))
    own = noise.by_sae(sae)(rows, rows) - rows
    assert torch.allclose(own, reconstruct(sae, rows) - rows)
    moved = noise.by_chance(sae, 0.5, torch.Generator().manual_seed(1))(rows, rows) - rows
    assert torch.allclose(moved.norm(dim=-1), 0.5 * own.norm(dim=-1), atol=1e-5)
    assert torch.cosine_similarity(moved, own, dim=-1).mean().abs() < 0.1


def test_noise_floor_tells_what_it_measured(tool: Any, shared_whisper_base: HookedWhisper) -> None:
    noise: ModuleType = tool("noise_floor")
    model = short_windows(shared_whisper_base, seconds=3)
    sae = random_sae("topk", d_in=512, d_sae=64, dtype="float32")  # nothing of the activation is left
    corpus = Corpus.from_clips(sorted(clips(), key=lambda clip: clip.seconds)[:2])
    noise_found, languages = noise.measured(model, sae, corpus, 1)
    assert list(noise_found) == [
        "SAE",
        "1 of its length, seed 0",
        "0.5 of its length, seed 0",
        "0.25 of its length, seed 0",
    ]
    assert len(languages) == 2
    assert noise_found["SAE"].result([0, 1]).wer_to_unhooked.value > 0.5
    text = noise.report("A head.", noise_found, languages)
    assert "A head." in text and text.count("| SAE |") == 2 and "[" in text


def test_seeds_are_compared_with_chance(tool: Any) -> None:
    seeds: ModuleType = tool("seed_stability")
    saes = {name: random_sae("topk", d_in=64, d_sae=128, dtype="float32", seed=seed) for name, seed in
            (("seed 0", 0), ("seed 1", 0), ("seed 2", 1))}  # fmt: skip
    rows = torch.randn(400, 64, generator=torch.Generator().manual_seed(0))
    pairs, chance = seeds.compared(saes, rows)
    same, other = pairs["seed 0 and seed 1"].summary().to_dict(), pairs["seed 0 and seed 2"].summary().to_dict()
    assert same["found_again_nearest"] == same["mutually_nearest"] == 1 > other["found_again_nearest"]
    assert chance.summary().to_dict()["found_again_nearest"] < 0.05
    fvu = {name: Estimate(0.1, 0.0, 0.2) for name in saes}
    text = seeds.report("a command", fvu, pairs, chance)
    assert "`a command`" in text and "0.100 (seed 0)" in text and "| 1.000 |" in text


def test_curves_have_a_row_for_each_sae_that_was_measured(tool: Any) -> None:
    curves: ModuleType = tool("sae_curves")
    title = "k, active latents"
    names = [one.name for one in curves.CURVES[title]]
    errors = {}
    for i, name in enumerate([*names, curves.SHIPPED]):  # so many of ten words are wrong
        errors[name] = TranscriptErrors()
        now = " ".join(["other"] * i + ["word"] * (10 - i))
        for clip in ("one", "two"):
            errors[name].add("word " * 10, now, "word " * 10, clip=clip, language="en")
    found = {"held out": {name: {"fvu": 0.25, "kl": 0.125, "recovered": 0.5} for name in errors}}
    text = curves.report(found, (errors, ["en", "en"]), "A head.", "what it is")
    assert "A head." in text
    assert text.count("| 0.250 | 0.1250 | 0.5000 |") == 5 + 3  # the middle one is in every curve
    for i, label in enumerate(["32", "45", "64", "96", "what it is"]):
        of_both = f"{10 * i:.1f} [{10 * i:.1f}, {10 * i:.1f}]"
        assert text.count(f"| {label} | {of_both} | {of_both} |") == 2


@pytest.mark.parametrize("name", ["train_shipped_sae", "train_paper_sae", "seed_stability", "sae_curves"])
def test_help_is_there_at_once(name: str, tool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module: ModuleType = tool(name)
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as left:
        module.main()
    assert left.value.code == 0
