"""Training that goes on from an SAE: nothing is lost at the start, whatever was folded into its weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from memory_source import MemorySource, toy_rows
from test_training import QUICK, quick

from hooked_whisper.errors import SaeError
from hooked_whisper.saes import load_sae, train_saes
from hooked_whisper.saes.training_settings import SaeSettings

STANDING: dict[str, Any] = {"total_training_samples": 64, "lr": 1e-12, "held_out": None}  # one step that moves nothing


def rows() -> torch.Tensor:
    return toy_rows() * 3 + 1  # not of the length that training brings them to


@pytest.mark.parametrize("then", ["none", "expected_average_only_in"])
@pytest.mark.parametrize("first", ["none", "expected_average_only_in"])
@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "matryoshka_batchtopk", "jumprelu", "gated", "standard"])
def test_it_starts_where_the_other_ended(architecture: str, first: str, then: str, tmp_path: Path) -> None:
    """A step that moves nothing leaves the reconstructions as they were, also where rows are scaled otherwise."""
    source = MemorySource({"hook": rows()})
    options: dict[str, Any] = {"architecture": architecture}
    options["k"] = None if architecture in ("jumprelu", "gated", "standard") else 4
    before = quick(tmp_path / "first", source, normalize_activations=first, **options)
    after = quick(
        tmp_path / "then", source, normalize_activations=then, start=tmp_path / "first", **options, **STANDING
    )
    assert before(rows()).std(0).min() > 0
    same = torch.isclose(after(rows()), before(rows()), rtol=1e-3, atol=1e-3).float().mean()
    # The threshold is set anew at the end of a run, on other rows.
    assert same > (0.9 if "batchtopk" in architecture else 0.999)


def test_one_matrix_that_reads_and_writes(tmp_path: Path) -> None:
    """Matching pursuit is gone on with as it is, or not at all."""
    source = MemorySource({"hook": rows()})
    options: dict[str, Any] = {"architecture": "matching_pursuit", "k": None, "residual_threshold": 0.5}
    before = quick(tmp_path / "first", source, **options)
    after = quick(tmp_path / "then", source, start=tmp_path / "first", **options, **STANDING)
    assert torch.isclose(after(rows()), before(rows()), rtol=1e-3, atol=1e-3).float().mean() > 0.99
    options["normalize_activations"] = "expected_average_only_in"
    with pytest.raises(SaeError, match="whose one matrix"):
        quick(tmp_path / "scaled", source, start=tmp_path / "first", **options)


def test_k_may_be_another(tmp_path: Path) -> None:
    """TopK with more active latents goes on from fewer, at once better than a new one after the same steps."""
    source = MemorySource({"hook": rows()})
    quick(tmp_path / "first", source, k=4)
    new = quick(tmp_path / "new", source, k=8, total_training_samples=64 * 5)
    more = quick(tmp_path / "more", source, k=8, total_training_samples=64 * 5, start=str(tmp_path / "first"))
    assert more.cfg.k == 8
    error = [(sae(rows()) - rows()).pow(2).sum().item() for sae in (new, more)]
    assert error[1] < 0.8 * error[0]
    record = json.loads((tmp_path / "more" / "training.json").read_text())
    assert record["settings"]["start"]["name"] == str(tmp_path / "first") and record["settings"]["start"]["sha256"]


def test_a_run_goes_on_only_from_the_start_that_it_had(tmp_path: Path) -> None:
    source = MemorySource({"hook": rows()})
    quick(tmp_path / "first", source)
    quick(tmp_path / "then", source, start=str(tmp_path / "first"))
    quick(tmp_path / "then", source, start=str(tmp_path / "first"))  # finished: nothing to do
    quick(tmp_path / "first", source, seed=1, resume=False)
    with pytest.raises(SaeError, match=r"other settings \(settings.start.sha256"):
        quick(tmp_path / "then", source, start=str(tmp_path / "first"))


def test_one_of_several_has_a_start(tmp_path: Path) -> None:
    source = MemorySource({"hook": rows()})
    first = quick(tmp_path / "first", source)
    both = [
        SaeSettings(hook="hook", d_sae=64, k=4, lr=1e-12, name="with", start=str(tmp_path / "first")),
        SaeSettings(hook="hook", d_sae=64, k=4, lr=1e-12, name="without"),
    ]
    run = {name: value for name, value in QUICK.items() if name != "lr"} | {"total_training_samples": 64}
    trained = train_saes(source, both, out=tmp_path / "both", **run)
    assert torch.allclose(trained["with"].W_dec, first.W_dec, atol=1e-5)
    assert not torch.allclose(trained["without"].W_dec, first.W_dec, atol=1e-2)


def test_what_cannot_start_is_said(tmp_path: Path) -> None:
    source = MemorySource({"hook": rows()})
    quick(tmp_path / "first", source)
    start = str(tmp_path / "first")
    with pytest.raises(SaeError, match=r"decoder of shape \(64, 16\), and d_sae=32"):
        quick(tmp_path / "a", source, d_sae=32, start=start)
    with pytest.raises(SaeError, match="b_gate|b_mag|r_mag"):
        quick(tmp_path / "b", source, architecture="gated", k=None, start=start)
    with pytest.raises(SaeError, match="covariance_whitening"):
        quick(tmp_path / "c", source, normalize_activations="covariance_whitening", start=start)
    with pytest.raises(SaeError, match="There is no SAE 'nothing'"):
        quick(tmp_path / "d", source, start="nothing")
    assert not any((tmp_path / name).exists() for name in "abcd")


def test_starts_are_found_by_their_names(tmp_path: Path) -> None:
    """A shipped one, at another k."""
    shipped = load_sae("whisper-base/encoder.hook_out")
    source = MemorySource({"hook": torch.randn(640, 512)})
    after = quick(tmp_path, source, d_sae=4096, k=64, start="whisper-base/encoder.hook_out", **STANDING)
    # Whatever the lengths of its decoder's rows: a TopK SAE in training has them of one, and chooses by what each adds.
    assert torch.cosine_similarity(after.W_dec, shipped.W_dec.float(), dim=-1).min() > 0.9999 and after.cfg.k == 64
    lengths = shipped.W_dec.float().norm(dim=-1)
    assert torch.allclose(after.W_enc, shipped.W_enc.float() * lengths, rtol=1e-2, atol=1e-3)
