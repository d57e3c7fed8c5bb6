"""Direct logit attribution: what each part of the decoder writes into the logit of a token, with nothing in between.

    _, cache = model.run_with_cache("speech.wav", language="en")
    found = direct_attribution(cache, " call", pos=8, by="head")
    found.top(5), found.plot()

The last residual stream is a sum of what the parts wrote. The final norm divides it by one number, which is held at
this run's value, so the logit is a sum as well: one number for each part (Elhage et al. 2021, "A Mathematical Framework
for Transformer Circuits"). What a part does by way of later parts is theirs here, not its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hooked_whisper.analysis.checks import CACHE, check_clip, expect, largest
from hooked_whisper.analysis.figures import new_figure
from hooked_whisper.analysis.metrics import token_ids
from hooked_whisper.cache import WhisperCache
from hooked_whisper.errors import AnalysisError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PARTS = ("component", "head", "neuron", "feature")
if TYPE_CHECKING:
    Parts = Literal["component", "head", "neuron", "feature"]
else:
    Parts = str  # checked here, with a message that says more than a type checker's

TokensInput = int | str | Sequence[int | str]
# Outputs of a layer: label, hook, the module whose bias is in it.
_OUTPUTS = (
    ("attn", "hook_attn_out", "attn.out"),
    ("cross", "hook_cross_attn_out", "cross_attn.out"),
    ("mlp", "hook_mlp_out", "mlp.fc_out"),
)


# Outputs of its own layer that a residual stream holds.
_WITHIN = {"hook_resid_pre": 0, "hook_resid_mid": 1, "hook_resid_mid_cross": 2, "hook_resid_post": 3}


@dataclass(frozen=True)
class DirectAttribution:
    """What each part adds to a logit, or to a difference of logits, of each clip.

    Attributes:
        labels: the parts: "embed", "pos_embed", "L3.attn", "L3.cross.H1", "L3.mlp.N17", "F203", "bias".
        values: in logits; the parts sum to `total`.
        total: the logit, or the difference, that the model gave.
        positions: the position of each clip whose logits they are, prompt included.
    """

    labels: tuple[str, ...]
    values: Float[Tensor, "part clip"]
    total: Float[Tensor, " clip"]
    positions: tuple[int, ...]

    def __getitem__(self, label: str) -> Float[Tensor, " clip"]:
        """Of one part, by its label.

        Raises:
            AnalysisError: no such part.
        """
        if label not in self.labels:
            raise AnalysisError(f"There is no part {label!r}: expected one such as {', '.join(self.labels[:4])}.")
        return self.values[self.labels.index(label)]

    def top(self, n: int = 10, *, clip: int = 0) -> list[tuple[str, float]]:
        """The `n` parts of largest size, with what they add, largest first.

        Raises:
            AnalysisError: n below 1, or a clip that is not there.
        """
        values = self.values[:, check_clip(clip, self.values.shape[1])]
        return [(self.labels[i], float(values[i])) for i in largest(values, n)]

    def plot(self, n: int = 25, *, clip: int = 0) -> Figure:
        """Bars of the `n` parts of largest size, in their order in the model.

        Raises:
            AnalysisError: see `top`. MissingExtraError: matplotlib is not installed.
        """
        kept = {label for label, _ in self.top(n, clip=clip)}
        shown = [(label, float(v)) for label, v in zip(self.labels, self.values[:, clip], strict=True) if label in kept]
        figure = new_figure(7.0, 0.8 + 0.22 * len(shown))
        ax = figure.add_subplot()
        colours = ["#0b6e99" if value >= 0 else "#c2410c" for _, value in shown]
        ax.barh(range(len(shown)), [value for _, value in shown], color=colours)
        ax.set_yticks(range(len(shown)), [label for label, _ in shown])
        ax.invert_yaxis()
        ax.axvline(0, color="#5b6475", linewidth=0.8)
        ax.set_xlabel(f"logits; all {len(self.labels)} parts sum to {float(self.total[clip]):.3f}")
        return figure


@torch.no_grad()
def direct_attribution(
    cache: WhisperCache,
    answer: TokensInput | None = None,
    wrong: TokensInput | None = None,
    *,
    pos: int | None = None,
    by: Parts = "component",
    sae: Any = None,
    hook: str | None = None,
) -> DirectAttribution:
    """What each part of the decoder adds directly to the logit of `answer`, less that of `wrong`.

    Computed in float64 from the cache; the parts sum to the logit to within the precision of the run.

    Args:
        cache: of a run with the batch dimension, residuals and outputs of the decoder's layers kept.
        answer: a token as number or exact text (" cat" and "cat" are two); several are averaged. None takes what the
            model finds likeliest there.
        wrong: the same for what it is held against; None explains the logit alone.
        pos: the position whose logits are explained (it predicts the token after it), prompt included; None takes each
            clip's last token, and negative numbers count from there.
        by: "component" (embeddings, each layer's self-attention, cross-attention and MLP, output biases apart),
            "head" (attentions head by head), "neuron" (MLPs neuron by neuron, too), or "feature" (what an SAE reads in
            one hook of the decoder, and the parts that come after).
        sae: for "feature", the SAE. Where it was attached in the run, its cached features are taken, else its own code
            of the cached activation; what features leave of the activation is "rest" (the error, the SAE's bias).
        hook: for "feature", where the SAE reads; None takes its metadata. A residual stream, or an output of a layer.

    Raises:
        AnalysisError: an unknown `by`, tokens or a position that do not exist, a cache without its batch dimension or
            model, no SAE where one is needed. CacheError: activations that were not kept.
    """
    if by not in PARTS:
        raise AnalysisError(f"Unknown by={by!r}: expected {', '.join(PARTS)}.")
    if (by == "feature") != (sae is not None):
        raise AnalysisError('by="feature" needs sae=, the SAE whose features are meant; nothing else takes one.')
    expect(cache, WhisperCache, CACHE)
    if cache.model is None or not cache.has_batch_dim:
        raise AnalysisError("Direct attribution needs a cache that has its model and its batch dimension.")
    place = _Place(cache, pos)
    ids = _tokens(place, answer)
    others = None if wrong is None else _tokens(place, wrong)
    direction = place.unembedding(ids) - (0 if others is None else place.unembedding(others))
    labels, values = _parts(place, by, place.before_norm(direction), sae, hook)
    logits = place.at("hook_logits")
    total = logits.gather(1, ids).mean(1)
    values[-1] = values[-1] + (direction @ place.double(place.module("ln_final").b))[None]
    values[-1] = values[-1] + place.unembedding_bias(ids)[None]
    if others is not None:
        total = total - logits.gather(1, others).mean(1)
        values[-1] = values[-1] - place.unembedding_bias(others)[None]
    found = DirectAttribution(tuple(labels), torch.cat(values), total, tuple(place.positions.tolist()))
    _check_sum(found, cache["hook_logits"].dtype)
    return found


def _check_sum(found: DirectAttribution, dtype: torch.dtype) -> None:
    """Parts that do not sum to the logit are not what made it."""
    off = (found.values.sum(0) - found.total).abs()
    allowed = 1e3 * torch.finfo(dtype).eps * found.values.abs().sum(0).clamp(min=1)
    if bool((off > allowed).any()):
        clip = int((off - allowed).argmax())
        raise AnalysisError(
            f"The parts sum to {float(found.values[:, clip].sum()):.4f} in clip {clip}, the logit is "
            f"{float(found.total[clip]):.4f}: something else wrote into the residual stream in this run, such as a "
            'hook or an SAE there. Explain a run without it, or with by="feature", sae= and hook= for that SAE.'
        )


class _Place:
    """One position of each clip of a cache."""

    def __init__(self, cache: WhisperCache, pos: int | None) -> None:
        assert cache.model is not None
        self.cache, self.model = cache, cache.model
        lengths = cache.token_mask.sum(1)
        given = torch.full_like(lengths, -1 if pos is None else pos)
        self.positions: Int[Tensor, " clip"] = torch.where(given < 0, given + lengths, given)
        wrong = ((self.positions < 0) | (self.positions >= lengths)).nonzero().flatten().tolist()
        if wrong:
            raise AnalysisError(
                f"Clip {wrong[0]} has no position {pos}: it was fed {int(lengths[wrong[0]])} tokens, prompt included."
            )

    def at(self, name: str) -> Float[Tensor, "clip *width"]:
        """An activation at the place, in float64."""
        value = self.cache[name]
        rows = torch.arange(len(self.positions), device=value.device)
        return value[rows, self.positions.to(value.device)].to(self.device, torch.float64)

    @property
    def device(self) -> torch.device:
        return self.model.device

    def module(self, path: str) -> Any:
        return self.model.get_submodule(f"decoder.{path}")

    def double(self, weight: Tensor) -> Tensor:
        return weight.detach().to(self.device, torch.float64)

    def unembedding(self, ids: Int[Tensor, "clip token"]) -> Float[Tensor, "clip d_model"]:
        """The direction whose product with the norm's output is the mean logit of some tokens, biases apart."""
        return self.double(self.module("unembed").weight[ids]).mean(1)

    def unembedding_bias(self, ids: Int[Tensor, "clip token"]) -> Float[Tensor, " clip"]:
        return self.double(self.model.b_U[ids]).mean(1)

    def before_norm(self, direction: Float[Tensor, "clip d_model"]) -> Float[Tensor, "clip d_model"]:
        """The direction as the residual stream before the final norm sees it, this run's scale in it."""
        through = direction * self.double(self.module("ln_final").w)
        scale = self.at("decoder.ln_final.hook_scale")
        return (through - through.mean(-1, keepdim=True)) / scale


def _tokens(place: _Place, given: TokensInput | None) -> Int[Tensor, "clip token"]:
    if given is None:
        return place.at("hook_logits").argmax(-1, keepdim=True)
    ids = torch.tensor(token_ids(place.model, given), device=place.device)
    return ids.expand(len(place.positions), -1)


def _parts(
    place: _Place, by: str, along: Float[Tensor, "clip d_model"], sae: Any, hook: str | None
) -> tuple[list[str], list[Float[Tensor, "part clip"]]]:
    """All parts of the final residual stream along a direction; the last is the output biases, "bias"."""
    parts = _Parts(place, along)
    outputs = [(i, *output) for i in range(place.model.cfg.decoder.n_layers) for output in _OUTPUTS]
    coded = _coded_hook(place, sae, hook) if by == "feature" else None
    written = None if coded is None else _outputs_within(coded)
    if coded is not None and written is not None:  # a residual stream: what was written before is in its features
        parts.add_features(sae, coded)
        outputs = outputs[written:]
    else:
        parts.add_embeddings()
    for i, kind, leaf, module in outputs:
        block, label = f"decoder.blocks.{i}", f"L{i}.{kind}"
        if coded is not None and coded == f"{block}.{leaf}":
            parts.add_features(sae, coded)  # the bias stays within
        elif kind != "mlp" and by in ("head", "neuron"):
            parts.add_heads(label, block, module)
        elif by == "neuron":
            parts.add_neurons(label, block, module)
        else:
            parts.add_output(label, f"{block}.{leaf}", f"{block}.{module}")
    return [*parts.labels, "bias"], [*parts.values, parts.biases[None]]


class _Parts:
    """Parts of the residual stream, along one direction for each clip, as they are added up."""

    def __init__(self, place: _Place, along: Float[Tensor, "clip d_model"]) -> None:
        self.place, self.along = place, along
        self.labels: list[str] = []
        self.values: list[Float[Tensor, "part clip"]] = []
        self.biases = along.new_zeros(len(along))

    def _add(self, labels: list[str], values: Float[Tensor, "part clip"]) -> None:
        self.labels += labels
        self.values.append(values)

    def _written(self, hook: str) -> Float[Tensor, " clip"]:
        return (self.place.at(hook) * self.along).sum(-1)

    def _bias(self, module: str) -> Float[Tensor, " clip"]:
        bias = self.along @ self.place.double(self.place.model.get_submodule(module).bias)  # type: ignore[arg-type]
        self.biases = self.biases + bias
        return bias

    def add_embeddings(self) -> None:
        written = [self._written(f"decoder.hook_{label}") for label in ("embed", "pos_embed")]
        self._add(["embed", "pos_embed"], torch.stack(written))

    def add_output(self, label: str, hook: str, module: str) -> None:
        self._add([label], (self._written(hook) - self._bias(module))[None])

    def add_heads(self, label: str, block: str, module: str) -> None:
        self._bias(f"{block}.{module}")
        name = module.removesuffix(".out")
        W_O = self.place.double(self.place.model.get_submodule(f"{block}.{name}").W_O)  # type: ignore[arg-type]
        values = torch.einsum("chd,hdm,cm->hc", self.place.at(f"{block}.{name}.hook_z"), W_O, self.along)
        self._add([f"{label}.H{head}" for head in range(len(values))], values)

    def add_neurons(self, label: str, block: str, module: str) -> None:
        self._bias(f"{block}.{module}")
        onto = self.along @ self.place.double(self.place.model.get_submodule(f"{block}.{module}").weight)  # type: ignore[arg-type]
        values = (self.place.at(f"{block}.mlp.hook_post") * onto).T
        self._add([f"{label}.N{unit}" for unit in range(len(values))], values)

    def add_features(self, sae: Any, hook: str) -> None:
        """Features of an SAE, and what they leave of the activation: its error and its bias."""
        points = f"{hook}.hook_sae_acts_post"
        activation = self.place.at(hook)
        if points in self.place.cache:
            acts = self.place.at(points)
        else:
            is_transcoder = sae.cfg.metadata.hook_name_out is not None
            source = self.place.at(sae.cfg.metadata.hook_name) if is_transcoder else activation
            acts = sae.encode(source.to(sae.W_dec.device, sae.W_dec.dtype)).to(activation)
        values = (acts * (self.along @ self.place.double(sae.W_dec).T)).T
        rest = (activation * self.along).sum(-1) - values.sum(0)
        self._add([*(f"F{feature}" for feature in range(len(values))), "rest"], torch.cat([values, rest[None]]))


def _coded_hook(place: _Place, sae: Any, hook: str | None) -> str:
    """The hook that an SAE's features stand for."""
    name = hook or sae.cfg.metadata.hook_name_out or sae.cfg.metadata.hook_name
    if name is None:
        raise AnalysisError("The SAE's metadata name no hook: say which with hook=.")
    known = [hook for hook in place.model.hook_dict if hook.startswith("decoder.") and _is_written(hook)]
    if name not in known:
        raise AnalysisError(
            f"Features of {name!r} are not parts of the decoder's residual stream: expected an SAE on one of its "
            f"residuals or on an output of one of its layers, such as {known[0]!r}."
        )
    if sae.W_dec.shape[1] != place.model.cfg.d_model:
        raise AnalysisError(f"The SAE writes {sae.W_dec.shape[1]} numbers, and {name!r} has {place.model.cfg.d_model}.")
    return name


def _is_written(hook: str) -> bool:
    leaf = hook.rpartition(".")[2]
    return ".blocks." in hook and (leaf in _WITHIN or leaf in [output[1] for output in _OUTPUTS])


def _outputs_within(hook: str) -> int | None:
    """How many outputs of layers a residual stream holds; None for an output itself."""
    layer, leaf = int(hook.split(".")[2]), hook.rpartition(".")[2]
    return None if leaf not in _WITHIN else layer * len(_OUTPUTS) + _WITHIN[leaf]
