"""TopK, BatchTopK and matryoshka SAEs that train on sparse codes: SAELens's classes, with their losses and gradients.

    from hooked_whisper.saes.sparse import SparseTopKTrainingSAE, SparseTopKTrainingSAEConfig

    sae = SparseTopKTrainingSAE(SparseTopKTrainingSAEConfig(d_in=512, d_sae=16_384, k=32))

They train under SAELens's `SAETrainer` as it is and are saved in its format, as an ordinary "topk" or "jumprelu" SAE;
for training they are registered as "sparse_topk", "sparse_batchtopk" and "sparse_matryoshka_batchtopk".

A step costs one dense product, x @ W_enc, taken in pieces so that the scores of the whole batch never exist at once.
All else touches only the pairs (row, latent) that are active, see `saes.sparse_kernels`:

- the gradients of W_dec and W_enc have a row for each latent that is active somewhere in the batch;
- the rescaling of activations by the decoder's norms decides what is selected and then cancels, in the value and in the
  gradient: relu(h |w|) / |w| = relu(h);
- the gradient of the encoder's input is wanted for b_dec alone, where it sums over the batch: W_enc times the gradient
  of b_enc;
- the levels of a matryoshka SAE are sums of parts that share no latent, so each pair is still decoded once.

Importing this module imports SAELens.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from typing_extensions import override

from hooked_whisper.errors import SaeError
from hooked_whisper.saes.saelens import import_saelens
from hooked_whisper.saes.selection import BatchSelector, chunk_rows, top_per_row
from hooked_whisper.saes.sparse_kernels import Backend, Codes, Kernels, kernels_for

import_saelens()  # first, for its error and without its warning
from sae_lens import (  # noqa: E402
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    MatryoshkaBatchTopKTrainingSAE,
    MatryoshkaBatchTopKTrainingSAEConfig,
    SAEConfig,
    TopKSAEConfig,
    TopKTrainingSAE,
    TopKTrainingSAEConfig,
    register_sae_training_class,
)
from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY  # noqa: E402
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput  # noqa: E402

# Up to so many times the latents that each row may use of them, all dead latents are multiplied densely.
_DENSE_AUX_FACTOR = 8
# Scalings that SAELens works out anew in each step, and forgets when it has undone them.
_UNDONE_ONCE = ("constant_norm_rescale", "layer_norm")


@dataclass
class SparseTopKTrainingSAEConfig(TopKTrainingSAEConfig):
    """SAELens's `TopKTrainingSAEConfig`, and `kernels`: "torch", "triton" (CUDA), or "auto" for the better of them."""

    kernels: Backend = "auto"

    @override
    @classmethod
    def architecture(cls) -> str:
        return "sparse_topk"

    @override
    def get_inference_config_class(self) -> type[SAEConfig]:
        return TopKSAEConfig


@dataclass
class SparseBatchTopKTrainingSAEConfig(BatchTopKTrainingSAEConfig):
    """SAELens's `BatchTopKTrainingSAEConfig`, and `kernels`: "torch", "triton" (CUDA), or "auto"."""

    kernels: Backend = "auto"

    @override
    @classmethod
    def architecture(cls) -> str:
        return "sparse_batchtopk"


@dataclass
class SparseMatryoshkaBatchTopKTrainingSAEConfig(MatryoshkaBatchTopKTrainingSAEConfig):
    """SAELens's `MatryoshkaBatchTopKTrainingSAEConfig`, and `kernels`: "torch", "triton" (CUDA), or "auto"."""

    kernels: Backend = "auto"

    @override
    @classmethod
    def architecture(cls) -> str:
        return "sparse_matryoshka_batchtopk"


class _Selection(NamedTuple):
    """The active pairs of a batch: codes, and scores (pre-activations, times the decoder's norms if so configured)."""

    codes: Codes
    scores: Tensor


class _Decode(torch.autograd.Function):
    """Values of the pairs -> weighted rows; gradients to values and weight."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, codes: Codes, kernels: Kernels) -> Tensor:
        ctx.save_for_backward(values, weight)
        ctx.codes, ctx.kernels = codes, kernels
        return kernels.weighted_rows(values, weight, codes)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:  # type: ignore[override]
        values, weight = ctx.saved_tensors
        grad = grad.contiguous()
        grad_values = ctx.kernels.row_dots(grad, weight, ctx.codes)
        return grad_values, ctx.kernels.transposed_sums(values, grad, ctx.codes), None, None


class _Encode(torch.autograd.Function):
    """Attaches the encoder's gradients to pre-activations that were computed while selecting."""

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, x: Tensor, W_enc: Tensor, b_enc: Tensor, b_dec: Tensor | None, codes: Codes,
        kernels: Kernels,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(x, W_enc, b_enc)
        ctx.codes, ctx.kernels = codes, kernels
        return values.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, W_enc, b_enc = ctx.saved_tensors
        grad_W = ctx.kernels.transposed_sums(grad, x, ctx.codes).T
        grad_b = torch.zeros_like(b_enc).index_add_(0, ctx.codes.latents, grad)
        grad_b_dec = -(W_enc @ grad_b) if ctx.needs_input_grad[4] else None
        return None, None, grad_W, grad_b, grad_b_dec, None, None


class _SparseTraining(TopKTrainingSAE):
    """What both classes share: the step. `_select` is theirs."""

    cfg: SparseTopKTrainingSAEConfig | SparseBatchTopKTrainingSAEConfig  # type: ignore[assignment]
    # Latents of each level that reconstructs by itself, short of all of them.
    _inner_widths: Sequence[int] = ()

    @override
    def initialize_weights(self) -> None:
        super().initialize_weights()
        # Kept as [d_sae, d_in] in memory: latents are gathered, and gradients come, by rows.
        self.W_enc = nn.Parameter(self.W_enc.data.T.contiguous().T)

    @override
    def process_state_dict_for_saving(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_saving(state_dict)
        state_dict["W_enc"] = state_dict["W_enc"].contiguous()

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        """A step on `step_input`; `feature_acts` and `hidden_pre` of the result are sparse, of the selected latents.

        The step is SAELens's own where only that can do what is asked: hooks on `hook_sae_acts_pre` or
        `hook_sae_acts_post`, which see dense activations; a gradient to `sae_in`; an `sae_in` with more than two axes.
        """
        sae_in = step_input.sae_in
        hooked = _is_hooked(self.hook_sae_acts_pre) or _is_hooked(self.hook_sae_acts_post)
        if hooked or sae_in.ndim != 2 or sae_in.requires_grad:
            return super().training_forward_pass(step_input)
        kernels = kernels_for(sae_in.device, self.cfg.kernels)
        with torch.no_grad():
            x = self.process_sae_in(sae_in)
            norms = self.W_dec.norm(dim=-1) if self.cfg.rescale_acts_by_decoder_norm else None
            dead = _dead_latents(step_input.dead_neuron_mask)
            k_aux = min(x.shape[-1] // 2, len(dead))
            aux_is_sparse = len(dead) > _DENSE_AUX_FACTOR * k_aux and not self._aux_by_level
            main, aux = self._select(x, norms, dead if aux_is_sparse else None, k_aux)
        with _no_autocast(sae_in.device):
            values = self._pre_activations(main, x, norms, kernels).relu()
            *inner, recons = self._decode_levels(values, main.codes, kernels)
            recons = self.run_time_activation_norm_fn_out(self.hook_sae_recons(recons))
            sae_out = self.reshape_fn_out(recons, self.d_head)
            mse_loss = self.mse_loss_fn(sae_out, sae_in).sum(dim=-1).mean()
            inner = [self.run_time_activation_norm_fn_out(level) for level in inner]
            inner_losses = {
                f"inner_mse_loss_{width}": self.mse_loss_fn(level, sae_in).sum(dim=-1).mean()
                for width, level in zip(self._inner_widths, inner, strict=True)
            }
            aux_loss = sae_out.new_tensor(0.0)
            if len(dead) and self._aux_by_level:
                aux_loss = self._aux_loss_by_level(sae_in, [*inner, sae_out], x, norms, dead)
            elif len(dead):
                if aux is not None:
                    aux_values = self._pre_activations(aux, x, norms, kernels)
                    aux_recons = _Decode.apply(aux_values, self.W_dec, aux.codes, kernels)
                else:
                    aux_recons = self._dense_aux(x, norms, dead, k_aux)
                aux_loss = self._aux_loss(sae_in, sae_out, self.reshape_fn_out(aux_recons, self.d_head), len(dead))
        acts = _as_sparse(main.codes, values.detach(), norms)
        output = TrainStepOutput(
            sae_in=sae_in,
            sae_out=sae_out,
            feature_acts=acts,
            hidden_pre=acts,
            loss=mse_loss + aux_loss + sum(inner_losses.values()),
            losses={"mse_loss": mse_loss, "auxiliary_reconstruction_loss": aux_loss, **inner_losses},
        )
        self._after_step(output)
        return output

    def _select(
        self, x: Tensor, norms: Tensor | None, dead: Tensor | None, k_aux: int
    ) -> tuple[_Selection, _Selection | None]:
        """What is active in the batch, and, if `dead` latents are given, which of those its auxiliary loss uses."""
        raise NotImplementedError

    def _after_step(self, output: TrainStepOutput) -> None:
        """Where a class keeps what it learns about a step."""

    @property
    def _aux_by_level(self) -> bool:
        """Whether dead latents learn what their own level leaves, instead of what all latents leave."""
        return False

    def _decode_levels(self, values: Tensor, codes: Codes, kernels: Kernels) -> Tensor:
        """Decoder output of the first latents, for each of `_inner_widths`, and of all of them: [level, row, d_in]."""
        if not self._inner_widths:
            return (_Decode.apply(values, self.W_dec, codes, kernels) + self.b_dec)[None]
        # The pairs of each level as rows of their own, decoded at once, then summed from level to level.
        n_rows, n_levels = codes.n_rows, len(self._inner_widths) + 1
        widths = torch.tensor(self._inner_widths, device=values.device)
        rows, order = (torch.bucketize(codes.latents, widths, right=True) * n_rows + codes.rows).sort(stable=True)
        offsets = torch.searchsorted(rows, torch.arange(n_levels * n_rows + 1, device=values.device))
        by_level = Codes(codes.latents[order], offsets, codes.n_latents)
        parts = _Decode.apply(values.index_select(0, order), self.W_dec, by_level, kernels)
        return parts.view(n_levels, n_rows, -1).cumsum(0) + self.b_dec

    def _scores(self, x: Tensor, norms: Tensor | None) -> Iterator[tuple[int, Tensor]]:
        """First row and scores of each piece of the batch; a piece is overwritten by the next.

        Under autocast the product is taken in its dtype, which then decides what is selected.
        """
        dtype = _product_dtype(x)
        step = chunk_rows(self.cfg.d_sae, dtype, x.device)
        x, W_enc, b_enc = x.to(dtype), self.W_enc.to(dtype), self.b_enc.to(dtype)
        norms = None if norms is None else norms.to(dtype)
        buffer = torch.empty(min(step, len(x)), self.cfg.d_sae, dtype=dtype, device=x.device)
        with _no_autocast(x.device):
            for first in range(0, len(x), step):
                rows = x[first : first + step]
                scores = torch.addmm(b_enc, rows, W_enc, out=buffer[: len(rows)])
                yield first, scores if norms is None else scores.mul_(norms)

    def _pre_activations(self, selection: _Selection, x: Tensor, norms: Tensor | None, kernels: Kernels) -> Tensor:
        """Encoder output at the selected pairs, not rescaled, with the encoder's gradients."""
        codes, scores = selection
        with torch.no_grad():
            if scores.dtype != x.dtype:  # selected in half precision, valued in full
                values = kernels.row_dots(x, self.W_enc.T.contiguous(), codes) + self.b_enc[codes.latents]
            else:
                values = scores if norms is None else scores / norms[codes.latents]
        b_dec = self.b_dec if self.cfg.apply_b_dec_to_input else None
        return _Encode.apply(values, x, self.W_enc, self.b_enc, b_dec, codes, kernels)

    def _dense_aux(self, x: Tensor, norms: Tensor | None, dead: Tensor, k_aux: int) -> Tensor:
        """What `k_aux` of the dead latents make of each row, computed with all of them."""
        if self.cfg.apply_b_dec_to_input:
            x = x - (self.b_dec - self.b_dec.detach())  # the same value, with a gradient
        acts = x @ self.W_enc[:, dead] + self.b_enc[dead]
        if len(dead) > k_aux:
            with torch.no_grad():
                scores = acts if norms is None else acts * norms[dead]
                chosen = torch.zeros_like(acts).scatter_(1, scores.topk(k_aux, sorted=False).indices, 1.0)
            acts = acts * chosen
        return acts @ self.W_dec[dead]

    def _aux_loss(self, sae_in: Tensor, sae_out: Tensor, recons: Tensor, n_dead: int) -> Tensor:
        """SAELens's auxiliary loss: the dead latents' reconstruction of what the living ones leave."""
        if self.cfg.normalize_activations in _UNDONE_ONCE:
            raise SaeError(
                f"normalize_activations={self.cfg.normalize_activations!r} was given to an SAE whose auxiliary loss "
                "compares activations as they are: choose 'none', 'expected_average_only_in' or 'covariance_whitening'."
            )
        residual = (sae_in - sae_out).detach()
        scale = min(n_dead / (sae_in.shape[-1] // 2), 1.0)
        return self.cfg.aux_loss_coefficient * scale * (recons - residual).pow(2).sum(dim=-1).mean()

    def _aux_loss_by_level(
        self, sae_in: Tensor, levels: Sequence[Tensor], x: Tensor, norms: Tensor | None, dead: Tensor
    ) -> Tensor:
        """The sum of the auxiliary losses of the levels, each with its own dead latents and what it leaves."""
        edges = [0, *self._inner_widths, self.cfg.d_sae]
        total = sae_in.new_tensor(0.0)
        for level, first, end in zip(levels, edges[:-1], edges[1:], strict=True):
            own = dead[(dead >= first) & (dead < end)]
            if len(own):
                recons = self._dense_aux(x, norms, own, min(x.shape[-1] // 2, len(own)))
                total = total + self._aux_loss(sae_in, level, recons, len(own))
        return total


class SparseTopKTrainingSAE(_SparseTraining):
    """SAELens's `TopKTrainingSAE` on sparse codes; saved as "topk"."""

    cfg: SparseTopKTrainingSAEConfig  # type: ignore[assignment]

    @override
    def _select(
        self, x: Tensor, norms: Tensor | None, dead: Tensor | None, k_aux: int
    ) -> tuple[_Selection, _Selection | None]:
        main, aux = [], []
        for _, scores in self._scores(x, norms):
            main.append(top_per_row(scores, self.cfg.k))
            if dead is not None:
                aux.append(_top_dead(scores, dead, k_aux))
        return _rows_of(main, self.cfg.d_sae), _rows_of(aux, self.cfg.d_sae) if aux else None


class SparseBatchTopKTrainingSAE(_SparseTraining, BatchTopKTrainingSAE):
    """SAELens's `BatchTopKTrainingSAE` on sparse codes; saved as "jumprelu".

    The scores that are selected are exactly the largest of the batch, whatever their number in one row. The
    last batch's smallest one tells which scores need no second look; where that guess was too high, the
    batch is gone through again.

    Attributes:
        process_group: with one, the batch is that of all its processes together.
    """

    cfg: SparseBatchTopKTrainingSAEConfig  # type: ignore[assignment]
    process_group: dist.ProcessGroup | None = None
    _floor: Tensor | float = 0.0
    _smallest: Tensor | None = None
    _MARGIN = 0.9  # of the last batch's smallest score

    @override
    def _select(
        self, x: Tensor, norms: Tensor | None, dead: Tensor | None, k_aux: int
    ) -> tuple[_Selection, _Selection | None]:
        selector, aux = self._search(x, norms, dead, k_aux, self._floor)
        if selector.is_short(self.process_group):
            selector, aux = self._search(x, norms, dead, k_aux, 0.0)
        chosen = selector.selected(self.process_group)
        self._smallest = chosen.smallest
        self._floor = 0.0 if chosen.smallest is None else chosen.smallest * self._MARGIN
        offsets = torch.searchsorted(chosen.rows, torch.arange(len(x) + 1, device=x.device))
        codes = Codes(chosen.latents, offsets, self.cfg.d_sae)
        return _Selection(codes, chosen.scores), _rows_of(aux, self.cfg.d_sae) if aux else None

    def _search(
        self, x: Tensor, norms: Tensor | None, dead: Tensor | None, k_aux: int, floor: Tensor | float
    ) -> tuple[BatchSelector, list[tuple[Tensor, Tensor]]]:
        n_processes = dist.get_world_size(self.process_group) if self.process_group is not None else 1
        selector = BatchSelector(int(self.cfg.k * len(x) * n_processes), floor)
        aux = []
        for first, scores in self._scores(x, norms):
            selector.add(scores, first)
            if dead is not None:
                aux.append(_top_dead(scores, dead, k_aux))
        return selector, aux

    @override
    def _after_step(self, output: TrainStepOutput) -> None:
        if self._smallest is not None:
            self.update_topk_threshold(self._smallest)
        output.metrics["topk_threshold"] = self.topk_threshold


class SparseMatryoshkaBatchTopKTrainingSAE(SparseBatchTopKTrainingSAE, MatryoshkaBatchTopKTrainingSAE):
    """SAELens's `MatryoshkaBatchTopKTrainingSAE` on sparse codes; saved as "jumprelu".

    The first latents, as many as each of `matryoshka_widths` says, reconstruct by themselves as well, so the
    first ones learn what is common and general.
    """

    cfg: SparseMatryoshkaBatchTopKTrainingSAEConfig  # type: ignore[assignment]

    def __init__(self, cfg: SparseMatryoshkaBatchTopKTrainingSAEConfig, use_error_term: bool = False) -> None:
        if cfg.normalize_activations in _UNDONE_ONCE:
            raise SaeError(
                f"normalize_activations={cfg.normalize_activations!r} was given to a matryoshka SAE, and SAELens "
                "undoes it once a step, not for each level: choose 'none', 'expected_average_only_in' or "
                "'covariance_whitening'."
            )
        super().__init__(cfg, use_error_term)  # type: ignore[arg-type]
        self._inner_widths = tuple(cfg.matryoshka_widths[:-1])

    @property
    @override
    def _aux_by_level(self) -> bool:
        return self.cfg.use_matryoshka_aux_loss


def _rows_of(parts: list[tuple[Tensor, Tensor]], n_latents: int) -> _Selection:
    """Pieces of a batch that have equally many latents in every row."""
    scores = torch.cat([scores for scores, _ in parts])
    latents = torch.cat([latents for _, latents in parts])
    offsets = torch.arange(0, latents.numel() + 1, latents.shape[1], device=latents.device)
    return _Selection(Codes(latents.flatten(), offsets, n_latents), scores.flatten())


def _top_dead(scores: Tensor, dead: Tensor, k_aux: int) -> tuple[Tensor, Tensor]:
    """The `k_aux` largest scores of each row among the latents `dead`, and which latents these are."""
    values, at = top_per_row(scores[:, dead], k_aux)
    return values, dead[at]


def _dead_latents(mask: Tensor | None) -> Tensor:
    return torch.empty(0, dtype=torch.long) if mask is None else mask.nonzero()[:, 0]


def _as_sparse(codes: Codes, values: Tensor, norms: Tensor | None) -> Tensor:
    """Feature activations as SAELens has them, as a sparse tensor, of which its trainer can take the statistics."""
    acts = values if norms is None else values * norms[codes.latents]
    size = (codes.n_rows, codes.n_latents)
    return torch.sparse_coo_tensor(torch.stack([codes.rows, codes.latents]), acts, size, check_invariants=False)


def _is_hooked(point: nn.Module) -> bool:
    return bool(point._forward_hooks or point._backward_hooks)


def _product_dtype(x: Tensor) -> torch.dtype:
    """The dtype of the encoder's product: autocast's where it is on."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def _no_autocast(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    return torch.autocast(device.type, enabled=False)


for _sae, _cfg in (
    (SparseTopKTrainingSAE, SparseTopKTrainingSAEConfig),
    (SparseBatchTopKTrainingSAE, SparseBatchTopKTrainingSAEConfig),
    (SparseMatryoshkaBatchTopKTrainingSAE, SparseMatryoshkaBatchTopKTrainingSAEConfig),
):
    if _cfg.architecture() not in SAE_TRAINING_CLASS_REGISTRY:
        register_sae_training_class(_cfg.architecture(), _sae, _cfg)
