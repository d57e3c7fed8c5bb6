"""Codes of a store: what the SAE says, sparse, with clips and columns; saved and read back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_store import HOOK, OTHER, SETTINGS, make_store

from hooked_whisper import AnalysisError
from hooked_whisper.analysis.codes import FeatureCodes, encode_store, sparse
from hooked_whisper.saes.baselines import Moments, fit_baseline

WIDTH, N_LATENTS = 3, 5


class Metadata:
    """What an SAE says of where it belongs."""

    hook_name = HOOK


class Config:
    """What an SAE says of itself."""

    d_in, d_sae, reshape_activations = WIDTH, N_LATENTS, "none"
    metadata = Metadata()

    def __init__(self, name: str = "standard") -> None:
        self.name = name

    def architecture(self) -> str:
        return self.name


class ReluSae:
    """relu(x W): an SAE of known latents; latent 4 is never active."""

    def __init__(self, name: str = "standard") -> None:
        self.cfg = Config(name)
        self.W_dec = torch.eye(N_LATENTS, WIDTH)
        self.W_enc = torch.tensor([[1.0, -1, 0, 2, 0], [0, 0, 1, 1, 0], [0.0, 0, 0, 0, 0]])

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return (x @ self.W_enc).relu()


def test_codes_are_what_the_sae_says(tmp_path: Path) -> None:
    store = make_store(tmp_path, [[3, 2], [4]])
    sae = ReluSae()
    codes = encode_store(sae, store, progress=False)
    assert (codes.acts.toarray() == sae.encode(store.rows(HOOK)).numpy()).all()
    assert codes.clips == ("clip-0", "clip-1", "clip-2")
    assert codes.clip.tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 2]
    assert codes.frame.tolist() == [0, 1, 2, 0, 1, 0, 1, 2, 3]
    assert codes.column("language").tolist() == ["en"] * 3 + ["fr"] * 2 + [None] * 4
    assert codes.column("clip")[3] == "clip-1"
    assert (codes.hook, codes.frames_per_second, codes.n_latents) == (HOOK, 50.0, N_LATENTS)
    rows, values = codes.latent(3)
    assert values.tolist() == codes.acts.toarray()[rows, 3].tolist() and len(rows) == 8
    assert "5 latents on 9 rows of 3 clips" in repr(codes)
    temporal = encode_store(ReluSae("temporal"), store, progress=False)  # clip by clip
    assert (temporal.acts != codes.acts).nnz == 0


def test_codes_of_a_part_of_a_store(tmp_path: Path) -> None:
    store = make_store(tmp_path, [[3, 2], [4]])
    whole = encode_store(ReluSae(), store, progress=False)
    part = encode_store(ReluSae(), store.where(key="a"), progress=False)
    assert part.clips == ("clip-0", "clip-2") and part.clip.tolist() == [0] * 3 + [1] * 4
    same = whole.where(key="a")
    assert (part.acts != same.acts).nnz == 0 and same.clips == part.clips
    assert (same.clip == part.clip).all() and (same.frame == part.frame).all()
    assert whole.where(language=["en", None]).n_rows == 7


def test_a_basis_has_a_feature_for_each_sign(tmp_path: Path) -> None:
    store = make_store(tmp_path, [[3, 2], [4]])
    moments = Moments.none(WIDTH)
    moments.add(store.rows(HOOK))
    basis = fit_baseline("neurons", moments, k=2)
    codes = encode_store(basis, store, HOOK, progress=False)
    assert codes.signed and codes.n_latents == 2 * WIDTH
    dense = codes.acts.toarray()
    signed = dense[:, :WIDTH] - dense[:, WIDTH:]
    assert signed == pytest.approx(basis.encode(store.rows(HOOK)).numpy())
    assert (np.count_nonzero(dense, axis=1) <= 2).all()


def test_saved_and_read_back(tmp_path: Path) -> None:
    codes = encode_store(ReluSae(), make_store(tmp_path / "store", [[3, 2], [4]]), progress=False)
    codes.save(tmp_path / "codes.npz")
    found = FeatureCodes.load(tmp_path / "codes.npz")
    assert (found.acts != codes.acts).nnz == 0 and found.acts.dtype == np.float32
    for name in ("clips", "hook", "frames_per_second", "signed"):
        assert getattr(found, name) == getattr(codes, name)
    assert (found.frame == codes.frame).all() and (found.clip == codes.clip).all()
    assert list(found.columns) == list(codes.columns)
    for name, values in codes.columns.items():
        assert found.columns[name].tolist() == values.tolist(), name
    (tmp_path / "text").write_text("nothing")
    np.savez(tmp_path / "other.npz", x=np.zeros(2))
    for name in ("none.npz", "text", "other.npz"):
        with pytest.raises(AnalysisError, match=f"{name} does not hold feature codes"):
            FeatureCodes.load(tmp_path / name)


def test_halves_part_no_group(tmp_path: Path) -> None:
    store = make_store(tmp_path, [[3, 2, 4, 1], [4, 2, 2, 5]])
    codes = encode_store(ReluSae(), store, progress=False)
    for by in ("clip", "key", "language"):
        train = codes.halves(by)
        assert train.any() and not train.all()
        of, _ = codes.groups(by)
        assert not set(of[train & (of >= 0)]) & set(of[~train & (of >= 0)])
    with pytest.raises(AnalysisError, match="All rows are of one speaker"):
        codes.halves("speaker")
    with pytest.raises(AnalysisError, match="train=1.5 must be a part"):
        codes.halves(train=1.5)


def test_rows_of_a_span(tmp_path: Path) -> None:
    codes = encode_store(ReluSae(), make_store(tmp_path, [[3, 2], [4]]), progress=False)
    assert codes.rows_of("clip-2").tolist() == [5, 6, 7, 8]
    assert codes.rows_of("clip-2", 0.02, 0.06).tolist() == [6, 7]
    for clip, start, message in (
        ("clip-9", 0.0, "No clip is called 'clip-9'"),
        ("clip-2", 0.5, "No frame of 'clip-2' has its centre in 0.5 to the end s: its frames run from 0.01 to 0.07"),
    ):
        with pytest.raises(AnalysisError, match=message):
            codes.rows_of(clip, start)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    store = make_store(tmp_path / "a", [[3, 2], [4]])
    codes = encode_store(ReluSae(), store, progress=False)
    moments = Moments.none(WIDTH)
    moments.add(store.rows(HOOK))
    tokens = make_store(tmp_path / "b", [[3]], replace(SETTINGS, rate=None, position="token"))
    broken = ReluSae()
    broken.W_enc = broken.W_enc * torch.nan
    broken.encode = lambda x: x @ broken.W_enc
    negative = ReluSae()
    negative.encode = lambda x: x @ negative.W_enc
    for sae, of, hook, message in (
        (fit_baseline("pca", moments, k=1), store, None, "Which hook is this SAE of"),
        (ReluSae(), store, "encoder.hook_outt", "no activations of 'encoder.hook_outt'.*Did you mean"),
        (ReluSae(), store, OTHER, "This SAE reads rows of 3, and .* has rows of 2"),
        (ReluSae(), tokens, None, "decoder tokens"),
        (broken, store, None, "not finite"),
        (negative, store, None, "negative activations"),
    ):
        with pytest.raises(AnalysisError, match=message):
            encode_store(sae, of, hook, progress=False)
    with pytest.raises(AnalysisError, match="no column 'speakr'.*Did you mean"):
        codes.column("speakr")
    with pytest.raises(AnalysisError, match="No row has key='z'"):
        codes.where(key="z")
    with pytest.raises(AnalysisError, match="Latent 5 does not exist: there are 5"):
        codes.latent(5)
    with pytest.raises(AnalysisError, match="'key' has 2 values for 9 rows"):
        replace(codes, columns={"key": codes.column("key")[:2]})
    with pytest.raises(AnalysisError, match="positive and finite"):
        replace(codes, acts=-1 * codes.acts)
    with pytest.raises(AnalysisError, match="positive and finite"):
        replace(codes, acts=sparse.csr_array(codes.acts * np.float32(np.inf)))
