"""The residual stream of one stack by heads and neurons, and, in the decoder, what they do to the logits."""

from __future__ import annotations

import os
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from hooked_whisper.derived import head_results
from hooked_whisper.errors import CacheError, ConfigError, TextError
from hooked_whisper.named_cache import SliceInput, as_index
from hooked_whisper.stack_cache import StackCache, Stacked, take

HeadKind = Literal["all", "self", "cross"]
# A token as its string, its id, or ids for each clip [batch] or each position [batch pos].
TokenChoice = str | int | list[int] | Tensor

_MODULE_OF = {"self": "attn", "cross": "cross_attn"}
_LETTER_OF = {"self": "H", "cross": "C"}


class ComponentCache(StackCache):
    """A `StackCache` that also takes layers apart into heads and neurons."""

    # Heads

    def compute_head_results(self) -> None:
        """Stores every head's output, `hook_result`; reading them computes them one by one without this."""
        for i in range(self.stack.n_layers):
            for kind in self._kinds("all"):
                name = f"blocks.{i}.{_MODULE_OF[kind]}.hook_result"
                self.cache_dict[name] = self[name]

    def stack_head_results(
        self,
        layer: int | None = -1,
        return_labels: bool = False,
        incl_remainder: bool = False,
        pos_slice: SliceInput = None,
        apply_ln: bool = False,
        *,
        kind: HeadKind = "all",
    ) -> Stacked:
        """What each head adds to the stream before a layer, [component batch pos d_model]: labels "L0H1", cross "L0C1".

        From `hook_result` where it was kept, else from `hook_z` and W_O. Output biases belong to no head.

        Args:
            layer: heads of all layers before this one.
            incl_remainder: end with "remainder", the rest of the stream: sum over all is the stream.
            pos_slice: an index, list, slice or (start, stop) of positions.
            apply_ln: put them through the layer's norm, see `apply_ln_to_stack`.
            kind: "self", "cross" (decoder), or "all": in each layer self-attention's heads, then cross-attention's.

        Raises:
            CacheError: neither head outputs nor z were kept. ConfigError: a layer, kind or slice that does not exist.
        """
        layer = self._layer(layer)
        slots = [(i, which) for i in range(layer) for which in self._kinds(kind)]
        parts = [self._head_stack(i, which, pos_slice) for i, which in slots]
        labels = [label for i, which in slots for label in self._head_labels(i, which)]
        return self._finish(parts, labels, layer, incl_remainder, pos_slice, apply_ln, return_labels, "heads")

    def _kinds(self, kind: HeadKind) -> list[str]:
        known = ["self", "cross"] if self._has_cross else ["self"]
        if kind not in ("all", *known):
            raise ConfigError(
                f"Unknown kind of head {kind!r}: the {self.stack_name} has 'all', {', '.join(map(repr, known))}."
            )
        return known if kind == "all" else [kind]

    def _head_labels(self, i: int, kind: str) -> list[str]:
        return [f"L{i}{_LETTER_OF[kind]}{head}" for head in range(self.stack.n_heads)]

    def _head_stack(self, i: int, kind: str, pos_slice: SliceInput) -> Float[Tensor, "head *place d_model"]:
        attention = f"blocks.{i}.{_MODULE_OF[kind]}"
        name = f"{attention}.hook_result"
        if name in self.cache_dict or not self._is_derivable(self._prefix + name):
            result = take(self[name], pos_slice, -3, "pos_slice")
        else:  # only the positions asked for
            z = take(self[f"{attention}.hook_z"], pos_slice, -3, "pos_slice")
            result = head_results(z, self._module(attention).W_O.detach())
        return result.movedim(-2, 0)

    def _finish(
        self,
        parts: list[Tensor],
        labels: list[str],
        layer: int,
        incl_remainder: bool,
        pos_slice: SliceInput,
        apply_ln: bool,
        return_labels: bool,
        what: str,
    ) -> Stacked:
        """Parts put together, with the rest of the stream and the norm if these were asked for."""
        if not parts and not incl_remainder:
            raise ConfigError(f"There are no {what} before layer 0: expected a layer from 1, or incl_remainder=True.")
        norm = self._norm(layer, False, False)
        if incl_remainder:
            rest = take(self._resid_at(norm), pos_slice, -2, "pos_slice")[None]
            parts = [*parts, rest - sum(part.sum(0, keepdim=True) for part in parts)]
            labels = [*labels, "remainder"]
        stack = torch.cat(parts)
        if apply_ln:
            stack = self._apply_ln(stack, norm, pos_slice)
        return (stack, labels) if return_labels else stack

    # Neurons

    def get_neuron_results(
        self,
        layer: int,
        neuron_slice: SliceInput = None,
        pos_slice: SliceInput = None,
        project_output_onto: Tensor | None = None,
    ) -> Float[Tensor, "*place neuron out"] | Float[Tensor, "*place neuron"]:
        """What each neuron of `layer` adds to the stream, [batch pos neuron d_model].

        Args:
            neuron_slice, pos_slice: an index (which drops the axis), list, slice or (start, stop).
            project_output_onto: directions [d_model] or [d_model out] to look along, which spares d_model floats
                for each neuron: then [batch pos neuron] or [batch pos neuron out].

        Raises:
            CacheError: neither `mlp.hook_post` nor `hook_pre` was kept. ConfigError: no such layer or neuron.
        """
        if not 0 <= layer < self.stack.n_layers:
            raise ConfigError(f"There is no layer {layer}: the {self.stack_name} has 0 to {self.stack.n_layers - 1}.")
        acts = take(self[f"blocks.{layer}.mlp.hook_post"], pos_slice, -2, "pos_slice")
        acts = take(acts, neuron_slice, -1, "neuron_slice")
        W_out = self._module(f"blocks.{layer}.mlp").W_out.detach().to(acts.device, acts.dtype)
        out = take(W_out, neuron_slice, 0, "neuron_slice")
        if project_output_onto is not None:
            out = out @ project_output_onto.to(acts.device, acts.dtype)
        width = out.numel() // (1 if isinstance(as_index(neuron_slice), int) else out.shape[0])
        _refuse_beyond_memory(acts.numel() * width * acts.element_size(), 1, acts.device)
        per_neuron = 1 if project_output_onto is None or project_output_onto.ndim == 2 else 0
        return acts[(..., *[None] * per_neuron)] * out

    def stack_neuron_results(
        self,
        layer: int | None = -1,
        pos_slice: SliceInput = None,
        neuron_slice: SliceInput = None,
        return_labels: bool = False,
        incl_remainder: bool = False,
        apply_ln: bool = False,
        project_output_onto: Tensor | None = None,
    ) -> Stacked:
        """What each neuron adds to the stream before a layer, [component batch pos d_model]; labels "L0N5".

        This is large: d_mlp times n_layers copies of the stream. Slice positions or neurons, or project.

        Args:
            layer: neurons of all layers before this one.
            pos_slice, neuron_slice: an index, list, slice or (start, stop); neurons of every layer alike.
            incl_remainder: end with "remainder", the rest of the stream.
            apply_ln: put them through the layer's norm, see `apply_ln_to_stack`.
            project_output_onto: directions [d_model] or [d_model out] that the result is projected onto (after the
                norm): then [component batch pos] or [component batch pos out].

        Raises:
            CacheError: neither `mlp.hook_post` nor `hook_pre` was kept. ConfigError: a layer or slice that does
            not exist.
        """
        layer = self._layer(layer)
        onto = _Projection(self, self._norm(layer, False, False), project_output_onto, apply_ln, pos_slice)
        parts, labels = self._neuron_parts(layer, pos_slice, neuron_slice, onto)
        if project_output_onto is None:
            return self._finish(parts, labels, layer, incl_remainder, pos_slice, apply_ln, return_labels, "neurons")
        if incl_remainder:
            rest = onto(take(self._resid_at(onto.norm), pos_slice, -2, "pos_slice")[None])
            parts = [*parts, rest - sum(part.sum(0, keepdim=True) for part in parts)]
            labels = [*labels, "remainder"]
        if not parts:
            raise ConfigError("There are no neurons before layer 0: expected a layer from 1, or incl_remainder=True.")
        return (torch.cat(parts), labels) if return_labels else torch.cat(parts)

    def _neuron_parts(
        self, layer: int, pos_slice: SliceInput, neuron_slice: SliceInput, onto: _Projection
    ) -> tuple[list[Tensor], list[str]]:
        index = as_index(neuron_slice)
        kept = [index] if isinstance(index, int) else index  # a stack has an axis for the neuron in any case
        numbers = take(torch.arange(self.stack.d_mlp), kept, 0, "neuron_slice").tolist()
        parts, labels = [], []
        if layer:
            acts = take(self["blocks.0.mlp.hook_post"], pos_slice, -2, "pos_slice")
            width = self.cfg.d_model if onto.directions is None else onto.directions[0].numel()
            n_bytes = layer * (acts.numel() // acts.shape[-1]) * len(numbers) * width * acts.element_size()
            _refuse_beyond_memory(2 * n_bytes, layer, acts.device)  # the parts, and their concatenation
        for i in range(layer):
            results = self.get_neuron_results(i, kept, pos_slice, onto.directions)
            parts.append(onto.rescale(results.movedim(-1 if onto.is_vector else -2, 0)))
            labels += [f"L{i}N{number}" for number in numbers]
        return parts, labels

    # Everything

    def get_full_resid_decomposition(
        self,
        layer: int | None = None,
        mlp_input: bool = False,
        expand_neurons: bool = True,
        apply_ln: bool = False,
        pos_slice: SliceInput = None,
        return_labels: bool = False,
        project_output_onto: Tensor | None = None,
        *,
        cross_input: bool = False,
    ) -> Stacked:
        """The stream before a layer as heads, neurons, embeddings and biases, [component batch pos d_model].

        In that order: "L0H0", ... (cross-attention's "L0C0"), "L0N0", ... (or "0_mlp_out", bias included), "embed",
        "pos_embed", "bias"; their sum is the layer's input.

        Args:
            expand_neurons: neurons one by one (large: see `stack_neuron_results`), or MLPs as wholes.
            project_output_onto: directions [d_model] or [d_model out] that the result is projected onto.
            Otherwise as for `decompose_resid`.

        Raises:
            CacheError: an activation that was not kept. ConfigError: a layer or slice that does not exist.
        """
        layer = self._layer(layer)
        norm = self._norm(layer, mlp_input, cross_input)
        onto = _Projection(self, norm, project_output_onto, apply_ln, pos_slice)
        slots = [(i, kind) for i in range(layer) for kind in self._kinds("all")]
        slots += [(layer, kind) for kind in (["self"] if cross_input else self._kinds("all") if mlp_input else [])]
        labels = [label for i, kind in slots for label in self._head_labels(i, kind)]
        parts = [onto(self._head_stack(i, kind, pos_slice)) for i, kind in slots]
        if expand_neurons:
            neurons, names = self._neuron_parts(layer, pos_slice, None, onto)
            if project_output_onto is None:
                neurons = [onto(part) for part in neurons]
            parts, labels = parts + neurons, labels + names
        whole = [] if expand_neurons else [(f"{i}_mlp_out", f"blocks.{i}.hook_mlp_out") for i in range(layer)]
        bias = self._biases(slots, layer if expand_neurons else 0)
        rest = [*whole, *self._embeddings]
        stacked = self._stack([name for _, name in rest], pos_slice)
        bias = bias.to(stacked.device, stacked.dtype).expand_as(stacked[:1])
        parts.append(onto(torch.cat([stacked, bias])))
        labels += [*(label for label, _ in rest), "bias"]
        return (torch.cat(parts), labels) if return_labels else torch.cat(parts)

    def _biases(self, slots: list[tuple[int, str]], n_mlps: int) -> Float[Tensor, " d_model"]:
        """Output biases of these attentions and of the first MLPs, summed."""
        modules = [f"blocks.{i}.{_MODULE_OF[kind]}.out" for i, kind in slots]
        modules += [f"blocks.{i}.mlp.fc_out" for i in range(n_mlps)]
        weight = self._module("blocks.0.attn.out").weight
        return torch.stack([weight.new_zeros(weight.shape[0]), *(self._module(m).bias.detach() for m in modules)]).sum(
            0
        )


def _refuse_beyond_memory(n_bytes: int, n_layers: int, device: torch.device) -> None:
    """Raises ConfigError for what would not fit the machine: a process that runs out of memory is killed unheard."""
    if device.type == "cuda":
        memory = torch.cuda.mem_get_info(device)[1]
    else:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if n_bytes > memory:
        raise ConfigError(
            f"Neuron by neuron, {n_layers} layer{'s' * (n_layers != 1)} would take {n_bytes / 1e9:.0f} GB, and there "
            f"are {memory / 1e9:.0f} GB in all: take fewer positions (pos_slice=) or neurons (neuron_slice=), project "
            "them (project_output_onto=), or take MLPs as wholes (expand_neurons=False)."
        )


class _Projection:
    """Norm and projection of components in one: LN(x) @ p is x @ p' / scale, where p' is w * p, centred."""

    def __init__(
        self, cache: ComponentCache, norm: str, onto: Tensor | None, apply_ln: bool, pos_slice: SliceInput
    ) -> None:
        self.cache, self.norm, self.apply_ln, self.pos_slice = cache, norm, apply_ln, pos_slice
        self.is_vector = onto is not None and onto.ndim == 1
        self.directions = onto
        if onto is not None and (onto.ndim not in (1, 2) or onto.shape[0] != cache.cfg.d_model):
            raise ConfigError(
                f"project_output_onto has shape {tuple(onto.shape)}: expected [{cache.cfg.d_model}] or "
                f"[{cache.cfg.d_model}, n] (d_model, directions)."
            )
        if onto is not None and apply_ln:
            w = cache._module(norm).w.detach().to(onto.device, onto.dtype)
            weighted = (w if self.is_vector else w[:, None]) * onto
            self.directions = weighted - weighted.mean(0, keepdim=True)

    def __call__(self, stack: Tensor) -> Tensor:
        """Components [component ... d_model], normed and projected as asked."""
        if self.directions is None:
            return self.cache._apply_ln(stack, self.norm, self.pos_slice) if self.apply_ln else stack
        return self.rescale(stack @ self.directions.to(stack.device, stack.dtype))

    def rescale(self, projected: Tensor) -> Tensor:
        """The norm's division, where projection came first."""
        if self.directions is None or not self.apply_ln:
            return projected
        scale = self.cache._scale(self.norm, self.pos_slice).to(projected.dtype)
        return projected / (scale[..., 0] if self.is_vector else scale)


class EncoderCache(ComponentCache):
    """The encoder's activations and their analysis; positions are frames of 20 ms."""

    _prefix = "encoder."
    stack_name = "encoder"
    _final_norm = "ln_post"
    _embeddings = (("embed", "hook_conv2"), ("pos_embed", "hook_pos_embed"))

    def logit_attrs(self, *args: Any, **kwargs: Any) -> Any:
        """Raises CacheError: the encoder has no logits."""
        raise CacheError(
            "The encoder has no logits: cache.decoder.logit_attrs has the decoder's. What the encoder hands on is "
            "cache.encoder.accumulated_resid(apply_ln=True)."
        )


class DecoderCache(ComponentCache):
    """The decoder's activations and their analysis; positions are tokens, prompt included."""

    _prefix = "decoder."
    stack_name = "decoder"
    _final_norm = "ln_final"
    _embeddings = (("embed", "hook_embed"), ("pos_embed", "hook_pos_embed"))

    def logit_attrs(
        self,
        residual_stack: Float[Tensor, "component *place d_model"],
        tokens: TokenChoice,
        incorrect_tokens: TokenChoice | None = None,
        pos_slice: SliceInput = None,
        batch_slice: SliceInput = None,
        has_batch_dim: bool = True,
    ) -> Float[Tensor, "component *place"]:
        """What each component adds to the logit of `tokens` directly, through the final norm with this run's scale.

        The components of a full decomposition sum to the logit, less `logit_bias(tokens)`, which no component causes.

        Args:
            residual_stack: components at every position, or at `pos_slice`, see `decompose_resid`.
            tokens: the token to explain: its string or id, or ids [batch], or [batch pos] (what is predicted *at* a
                position is the token after it).
            incorrect_tokens: explain the difference to their logit.
            pos_slice, batch_slice: the slices that `residual_stack` was taken with.
            has_batch_dim: as TransformerLens has it; shapes tell.

        Raises:
            TextError: a string that is not one token. ConfigError: tokens whose shape does not fit the stack.
        """
        directions = self._directions(tokens, incorrect_tokens)
        place = residual_stack.shape[1:-1]
        given = directions.shape[:-1]
        if len(given) == 1 and len(place) == 2:
            directions = directions[:, None]  # a token for each clip, at all its positions
        aligned = directions.shape[:-1]
        if aligned and not _spreads(aligned, place):
            raise ConfigError(
                f"tokens of shape {tuple(given)} do not fit components of shape {tuple(place)}: expected one token, "
                "one for each clip, or one for each clip and position."
            )
        scaled = self._apply_ln(residual_stack, self._final_norm, pos_slice, batch_slice)
        return (scaled * directions.to(scaled.device, scaled.dtype)).sum(-1)

    def logit_bias(self, tokens: TokenChoice, incorrect_tokens: TokenChoice | None = None) -> Float[Tensor, "*place"]:
        """The part of the logit of `tokens` that is there in any context: from the biases of norm and unembedding."""
        bias = self.ln_bias()
        found = self._directions(tokens, incorrect_tokens) @ bias
        unembed_bias = self._module("unembed").bias
        if unembed_bias is None:
            return found
        found = found + unembed_bias.detach()[self._ids(tokens)]
        return found if incorrect_tokens is None else found - unembed_bias.detach()[self._ids(incorrect_tokens)]

    def _directions(self, tokens: Any, incorrect: Any) -> Float[Tensor, "*place d_model"]:
        W_U = self._module("unembed").weight.detach()
        ids = self._ids(tokens)
        if incorrect is None:
            return W_U[ids]
        others = self._ids(incorrect)
        if ids.shape != others.shape:
            raise ConfigError(
                f"tokens and incorrect_tokens must have one shape, got {tuple(ids.shape)} and {tuple(others.shape)}."
            )
        return W_U[ids] - W_U[others]

    def _ids(self, tokens: Any) -> Int[Tensor, "*place"]:
        if isinstance(tokens, str):
            if self.model is None or self.model.tokenizer is None:
                raise TextError(f"The token {tokens!r} needs a tokenizer, and there is none: give its id.")
            tokens = self.model.to_single_token(tokens)
        ids = torch.as_tensor(tokens, device=self._module("unembed").weight.device)
        outside = ids[(ids < 0) | (ids >= self.cfg.d_vocab)]
        if outside.numel():
            raise TextError(f"Token {int(outside[0])} is outside the vocabulary: expected 0 to {self.cfg.d_vocab - 1}.")
        return ids

    def logit_lens(
        self,
        layer: int | None = None,
        *,
        incl_mid: bool = False,
        pos_slice: SliceInput = None,
        return_labels: bool = False,
    ) -> Stacked:
        """The logits that each layer's stream would give, [component batch pos vocab]; the last are the model's own.

        Every state goes through the final norm with statistics of its own, and the unembedding (nostalgebraist,
        "interpreting GPT: the logit lens", 2020). Args and labels as for `accumulated_resid`.

        Raises:
            CacheError: a residual that was not kept. ConfigError: a layer or slice that does not exist.
        """
        states, labels = self.accumulated_resid(layer, incl_mid, pos_slice=pos_slice, return_labels=True)
        unembed = self._module("unembed")
        normed = self._apply_ln(states, self._final_norm, None, recompute=True)
        bias = None if unembed.bias is None else unembed.bias.detach().to(normed)
        logits = F.linear(normed, unembed.weight.detach().to(normed), bias)
        return (logits, labels) if return_labels else logits


def _spreads(shape: torch.Size, over: torch.Size) -> bool:
    """Whether `shape` has the axes of `over`, each as long or 1."""
    return len(shape) == len(over) and all(size in (1, there) for size, there in zip(shape, over, strict=True))
