"""Whisper's parts, each with a hook point on every activation: layer norm, attention, MLP, block.

Hook points are called only while something listens (`see`), so that a plain forward costs what
torch costs. Fused kernels (layer norm, scaled dot product attention) are left only where a hook
sits on a value that they do not show, and in that very layer alone.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformer_lens import FactoredMatrix
from transformer_lens.hook_points import HookPoint

from hooked_whisper.config import HookedWhisperConfig, StackConfig
from hooked_whisper.errors import ConfigError
from hooked_whisper.kv_cache import KeyValueCache
from hooked_whisper.step_kernels import attend_step, linear_few_rows, takes_step

AttentionKind = Literal["encoder", "decoder", "cross"]


class ActivationPoint(HookPoint):
    """A TransformerLens hook point that knows whether anything listens to it.

    `guard` hands hooks a copy, so that an edit in place cannot reach back into what another point
    has already seen (the residual after one layer is the same memory as before the next).
    """

    guard = False

    @property
    def live(self) -> bool:
        """True while a forward or backward hook sits here."""
        return bool(self._forward_hooks or self._backward_hooks)

    def forward(self, x: Tensor) -> Tensor:
        return x.clone() if self.guard else x


def see(point: ActivationPoint, x: Tensor) -> Tensor:
    """Shows `x` to whatever listens at `point` and returns what comes back; free when nothing does."""
    if not (point._forward_hooks or point._backward_hooks):
        return x
    if point._backward_hooks and not x.requires_grad and torch.is_grad_enabled():
        x = x.detach().requires_grad_()  # nothing before it wants a gradient (frozen weights), but the hook does
    shown = point(x)
    if shown is x:
        return x
    if not isinstance(shown, Tensor):
        raise ConfigError(f"A hook on {point.name!r} returned {type(shown).__name__}: expected a tensor, or None.")
    if shown.shape != x.shape:  # some would broadcast, and compute something else in silence
        raise ConfigError(
            f"A hook on {point.name!r} returned a tensor of shape {list(shown.shape)}: expected {list(x.shape)}, the "
            "shape of the activation that it was given."
        )
    return shown


def see_kept(point: ActivationPoint, x: Tensor) -> Tensor:
    """`see`, for a value that torch keeps for its backward pass: hooks may edit a copy of it in place."""
    return see(point, x.clone()) if point.live and x.requires_grad else see(point, x)


class _SameValue(torch.autograd.Function):
    """Forward: the fused kernel's value. Backward: the gradient of the same value computed openly.

    Lets an observed layer norm be bit for bit the unobserved one and yet pass gradients through
    the scale that a hook looks at.
    """

    @staticmethod
    def forward(ctx: Any, openly: Tensor, fused: Tensor) -> Tensor:
        ctx.mark_dirty(fused)  # returned as it is, and not as a view, which hooks could not edit in place
        return fused

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class LayerNorm(nn.Module):
    """Layer norm with TransformerLens's two hooks.

    `hook_scale` is the divisor, sqrt(variance + eps), shape [... 1]; `hook_normalized` is the
    output, weight and bias included, as in TransformerLens's LayerNorm.
    """

    def __init__(self, d_model: int, eps: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(d_model))
        self.b = nn.Parameter(torch.zeros(d_model))
        self.eps = eps
        self.hook_scale = ActivationPoint()
        self.hook_normalized = ActivationPoint()

    def forward(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        out = F.layer_norm(x, self.w.shape, self.w, self.b, self.eps)
        if self.hook_scale.live:
            out = self._through_scale(x, out)
        return see(self.hook_normalized, out)

    def _through_scale(self, x: Tensor, fused: Tensor) -> Tensor:
        """The output with `hook_scale` in the path: the fused value if the hooks left the scale alone."""
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x  # as the fused kernel computes
        centred = wide - wide.mean(-1, keepdim=True)
        scale = (centred.pow(2).mean(-1, keepdim=True) + self.eps).sqrt()
        before = scale.detach().clone()
        scale = see_kept(self.hook_scale, scale)
        same = torch.equal(scale.detach(), before)
        if same and not (torch.is_grad_enabled() and scale.requires_grad):
            return fused
        openly = ((centred / scale) * self.w + self.b).to(fused.dtype)
        return _SameValue.apply(openly, fused.detach()) if same else openly


class Attention(nn.Module):
    """Multi-head attention of all three kinds: encoder self, decoder self (causal), and cross.

    Storage is one fused [3 d_model, d_model] matrix (q, k, v) and one output matrix, the layout
    that torch multiplies fastest; `W_Q`, `W_K`, `W_V`, `W_O` are views of it in TransformerLens's
    shapes. Scores are q.k / sqrt(d_head), and masked ones are -inf, before `hook_attn_scores`.
    """

    def __init__(self, cfg: HookedWhisperConfig, stack: StackConfig, kind: AttentionKind) -> None:
        super().__init__()
        self.cfg = cfg
        self.kind: AttentionKind = kind
        self.n_heads, self.d_head, self.d_model = stack.n_heads, stack.d_head, stack.d_model
        self.qkv = nn.Linear(self.d_model, 3 * self.d_model)
        self.out = nn.Linear(self.d_model, self.d_model)
        self.hook_q = ActivationPoint()
        self.hook_k = ActivationPoint()
        self.hook_v = ActivationPoint()
        self.hook_attn_scores = ActivationPoint()
        self.hook_pattern = ActivationPoint()
        self.hook_z = ActivationPoint()
        self.hook_result = ActivationPoint()

    def forward(
        self,
        x: Float[Tensor, "batch pos d_model"],
        source: Float[Tensor, "batch key d_model"] | None = None,
        *,
        mask: Bool[Tensor, "batch 1 #pos key"] | None = None,
        past: KeyValueCache | None = None,
        layer: int = 0,
    ) -> Float[Tensor, "batch pos d_model"]:
        """Attends from `x` to `source` (to `x` itself when None).

        With `past`, keys and values of earlier positions (or of all frames, in cross-attention)
        come from there, and new ones are put there under `layer`.
        """
        if source is None and past is None:
            q, k, v = (self._heads(part) for part in _thirds(linear_few_rows(x, self.qkv.weight, self.qkv.bias)))
            return self.attend(see(self.hook_q, q), see(self.hook_k, k), see(self.hook_v, v), mask=mask)
        if self.kind != "cross":
            assert past is not None
            q, k, v = (self._heads(part) for part in _thirds(linear_few_rows(x, self.qkv.weight, self.qkv.bias)))
            k, v = past.extend(layer, see(self.hook_k, k), see(self.hook_v, v))
            return self.attend(see(self.hook_q, q), k, v, mask=mask)
        q = self._heads(self._project(x, "q"))
        k, v = self._cross_keys_values(source, past, layer)
        return self.attend(see(self.hook_q, q), k, v, mask=mask)

    def _cross_keys_values(
        self, source: Tensor | None, past: KeyValueCache | None, layer: int
    ) -> tuple[Tensor, Tensor]:
        """Keys and values of the frames; the hooks see all of them at every step of generation.

        The cache keeps them as projected, before the hooks, so a hook that comes, goes or changes
        its mind between two steps is obeyed.
        """
        kept = past.frames(layer) if past is not None else None
        if kept is None:
            if source is None:
                raise RuntimeError("cross-attention needs the encoder's output at the first step")
            d = self.d_model
            if past is not None:
                k, v = past.keep_frames(layer, self._frames_innermost(source, "k"), self._frames_innermost(source, "v"))
            else:
                kv = F.linear(source, self.qkv.weight[d:], self.qkv.bias[d:])
                k, v = self._heads(kv[..., :d]), self._heads(kv[..., d:])
        else:
            k, v = kept
        if past is not None and self.hook_k.live:
            k = k.clone()  # an edit in place must not reach the stored keys
        if past is not None and self.hook_v.live:
            v = v.clone()
        return see(self.hook_k, k), see(self.hook_v, v)

    def attend(
        self,
        q: Float[Tensor, "batch pos head d_head"],
        k: Float[Tensor, "batch key head d_head"],
        v: Float[Tensor, "batch key head d_head"],
        *,
        mask: Bool[Tensor, "batch 1 #pos key"] | None = None,
    ) -> Float[Tensor, "batch pos d_model"]:
        """From queries, keys and values to the output: fused, unless a score or pattern is hooked."""
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        causal = self.kind == "decoder" and mask is None and q.shape[2] > 1
        if self.hook_attn_scores.live or self.hook_pattern.live:
            z = self._attend_openly(q, k, v, mask, causal)
        elif mask is None and takes_step(q):
            z = attend_step(q, k, v)
        elif causal and q.shape[2] != k.shape[2]:
            z = F.scaled_dot_product_attention(q, k, v, attn_mask=causal_mask(q.shape[2], k.shape[2], q.device))
        else:
            z = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        return self._output(see_kept(self.hook_z, z.transpose(1, 2)))

    def _attend_openly(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        scores = torch.matmul(q * self.d_head**-0.5, k.transpose(2, 3))
        if causal:
            mask = causal_mask(q.shape[2], k.shape[2], q.device)
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        pattern = see(self.hook_attn_scores, scores).softmax(dim=-1)
        return torch.matmul(see_kept(self.hook_pattern, pattern), v)

    def _output(self, z: Float[Tensor, "batch pos head d_head"]) -> Float[Tensor, "batch pos d_model"]:
        if self.cfg.use_attn_result:
            result = see(self.hook_result, torch.einsum("bphd,hdm->bphm", z, self.W_O))
            return result.sum(2) + self.out.bias
        return linear_few_rows(z.reshape(*z.shape[:2], self.d_model), self.out.weight, self.out.bias)

    def _heads(self, x: Tensor) -> Float[Tensor, "batch pos head d_head"]:
        return x.view(*x.shape[:2], self.n_heads, self.d_head)

    def _project(self, x: Tensor, which: Literal["q", "k", "v"]) -> Tensor:
        part = self._part(which)
        return linear_few_rows(x, self.qkv.weight[part], self.qkv.bias[part])

    def _part(self, which: Literal["q", "k", "v"]) -> slice:
        """The rows of the fused matrix that make queries, keys or values."""
        first = "qkv".index(which) * self.d_model
        return slice(first, first + self.d_model)

    def _frames_innermost(
        self, source: Float[Tensor, "batch frame d_model"], which: Literal["k", "v"]
    ) -> Float[Tensor, "batch frame head d_head"]:
        """Keys or values laid out as each step of generation reads them: by head, by channel, frames innermost."""
        part = self._part(which)
        weight = self.qkv.weight[part].expand(len(source), -1, -1)
        # Not `matmul`, which would turn the product around and lay channels innermost.
        x = torch.baddbmm(self.qkv.bias[part, None], weight, source.transpose(1, 2))
        return x.view(len(x), self.n_heads, self.d_head, -1).permute(0, 3, 1, 2)

    def project_by_head(
        self, x: Float[Tensor, "batch pos head d_model"], which: Literal["q", "k", "v"]
    ) -> Float[Tensor, "batch pos head d_head"]:
        """Queries, keys or values where every head has an input of its own (split inputs)."""
        weight, bias = {"q": (self.W_Q, self.b_Q), "k": (self.W_K, self.b_K), "v": (self.W_V, self.b_V)}[which]
        return torch.einsum("bphm,hmd->bphd", x, weight) + bias

    # Views in TransformerLens's shapes: writing into them writes into the model.

    def _weight(self, index: int) -> Float[Tensor, "head d_model d_head"]:
        part = self.qkv.weight[index * self.d_model : (index + 1) * self.d_model]
        return part.view(self.n_heads, self.d_head, self.d_model).transpose(1, 2)

    def _bias(self, index: int) -> Float[Tensor, "head d_head"]:
        return self.qkv.bias[index * self.d_model : (index + 1) * self.d_model].view(self.n_heads, self.d_head)

    @property
    def W_Q(self) -> Float[Tensor, "head d_model d_head"]:
        """Query weights, a view."""
        return self._weight(0)

    @property
    def W_K(self) -> Float[Tensor, "head d_model d_head"]:
        """Key weights, a view."""
        return self._weight(1)

    @property
    def W_V(self) -> Float[Tensor, "head d_model d_head"]:
        """Value weights, a view."""
        return self._weight(2)

    @property
    def W_O(self) -> Float[Tensor, "head d_head d_model"]:
        """Output weights, a view."""
        return self.out.weight.view(self.d_model, self.n_heads, self.d_head).permute(1, 2, 0)

    @property
    def b_Q(self) -> Float[Tensor, "head d_head"]:
        """Query bias, a view."""
        return self._bias(0)

    @property
    def b_K(self) -> Float[Tensor, "head d_head"]:
        """Key bias, a view; zero in every released Whisper."""
        return self._bias(1)

    @property
    def b_V(self) -> Float[Tensor, "head d_head"]:
        """Value bias, a view."""
        return self._bias(2)

    @property
    def b_O(self) -> Float[Tensor, " d_model"]:
        """Output bias."""
        return self.out.bias

    @property
    def QK(self) -> FactoredMatrix:
        """W_Q W_K^T, factored, [head d_model d_model]: query side first."""
        return FactoredMatrix(self.W_Q, self.W_K.transpose(-2, -1))

    @property
    def OV(self) -> FactoredMatrix:
        """W_V W_O, factored, [head d_model d_model]: source side first."""
        return FactoredMatrix(self.W_V, self.W_O)


class MLP(nn.Module):
    """Two linear maps with GELU between."""

    def __init__(self, stack: StackConfig) -> None:
        super().__init__()
        self.fc_in = nn.Linear(stack.d_model, stack.d_mlp)
        self.hook_pre = ActivationPoint()
        self.hook_post = ActivationPoint()
        self.fc_out = nn.Linear(stack.d_mlp, stack.d_model)

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        pre = see(self.hook_pre, linear_few_rows(x, self.fc_in.weight, self.fc_in.bias))
        return linear_few_rows(see(self.hook_post, F.gelu(pre)), self.fc_out.weight, self.fc_out.bias)

    @property
    def W_in(self) -> Float[Tensor, "d_model d_mlp"]:
        """Input weights, a view."""
        return self.fc_in.weight.T

    @property
    def W_out(self) -> Float[Tensor, "d_mlp d_model"]:
        """Output weights, a view."""
        return self.fc_out.weight.T

    @property
    def b_in(self) -> Float[Tensor, " d_mlp"]:
        """Input bias."""
        return self.fc_in.bias

    @property
    def b_out(self) -> Float[Tensor, " d_model"]:
        """Output bias."""
        return self.fc_out.bias


class Block(nn.Module):
    """One layer: self-attention, cross-attention (decoder only), MLP, each with its norm before it."""

    def __init__(self, cfg: HookedWhisperConfig, stack_name: Literal["encoder", "decoder"]) -> None:
        super().__init__()
        self.cfg = cfg
        stack = cfg.stack(stack_name)
        self.has_cross = stack_name == "decoder"

        self.hook_resid_pre = ActivationPoint()
        self.hook_attn_in = ActivationPoint()
        self.hook_q_input = ActivationPoint()
        self.hook_k_input = ActivationPoint()
        self.hook_v_input = ActivationPoint()
        self.ln1 = LayerNorm(cfg.d_model, cfg.eps)
        self.attn = Attention(cfg, stack, stack_name)
        self.hook_attn_out = ActivationPoint()
        self.hook_resid_mid = ActivationPoint()
        # Registered in the order in which they fire: `hook_names()` lists them so, and a cache of
        # encoder hooks stops at the last of its names.
        if not self.has_cross:
            self.hook_mlp_in = ActivationPoint()
        self.ln2 = LayerNorm(cfg.d_model, cfg.eps)
        if self.has_cross:
            self.hook_cross_attn_in = ActivationPoint()
            self.hook_cross_q_input = ActivationPoint()
            self.hook_cross_k_input = ActivationPoint()
            self.hook_cross_v_input = ActivationPoint()
            self.cross_attn = Attention(cfg, stack, "cross")
            self.hook_cross_attn_out = ActivationPoint()
            self.hook_resid_mid_cross = ActivationPoint()
            self.hook_mlp_in = ActivationPoint()
            self.ln3 = LayerNorm(cfg.d_model, cfg.eps)
        self.mlp = MLP(stack)
        self.hook_mlp_out = ActivationPoint()
        self.hook_resid_post = ActivationPoint()

    @property
    def mlp_norm(self) -> LayerNorm:
        """The norm before the MLP: `ln3` in the decoder, `ln2` in the encoder."""
        return self.ln3 if self.has_cross else self.ln2

    def forward(
        self,
        resid: Float[Tensor, "batch pos d_model"],
        encoder_out: Float[Tensor, "batch frame d_model"] | None = None,
        *,
        mask: Bool[Tensor, "batch 1 #pos key"] | None = None,
        past: KeyValueCache | None = None,
        layer: int = 0,
    ) -> Float[Tensor, "batch pos d_model"]:
        """The residual stream before this layer in, the one after it out."""
        resid = see(self.hook_resid_pre, resid)
        attn_out = see(self.hook_attn_out, self._self_attention(resid, mask, past, layer))
        resid = see(self.hook_resid_mid, resid + attn_out)
        if self.has_cross:
            cross_out = see(self.hook_cross_attn_out, self._cross_attention(resid, encoder_out, past, layer))
            resid = see(self.hook_resid_mid_cross, resid + cross_out)
        mlp_in = see(self.hook_mlp_in, resid.clone()) if self.cfg.use_hook_mlp_in else resid
        mlp_out = see(self.hook_mlp_out, self.mlp(self.mlp_norm(mlp_in)))
        return see(self.hook_resid_post, resid + mlp_out)

    def _self_attention(
        self, resid: Tensor, mask: Tensor | None, past: KeyValueCache | None, layer: int
    ) -> Float[Tensor, "batch pos d_model"]:
        if not (self.cfg.use_attn_in or self.cfg.use_split_qkv_input):
            return self.attn(self.ln1(resid), mask=mask, past=past, layer=layer)
        attn = self.attn
        by_head = _by_head(resid, attn.n_heads)
        if self.cfg.use_attn_in:
            by_head = see(self.hook_attn_in, by_head.clone())
        inputs = self._split(by_head, self.hook_q_input, self.hook_k_input, self.hook_v_input)
        q, k, v = (attn.project_by_head(self.ln1(x), which) for x, which in zip(inputs, "qkv", strict=True))  # type: ignore[arg-type]
        q, k, v = see(attn.hook_q, q), see(attn.hook_k, k), see(attn.hook_v, v)
        if past is not None:
            k, v = past.extend(layer, k, v)
        return attn.attend(q, k, v, mask=mask)

    def _cross_attention(
        self, resid: Tensor, encoder_out: Tensor | None, past: KeyValueCache | None, layer: int
    ) -> Float[Tensor, "batch pos d_model"]:
        attn = self.cross_attn
        if not (self.cfg.use_attn_in or self.cfg.use_split_qkv_input):
            return attn(self.ln2(resid), encoder_out, past=past, layer=layer)
        by_head = _by_head(resid, attn.n_heads)
        if self.cfg.use_attn_in:
            by_head = see(self.hook_cross_attn_in, by_head.clone())
        if self.cfg.use_split_qkv_input:
            by_head = see(self.hook_cross_q_input, by_head.clone())
        q = see(attn.hook_q, attn.project_by_head(self.ln2(by_head), "q"))
        if self.cfg.use_split_qkv_input and encoder_out is not None:
            # Frames are read by head here too, so they are projected anew at every step: under the
            # cache the edit would otherwise hold for the first step alone.
            frames = _by_head(encoder_out, attn.n_heads)
            k = see(attn.hook_k, attn.project_by_head(see(self.hook_cross_k_input, frames.clone()), "k"))
            v = see(attn.hook_v, attn.project_by_head(see(self.hook_cross_v_input, frames.clone()), "v"))
        else:
            k, v = attn._cross_keys_values(encoder_out, past, layer)
        return attn.attend(q, k, v)

    def _split(self, by_head: Tensor, *points: ActivationPoint) -> list[Tensor]:
        """One copy of the input for each of q, k and v, so that editing one leaves the others alone."""
        if not self.cfg.use_split_qkv_input:
            return [by_head] * len(points)
        return [see(point, by_head.clone()) for point in points]


def _thirds(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Three views of equal width; slices, because hooks may edit them in place and torch forbids that on chunks."""
    d = x.shape[-1] // 3
    return x[..., :d], x[..., d : 2 * d], x[..., 2 * d :]


def _by_head(x: Tensor, n_heads: int) -> Float[Tensor, "batch pos head d_model"]:
    return x.unsqueeze(2).expand(-1, -1, n_heads, -1)


def causal_mask(n_queries: int, n_keys: int, device: torch.device) -> Bool[Tensor, "pos key"]:
    """True where a query may look: the last query sees every key, each earlier one a key less."""
    return torch.ones(n_queries, n_keys, dtype=torch.bool, device=device).tril(n_keys - n_queries)
