"""Weights under TransformerLens's names and in its shapes, stacked over the layers of a stack.

    model.encoder.W_Q                  # [layer head d_model d_head]
    model.decoder.cross.OV             # FactoredMatrix, [layer head d_model d_model]
    model.decoder.blocks[2].attn.W_Q   # [head d_model d_head]
    model.W_U                          # [d_model vocab]

What belongs to one layer (and `W_E`, `W_pos`, `W_U`) is a view of the weights: writing into it changes the
model. What is stacked over layers is a copy, as in TransformerLens: gradients flow through it, but writing into
it changes nothing. A read costs the copy, so take it out of loops.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens import FactoredMatrix

from hooked_whisper.components import MLP, Attention, Block

if TYPE_CHECKING:
    from hooked_whisper.stacks import AudioEncoder, TextDecoder


class AttentionWeights:
    """The weights of one kind of attention in every layer of a stack, stacked: copies."""

    def _attentions(self) -> list[Attention]:
        raise NotImplementedError

    @property
    def W_Q(self) -> Float[Tensor, "layer head d_model d_head"]:
        """Query weights of all layers."""
        return torch.stack([attn.W_Q for attn in self._attentions()])

    @property
    def W_K(self) -> Float[Tensor, "layer head d_model d_head"]:
        """Key weights of all layers; in cross-attention they read the encoder's output."""
        return torch.stack([attn.W_K for attn in self._attentions()])

    @property
    def W_V(self) -> Float[Tensor, "layer head d_model d_head"]:
        """Value weights of all layers; in cross-attention they read the encoder's output."""
        return torch.stack([attn.W_V for attn in self._attentions()])

    @property
    def W_O(self) -> Float[Tensor, "layer head d_head d_model"]:
        """Output weights of all layers."""
        return torch.stack([attn.W_O for attn in self._attentions()])

    @property
    def b_Q(self) -> Float[Tensor, "layer head d_head"]:
        """Query biases of all layers."""
        return torch.stack([attn.b_Q for attn in self._attentions()])

    @property
    def b_K(self) -> Float[Tensor, "layer head d_head"]:
        """Key biases of all layers: zero in every released Whisper, until `fold_ln`."""
        return torch.stack([attn.b_K for attn in self._attentions()])

    @property
    def b_V(self) -> Float[Tensor, "layer head d_head"]:
        """Value biases of all layers: zero after `fold_value_biases`."""
        return torch.stack([attn.b_V for attn in self._attentions()])

    @property
    def b_O(self) -> Float[Tensor, "layer d_model"]:
        """Output biases of all layers."""
        return torch.stack([attn.b_O for attn in self._attentions()])

    @property
    def QK(self) -> FactoredMatrix:
        """W_Q W_K^T of all layers, factored, [layer head d_model d_model]: query side first."""
        return FactoredMatrix(self.W_Q, self.W_K.transpose(-2, -1))

    @property
    def OV(self) -> FactoredMatrix:
        """W_V W_O of all layers, factored, [layer head d_model d_model]: source side first."""
        return FactoredMatrix(self.W_V, self.W_O)


class CrossAttentionWeights(AttentionWeights):
    """The decoder's cross-attention weights, stacked over its layers: what `model.decoder.cross` is."""

    def __init__(self, attentions: list[Attention]) -> None:
        self._all = attentions

    def _attentions(self) -> list[Attention]:
        return self._all

    def __repr__(self) -> str:
        return f"CrossAttentionWeights(n_layers={len(self._all)})"


class StackWeights(AttentionWeights):
    """Weights of a stack's self-attention and MLPs, stacked over its layers: copies."""

    blocks: nn.ModuleList

    def _layers(self) -> list[Block]:
        return [cast(Block, block) for block in self.blocks]

    def _attentions(self) -> list[Attention]:
        return [block.attn for block in self._layers()]

    def _mlps(self) -> list[MLP]:
        return [block.mlp for block in self._layers()]

    @property
    def W_in(self) -> Float[Tensor, "layer d_model d_mlp"]:
        """Input weights of all MLPs."""
        return torch.stack([mlp.W_in for mlp in self._mlps()])

    @property
    def W_out(self) -> Float[Tensor, "layer d_mlp d_model"]:
        """Output weights of all MLPs."""
        return torch.stack([mlp.W_out for mlp in self._mlps()])

    @property
    def b_in(self) -> Float[Tensor, "layer d_mlp"]:
        """Input biases of all MLPs."""
        return torch.stack([mlp.b_in for mlp in self._mlps()])

    @property
    def b_out(self) -> Float[Tensor, "layer d_model"]:
        """Output biases of all MLPs."""
        return torch.stack([mlp.b_out for mlp in self._mlps()])


class DecoderWeights(StackWeights):
    """A stack whose layers also have cross-attention, and which ends in logits."""

    unembed: nn.Linear

    @property
    def cross(self) -> CrossAttentionWeights:
        """Cross-attention's weights: `W_Q` reads tokens, `W_K` and `W_V` read the encoder's output."""
        return CrossAttentionWeights([block.cross_attn for block in self._layers()])

    @property
    def W_U(self) -> Float[Tensor, "d_model vocab"]:
        """Unembedding, a view; the transpose of `W_E` until weight processing unties them."""
        return self.unembed.weight.T

    @property
    def b_U(self) -> Float[Tensor, " vocab"]:
        """Unembedding bias: a view once `fold_ln` has made one, else zeros."""
        bias = cast("Tensor | None", self.unembed.bias)  # torch types it as always there
        return self.unembed.weight.new_zeros(self.unembed.weight.shape[0]) if bias is None else bias


class ModelWeights:
    """The decoder's embeddings under the names that TransformerLens gives a whole model's."""

    encoder: AudioEncoder
    decoder: TextDecoder

    @property
    def W_E(self) -> Float[Tensor, "vocab d_model"]:
        """Token embedding, a view."""
        return self.decoder.W_E

    @property
    def W_pos(self) -> Float[Tensor, "pos d_model"]:
        """The decoder's position embedding, a view; the encoder's is `model.encoder.W_pos`."""
        return self.decoder.W_pos

    @property
    def W_U(self) -> Float[Tensor, "d_model vocab"]:
        """Unembedding, a view; the transpose of `W_E` until weight processing unties them."""
        return self.decoder.W_U

    @property
    def b_U(self) -> Float[Tensor, " vocab"]:
        """Unembedding bias: a view once `fold_ln` has made one, else zeros."""
        return self.decoder.b_U
