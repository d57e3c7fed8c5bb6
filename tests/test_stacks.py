"""Both stacks are Whisper's: transformers' numbers at every layer, over random small configurations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference import Reference
from small import DECODER, ENCODER, randomise, small_config, small_inputs, small_model
from torch import Tensor
from transformers import WhisperForConditionalGeneration

from hooked_whisper import AudioError, HookedWhisper, HookedWhisperConfig, StackConfig, TextError
from hooked_whisper.conversion import config_to_transformers, convert_transformers_state_dict

LENGTHS = (1, 2, 3, 7, 64, 448)
TOLERANCE = 1e-5  # of the largest activation, float32


def from_transformers(theirs: WhisperForConditionalGeneration, cfg: HookedWhisperConfig) -> HookedWhisper:
    model = HookedWhisper(cfg)
    state = convert_transformers_state_dict(theirs.state_dict(), cfg)
    del state["decoder.unembed.bias"]
    model.load_state_dict(state)
    return model.eval()


def pair(
    cfg: HookedWhisperConfig, seed: int, attention: str = "sdpa"
) -> tuple[WhisperForConditionalGeneration, HookedWhisper]:
    """One random Whisper, as transformers' and as ours."""
    config = config_to_transformers(cfg)
    theirs = WhisperForConditionalGeneration._from_config(config, attn_implementation=attention).eval()
    randomise(dict(theirs.named_parameters()), seed)
    return theirs, from_transformers(theirs, cfg)


def assert_same(ours: Tensor, theirs: Tensor, what: str) -> None:
    assert ours.shape == theirs.shape, what
    error = (ours - theirs).abs().max() / theirs.abs().max()
    assert error <= TOLERANCE, f"{what}: {error:.2e} of the largest activation"


@torch.no_grad()
def assert_parity(cfg: HookedWhisperConfig, seed: int, batch: int, n_pos: int, attention: str = "sdpa") -> None:
    """Every layer's residual, the encoder's output and the logits."""
    theirs, ours = pair(cfg, seed, attention)
    mel, tokens = small_inputs(cfg, batch, n_pos, dtype=torch.float32, seed=seed)
    expected = theirs(input_features=mel, decoder_input_ids=tokens, output_hidden_states=True)
    kept: dict[str, Tensor] = {}

    def keep(x: Tensor, hook: Any) -> None:
        kept[hook.name] = x.clone()

    logits = ours.run_with_hooks(
        mel, tokens, fwd_hooks=[("*", keep)] if attention == "eager" else [("*.hook_resid_*", keep)]
    )
    assert_same(logits, expected.logits, "logits")
    assert torch.equal(ours(mel, tokens), logits) or attention == "eager"
    assert_same(ours.encode_mel(mel), expected.encoder_last_hidden_state, "encoder output")
    for stack, states in (("encoder", expected.encoder_hidden_states), ("decoder", expected.decoder_hidden_states)):
        n_layers = cfg.stack(stack).n_layers
        assert len(states) == n_layers + 1
        for layer in range(n_layers):
            assert_same(kept[f"{stack}.blocks.{layer}.hook_resid_pre"], states[layer], f"{stack} before layer {layer}")
        # The last state that transformers lists has been through the final norm.
        norm = ours.encoder.ln_post if stack == "encoder" else ours.decoder.ln_final
        assert_same(norm(kept[f"{stack}.blocks.{n_layers - 1}.hook_resid_post"]), states[-1], f"{stack}, final norm")


def shapes_of_a_stack(n_ctx: st.SearchStrategy[int]) -> st.SearchStrategy[dict[str, int]]:
    layers, heads, d_mlp = st.integers(1, 3), st.sampled_from([1, 2, 4]), st.integers(5, 40)
    return st.fixed_dictionaries({"n_layers": layers, "n_heads": heads, "d_mlp": d_mlp, "n_ctx": n_ctx})


# The decoder's context and the sizes of the vocabulary are those of released Whispers (.en, multilingual, large-v3).
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    d_model=st.sampled_from([8, 16]),
    encoder=shapes_of_a_stack(st.integers(2, 20)),
    decoder=shapes_of_a_stack(st.just(448)),
    n_mels=st.sampled_from([80, 128]),
    d_vocab=st.sampled_from([51864, 51865, 51866]),
    seed=st.integers(0, 999),
    batch=st.integers(1, 3),
    n_pos=st.sampled_from(LENGTHS[:-2]),
    attention=st.sampled_from(["sdpa", "eager"]),
)
def test_parity_with_transformers(
    d_model: int,
    encoder: dict[str, int],
    decoder: dict[str, int],
    n_mels: int,
    d_vocab: int,
    seed: int,
    batch: int,
    n_pos: int,
    attention: str,
) -> None:
    stacks = (StackConfig(d_model=d_model, **sizes) for sizes in (encoder, decoder))
    assert_parity(HookedWhisperConfig(*stacks, n_mels=n_mels, d_vocab=d_vocab), seed, batch, n_pos, attention)


@pytest.mark.parametrize("n_pos", LENGTHS)
@pytest.mark.parametrize(("n_encoder", "n_decoder", "n_mels"), [(3, 1, 80), (1, 3, 128)])
def test_parity_with_transformers_at_every_length(n_encoder: int, n_decoder: int, n_mels: int, n_pos: int) -> None:
    encoder = StackConfig(n_layers=n_encoder, n_heads=2, d_model=16, d_mlp=40, n_ctx=12)
    decoder = StackConfig(n_layers=n_decoder, n_heads=4, d_model=16, d_mlp=24, n_ctx=448)
    cfg = HookedWhisperConfig(encoder, decoder, n_mels=n_mels, d_vocab=300)
    assert_parity(cfg, seed=n_pos, batch=2, n_pos=n_pos)


def test_parity_with_transformers_over_a_whole_window() -> None:
    """1500 frames: as many as there are in 30 s."""
    encoder = StackConfig(n_layers=2, n_heads=2, d_model=16, d_mlp=32, n_ctx=1500)
    decoder = StackConfig(n_layers=1, n_heads=1, d_model=16, d_mlp=32, n_ctx=448)
    assert_parity(HookedWhisperConfig(encoder, decoder, n_mels=80, d_vocab=51865), seed=3, batch=1, n_pos=7)


def test_every_activation_of_unequal_stacks_is_the_references() -> None:
    model = small_model()
    kept, hooks, _ = model.get_caching_hooks(model.hook_names())
    with torch.no_grad():
        logits = model.run_with_hooks(*small_inputs(model.cfg), fwd_hooks=hooks)
        slow = Reference(model.state_dict(), model.cfg)
        torch.testing.assert_close(logits, slow(*small_inputs(model.cfg)), rtol=0, atol=1e-9)
    assert {name.split(".")[2] for name in kept if name.startswith("decoder.blocks.")} == {"0", "1", "2"}
    assert {name.split(".")[2] for name in kept if name.startswith("encoder.blocks.")} == {"0", "1"}
    for name, x in kept.items():
        torch.testing.assert_close(x, slow.seen[name][-1], rtol=0, atol=1e-9)


# The encoder


@pytest.mark.parametrize("n_mel_frames", [1, 2, 3, 7, 19])
@torch.no_grad()
def test_a_window_shorter_than_30_s_gets_the_first_positions(n_mel_frames: int) -> None:
    model = small_model()
    mel, tokens = small_inputs(model.cfg)
    short = mel[:, :, :n_mel_frames]
    frames = model.encode_mel(short)
    assert frames.shape == (2, (n_mel_frames + 1) // 2, model.cfg.d_model)
    slow = Reference(model.state_dict(), model.cfg)
    torch.testing.assert_close(model(short, tokens), slow(short, tokens), rtol=0, atol=1e-9)


@pytest.mark.parametrize("shape", [(1, 5, 20), (1, 7, 20), (2, 6, 21)])
def test_a_spectrogram_of_the_wrong_shape_is_refused(shape: tuple[int, ...]) -> None:
    model = small_model()
    with pytest.raises(AudioError, match=rf"shape \({shape[0]}, {shape[1]}, {shape[2]}\).*batch, 6, at most 20"):
        model.encode_mel(torch.zeros(shape, dtype=torch.float64))


def test_half_precision_is_clipped_between_the_encoders_layers() -> None:
    """Whisper large overflows float16 there; transformers clips, and so do we."""
    model = small_model().half()
    mel = small_inputs(model.cfg, dtype=torch.float16)[0]
    seen: dict[str, Tensor] = {}

    def keep(x: Tensor, hook: Any) -> None:
        seen[hook.name] = x

    def overflow(x: Tensor, hook: Any) -> Tensor:
        return torch.full_like(x, torch.inf)

    hooks = [("encoder.blocks.0.hook_resid_post", overflow), ("encoder.blocks.1.hook_resid_pre", keep)]
    with torch.no_grad(), model.hooks(fwd_hooks=hooks):
        model.encode_mel(mel)
    assert torch.equal(seen["encoder.blocks.1.hook_resid_pre"], torch.full((2, 10, 16), 64504.0, dtype=torch.float16))


# The decoder


@torch.no_grad()
def test_the_decoder_sees_no_later_token() -> None:
    model = small_model()
    mel, tokens = small_inputs(model.cfg, n_pos=9)
    whole = model(mel, tokens)
    changed = tokens.clone()
    changed[:, 6:] = (changed[:, 6:] + 1) % model.cfg.d_vocab
    torch.testing.assert_close(model(mel, changed)[:, :6], whole[:, :6], rtol=0, atol=1e-12)
    assert not torch.allclose(model(mel, changed)[:, 6:], whole[:, 6:], atol=1e-3)


@torch.no_grad()
def test_last_only_is_the_last_position() -> None:
    model = small_model()
    mel, tokens = small_inputs(model.cfg)
    frames = model.encode_mel(mel)
    last = model.decode(tokens, frames, last_only=True)
    assert last.shape == (2, 1, model.cfg.d_vocab)
    torch.testing.assert_close(last, model.decode(tokens, frames)[:, -1:], rtol=0, atol=1e-12)


@torch.no_grad()
def test_padding_on_the_left_changes_nothing() -> None:
    model = small_model()
    mel, tokens = small_inputs(model.cfg, batch=3, n_pos=6)
    frames = model.encode_mel(mel)
    mask = torch.tensor([[True] * 6, [False] * 2 + [True] * 4, [False] * 5 + [True]])
    positions = (mask.long().cumsum(-1) - 1).clamp(min=0)
    for openly in ([], [("decoder.blocks.*.attn.hook_pattern", lambda x, hook: x)]):
        with model.hooks(fwd_hooks=openly):
            padded = model.decode(tokens, frames, token_mask=mask, positions=positions)
        assert padded.isfinite().all()
        for row in range(3):
            real = mask[row]
            alone = model.decode(tokens[row : row + 1, real], frames[row : row + 1])
            torch.testing.assert_close(padded[row, real], alone[0], rtol=0, atol=1e-10)


def test_more_tokens_than_the_context_holds_are_refused() -> None:
    model = small_model()
    mel, tokens = small_inputs(model.cfg, n_pos=97)
    with pytest.raises(TextError, match="97 tokens do not fit the decoder's context of 96"):
        model.decode(tokens, model.encode_mel(mel))


def test_the_unembedding_is_tied_to_the_embedding() -> None:
    model = small_model()
    assert model.decoder.unembed.weight is model.decoder.W_E
    assert model.decoder.unembed.bias is None
    model.half().float()
    assert model.decoder.unembed.weight is model.decoder.W_E


def test_stacks_have_the_layers_of_their_own_configuration() -> None:
    model = HookedWhisper(small_config())
    assert (len(model.encoder.blocks), len(model.decoder.blocks)) == (ENCODER.n_layers, DECODER.n_layers) == (2, 3)
