"""The analyses of one stack of a run: its residual stream, taken apart and put through its norms.

Signatures and meaning are TransformerLens's, with three differences. Norms keep their weights, so results hold for
weights that were not processed, too (`apply_ln_to_stack`). The decoder's cross-attention is a component of its own. And
what is missing raises instead of being left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from hooked_whisper.config import StackConfig
from hooked_whisper.derived import norm_input, norm_scale
from hooked_whisper.errors import CacheError, ConfigError
from hooked_whisper.named_cache import NamedCache, SliceInput, as_index
from hooked_whisper.shorthand import hook_name

if TYPE_CHECKING:
    from typing_extensions import Self

    from hooked_whisper.components import LayerNorm
else:
    Self = Any  # run-time checkers of types cannot tell a method's own class

# A tensor whose first axis is the components; with return_labels, a pair of it and a label for each component.
Stacked = Any
Mode = Literal["all", "attn", "cross", "mlp"]


class StackCache(NamedCache):
    """One stack's activations, under names without the stack's: "blocks.0.hook_resid_pre", or ("resid_pre", 0).

    `layer` counts as in TransformerLens: components *before* the input of that layer, and None or -1 (or the
    number of layers) for all, the input of the final norm. `mlp_input` moves on to the input of the layer's MLP,
    `cross_input` to that of its cross-attention. `pos_slice` picks frames in the encoder, tokens in the decoder.
    """

    stack_name: Literal["encoder", "decoder"]
    _final_norm: str
    _embeddings: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, cache: NamedCache) -> Self:
        """The part of `cache`, a `WhisperCache`, that belongs to this stack; activations are shared."""
        prefix = cls._prefix
        stored = {
            name.removeprefix(prefix): value for name, value in cache.cache_dict.items() if name.startswith(prefix)
        }
        new = cls(stored, cache.model, cache.run, cache.has_batch_dim, cfg=cache.cfg)
        new._whole = {name: value for name, value in cache._whole.items() if name.startswith(prefix)}
        new._first_frame, new._is_cut = cache._first_frame, cache._is_cut
        return new

    # Names

    def _name(self, key: str | tuple[Any, ...]) -> str:
        if isinstance(key, str):
            return key if key in self.cache_dict else hook_name(key, final_norm=self._final_norm)
        name, layer, module = [*key, None, None][:3]
        if isinstance(layer, int) and layer < 0:
            layer += self.stack.n_layers
        return hook_name(str(name), layer, module, final_norm=self._final_norm)

    @property
    def stack(self) -> StackConfig:
        """The stack's shape."""
        return self.cfg.stack(self.stack_name)

    @property
    def _has_cross(self) -> bool:
        return self.stack_name == "decoder"

    def _module(self, path: str) -> Any:
        if self.model is None:
            raise CacheError(
                "This needs the model's weights, and the cache was loaded without a model: set cache.model, or load it "
                "with WhisperCache.load(path, model=model)."
            )
        return self.model.get_submodule(self._prefix + path)

    # Where the residual stream is read

    def _layer(self, layer: int | None) -> int:
        n = self.stack.n_layers
        if layer is None or layer == -1:
            return n
        if not 0 <= layer <= n:
            raise ConfigError(
                f"layer={layer} is not in the {self.stack_name}: expected 0 to {n}, where {n} (or None, or -1) "
                "is the input of the final norm."
            )
        return layer

    def _norm(self, layer: int, mlp_input: bool, cross_input: bool) -> str:
        """The norm that reads the stream there."""
        if mlp_input and cross_input:
            raise ConfigError("mlp_input and cross_input exclude each other: the stream is read at one place.")
        if cross_input and not self._has_cross:
            raise ConfigError("cross_input is for the decoder: the encoder has no cross-attention.")
        if layer == self.stack.n_layers:
            if mlp_input or cross_input:
                raise ConfigError(
                    f"layer={layer} is the final norm, where there is no MLP or cross-attention: with mlp_input or "
                    f"cross_input, layer is 0 to {layer - 1}."
                )
            return self._final_norm
        if mlp_input:
            return f"blocks.{layer}.{'ln3' if self._has_cross else 'ln2'}"
        return f"blocks.{layer}.{'ln2' if cross_input else 'ln1'}"

    def _resid_at(self, norm: str) -> Tensor:
        """The residual stream that a norm reads."""
        return self[norm_input(self._prefix + norm, self.cfg).removeprefix(self._prefix)]

    def _scale(self, norm: str, pos_slice: Any, batch_slice: Any = None) -> Tensor:
        """A norm's divisor [batch pos 1]: the cached one, or that of the residual stream it reads."""
        name = f"{norm}.hook_scale"
        scale = self.cache_dict.get(name)
        if scale is None and self._prefix + name in self.run.hooked:
            raise self._missing(name)
        if scale is None or scale.ndim > 2 + self.has_batch_dim:  # by head, where inputs are
            scale = norm_scale(self._resid_at(norm), self.cfg.eps)
        scale = take(scale, pos_slice, -2, "pos_slice")
        return take(scale, batch_slice, 0, "batch_slice") if self.has_batch_dim else scale

    # The stream, layer by layer

    def accumulated_resid(
        self,
        layer: int | None = None,
        incl_mid: bool = False,
        apply_ln: bool = False,
        pos_slice: SliceInput = None,
        mlp_input: bool = False,
        return_labels: bool = False,
        *,
        cross_input: bool = False,
    ) -> Stacked:
        """The residual stream after each layer, [component batch pos d_model]; labels "0_pre", "0_mid", "final_post".

        Args:
            layer: up to the input of this layer.
            incl_mid: also within layers: after self-attention ("mid") and, in the decoder, after cross-attention
                ("mid_cross").
            apply_ln: put every state through the norm that reads the last one. The final norm takes statistics of
                each state, and adds its bias (so that the last is the encoder's output, or what the decoder unembeds);
                a layer's norm works as in `apply_ln_to_stack`.
            pos_slice: an index, list, slice or (start, stop) of positions.
            mlp_input, cross_input: go on to the input of the layer's MLP or cross-attention.
            return_labels: also return a label for each component.

        Raises:
            CacheError: a residual that was not kept. ConfigError: a layer or slice that does not exist.
        """
        layer = self._layer(layer)
        norm = self._norm(layer, mlp_input, cross_input)
        names = []
        for i in range(layer):
            names += [(f"{i}_pre", f"blocks.{i}.hook_resid_pre")]
            names += self._mids(i) if incl_mid else []
        if layer == self.stack.n_layers:
            names.append(("final_post", f"blocks.{layer - 1}.hook_resid_post"))
        else:
            names.append((f"{layer}_pre", f"blocks.{layer}.hook_resid_pre"))
            mids = self._mids(layer)
            names += mids[:1] if cross_input else (mids if incl_mid else mids[-1:]) if mlp_input else []
        states = torch.stack([take(self[name], pos_slice, -2, "pos_slice") for _, name in names])
        if apply_ln:
            final = norm == self._final_norm
            states = self._apply_ln(states, norm, pos_slice, recompute=final)
        return (states, [label for label, _ in names]) if return_labels else states

    def _mids(self, i: int) -> list[tuple[str, str]]:
        mids = [(f"{i}_mid", f"blocks.{i}.hook_resid_mid")]
        return [*mids, (f"{i}_mid_cross", f"blocks.{i}.hook_resid_mid_cross")] if self._has_cross else mids

    def decompose_resid(
        self,
        layer: int | None = None,
        mlp_input: bool = False,
        mode: Mode = "all",
        apply_ln: bool = False,
        pos_slice: SliceInput = None,
        incl_embeds: bool = True,
        return_labels: bool = False,
        *,
        cross_input: bool = False,
    ) -> Stacked:
        """What was added to the residual stream before a layer, [component batch pos d_model]: their sum is its input.

        Labels are "embed" (in the encoder the convolutions' output), "pos_embed", then by layer "0_attn_out",
        "0_cross_attn_out" (decoder) and "0_mlp_out", output biases included.

        Args:
            mode: "attn", "cross" or "mlp" for these outputs alone.
            apply_ln: put the components through the layer's norm, see `apply_ln_to_stack`.
            incl_embeds: whether the embeddings are components, too.
            Otherwise as for `accumulated_resid`.

        Raises:
            CacheError: an output that was not kept. ConfigError: a layer, mode or slice that does not exist.
        """
        layer = self._layer(layer)
        norm = self._norm(layer, mlp_input, cross_input)
        kinds = {"attn": "attn_out", "cross": "cross_attn_out", "mlp": "mlp_out"}
        if mode not in ("all", *kinds) or (mode == "cross" and not self._has_cross):
            known = [kind for kind in kinds if kind != "cross" or self._has_cross]
            raise ConfigError(f"Unknown mode {mode!r}: the {self.stack_name} has 'all', {', '.join(map(repr, known))}.")
        outs = list(kinds.values()) if self._has_cross else ["attn_out", "mlp_out"]
        wanted = outs if mode == "all" else [kinds[mode]]
        names = list(self._embeddings) if incl_embeds else []
        slots = [(i, out) for i in range(layer) for out in outs]
        slots += [(layer, out) for out in (["attn_out"] if cross_input else outs[:-1] if mlp_input else [])]
        names += [(f"{i}_{out}", f"blocks.{i}.hook_{out}") for i, out in slots if out in wanted]
        if not names:
            raise ConfigError(f"Nothing comes before layer 0 but the embeddings: mode={mode!r} without them is empty.")
        components = self._stack([name for _, name in names], pos_slice)
        if apply_ln:
            components = self._apply_ln(components, norm, pos_slice)
        return (components, [label for label, _ in names]) if return_labels else components

    def _stack(self, names: list[str], pos_slice: SliceInput) -> Tensor:
        """Activations one above the other; the encoder's positions, which have no batch, are spread over it."""
        return torch.stack(torch.broadcast_tensors(*(take(self[name], pos_slice, -2, "pos_slice") for name in names)))

    def stack_activation(
        self, activation_name: str, layer: int | None = -1, sublayer_type: str | None = None
    ) -> Float[Tensor, "layer *axes"]:
        """The activation of that (short) name of every layer before `layer`, one above the other."""
        return torch.stack([self[(activation_name, i, sublayer_type)] for i in range(self._layer(layer))])

    # Norms

    def apply_ln_to_stack(
        self,
        residual_stack: Float[Tensor, "component *place d_model"],
        layer: int | None = None,
        mlp_input: bool = False,
        pos_slice: SliceInput = None,
        batch_slice: SliceInput = None,
        has_batch_dim: bool = True,
        recompute_ln: bool = False,
        *,
        cross_input: bool = False,
    ) -> Float[Tensor, "component *place d_model"]:
        """Components of the stream as a layer's norm passes them on: centred, divided by this run's scale, times w.

        The norm's bias belongs to no component and is left out, so components that sum to the stream give the norm's
        output when summed, less `ln_bias(layer)`. TransformerLens leaves out the weight, too, as it folds it into the
        next layer; with folded weights w is 1 and the two agree.

        Args:
            layer: whose norm; None or -1 for the final one.
            pos_slice, batch_slice: the slices that `residual_stack` was taken with.
            has_batch_dim: as TransformerLens has it; shapes tell.
            recompute_ln: take the stack for whole streams: each has statistics of its own, and the bias.

        Raises:
            CacheError: neither the scale nor the stream it comes from was kept.
        """
        norm = self._norm(self._layer(layer), mlp_input, cross_input)
        return self._apply_ln(residual_stack, norm, pos_slice, batch_slice, recompute=recompute_ln)

    def ln_bias(
        self, layer: int | None = None, mlp_input: bool = False, *, cross_input: bool = False
    ) -> Float[Tensor, " d_model"]:
        """The bias of a layer's norm: what `apply_ln_to_stack` leaves out."""
        return self._module(self._norm(self._layer(layer), mlp_input, cross_input)).b.detach()

    def _apply_ln(
        self, stack: Tensor, norm: str, pos_slice: Any, batch_slice: Any = None, *, recompute: bool = False
    ) -> Tensor:
        ln: LayerNorm = self._module(norm)
        w, b = ln.w.detach().to(stack.device), ln.b.detach().to(stack.device)
        if recompute:
            return F.layer_norm(stack, w.shape, w.to(stack.dtype), b.to(stack.dtype), ln.eps)
        scale = self._scale(norm, pos_slice, batch_slice)
        wide = stack.to(torch.promote_types(stack.dtype, scale.dtype))
        return ((wide - wide.mean(-1, keepdim=True)) / scale * w).to(stack.dtype)


def take(value: Tensor, given: SliceInput, dim: int, what: str) -> Tensor:
    """`value` sliced along `dim`; an index drops the axis.

    Raises:
        ConfigError: positions that do not exist, or no slice at all.
    """
    index = as_index(given)
    if index is None:
        return value
    dim = dim % value.ndim
    if isinstance(index, slice):
        return value[(slice(None),) * dim + (index,)]
    size = value.shape[dim]
    outside = [i for i in ([index] if isinstance(index, int) else index) if not -size <= i < size]
    if outside:
        raise ConfigError(f"{what}={given!r} is out of range: there are {size} here, and {outside[0]} is none of them.")
    return value[(slice(None),) * dim + (index,)]
