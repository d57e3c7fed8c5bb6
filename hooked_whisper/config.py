"""The shape of a Whisper: two stacks that share one width, and the options of the hooks."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch

from hooked_whisper.errors import ConfigError


@dataclass(frozen=True)
class StackConfig:
    """Shape of one stack (encoder or decoder), in TransformerLens's names.

    `n_ctx` counts positions: frames of 20 ms in the encoder (1500 in 30 s), tokens in the decoder.
    """

    n_layers: int
    n_heads: int
    d_model: int
    d_mlp: int
    n_ctx: int

    def __post_init__(self) -> None:
        for name in ("n_layers", "n_heads", "d_model", "d_mlp", "n_ctx"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} must be a positive whole number, got {value!r}.")
        if self.d_model % self.n_heads:
            raise ConfigError(
                f"d_model={self.d_model} cannot be split over n_heads={self.n_heads}: "
                "choose a number of heads that divides it."
            )

    @property
    def d_head(self) -> int:
        """Width of one head."""
        return self.d_model // self.n_heads


@dataclass
class HookedWhisperConfig:
    """Architecture of a Whisper, and which optional hooks it computes.

    Args:
        encoder, decoder: shapes of the two stacks; both have the same `d_model`, all else may differ.
        n_mels: mel bins of the input, 80 (up to large-v2) or 128 (large-v3, turbo).
        d_vocab: size of the vocabulary.
        model_name: what the checkpoint calls itself, such as "openai/whisper-base".
        eps: epsilon of every layer norm.
        alignment_heads: (decoder layer, head) of the cross-attention heads that follow the audio,
            where the checkpoint publishes them; word timestamps need them.
        use_attn_result, use_split_qkv_input, use_attn_in, use_hook_mlp_in: as in TransformerLens;
            set them through `model.set_use_...`.
        processing: the steps of weight processing that the weights have gone through; `process_weights_` sets it.

    Raises:
        ConfigError: shapes that contradict each other.
    """

    encoder: StackConfig
    decoder: StackConfig
    n_mels: int
    d_vocab: int
    model_name: str = "whisper"
    eps: float = 1e-5
    alignment_heads: list[tuple[int, int]] = field(default_factory=list)
    use_attn_result: bool = False
    use_split_qkv_input: bool = False
    use_attn_in: bool = False
    use_hook_mlp_in: bool = False
    processing: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if self.encoder.d_model != self.decoder.d_model:
            raise ConfigError(
                f"Encoder and decoder must have one width, got d_model={self.encoder.d_model} "
                f"and {self.decoder.d_model}: cross-attention reads one from the other."
            )
        for name in ("n_mels", "d_vocab"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be positive, got {getattr(self, name)!r}.")

    @property
    def d_model(self) -> int:
        """Width of the residual stream of both stacks."""
        return self.encoder.d_model

    @property
    def n_frames(self) -> int:
        """Encoder positions of a full window (1500: 30 s at 20 ms)."""
        return self.encoder.n_ctx

    @property
    def n_mel_frames(self) -> int:
        """Mel frames of a full window (3000: 30 s at 10 ms); conv2 halves them."""
        return 2 * self.encoder.n_ctx

    @property
    def n_ctx(self) -> int:
        """Decoder positions at most (448)."""
        return self.decoder.n_ctx

    def stack(self, name: str) -> StackConfig:
        """The stack called `name`, "encoder" or "decoder"."""
        return {"encoder": self.encoder, "decoder": self.decoder}[name]

    def with_options(self, **options: Any) -> HookedWhisperConfig:
        """A copy with some fields replaced."""
        return replace(self, **options)


def resolve_device(device: str | torch.device | None) -> torch.device:
    """The device asked for, or the fastest present (CUDA, then MPS, then CPU) when None.

    Raises:
        ConfigError: a device that this machine, or this build of torch, does not have.
    """
    if device is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"Unknown device {device!r}: expected 'cpu', 'cuda', 'cuda:1' or 'mps'.") from error
    here = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if resolved.type not in here:
        raise ConfigError(f"Device {str(resolved)!r} is of a kind unknown here: expected 'cpu', 'cuda' or 'mps'.")
    if not here[resolved.type]:
        raise ConfigError(
            f"Device {str(resolved)!r} is not available on this machine (torch {torch.__version__}). "
            "Leave device out to take the best one there is, or use 'cpu'."
        )
    if resolved.type == "cuda" and resolved.index is not None and resolved.index >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ConfigError(f"Device {str(resolved)!r} does not exist: this machine has {count} CUDA devices.")
    return resolved


DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
}


def resolve_dtype(dtype: str | torch.dtype | None) -> torch.dtype:
    """The dtype asked for by name ("float16") or object; float32 when None.

    Raises:
        ConfigError: anything that is not a floating dtype the model runs in.
    """
    if dtype is None:
        return torch.float32
    resolved = DTYPES.get(dtype.removeprefix("torch.")) if isinstance(dtype, str) else dtype
    if resolved is None or resolved not in DTYPES.values():
        raise ConfigError(f"Unknown dtype {dtype!r}: expected one of {', '.join(DTYPES)}.")
    return resolved
