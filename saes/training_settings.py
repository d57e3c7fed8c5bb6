"""What a training run is told: one `SaeSettings` for each SAE, one `RunSettings` for what they share.

Names are SAELens's own wherever SAELens has one. `saes.training_checks` refuses what cannot train.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

BDecInit = Literal["mean", "geometric_median", "zeros"]
LatentsInit = Literal["random", "rows"]
Normalization = Literal["none", "expected_average_only_in", "layer_norm", "covariance_whitening"]
Scheduler = Literal["constant", "cosineannealing", "cosineannealingwarmrestarts"]

SCHEDULERS = ("constant", "cosineannealing", "cosineannealingwarmrestarts")
NORMALIZATIONS = ("none", "expected_average_only_in", "layer_norm", "covariance_whitening")
TRANSCODER = "batchtopk_transcoder"
TOPK_FAMILY = ("topk", "abstopk", "batchtopk", "matryoshka_batchtopk", TRANSCODER)
# Selected over the whole batch in training; by a threshold, which is set at the end, in use.
BATCHTOPK_FAMILY = ("batchtopk", "matryoshka_batchtopk", TRANSCODER)
SPARSE = {name: f"sparse_{name}" for name in ("topk", "batchtopk", "matryoshka_batchtopk")}


class ArchitectureOptions(TypedDict, total=False):
    """Options of SAELens's training classes; which of them an architecture has, its config class says."""

    apply_b_dec_to_input: bool
    decoder_init_norm: float | None
    # topk, abstopk, batchtopk, matryoshka_batchtopk
    aux_loss_coefficient: float
    rescale_acts_by_decoder_norm: bool
    topk_threshold_lr: float
    matryoshka_widths: list[int]
    use_matryoshka_aux_loss: bool
    use_sparse_activations: bool
    skip: bool  # of a transcoder: a linear path from input to output
    kernels: Literal["auto", "torch", "triton"]
    # standard, gated
    l1_coefficient: float
    lp_norm: float
    l1_warm_up_steps: int
    # jumprelu
    jumprelu_init_threshold: float
    jumprelu_bandwidth: float
    jumprelu_sparsity_loss_mode: Literal["step", "tanh", "quadratic"]
    jumprelu_tanh_scale: float
    jumprelu_ste_to_input: bool
    l0_coefficient: float
    l0_warm_up_steps: int
    pre_act_loss_coefficient: float | None
    target_l0: float | None
    # matching_pursuit
    residual_threshold: float
    max_iterations: int | None
    stop_on_duplicate_support: bool


@dataclass(frozen=True, kw_only=True)
class SaeSettings:
    """One SAE.

    Attributes:
        hook: the hook whose rows it reads.
        d_sae: number of latents.
        architecture: "topk", "batchtopk", "matryoshka_batchtopk", "jumprelu", "gated", "standard", "abstopk",
            "matching_pursuit", "batchtopk_transcoder", or another that is registered with SAELens for training.
        k: latents that are active in a row; for the TopK family, where it must be given.
        k_start: latents that are active at first, more than k; from there to k in a line. None for k from the start.
        k_anneal_steps: steps which that takes; None is a tenth of the steps.
        hook_out: the hook whose rows a transcoder writes.
        sparse: train TopK, BatchTopK and matryoshka SAEs on sparse codes (`saes.sparse`): the same SAE in a fraction
            of time and memory.
        name: folder of the SAE in the run's, where several are trained.
        seed: of the weights at the start.
        start: an SAE whose weights it starts from instead, as `load_sae` takes its name: a folder, a shipped one, a
            hub repository.
        sensitivity: a file that `Sensitivity.save` wrote: errors count by what the model's predictions depend on.
        sensitivity_share: how far: 0 counts all directions alike, 1 as the model reads them.
        dtype: of the weights.
        normalize_activations: SAELens's; "expected_average_only_in" and "covariance_whitening" are folded into the
            weights before they are saved.
        b_dec_init_method: where the decoder's bias starts.
        latents_init_method: where latents start: at "random" directions, or each at one of the "rows".
        lr, adam_beta1, adam_beta2: of Adam.
        lr_scheduler_name, lr_end, n_restart_cycles: the course of the learning rate; an lr_end of None is lr / 10.
        lr_warm_up_steps: linear rise at the start; None is a twentieth of the steps, at most 1,000.
        lr_decay_steps: linear fall to 0 at the end; None is a fifth of the steps.
        dead_feature_window: steps without firing after which a latent counts as dead; the auxiliary loss revives it.
        feature_sampling_window: steps over which firing is counted.
        options: of the architecture, see `ArchitectureOptions`.
    """

    hook: str
    d_sae: int
    architecture: str = "topk"
    k: float | None = None
    k_start: float | None = None
    k_anneal_steps: int | None = None
    hook_out: str | None = None
    sparse: bool = True
    name: str | None = None
    seed: int = 0
    start: str | None = None
    sensitivity: str | None = None
    sensitivity_share: float = 0.7
    dtype: str = "float32"
    normalize_activations: str = "none"
    b_dec_init_method: str = "mean"
    latents_init_method: str = "random"
    lr: float = 3e-4
    lr_end: float | None = None
    lr_scheduler_name: str = "constant"
    lr_warm_up_steps: int | None = None
    lr_decay_steps: int | None = None
    n_restart_cycles: int = 1
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    dead_feature_window: int = 1000
    feature_sampling_window: int = 2000
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def training_architecture(self) -> str:
        """The name under which SAELens has the class that trains it."""
        return SPARSE.get(self.architecture, self.architecture) if self.sparse else self.architecture

    @property
    def hooks(self) -> tuple[str, ...]:
        """The hook that it reads, and the one that it writes if that is another."""
        return (self.hook,) if self.hook_out is None else (self.hook, self.hook_out)

    @property
    def default_name(self) -> str:
        """A name for its folder that says what it is."""
        k = "" if self.k is None else f"-k{self.k:g}"
        return self.name or f"{'-to-'.join(self.hooks)}-{self.architecture}{k}-{self.d_sae}-seed{self.seed}"


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What all SAEs of a run share.

    Attributes:
        total_training_samples: rows to train on, rounded down to whole batches.
        train_batch_size_samples: rows of a batch; of all processes together.
        seed: of the order of the rows.
        n_init_rows: rows that the decoder's bias and the scale of activations are taken from at the start.
        autocast: products in bfloat16.
        device: where to train.
        evaluate_every, checkpoint_every, log_every: in steps; 0 for never.
        evaluation_rows: held-out rows that are looked at while training.
        keep_checkpoints: how many to keep, the last ones.
    """

    total_training_samples: int
    train_batch_size_samples: int
    seed: int = 0
    n_init_rows: int = 16_384
    autocast: bool = False
    device: str = "cpu"
    evaluate_every: int = 500
    evaluation_rows: int = 16_384
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    log_every: int = 50

    @property
    def n_steps(self) -> int:
        return self.total_training_samples // self.train_batch_size_samples


def warm_up_steps(settings: SaeSettings, n_steps: int) -> int:
    """Steps of the linear rise at the start."""
    return min(1000, n_steps // 20) if settings.lr_warm_up_steps is None else settings.lr_warm_up_steps


def decay_steps(settings: SaeSettings, n_steps: int) -> int:
    """Steps of the linear fall at the end."""
    return n_steps // 5 if settings.lr_decay_steps is None else settings.lr_decay_steps


def k_anneal_steps(settings: SaeSettings, n_steps: int) -> int:
    """Steps in which the number of active latents falls to k."""
    if settings.k_start is None:
        return 0
    return n_steps // 10 if settings.k_anneal_steps is None else settings.k_anneal_steps


def k_at(settings: SaeSettings, step: int, n_steps: int) -> float | None:
    """Active latents of a step, the first one being 0; None for an architecture without k."""
    if settings.k is None:
        return None
    annealed = k_anneal_steps(settings, n_steps)
    if settings.k_start is None or step >= annealed:
        return settings.k
    between = settings.k + (settings.k_start - settings.k) * (1 - step / annealed)
    return between if settings.architecture in BATCHTOPK_FAMILY else round(between)


def matryoshka_widths(settings: SaeSettings) -> list[int]:
    """The widths given, or a sixteenth, a quarter and all of the latents."""
    given = settings.options.get("matryoshka_widths")
    return list(given) if given else sorted({max(1, settings.d_sae // part) for part in (16, 4, 1)})
