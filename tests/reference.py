"""Whisper written out slowly in plain torch: what the hooked model is held against.

Nothing here comes from `hooked_whisper` but the shapes: convolutions are sums over taps, attention goes head by
head, softmax and GELU are spelled out, and gradients are autograd's own. `edits` maps the name of an activation
to a function that replaces it; `seen` keeps every activation, after its edit, in the order in which it was made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor

from hooked_whisper.config import HookedWhisperConfig, StackConfig

Edits = Mapping[str, Callable[[Tensor], Tensor]]
ALL_OPTIONS = ("use_attn_result", "use_split_qkv_input", "use_attn_in", "use_hook_mlp_in")


class Reference:
    """One Whisper, its weights given under the names of `HookedWhisper.state_dict()`."""

    def __init__(
        self,
        state: Mapping[str, Tensor],
        cfg: HookedWhisperConfig,
        edits: Edits | None = None,
        options: Collection[str] = (),
    ) -> None:
        self.state, self.cfg, self.edits, self.options = state, cfg, dict(edits or {}), options
        self.seen: dict[str, list[Tensor]] = {}

    def __call__(self, mel: Tensor, tokens: Tensor) -> Tensor:
        """Logits [batch pos vocab] of a spectrogram [batch mel mel_frame] and tokens [batch pos]."""
        unused = set(self.edits)
        frames = self.encode(self.at("hook_mel", mel))
        logits = self.at("hook_logits", self.decode(tokens, frames))
        unused -= set(self.seen)
        if unused:
            raise KeyError(f"edits at activations that were never made: {sorted(unused)}")
        return logits

    def at(self, name: str, x: Tensor) -> Tensor:
        x = x.clone()  # a node of its own, so that its gradient is that of this name alone
        if name in self.edits:
            x = self.edits[name](x)
        if x.requires_grad:
            x.retain_grad()
        self.seen.setdefault(name, []).append(x)
        return x

    def gradient(self, name: str) -> Tensor:
        """After `backward`: the gradient of an activation, summed over the times that it was made."""
        gradients = [x.grad for x in self.seen[name]]
        return torch.stack([g for g in gradients if g is not None]).sum(0)

    # Parts

    def encode(self, mel: Tensor) -> Tensor:
        x = self.at("encoder.hook_conv1", gelu(self.convolve("encoder.conv1", mel.transpose(1, 2), stride=1)))
        x = self.at("encoder.hook_conv2", gelu(self.convolve("encoder.conv2", x, stride=2)))
        x = x + self.at("encoder.hook_pos_embed", self.state["encoder.W_pos"][: x.shape[1]])
        for layer in range(self.cfg.encoder.n_layers):
            x = self.block(f"encoder.blocks.{layer}", self.cfg.encoder, x, None)
        return self.at("encoder.hook_out", self.norm("encoder.ln_post", x))

    def decode(self, tokens: Tensor, frames: Tensor) -> Tensor:
        embed = self.at("decoder.hook_embed", self.state["decoder.W_E"][tokens])
        pos = self.state["decoder.W_pos"][: tokens.shape[1]]
        x = embed + self.at("decoder.hook_pos_embed", torch.stack([pos] * len(tokens)))
        for layer in range(self.cfg.decoder.n_layers):
            x = self.block(f"decoder.blocks.{layer}", self.cfg.decoder, x, frames)
        x = self.norm("decoder.ln_final", x)
        logits = x @ self.state["decoder.unembed.weight"].transpose(0, 1)
        return logits + self.state["decoder.unembed.bias"] if "decoder.unembed.bias" in self.state else logits

    def block(self, name: str, stack: StackConfig, x: Tensor, frames: Tensor | None) -> Tensor:
        x = self.at(f"{name}.hook_resid_pre", x)
        x = x + self.at(f"{name}.hook_attn_out", self.self_attention(name, stack, x, causal=frames is not None))
        x = self.at(f"{name}.hook_resid_mid", x)
        mlp_norm = "ln2"
        if frames is not None:
            mlp_norm = "ln3"
            x = x + self.at(f"{name}.hook_cross_attn_out", self.cross_attention(name, stack, x, frames))
            x = self.at(f"{name}.hook_resid_mid_cross", x)
        mlp_in = self.at(f"{name}.hook_mlp_in", x) if "use_hook_mlp_in" in self.options else x
        pre = self.at(f"{name}.mlp.hook_pre", self.linear(f"{name}.mlp.fc_in", self.norm(f"{name}.{mlp_norm}", mlp_in)))
        post = self.at(f"{name}.mlp.hook_post", gelu(pre))
        x = x + self.at(f"{name}.hook_mlp_out", self.linear(f"{name}.mlp.fc_out", post))
        return self.at(f"{name}.hook_resid_post", x)

    def self_attention(self, name: str, stack: StackConfig, x: Tensor, causal: bool) -> Tensor:
        attn, split = f"{name}.attn", "use_split_qkv_input" in self.options
        if "use_attn_in" in self.options or split:
            x = torch.stack([x] * stack.n_heads, dim=2)
            if "use_attn_in" in self.options:
                x = self.at(f"{name}.hook_attn_in", x)
            inputs = [self.at(f"{name}.hook_{which}_input", x) if split else x for which in "qkv"]
            inputs = [self.norm(f"{name}.ln1", each) for each in inputs]
        else:
            inputs = [self.norm(f"{name}.ln1", x)] * 3
        q, k, v = (self.project(attn, which, each, stack) for which, each in zip("qkv", inputs, strict=True))
        return self.attend(attn, stack, q, k, v, causal)

    def cross_attention(self, name: str, stack: StackConfig, x: Tensor, frames: Tensor) -> Tensor:
        attn, split = f"{name}.cross_attn", "use_split_qkv_input" in self.options
        keys_from = values_from = frames
        if "use_attn_in" in self.options or split:
            x = torch.stack([x] * stack.n_heads, dim=2)
        if "use_attn_in" in self.options:
            x = self.at(f"{name}.hook_cross_attn_in", x)
        if split:
            x = self.at(f"{name}.hook_cross_q_input", x)
            by_head = torch.stack([frames] * stack.n_heads, dim=2)
            keys_from = self.at(f"{name}.hook_cross_k_input", by_head)
            values_from = self.at(f"{name}.hook_cross_v_input", by_head)
        q = self.project(attn, "q", self.norm(f"{name}.ln2", x), stack)
        k = self.project(attn, "k", keys_from, stack)
        v = self.project(attn, "v", values_from, stack)
        return self.attend(attn, stack, q, k, v, causal=False)

    def project(self, attn: str, which: str, x: Tensor, stack: StackConfig) -> Tensor:
        """[batch pos head d_head] from [batch pos d_model], or from [batch pos head d_model]."""
        start = "qkv".index(which) * stack.d_model
        weight, bias = self.state[f"{attn}.qkv.weight"][start:], self.state[f"{attn}.qkv.bias"][start:]
        heads = []
        for head in range(stack.n_heads):
            rows = slice(head * stack.d_head, (head + 1) * stack.d_head)
            heads.append((x[:, :, head] if x.ndim == 4 else x) @ weight[rows].transpose(0, 1) + bias[rows])
        return self.at(f"{attn}.hook_{which}", torch.stack(heads, dim=2))

    def attend(self, attn: str, stack: StackConfig, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(stack.d_head)
        if causal:
            later = torch.arange(k.shape[1]) > torch.arange(q.shape[1])[:, None]
            scores = torch.where(later, -torch.inf, scores)
        scores = self.at(f"{attn}.hook_attn_scores", scores)
        exps = torch.exp(scores - scores.amax(-1, keepdim=True).detach())
        pattern = self.at(f"{attn}.hook_pattern", exps / exps.sum(-1, keepdim=True))
        z = self.at(f"{attn}.hook_z", torch.einsum("bhqk,bkhd->bqhd", pattern, v))
        weight = self.state[f"{attn}.out.weight"]  # [d_model, head x d_head]
        columns = [slice(head * stack.d_head, (head + 1) * stack.d_head) for head in range(stack.n_heads)]
        result = torch.stack([z[:, :, h] @ weight[:, part].transpose(0, 1) for h, part in enumerate(columns)], dim=2)
        if "use_attn_result" in self.options:
            result = self.at(f"{attn}.hook_result", result)
        return result.sum(2) + self.state[f"{attn}.out.bias"]

    def norm(self, name: str, x: Tensor) -> Tensor:
        centred = x - x.sum(-1, keepdim=True) / x.shape[-1]
        variance = (centred * centred).sum(-1, keepdim=True) / x.shape[-1]
        scale = self.at(f"{name}.hook_scale", torch.sqrt(variance + self.cfg.eps))
        return self.at(f"{name}.hook_normalized", centred / scale * self.state[f"{name}.w"] + self.state[f"{name}.b"])

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.state[f"{name}.weight"].transpose(0, 1) + self.state[f"{name}.bias"]

    def convolve(self, name: str, x: Tensor, stride: int) -> Tensor:
        """Three taps, one frame of zeros on either side; x is [batch time channel]."""
        weight, zeros = self.state[f"{name}.weight"], torch.zeros_like(x[:, :1])
        padded = torch.cat([zeros, x, zeros], dim=1)
        taps = [padded[:, tap : tap + x.shape[1]] @ weight[:, :, tap].transpose(0, 1) for tap in range(3)]
        return (taps[0] + taps[1] + taps[2])[:, ::stride] + self.state[f"{name}.bias"]


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1.0 + torch.erf(x / math.sqrt(2.0)))
