"""The two stacks: the audio encoder (mel to frames) and the text decoder (tokens and frames to logits)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hooked_whisper.components import ActivationPoint, Block, LayerNorm, causal_mask, see
from hooked_whisper.config import HookedWhisperConfig
from hooked_whisper.errors import AudioError, TextError
from hooked_whisper.kv_cache import KeyValueCache
from hooked_whisper.step_kernels import linear_few_rows
from hooked_whisper.weights import DecoderWeights, StackWeights

# Half precision runs out of range in the encoder's residual stream of the large models; transformers
# clips there (modeling_whisper.py), and parity in float16 needs the same bound.
_HALF_LIMIT = torch.finfo(torch.float16).max - 1000


class AudioEncoder(StackWeights, nn.Module):
    """Two convolutions, sinusoidal positions, blocks, final norm."""

    def __init__(self, cfg: HookedWhisperConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.conv1 = nn.Conv1d(cfg.n_mels, cfg.d_model, kernel_size=3, padding=1)
        self.hook_conv1 = ActivationPoint()
        self.conv2 = nn.Conv1d(cfg.d_model, cfg.d_model, kernel_size=3, stride=2, padding=1)
        self.hook_conv2 = ActivationPoint()
        self.W_pos = nn.Parameter(torch.zeros(cfg.n_frames, cfg.d_model))
        self.hook_pos_embed = ActivationPoint()
        self.blocks = nn.ModuleList(Block(cfg, "encoder") for _ in range(cfg.encoder.n_layers))
        self.ln_post = LayerNorm(cfg.d_model, cfg.eps)
        self.hook_out = ActivationPoint()

    def forward(self, mel: Float[Tensor, "batch mel mel_frame"]) -> Float[Tensor, "batch frame d_model"]:
        """Frames of 20 ms from log-mel frames of 10 ms; a window shorter than 30 s is allowed.

        Raises:
            AudioError: the wrong number of mel bins, or more frames than the encoder has positions for.
        """
        if mel.shape[1] != self.cfg.n_mels or mel.shape[2] > self.cfg.n_mel_frames:
            raise AudioError(
                f"The encoder got a mel spectrogram of shape {tuple(mel.shape)}; expected "
                f"[batch, {self.cfg.n_mels}, at most {self.cfg.n_mel_frames}] (mel bins, frames of 10 ms)."
            )
        x = F.gelu(self.conv1(mel))
        x = see(self.hook_conv1, x.transpose(1, 2)).transpose(1, 2)
        x = see(self.hook_conv2, F.gelu(self.conv2(x)).transpose(1, 2))
        pos = self.W_pos[: x.shape[1]]
        if self.hook_pos_embed.live:
            pos = see(self.hook_pos_embed, pos.clone())  # an edit in place must not reach the weights
        # Without `contiguous` the sum keeps the convolution's layout, and every layer after it pays.
        resid = x.contiguous() + pos
        for i, block in enumerate(self.blocks):
            resid = block(resid, layer=i)
            if resid.dtype == torch.float16:
                resid = resid.clamp(-_HALF_LIMIT, _HALF_LIMIT)
        return see(self.hook_out, self.ln_post(resid))


class TextDecoder(DecoderWeights, nn.Module):
    """Token and position embeddings, blocks that also read the encoder, final norm, unembedding."""

    def __init__(self, cfg: HookedWhisperConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.W_E = nn.Parameter(torch.zeros(cfg.d_vocab, cfg.d_model))
        self.W_pos = nn.Parameter(torch.zeros(cfg.n_ctx, cfg.d_model))
        self.hook_embed = ActivationPoint()
        self.hook_pos_embed = ActivationPoint()
        self.blocks = nn.ModuleList(Block(cfg, "decoder") for _ in range(cfg.decoder.n_layers))
        self.ln_final = LayerNorm(cfg.d_model, cfg.eps)
        self.unembed = nn.Linear(cfg.d_model, cfg.d_vocab, bias=False)
        self.unembed.weight = self.W_E  # tied, until weight processing tells them apart
        self.register_load_state_dict_pre_hook(_make_room)

    def untie_(self) -> None:
        """Gives the unembedding memory of its own."""
        if self.unembed.weight is self.W_E:
            self.unembed.weight = nn.Parameter(self.W_E.clone(), requires_grad=self.W_E.requires_grad)

    def add_unembedding_bias_(self) -> None:
        """Gives the unembedding a bias of zeros, unless it has one."""
        if cast("Tensor | None", self.unembed.bias) is None:  # torch types it as always there
            weight = self.unembed.weight
            self.unembed.bias = nn.Parameter(weight.new_zeros(weight.shape[0]), requires_grad=weight.requires_grad)

    def forward(
        self,
        tokens: Int[Tensor, "batch pos"],
        encoder_out: Float[Tensor, "batch frame d_model"],
        *,
        past: KeyValueCache | None = None,
        token_mask: Bool[Tensor, "batch key"] | None = None,
        positions: Int[Tensor, "batch pos"] | None = None,
        last_only: bool = False,
    ) -> Float[Tensor, "batch out_pos vocab"]:
        """Logits of the next token at every position (at the last alone when `last_only`).

        `past` continues from cached positions. `token_mask` [batch key], False at padding on the
        left, and `positions` [batch pos] serve batches of unequal prompts.

        Raises:
            TextError: more positions than the context holds. Tokens are not checked against the vocabulary
                here (on a GPU that would wait for it at every step); `HookedWhisper.forward` does.
        """
        start = past.get_seq_length() if past is not None else 0
        stop = start + tokens.shape[1]
        if stop > self.cfg.n_ctx:
            raise TextError(
                f"{stop} tokens do not fit the decoder's context of {self.cfg.n_ctx} (prompt included). "
                "Shorten the text, or split the audio: one window holds at most 30 s."
            )
        embed = see(self.hook_embed, F.embedding(tokens, self.W_E))
        pos = self.W_pos[start:stop] if positions is None else self.W_pos[positions]
        if self.hook_pos_embed.live:
            pos = see(self.hook_pos_embed, pos.expand_as(embed).clone())
        resid = embed + pos
        mask = _attention_mask(token_mask, tokens.shape[1]) if token_mask is not None else None
        for i, block in enumerate(self.blocks):
            resid = block(resid, encoder_out, mask=mask, past=past, layer=i)
        if past is not None:
            past.advance(tokens.shape[1])
        if last_only:
            resid = resid[:, -1:]
        return linear_few_rows(self.ln_final(resid), self.unembed.weight, self.unembed.bias)


def _make_room(decoder: nn.Module, state: Mapping[str, Tensor], prefix: str, *_: object) -> None:
    """Before weights are loaded: room for what processed ones have and a fresh model has not.

    Into one memory torch would load two different matrices, one over the other.
    """
    decoder = cast("TextDecoder", decoder)
    embedding, unembedding = state.get(f"{prefix}W_E"), state.get(f"{prefix}unembed.weight")
    if embedding is not None and unembedding is not None and not torch.equal(embedding, unembedding):
        decoder.untie_()
    if f"{prefix}unembed.bias" in state:
        decoder.add_unembedding_bias_()


def _attention_mask(token_mask: Bool[Tensor, "batch key"], n_pos: int) -> Bool[Tensor, "batch 1 pos key"]:
    """Causal, and blind to padding; a padding query sees itself, so that its softmax is defined."""
    n_key = token_mask.shape[1]
    causal = causal_mask(n_pos, n_key, token_mask.device)
    itself = torch.zeros_like(causal).diagonal_scatter(causal.new_ones(n_pos), n_key - n_pos)
    return ((causal & token_mask[:, None, :]) | itself)[:, None]
