"""Small random Whispers, every weight of them away from its neutral value."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hooked_whisper import HookedWhisper, HookedWhisperConfig, StackConfig

# Both stacks differ in all that may differ, so that taking the one's shape for the other's cannot go unseen.
ENCODER = StackConfig(n_layers=2, n_heads=2, d_model=16, d_mlp=24, n_ctx=10)
DECODER = StackConfig(n_layers=3, n_heads=4, d_model=16, d_mlp=20, n_ctx=96)


def small_config(encoder: StackConfig = ENCODER, decoder: StackConfig = DECODER) -> HookedWhisperConfig:
    return HookedWhisperConfig(encoder=encoder, decoder=decoder, n_mels=6, d_vocab=31, model_name="small")


def small_model(
    cfg: HookedWhisperConfig | None = None, *, dtype: torch.dtype = torch.float64, seed: int = 0
) -> HookedWhisper:
    """A model with random weights: norms, key biases and positions included."""
    model = HookedWhisper(cfg or small_config()).to(dtype).eval()
    randomise(dict(model.named_parameters()), seed)
    return model


@torch.no_grad()
def randomise(parameters: dict[str, Tensor], seed: int = 0) -> None:
    """Fills parameters so that activations keep about unit size."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in parameters.items():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        if parameter.ndim == 1:
            is_gain = name.endswith(".w") or "norm.weight" in name
            parameter.copy_(float(is_gain) + 0.3 * noise)
        elif "W_E" in name or "pos" in name or "embed_tokens" in name:
            parameter.copy_(0.7 * noise)
        else:
            parameter.copy_(1.5 * noise / math.sqrt(parameter[0].numel()))


def small_inputs(
    cfg: HookedWhisperConfig, batch: int = 2, n_pos: int = 5, *, dtype: torch.dtype = torch.float64, seed: int = 1
) -> tuple[Tensor, Tensor]:
    """A spectrogram [batch mel mel_frame] and tokens [batch pos]."""
    generator = torch.Generator().manual_seed(seed)
    mel = torch.randn(batch, cfg.n_mels, cfg.n_mel_frames, generator=generator, dtype=torch.float64).to(dtype)
    return mel, torch.randint(cfg.d_vocab, (batch, n_pos), generator=generator)
