"""Steering: every way of editing equals a computation by hand, in one pass and step by step; and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from sae_files import SAE_VARIANTS, by_hand, random_sae
from short_windows import exact_sae, short_windows, tiny_whisper
from small import small_inputs, small_model
from torch import Tensor

from hooked_whisper import AnalysisError, HookedWhisper
from hooked_whisper.analysis.activity import Activity
from hooked_whisper.analysis.edits import Ablate, Add, AddVector, ClipSpans, Scale, Span, Swap, WhereActive, Zero
from hooked_whisper.analysis.steering import Steerer, Steering, steer, steering_hooks
from hooked_whisper.saes.baselines import Basis
from hooked_whisper.speech import clips

OUT, RESID = "encoder.hook_out", "decoder.blocks.1.hook_resid_post"
WITH_FORMULA = [variant for variant in SAE_VARIANTS if variant not in ("matching_pursuit", "temporal")]


def plus(latent: int, amount: float) -> Callable[[Tensor], Tensor]:
    def change(acts: Tensor) -> Tensor:
        acts = acts.clone()
        acts[..., latent] += amount
        return acts

    return change


@pytest.mark.parametrize("variant", WITH_FORMULA)
def test_both_ways_by_hand(variant: str) -> None:
    model, sae = small_model(), random_sae(variant)
    x = torch.randn(2, 10, 16, dtype=torch.float64)
    edit = Add(7, alpha=2, magnitude=1.5)
    clean, edited = by_hand(sae, x), by_hand(sae, x, plus(7, 3))
    kept = Steerer(model, Steering([edit], sae=sae))(x)
    assert torch.allclose(kept, x + edited - clean) and not torch.allclose(kept, x)
    dropped = Steerer(model, Steering([edit], sae=sae, error_term="dropped"))(x)
    assert torch.allclose(dropped, edited)
    assert torch.allclose(Steerer(model, Steering(sae=sae, error_term="dropped"))(x), clean)  # the control


def test_strength_goes_on_along_the_line() -> None:
    model, sae = small_model(), random_sae()
    x = torch.randn(2, 10, 16, dtype=torch.float64)
    fires = sae.encode(x)[..., 3] > 0
    assert 0 < int(fires.sum()) < fires.numel()

    def swapped(acts: Tensor) -> Tensor:  # at 3: three times its activation off, three times the magnitude on
        acts = acts.clone()
        on = acts[..., 3] > 0
        acts[..., 3] -= 3 * acts[..., 3]
        acts[..., 8] += 3 * 2.5 * on
        return acts

    found = Steerer(model, Steering([Swap(3, 8, magnitude=2.5)], sae=sae, strength=3))(x)
    assert torch.allclose(found, x + by_hand(sae, x, swapped) - by_hand(sae, x))
    assert torch.equal(found[~fires], x[~fires])  # to the last bit, where the edit does nothing
    none = Steerer(model, Steering([Swap(3, 8, magnitude=2.5), Ablate(4)], sae=sae, strength=0))(x)
    assert torch.equal(none, x)


def test_edits_follow_each_other_and_where_looks_at_none_of_them() -> None:
    model, sae = small_model(), random_sae()
    x = torch.randn(1, 10, 16, dtype=torch.float64)
    on = sae.encode(x)[..., 5:6] > 0

    def change(acts: Tensor) -> Tensor:
        acts = acts.clone()
        acts[..., 5] = 0
        acts[..., 2] += 1.0 * on[..., 0]
        acts[..., 2] *= 3
        return acts

    edits = [Zero(5), Add(2, magnitude=1, where=WhereActive(5)), Scale(2, 3)]
    found = Steerer(model, Steering(edits, sae=sae, error_term="dropped"))(x)
    assert torch.allclose(found, by_hand(sae, x, change))


def test_vectors_need_no_sae_and_come_after_it() -> None:
    model, sae = small_model(), random_sae()
    x, vector = torch.randn(2, 10, 16, dtype=torch.float64), torch.randn(16, dtype=torch.float64).float()
    plain = Steerer(model, Steering([AddVector(vector, 2, at=OUT)], strength=0.5))(x)
    assert torch.allclose(plain, x + vector)
    gated = Steerer(
        model, Steering([AddVector(vector, where=WhereActive(3)), Zero(3)], sae=sae, error_term="dropped", hook=OUT)
    )(x)
    fires = (sae.encode(x)[..., 3:4] > 0).double()
    assert torch.allclose(gated, by_hand(sae, x, lambda acts: acts * (torch.arange(32) != 3)) + fires * vector)


def test_a_basis_steers_too() -> None:
    model = small_model()
    basis = Basis(torch.eye(16), torch.zeros(16), k=16, kind="neurons")
    x = torch.randn(1, 10, 16, dtype=torch.float64)
    found = Steerer(model, Steering([Zero(4)], sae=basis, hook=OUT))(x)
    expected = x.clone()
    expected[..., 4] = 0
    assert torch.allclose(found, expected, atol=1e-6)


def test_padding_and_spans_leave_the_rest_alone() -> None:
    model, sae = small_model(), random_sae()
    x = torch.randn(2, 10, 16, dtype=torch.float64)
    audio = torch.arange(10) < torch.tensor([[6], [10]])
    spliced = Steerer(model, Steering(sae=sae, error_term="dropped"))(x, audio)
    assert torch.equal(spliced[0, 6:], x[0, 6:]) and torch.allclose(spliced[audio], by_hand(sae, x)[audio])
    everywhere = Steerer(model, Steering(sae=sae, error_term="dropped", padding=True))(x, audio)
    assert torch.allclose(everywhere, by_hand(sae, x))
    edit = Add(7, magnitude=3, where=Span(0.04, 0.1))
    moved = (Steerer(model, Steering([edit], sae=sae))(x, audio) != x).any(-1)
    assert moved.sum(0).tolist() == [0, 0, 2, 2, 2, 0, 0, 0, 0, 0]
    edit = Add(7, magnitude=3, where=ClipSpans((((0.0, 0.02),), ((0.1, 0.2),))))
    moved = (Steerer(model, Steering([edit], sae=sae))(x, audio) != x).any(-1)
    assert moved.nonzero().tolist() == [[0, 0], *([1, at] for at in range(5, 10))]
    with pytest.raises(AnalysisError, match=r"ends after clip 0, which has 0\.12 s of audio"):
        Steerer(model, Steering([Zero(1, where=Span(0.1, 0.2))], sae=sae))(x, audio)
    with pytest.raises(AnalysisError, match=r"The mask of frames is \[1, 10\] and encoder.hook_out holds"):
        Steerer(model, Steering([Zero(1)], sae=sae))(x, audio[:1])


def test_frames_of_10_ms_have_seconds_of_their_own() -> None:
    model, hook = small_model(), "encoder.hook_conv1"
    x = torch.randn(1, 20, 16, dtype=torch.float64)
    edit = AddVector(torch.ones(16), where=Span(0.04, 0.1), at=hook)
    moved = (Steerer(model, Steering([edit]))(x, torch.ones(1, 10, dtype=torch.bool)) != x).any(-1)
    assert moved[0].nonzero()[:, 0].tolist() == list(range(4, 10))


def test_a_pass_under_steering_is_a_pass_with_the_edit() -> None:
    model, sae = small_model(), random_sae()
    mel, tokens = small_inputs(model.cfg)
    how = Steering([Add(7, magnitude=3)], sae=sae)
    x = model.encode_mel(mel)
    expected = model.decode(tokens, x + by_hand(sae, x, plus(7, 3)) - by_hand(sae, x))
    with steer(model, how) as steered:
        assert torch.allclose(steered(mel, tokens), expected)
    assert torch.allclose(model.run_with_hooks(mel, tokens, fwd_hooks=steering_hooks(model, how)), expected)
    _, cache = model.run_with_cache(mel, tokens, fwd_hooks=steering_hooks(model, how))
    assert torch.allclose(cache[OUT], x + by_hand(sae, x, plus(7, 3)) - by_hand(sae, x))  # what flows on
    assert torch.equal(model(mel, tokens), model.decode(tokens, x))  # and nothing stays
    half = torch.arange(10).expand(2, 10) < 5
    masked = model.run_with_hooks(mel, tokens, fwd_hooks=steering_hooks(model, how, frame_mask=half), stop_at=OUT)
    assert torch.equal(masked[:, 5:], x[:, 5:]) and not torch.allclose(masked[:, :5], x[:, :5])


def test_both_stacks_at_once_and_gradients() -> None:
    model = small_model()
    mel, tokens = small_inputs(model.cfg)
    sae, late = random_sae(), random_sae(hook=RESID, seed=1)
    first, second = Steering([Add(7, magnitude=3)], sae=sae), Steering([Add(2, magnitude=5)], sae=late)
    with steer(model, first, second):
        both = model(mel, tokens)
        both.sum().backward()
    assert model.encoder.conv1.weight.grad is not None and bool(model.encoder.conv1.weight.grad.any())
    with steer(model, first):
        alone = model(mel, tokens)
    assert not torch.allclose(both, alone)
    seen = model.run_with_hooks(mel, tokens, fwd_hooks=steering_hooks(model, first), stop_at=RESID)
    codes = late.encode(seen)
    codes[..., 2] += 5
    wanted = seen + late.decode(codes) - late.decode(late.encode(seen))
    got = model.run_with_hooks(mel, tokens, fwd_hooks=steering_hooks(model, first, second), stop_at=RESID)
    assert torch.allclose(got, wanted)


def test_generation_under_the_cache_is_the_pass_over_its_text(whisper_base: HookedWhisper) -> None:
    model = tiny_whisper(whisper_base)
    sae: Any = random_sae("topk", "decoder.blocks.0.hook_resid_post", 32, 64, dtype="float32")
    clip = clips("en")[0].load()[: 2 * 16_000]
    how = Steering([Add(5, alpha=3, magnitude=20)], sae=sae)
    plain = model.generate(clip, language="en", return_dict_in_generate=False)
    with steer(model, how):
        tokens = model.generate(clip, language="en")
        logits = model(clip, tokens, language="en")[0]  # one pass over all that was written
    assert tokens.tolist() != plain.tolist()
    config, written = model.generation_config, tokens[0].tolist()
    before = logits.shape[0] - len(written) - 1
    for at, token in enumerate(written):
        banned = [*config.suppress_tokens, *(config.begin_suppress_tokens if at == 0 else [])]
        scores = logits[before + at].index_fill(0, torch.tensor(banned), -math.inf)
        scores[model.tokenizer.timestamp_begin - 1 :] = -math.inf  # no timestamps were asked for
        assert int(scores.argmax()) == token or at >= config.max_length - 5


def test_real_speech_is_steered_where_it_is_speech(whisper_base: HookedWhisper) -> None:
    model = short_windows(whisper_base, 5)
    clip = next(clip for clip in clips("en") if clip.seconds < 4)
    samples = clip.load()
    sae: Any = exact_sae(k=512)
    x = model.encode(samples)
    n_audio = -(-len(samples) // 320)
    said: Any = model.transcribe(samples, language="en")
    with steer(model, Steering(sae=sae, error_term="dropped")):  # an SAE that misses nothing
        assert model.transcribe(samples, language="en") == said
    with steer(model, Steering([Zero(latent) for latent in range(1024)], sae=sae)):
        hushed = model.encode(samples)
        assert model.transcribe(samples, language="en") != said
    assert torch.allclose(hushed[0, :n_audio], torch.zeros(()), atol=1e-4)
    assert torch.equal(hushed[0, n_audio:], x[0, n_audio:])  # padding was recognised
    with (
        steer(model, Steering([Zero(1, where=Span(0, 9))], sae=sae)),
        pytest.raises(AnalysisError, match="The span 0 to 9 s ends after clip 0"),
    ):
        model.transcribe(samples, language="en")
    with (
        steer(model, Steering([Zero(1, where=Span(0, 1))], sae=sae)),
        pytest.raises(AnalysisError, match="a clip over 30 s is read in windows"),
    ):
        model.transcribe(torch.cat([samples, samples, samples]), language="en")
    assert not any(point.live for point in model.hook_dict.values())


def tiny(about: dict[str, Any] | None = None, variant: str = "standard", hook: str | None = OUT, d_in: int = 16) -> Any:
    return random_sae(variant, hook, d_in, about=about)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Steering([Zero(32)], sae=tiny()), "there is no latent 32"),
        (lambda: Steering([Zero(3)]), "is about a latent: pass the SAE that has it"),
        (lambda: Steering(), "Nothing to do: pass edits="),
        (lambda: Steering(sae=tiny()), "without edits, and with the error kept, nothing changes"),
        (lambda: Steering(Zero(3), sae=tiny()), "edits are a list of edits"),
        (lambda: Steering([Zero(3)], sae=tiny(), strength=math.nan), "strength=nan: expected a finite number"),
        (lambda: Steering([Zero(3)], sae=tiny(), error_term="lost"), "Unknown error_term 'lost'"),
        (lambda: Steering([AddVector(torch.ones(16))], error_term="dropped"), "pass sae="),
        (lambda: Steering([AddVector(torch.ones(16))]), "No hook is known, or several: pass hook="),
        (lambda: Steering([AddVector(torch.ones(9), at=OUT)]), "has 9 entries, and encoder.hook_out holds rows of 16"),
        (lambda: Steering([Add(3)], sae=tiny()), "no typical magnitude of latent 3 is known"),
        (
            lambda: Steering([Zero(3)], sae=tiny(), hook="encoder.blocks.0.hook_resid_post"),
            "was trained at",
        ),
        (
            lambda: Steering([Zero(3)], sae=tiny({"model_name": "openai/whisper-tiny"})),
            "on openai/whisper-tiny",
        ),
        (lambda: Steering([Zero(3)], sae=tiny(variant="temporal")), "it cannot steer"),
        (
            lambda: Steering([Zero(3)], sae=tiny({"hook_name_out": "encoder.blocks.1.hook_mlp_out"}, "transcoder")),
            "A transcoder writes another hook than it reads",
        ),
        (lambda: Steering([Zero(3)], sae=tiny(hook="encoder.blocks.0.attn.hook_z")), "steering needs"),
        (lambda: Steering([Zero(1, where=Span(0, 1))], sae=tiny(hook=RESID)), "runs over tokens, not seconds"),
        (lambda: Steering([Zero(1)], sae=Basis(torch.eye(16), torch.zeros(16), k=4, kind="pca")), "pass hook="),
        (lambda: Steering([Zero(1)], sae=Basis(torch.eye(8), torch.zeros(8), k=4, kind="pca"), hook=OUT), "rows of 8"),
    ],
)
def test_what_cannot_be_steered(make: Callable[[], Steering], message: str) -> None:
    with pytest.raises(AnalysisError, match=message):
        Steerer(small_model(), make())


def test_what_cannot_be_steered_together() -> None:
    model, sae = small_model(), tiny()
    with pytest.raises(AnalysisError, match="'encoder.hook_out' is steered twice"):
        steering_hooks(model, Steering([Zero(1)], sae=sae), Steering([Zero(2)], sae=sae))
    with pytest.raises(AnalysisError, match="Expected one Steering or more"), steer(model):
        pass
    with model.saes(sae), pytest.raises(AnalysisError, match="An SAE is attached at 'encoder.hook_out' already"):
        steering_hooks(model, Steering([Zero(1)], sae=tiny()))
    silent = Activity(torch.zeros(32), torch.full((32,), math.nan), 50)
    with pytest.raises(AnalysisError, match="Latent 4 fired in none of 50 rows"):
        steering_hooks(model, Steering([Add(4)], sae=sae, activity=silent))
