"""Lenses: the last layer is the model's own, earlier ones are what cutting the model there gives."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from small import small_inputs, small_model

from hooked_whisper import AnalysisError, HookedWhisper, MissingExtraError, WhisperCache
from hooked_whisper.analysis.lens import Lens, encoder_lens, logit_lens
from hooked_whisper.analysis.tuned_lens import TunedLens
from hooked_whisper.speech import clips


@pytest.fixture(scope="module")
def cache(shared_whisper_base: HookedWhisper) -> WhisperCache:
    """Two sentences of different lengths."""
    chosen = [clips(language, "conf-leaderhasleft")[0] for language in ("en", "fr")]
    return shared_whisper_base.run_with_cache(
        [clip.path for clip in chosen], [clip.text for clip in chosen], language=["en", "fr"]
    )[1]


def small_cache() -> tuple[HookedWhisper, WhisperCache]:
    model = small_model()
    return model, model.run_with_cache(*small_inputs(model.cfg))[1]


def test_last_state_says_what_the_model_says_and_each_layer_is_a_model_cut_there() -> None:
    model, cache = small_cache()
    lens = logit_lens(cache)
    assert lens.labels == ("0_pre", "1_pre", "2_pre", "final_post")
    torch.testing.assert_close(lens.logits[-1], cache["hook_logits"])

    def nothing(value: torch.Tensor, hook: Any) -> torch.Tensor:
        return torch.zeros_like(value)

    for layer in range(3):
        later = [f"decoder.blocks.{i}.hook_{leaf}" for i in range(layer, 3) for leaf in OUTPUTS]
        cut = model.run_with_hooks(*small_inputs(model.cfg), fwd_hooks=[(name, nothing) for name in later])
        torch.testing.assert_close(lens.logits[layer], cut.detach())
    assert len(logit_lens(cache, incl_mid=True).labels) == 10


OUTPUTS = ("attn_out", "cross_attn_out", "mlp_out")


def test_figures_by_hand() -> None:
    logits = torch.tensor([[[[0.0, 2.0, 1.0], [3.0, 0.0, 0.0]]], [[[5.0, 0.0, 0.0], [0.0, 0.0, 1.0]]]])
    mask = torch.tensor([[True, True]])
    lens = Lens(("a", "b"), logits, torch.tensor([[0, 2]]), torch.tensor([[2, 0]]), mask, (("x", "y"),))
    assert lens.rank.tolist() == [[[1, 0]], [[1, 1]]]
    assert lens.top_tokens(2)[0, 0].tolist() == [[1, 2], [0, 1]]
    torch.testing.assert_close(lens.probability[0, 0, 0], logits[0, 0, 0].softmax(-1)[2])
    assert lens.mean(lens.rank).tolist() == [0.5, 1.0]
    p, q = logits[1, 0, 0].softmax(-1), logits[0, 0, 0].softmax(-1)
    torch.testing.assert_close(lens.divergence[0, 0, 0], (p * (p / q).log()).sum())
    assert float(lens.divergence[1].abs().max()) < 1e-6


def test_words_form_in_the_last_layers_of_whisper_base(cache: WhisperCache) -> None:
    lens = logit_lens(cache)
    ranks = lens.mean(lens.rank)
    assert float(ranks[-1]) < 5 < float(ranks[0])
    loss = -lens.mean(lens.log_probability)[-1]
    lengths = cache.token_mask.sum(1).tolist()
    own = [
        -cache["hook_logits"][i, 3 : lengths[i]].log_softmax(-1).gather(1, lens.next_tokens[i, 3 : lengths[i], None])
        for i in range(2)
    ]
    assert float(loss) == pytest.approx(float(torch.cat(own).mean()), abs=1e-4)
    assert lens.mask.sum(1).tolist() == [length - 3 for length in lengths]  # text and end, each predicted once


def test_plot_shows_the_probability_of_each_token_to_come(cache: WhisperCache) -> None:
    lens = logit_lens(cache)
    axes = lens.plot(clip=1).axes[0]
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels[-1] == "(end)"
    assert labels[:-1] == [token.strip() for token in lens.str_tokens[1][4:]]
    torch.testing.assert_close(
        torch.as_tensor(axes.images[0].get_array()), lens.probability[:, 1, 3 : 3 + len(labels)], check_dtype=False
    )


def test_tuned_identity_is_the_plain_lens() -> None:
    model, cache = small_cache()
    plain, tuned = logit_lens(cache), logit_lens(cache, tuned=TunedLens.identity(model))
    torch.testing.assert_close(tuned.logits, plain.logits)
    assert tuned.labels == plain.labels


def test_encoder_lens_is_a_run_whose_later_layers_do_nothing() -> None:
    model = small_model()
    mel, tokens = small_inputs(model.cfg)
    found = encoder_lens(model, mel, tokens, generate=False, progress=False)
    assert found.texts is None
    assert found.labels == ("0_pre", "1_pre", "final_post")

    def nothing(value: torch.Tensor, hook: Any) -> torch.Tensor:
        return torch.zeros_like(value)

    for layer in range(3):
        later = [f"encoder.blocks.{i}.hook_{leaf}" for i in range(layer, 2) for leaf in ("attn_out", "mlp_out")]
        cut = model.run_with_hooks(mel, tokens, fwd_hooks=[(name, nothing) for name in later])
        torch.testing.assert_close(found.lens.logits[layer], cut.detach())


def test_encoder_lens_writes_what_each_layer_lets_the_decoder_hear(shared_whisper_base: HookedWhisper) -> None:
    clip = clips("en", "conf-leaderhasleft")[0]
    found = encoder_lens(shared_whisper_base, clip.path, language="en", max_new_tokens=12, progress=False)
    assert found.texts is not None
    assert [len(texts) for texts in found.texts] == [1] * 7
    assert found.texts[-1][0].strip() == "The leader has left the conference."
    assert "leader" not in found.texts[0][0]
    loss = -found.lens.mean(found.lens.log_probability)
    assert float(loss[-1]) < 0.5 < 2 < float(loss[0])
    assert found.plot().axes[0].images[0].get_array().shape == (7, int(found.lens.mask.sum()))


def test_what_has_no_lens_is_refused(cache: WhisperCache, monkeypatch: pytest.MonkeyPatch) -> None:
    model, small = small_cache()
    with pytest.raises(AnalysisError, match="needs a cache that has its model and its batch dimension"):
        logit_lens(small.apply_slice_to_batch_dim(0))
    with pytest.raises(AnalysisError, match="leave incl_mid out"):
        logit_lens(small, tuned=TunedLens.identity(model), incl_mid=True)
    with pytest.raises(
        AnalysisError, match=r"trained on small \(3 layers, width 16\), and the model is .*whisper-base"
    ):
        logit_lens(cache, tuned=TunedLens.identity(model))
    with pytest.raises(AnalysisError, match="max_new_tokens=0 must be at least 1"):
        encoder_lens(model, *small_inputs(model.cfg), max_new_tokens=0)
    lens = logit_lens(small)
    for clip in (2, -1):
        with pytest.raises(AnalysisError, match=f"There is no clip {clip}: there are 2, counted from 0"):
            lens.plot(clip=clip)
    for k in (0, 10**6):
        with pytest.raises(AnalysisError, match=f"k={k}: expected a whole number from 1 to {lens.logits.shape[-1]}"):
            lens.top_tokens(k)
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'hooked-whisper\[analysis\]'"):
        lens.plot()
