"""Any SAELens SAE is read the same way, and one that does not belong where it is put is refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sae_files import SAE_VARIANTS, TRANSCODERS, metadata, random_sae, sae_lens
from short_windows import exact_sae
from small import small_model

from hooked_whisper import HookedWhisper, SaeError
from hooked_whisper.axes import axes
from hooked_whisper.saes import coding
from hooked_whisper.saes.coding import Site, code, find_site, hook_width, reconstruct


@pytest.fixture(scope="module")
def model() -> HookedWhisper:
    return small_model(dtype=torch.float32)


@pytest.mark.parametrize("variant", [*SAE_VARIANTS, *TRANSCODERS])
def test_reconstructions_are_saelens_own(variant: str) -> None:
    sae, rows = random_sae(variant), torch.randn(9, 16, dtype=torch.float64)
    torch.testing.assert_close(reconstruct(sae, rows), sae(rows[None])[0])
    [(part, acts, _)] = code(sae, rows)
    assert part == slice(0, 9)
    torch.testing.assert_close(acts, sae.encode(rows[None])[0])


def test_an_error_term_is_left_out() -> None:
    sae, rows = random_sae("topk"), torch.randn(9, 16, dtype=torch.float64)
    plain = reconstruct(sae, rows)
    sae._use_error_term = True
    torch.testing.assert_close(sae(rows), rows)
    torch.testing.assert_close(reconstruct(sae, rows), plain)


def test_memory_is_bounded_by_batches_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coding, "_MAX_ACTIVATIONS", 4 * 32)
    sae, rows = random_sae("topk"), torch.randn(9, 16, dtype=torch.float64)
    parts = list(code(sae, rows))
    assert [len(acts) for _, acts, _ in parts] == [4, 4, 1]
    torch.testing.assert_close(reconstruct(sae, rows), sae(rows))
    # One that looks back in time must see a clip in one piece.
    temporal = random_sae("temporal")
    assert [len(acts) for _, acts, _ in code(temporal, rows)] == [9]


@pytest.mark.parametrize("reshape", ["none", "hook_z"])
def test_rows_keep_their_dtype_and_heads_lie_side_by_side(reshape: str) -> None:
    sae = exact_sae(16, hook="encoder.blocks.0.attn.hook_z", reshape_activations=reshape)
    rows = torch.randn(5, 2, 8, dtype=torch.float64)
    found = reconstruct(sae, rows)
    assert (found.dtype, found.shape) == (torch.float64, (5, 16))
    torch.testing.assert_close(found, rows.flatten(1).float().double())


def test_no_rows_give_none() -> None:
    assert reconstruct(exact_sae(16), torch.zeros(0, 16)).shape == (0, 16)


def test_every_hook_has_the_width_of_its_activation(model: HookedWhisper) -> None:
    names = [name for name in model.hook_names() if len(axes(name)) >= 3 and axes(name)[1] in coding._POSITION_AXES]
    mel = torch.randn(1, 6, 20)
    kept, hooks, _ = model.get_caching_hooks(names)
    with model.hooks(fwd_hooks=hooks):
        model(mel, torch.tensor([[1, 2, 3]]))
    assert len(names) > 100
    for name in names:
        assert hook_width(model, name) == kept[name][0, 0].numel(), name


def test_the_hook_is_the_metadatas_or_the_one_given(model: HookedWhisper) -> None:
    sae = exact_sae(16)
    assert find_site(model, sae) == Site("encoder.hook_out", "encoder.hook_out", "frame")
    there = find_site(model, sae, "decoder.blocks.1.hook_resid_post")
    assert (there.positions, there.in_decoder) == ("pos", True)
    keys = find_site(model, exact_sae(16, hook="decoder.blocks.1.cross_attn.hook_k"))
    assert (keys.positions, keys.in_decoder) == ("frame", True)
    assert find_site(model, exact_sae(16, hook="encoder.hook_conv1")).positions == "mel_frame"


def transcoder(read: str, write: str | None, d_out: int = 16) -> Any:
    return random_sae("transcoder", read, about={"hook_name_out": write}, d_out=d_out)


def test_transcoders_read_one_hook_and_write_another(model: HookedWhisper) -> None:
    block = "encoder.blocks.0"
    found = find_site(model, transcoder(f"{block}.ln2.hook_normalized", f"{block}.hook_mlp_out"))
    assert (found.read, found.write) == (f"{block}.ln2.hook_normalized", f"{block}.hook_mlp_out")
    with pytest.raises(SaeError, match="reads one hook and writes another, and its metadata does not name the second"):
        find_site(model, transcoder(f"{block}.ln2.hook_normalized", None))
    with pytest.raises(SaeError, match=r"different positions \(frame, pos\)"):
        find_site(model, transcoder(f"{block}.ln2.hook_normalized", "decoder.blocks.0.hook_mlp_out"))
    with pytest.raises(SaeError, match="writes rows of 5, and 'encoder.blocks.0.hook_mlp_out' of small has rows of 16"):
        find_site(model, transcoder(f"{block}.ln2.hook_normalized", f"{block}.hook_mlp_out", d_out=5))


def test_what_does_not_fit_is_refused(model: HookedWhisper) -> None:
    with pytest.raises(SaeError, match="'encoder.hook_ot', which small does not have. Did you mean 'encoder.hook_out'"):
        find_site(model, exact_sae(16), "encoder.hook_ot")
    with pytest.raises(SaeError, match="reads rows of 5, and 'encoder.hook_out' of small has rows of 16"):
        find_site(model, exact_sae(5))
    with pytest.raises(SaeError, match="has axes batch, head, frame, key_frame: an SAE needs"):
        find_site(model, exact_sae(16), "encoder.blocks.0.attn.hook_pattern")
    nameless = exact_sae(16)
    nameless.cfg.metadata = metadata(None)
    with pytest.raises(SaeError, match="names no hook: pass hook="):
        find_site(model, nameless)


def test_a_live_batchtopk_is_refused(model: HookedWhisper) -> None:
    sae = sae_lens.BatchTopKTrainingSAE(sae_lens.BatchTopKTrainingSAEConfig(d_in=16, d_sae=24, k=3))
    with pytest.raises(SaeError, match=r"chooses its latents over the whole batch.*save_inference_model"):
        find_site(model, sae, "encoder.hook_out")


def test_sparse_activations_are_taken_as_they_are() -> None:
    acts = torch.zeros(1, 3, 4)
    acts[0, 1, 2] = 2.0
    sae = SimpleNamespace(
        cfg=SimpleNamespace(d_sae=4, reshape_activations="none", architecture=lambda: "topk"),
        W_dec=torch.eye(4),
        encode=lambda x: acts.to_sparse(),
        decode=lambda sparse: sparse.to_dense(),
    )
    [(_, found, out)] = code(sae, torch.zeros(3, 4))
    torch.testing.assert_close(found.to_dense(), acts[0])
    torch.testing.assert_close(out, acts[0])
