"""TransformerLens's weight processing for a Whisper: another set of weights that computes the same logits.

It takes out of the weights what the logits cannot see, so that the weights can be read: the norms' gains and
biases (`fold_ln`), directions of the residual stream that every norm removes (`center_writing_weights`), a
constant added to all logits (`center_unembed`), and value biases, which attention passes on whatever it attends
to (`fold_value_biases`). Activations between change their meaning: see `process_weights_`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, cast, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_whisper.components import Attention, Block, LayerNorm
from hooked_whisper.config import HookedWhisperConfig

if TYPE_CHECKING:
    from hooked_whisper.stacks import AudioEncoder, TextDecoder

ProcessingStep = Literal["fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases"]
STEPS: tuple[ProcessingStep, ...] = get_args(ProcessingStep)


class WeightProcessing:
    """What gives a `HookedWhisper` its `process_weights_`."""

    cfg: HookedWhisperConfig
    encoder: AudioEncoder
    decoder: TextDecoder

    @property
    def processing(self) -> frozenset[str]:
        """Names of the steps of weight processing that were applied (kept in `cfg.processing`)."""
        return self.cfg.processing

    @torch.no_grad()
    def process_weights_(
        self,
        *,
        fold_ln: bool = True,
        center_writing_weights: bool = True,
        center_unembed: bool = False,
        fold_value_biases: bool = True,
    ) -> None:
        """Changes the weights in place into ones that compute the same logits and are easier to read.

        A step that was applied before is not applied again, so a second call changes nothing. Steps are computed in
        float64 (float32 where the device has no other) and stored in the model's own dtype, so process before you
        go to half precision; `from_pretrained` does.

        Args:
            fold_ln: every norm's weight and bias move into the matrices that read it, and become 1 and 0: `ln1`,
                `ln2` and `ln3` into q, k, v and `W_in`; `ln_post` into the cross-attention keys and values of every
                decoder layer; `ln_final` into the unembedding, which from then on is not `W_E`'s transpose and has
                a bias. As in TransformerLens, the reading matrices are centred too: what they read has mean zero.
                The norms stay, with their hooks; `hook_normalized` and `encoder.hook_out` then lack weight and
                bias, so what was trained on them (an SAE, a probe) fits the unprocessed model only.
            center_writing_weights: all that a matrix or an embedding adds to a residual stream gets mean zero over
                d_model, which every norm takes out anyway: `W_O`, `b_O`, `W_out`, `b_out` and `W_pos` of both
                stacks, and `W_E`. The encoder's convolutions write through a GELU, so no weight can centre them:
                its residual stream keeps their mean, and the logits stay the same nevertheless.
            center_unembed: `W_U` and `b_U` get mean zero over the vocabulary. Logits move by one constant for each
                position; their softmax does not.
            fold_value_biases: `b_V` of all three kinds of attention moves into `b_O`. Exact while each query's
                pattern sums to one; where an edit of a pattern breaks this, the folded bias no longer shrinks with it.

        Source: TransformerLens, "Weight Processing"; Elhage et al. 2021, "A Mathematical Framework for
        Transformer Circuits".
        """
        wanted = {
            "fold_ln": fold_ln,
            "center_writing_weights": center_writing_weights,
            "center_unembed": center_unembed,
            "fold_value_biases": fold_value_biases,
        }
        new = {step for step, on in wanted.items() if on} - self.processing
        # Each step leaves what an earlier one has done, except that folding a norm's bias makes new value biases.
        if "fold_ln" in new:
            _fold_norms(self.encoder, self.decoder)
        if "center_writing_weights" in new:
            _center_writers(self.encoder, self.decoder)
        if "center_unembed" in new or ("fold_ln" in new and "center_unembed" in self.processing):
            _center_unembedding(self.decoder)
        if "fold_value_biases" in new or ("fold_ln" in new and "fold_value_biases" in self.processing):
            for attn in _all_attentions(self.encoder, self.decoder):
                _fold_value_bias(attn)
        self.cfg.processing = self.processing | new


def _wide(x: Tensor) -> Tensor:
    """In the precision that steps are computed in."""
    return x.to(torch.float32 if x.device.type == "mps" else torch.float64)


def _blocks(stack: AudioEncoder | TextDecoder) -> list[Block]:
    return [cast(Block, block) for block in stack.blocks]


def _all_attentions(encoder: AudioEncoder, decoder: TextDecoder) -> list[Attention]:
    attentions = [block.attn for stack in (encoder, decoder) for block in _blocks(stack)]
    return attentions + [block.cross_attn for block in _blocks(decoder)]


# fold_ln


def _fold_norms(encoder: AudioEncoder, decoder: TextDecoder) -> None:
    decoder.untie_()
    decoder.add_unembedding_bias_()
    d = decoder.cfg.d_model
    for block in [*_blocks(encoder), *_blocks(decoder)]:
        _fold(block.ln1, block.attn.qkv.weight, block.attn.qkv.bias)
        _fold(block.mlp_norm, block.mlp.fc_in.weight, block.mlp.fc_in.bias)
    for block in _blocks(decoder):
        qkv = block.cross_attn.qkv
        _fold(block.ln2, qkv.weight[:d], qkv.bias[:d])
        _fold(encoder.ln_post, qkv.weight[d:], qkv.bias[d:])
    _fold(decoder.ln_final, decoder.unembed.weight, decoder.unembed.bias)
    for stack in (encoder, decoder):
        for norm in (module for module in stack.modules() if isinstance(module, LayerNorm)):
            norm.w.fill_(1.0)
            norm.b.zero_()


def _fold(norm: LayerNorm, weight: Float[Tensor, "out d_model"], bias: Float[Tensor, " out"]) -> None:
    """Moves a norm's weight and bias into one matrix that reads it, and centres what that reads."""
    reading = _wide(weight)
    bias.copy_(_wide(bias) + reading @ _wide(norm.b))
    folded = reading * _wide(norm.w)
    weight.copy_(folded - folded.mean(-1, keepdim=True))


# center_writing_weights, center_unembed


def _center_writers(encoder: AudioEncoder, decoder: TextDecoder) -> None:
    decoder.untie_()
    for embedding in (encoder.W_pos, decoder.W_E, decoder.W_pos):
        _center(embedding, dim=1)
    writers = [attn.out for attn in _all_attentions(encoder, decoder)]
    writers += [block.mlp.fc_out for stack in (encoder, decoder) for block in _blocks(stack)]
    for linear in writers:
        _center(linear.weight, dim=0)
        _center(linear.bias, dim=0)


def _center_unembedding(decoder: TextDecoder) -> None:
    decoder.untie_()
    _center(decoder.unembed.weight, dim=0)
    bias = cast("Tensor | None", decoder.unembed.bias)
    if bias is not None:
        _center(bias, dim=0)


def _center(x: Tensor, dim: int) -> None:
    wide = _wide(x)
    x.copy_(wide - wide.mean(dim, keepdim=True))


# fold_value_biases


def _fold_value_bias(attn: Attention) -> None:
    value_bias = attn.qkv.bias[2 * attn.d_model :]
    attn.out.bias.copy_(_wide(attn.out.bias) + _wide(attn.out.weight) @ _wide(value_bias))
    value_bias.zero_()
