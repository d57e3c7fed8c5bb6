"""The tuned lens: an affine map for each layer of the decoder, trained to say what the last layer will say.

    lens = train_tuned_lens(model, [clip.path for clip in clips("en")], language="en")
    lens.save("lens.safetensors")
    logit_lens(cache, tuned=TunedLens.load("lens.safetensors"))

Layers write in bases of their own, which the plain logit lens reads as if they were the last one's. A map from each
layer's stream to the last one's takes that away: state + A state + b goes through the final norm and the unembedding
(Belrose et al. 2023, "Eliciting Latent Predictions from Transformers with the Tuned Lens").
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from hooked_whisper.audio import AudioInput
from hooked_whisper.errors import AnalysisError
from hooked_whisper.file_modes import as_new_file
from hooked_whisper.inputs import TextInput
from hooked_whisper.model import HookedWhisper


@dataclass(frozen=True)
class TunedLens:
    """One affine map for the state before each layer of the decoder; the state after the last needs none.

    Attributes:
        weight: what is added to a state is `weight @ state + bias`.
        model_name: the model that it was trained on.
        losses: mean divergence in nats on the training clips, at each step and layer.
    """

    weight: Float[Tensor, "layer d_model d_model"]
    bias: Float[Tensor, "layer d_model"]
    model_name: str
    losses: Float[Tensor, "step layer"]

    @classmethod
    def identity(cls, model: HookedWhisper) -> TunedLens:
        """Maps that change nothing: the plain logit lens."""
        n, d = model.cfg.decoder.n_layers, model.cfg.d_model
        return cls(torch.zeros(n, d, d), torch.zeros(n, d), model.cfg.model_name, torch.zeros(0, n))

    def logits(
        self, model: HookedWhisper, states: Float[Tensor, "state *place d_model"]
    ) -> Float[Tensor, "state *place vocab"]:
        """What each state says: those before each layer, then the last, which goes as it is.

        Raises:
            AnalysisError: a model of another name or shape, or another number of states.
        """
        self._check(model)
        if len(states) != len(self.weight) + 1:
            raise AnalysisError(
                f"{len(states)} states were given, expected {len(self.weight) + 1}: one before each layer, the last."
            )
        translated = [
            translate(state, w.to(state), b.to(state))
            for state, w, b in zip(states, self.weight, self.bias, strict=False)
        ]
        return torch.stack([unembed(model, state) for state in [*translated, states[-1]]])

    def _check(self, model: HookedWhisper) -> None:
        shape = (model.cfg.decoder.n_layers, model.cfg.d_model)
        if self.model_name != model.cfg.model_name or tuple(self.bias.shape) != shape:
            raise AnalysisError(
                f"This lens was trained on {self.model_name} ({self.bias.shape[0]} layers, width "
                f"{self.bias.shape[1]}), and the model is {model.cfg.model_name} ({shape[0]} layers, width {shape[1]})."
            )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes one safetensors file; returns its path."""
        tensors = {"weight": self.weight, "bias": self.bias, "losses": self.losses}
        tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        save_file(tensors, path, metadata={"tuned_lens": json.dumps({"model": self.model_name})})
        return as_new_file(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TunedLens:
        """Reads what `save` wrote.

        Raises:
            AnalysisError: a file that is missing, damaged or no lens.
        """
        try:
            with safe_open(path, "pt") as file:
                about = (file.metadata() or {}).get("tuned_lens")
                if about is None:
                    raise AnalysisError(f"{path} is no tuned lens: expected a file that TunedLens.save wrote.")
                tensors = {name: file.get_tensor(name) for name in ("weight", "bias", "losses")}
        except (SafetensorError, OSError) as error:
            raise AnalysisError(f"{path} cannot be read as a tuned lens ({error}).") from error
        return cls(model_name=json.loads(about)["model"], **tensors)


def translate(
    state: Float[Tensor, "*place d_model"], weight: Float[Tensor, "d_model d_model"], bias: Float[Tensor, " d_model"]
) -> Float[Tensor, "*place d_model"]:
    """A state in the last layer's terms."""
    return state + F.linear(state, weight, bias)


def unembed(model: HookedWhisper, state: Float[Tensor, "*place d_model"]) -> Float[Tensor, "*place vocab"]:
    """What a state says, through the final norm; no hook sees it."""
    norm, unembedding = model.decoder.ln_final, model.decoder.unembed
    x = F.layer_norm(state, norm.w.shape, norm.w.detach(), norm.b.detach(), norm.eps)
    bias = None if unembedding.bias is None else unembedding.bias.detach()
    return F.linear(x, unembedding.weight.detach(), bias)


def train_tuned_lens(
    model: HookedWhisper,
    audio: AudioInput,
    text: TextInput = None,
    *,
    language: str | Sequence[str | None] | None = None,
    steps: int = 100,
    batch_size: int = 64,
    lr: float = 1e-3,
    weight_decay: float = 1e-3,
    seed: int = 0,
    progress: bool | None = None,
) -> TunedLens:
    """Trains a lens so that each layer's prediction comes near the last one's, on text and end of these clips.

    Adam on the Kullback-Leibler divergence of each layer's prediction from the last one's, every layer on its own.
    Costs one pass of the model for each clip, and `n_layers` times `batch_size` unembeddings there and back a step.
    d_model squared numbers a layer are learnt from as many rows as the clips have tokens: check it on other clips.

    Args:
        audio, text, language: as `HookedWhisper.forward` takes them; text None takes the model's own transcripts.
        steps, batch_size: batches, and positions in each, drawn anew for each.
        lr, weight_decay: Adam's; decay pulls towards the plain logit lens.
        seed: of the draws.
        progress: whether to show a bar; None shows it where standard error is a terminal.

    Raises:
        AnalysisError: steps or batch_size below 1, or a lens that diverged.
    """
    if steps < 1 or batch_size < 1:
        raise AnalysisError(f"steps={steps} and batch_size={batch_size} must be at least 1.")
    states = _states(model, audio, text, language)
    n_layers, d = len(states) - 1, states.shape[-1]
    weight = torch.zeros(n_layers, d, d, device=states.device, dtype=states.dtype, requires_grad=True)
    bias = torch.zeros(n_layers, d, device=states.device, dtype=states.dtype, requires_grad=True)
    optimizer = torch.optim.AdamW([weight, bias], lr=lr, weight_decay=weight_decay)
    generator = torch.Generator().manual_seed(seed)
    losses = torch.zeros(steps, n_layers)
    bar = tqdm(range(steps), desc="tuned lens", disable=None if progress is None else not progress)
    for step in bar:
        rows = torch.randint(states.shape[1], (batch_size,), generator=generator).to(states.device)
        with torch.no_grad():
            final = unembed(model, states[-1, rows]).float().log_softmax(-1)
        optimizer.zero_grad()
        with torch.enable_grad():
            for layer in range(n_layers):  # one layer's logits at a time
                said = unembed(model, translate(states[layer, rows], weight[layer], bias[layer])).float()
                loss = F.kl_div(said.log_softmax(-1), final, log_target=True, reduction="batchmean")
                loss.backward()
                losses[step, layer] = loss.detach().cpu()
        optimizer.step()
    if not bool(torch.isfinite(losses).all()):
        raise AnalysisError(f"The lens diverged: lr={lr} is too large.")
    return TunedLens(weight.detach(), bias.detach(), model.cfg.model_name, losses)


@torch.no_grad()
def _states(
    model: HookedWhisper, audio: AudioInput, text: TextInput, language: str | Sequence[str | None] | None
) -> Float[Tensor, "state row d_model"]:
    """The decoder's stream before each layer and after the last, at each position that predicts text or the end."""
    names = ["decoder.blocks.*.hook_resid_pre", "decoder.blocks.*.hook_resid_post"]
    _, cache = model.run_with_cache(audio, text, language=language, names_filter=names)
    states = cache.decoder.accumulated_resid()
    at = torch.arange(cache.tokens.shape[1], device=cache.tokens.device)
    starts = torch.tensor(cache.prompt_lengths, device=at.device)[:, None] - 1
    return states[:, cache.token_mask & (at >= starts)]
