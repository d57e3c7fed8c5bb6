"""What cannot train is refused before anything is read or written, with what was given, expected, and to be done."""

from __future__ import annotations

import dataclasses
import importlib
import math
from collections.abc import Sequence
from typing import Any

import torch

from hooked_whisper.errors import SaeError, did_you_mean
from hooked_whisper.saes.saelens import import_saelens
from hooked_whisper.saes.source import ActivationSource
from hooked_whisper.saes.training_settings import (
    NORMALIZATIONS,
    SCHEDULERS,
    SPARSE,
    TOPK_FAMILY,
    TRANSCODER,
    RunSettings,
    SaeSettings,
    decay_steps,
    k_anneal_steps,
    matryoshka_widths,
    warm_up_steps,
)


def config_class(architecture: str) -> type[Any]:
    """SAELens's config class for training `architecture`.

    Raises:
        SaeError: SAELens trains no such architecture.
    """
    for module in ("sparse", "transcoders"):  # which register their classes
        importlib.import_module(f"hooked_whisper.saes.{module}")
    registry = import_saelens().registry.SAE_TRAINING_CLASS_REGISTRY
    if architecture not in registry:
        known = sorted(set(registry) - set(SPARSE.values()))
        raise SaeError(
            f"Unknown architecture {architecture!r}: this SAELens trains {', '.join(known)}."
            + did_you_mean(architecture, known)
        )
    return registry[architecture][1]


def check(settings: Sequence[SaeSettings], run: RunSettings, source: ActivationSource, n_processes: int = 1) -> None:
    """Refuses settings that cannot train.

    Raises:
        SaeError: what was given, what was expected, what to do.
    """
    if not settings:
        raise SaeError("No SAE to train: expected at least one SaeSettings.")
    _check_run(run, source, n_processes)
    names = [one.default_name for one in settings]
    double = sorted({name for name in names if names.count(name) > 1})
    if double:
        raise SaeError(
            f"Two SAEs are called {double[0]!r}, and a name is a folder: give each SaeSettings a name of its own."
        )
    for one in settings:
        _check_sae(one, run, source)


def _check_run(run: RunSettings, source: ActivationSource, n_processes: int) -> None:
    for name in ("total_training_samples", "train_batch_size_samples", "n_init_rows", "evaluation_rows"):
        _at_least(name, getattr(run, name), 1)
    for name in ("evaluate_every", "checkpoint_every", "log_every"):
        _at_least(name, getattr(run, name), 0)
    _at_least("keep_checkpoints", run.keep_checkpoints, 2)  # processes and SAEs may be killed between two of them
    batch = run.train_batch_size_samples
    if run.n_steps < 1:
        raise SaeError(
            f"total_training_samples={run.total_training_samples} is less than one batch of {batch} rows: raise it, or "
            "lower train_batch_size_samples."
        )
    if batch % n_processes:
        raise SaeError(
            f"A batch of {batch} rows cannot be shared equally by {n_processes} processes: take a "
            f"train_batch_size_samples that {n_processes} divides."
        )
    if source.n_rows is not None and source.n_rows < batch:
        raise SaeError(
            f"The source has {source.n_rows} rows to train on, less than one batch of {batch}: harvest more, or lower "
            "train_batch_size_samples."
        )
    check_device(run.device, run.autocast)


def check_device(device: str, autocast: bool) -> None:
    """Raises SaeError for a device that is not there, or that is no good at bfloat16 if `autocast`."""
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise SaeError(f"Unknown device {device!r}: expected 'cpu', 'cuda', 'cuda:1' or 'mps'.") from error
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(kind, False):
        have = ", ".join(name for name, is_there in there.items() if is_there)
        raise SaeError(f"device={device!r} was asked for, but this machine has {have}.")
    if autocast and kind == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        raise SaeError(
            "autocast=True takes products in bfloat16, which this processor has no instructions for: they would be a "
            "hundred times slower. Leave it off, or train on a GPU."
        )


def _at_least(name: str, value: Any, least: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < least:
        raise SaeError(f"{name} must be a number, at least {least:g}, got {value!r}.")


def _one_of(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise SaeError(f"Unknown {name} {value!r}: expected one of {', '.join(known)}.{did_you_mean(value, known)}")


def _check_sae(settings: SaeSettings, run: RunSettings, source: ActivationSource) -> None:
    for hook in settings.hooks:
        if hook not in source.hooks:
            raise SaeError(
                f"The source has no activations of {hook!r}: it has {', '.join(source.hooks)}."
                + did_you_mean(hook, source.hooks)
            )
    config = config_class(settings.training_architecture)
    _at_least("d_sae", settings.d_sae, 1)
    _check_k(settings, config)
    _check_k_start(settings, run.n_steps)
    _one_of("dtype", settings.dtype, ("float32", "bfloat16", "float64"))
    _one_of("b_dec_init_method", settings.b_dec_init_method, ("mean", "geometric_median", "zeros"))
    _one_of("latents_init_method", settings.latents_init_method, ("random", "rows"))
    _check_transcoder(settings)
    _check_latents_init(settings)
    _check_normalization(settings)
    _check_learning_rate(settings, run.n_steps)
    for name in ("dead_feature_window", "feature_sampling_window"):
        _at_least(name, getattr(settings, name), 1)
    _check_options(settings, config)


def _check_k(settings: SaeSettings, config: type[Any]) -> None:
    has_k = "k" in {field.name for field in dataclasses.fields(config)}
    if settings.k is None:
        if has_k:
            raise SaeError(
                f"architecture={settings.architecture!r} needs k, the number of active latents: such as k=32."
            )
        return
    if not has_k:
        raise SaeError(
            f"k={settings.k:g} was given, but {settings.architecture!r} has no k: its sparsity follows from "
            f"{', '.join(sorted(_own_options(config)))}. Leave k out, or choose 'topk' or 'batchtopk'."
        )
    if not 0 < settings.k <= settings.d_sae:
        raise SaeError(
            f"k={settings.k:g} of d_sae={settings.d_sae} latents cannot be active: expected 1 to {settings.d_sae}."
        )
    if settings.architecture in ("topk", "abstopk") and settings.k != int(settings.k):
        raise SaeError(f"{settings.architecture!r} has k whole latents in every row, got k={settings.k:g}.")


def _check_k_start(settings: SaeSettings, n_steps: int) -> None:
    if settings.k_start is None:
        if settings.k_anneal_steps is not None:
            raise SaeError(f"k_anneal_steps={settings.k_anneal_steps} was given without k_start, which falls to k.")
        return
    if settings.k is None or not settings.k < settings.k_start <= settings.d_sae:
        k = "there is no k" if settings.k is None else f"k={settings.k:g}"
        raise SaeError(
            f"k_start={settings.k_start:g} must be more than k and at most d_sae={settings.d_sae}, and {k}: it is the "
            "number of latents that are active at first."
        )
    annealed = k_anneal_steps(settings, n_steps)
    _at_least("k_anneal_steps", annealed, 1)
    if annealed >= n_steps:
        raise SaeError(
            f"k_anneal_steps={annealed} leaves none of {n_steps} steps for k={settings.k:g}: lower it, or raise "
            "total_training_samples."
        )


def _check_latents_init(settings: SaeSettings) -> None:
    if settings.latents_init_method != "rows":
        return
    if settings.architecture == TRANSCODER:
        raise SaeError(
            "latents_init_method='rows' is for what gives back the rows it reads: a transcoder starts at random."
        )
    if settings.start is not None:
        raise SaeError(
            f"latents_init_method='rows' and start={str(settings.start)!r} both say where latents start: leave one out."
        )
    if settings.normalize_activations == "layer_norm":
        raise SaeError(
            "latents_init_method='rows' does not go with normalize_activations='layer_norm', under which latents read "
            "other rows than those: choose 'expected_average_only_in' or 'none'."
        )


def _check_transcoder(settings: SaeSettings) -> None:
    if settings.architecture == TRANSCODER and settings.hook_out is None:
        raise SaeError(f"{TRANSCODER!r} reads one hook and writes another: name the second with hook_out=.")
    if settings.architecture != TRANSCODER and settings.hook_out is not None:
        raise SaeError(
            f"hook_out={settings.hook_out!r} was given, but {settings.architecture!r} gives back what it reads: choose "
            f"architecture={TRANSCODER!r}, or leave hook_out out."
        )
    if settings.architecture == TRANSCODER and settings.normalize_activations != "none":
        raise SaeError(
            f"normalize_activations={settings.normalize_activations!r} has one scale, and a transcoder's two hooks "
            "have two: leave it at 'none'."
        )


def _check_normalization(settings: SaeSettings) -> None:
    _one_of("normalize_activations", settings.normalize_activations, NORMALIZATIONS)
    if settings.normalize_activations == "layer_norm" and settings.architecture in TOPK_FAMILY:
        raise SaeError(
            f"normalize_activations='layer_norm' does not go with {settings.architecture!r}: SAELens's auxiliary loss "
            "fails once a latent is dead. Choose 'expected_average_only_in' or 'none'."
        )


def _check_learning_rate(settings: SaeSettings, n_steps: int) -> None:
    if not 0 < settings.lr < math.inf:
        raise SaeError(f"lr must be a positive number, got {settings.lr!r}.")
    if settings.lr_end is not None and not 0 <= settings.lr_end <= settings.lr:
        raise SaeError(f"lr_end must lie between 0 and lr={settings.lr:g}, got {settings.lr_end!r}; None is lr / 10.")
    for name in ("adam_beta1", "adam_beta2"):
        if not 0 <= getattr(settings, name) < 1:
            raise SaeError(f"{name} must be at least 0 and less than 1, got {getattr(settings, name)!r}.")
    _one_of("lr_scheduler_name", settings.lr_scheduler_name, SCHEDULERS)
    warm_up, decay = warm_up_steps(settings, n_steps), decay_steps(settings, n_steps)
    _at_least("lr_warm_up_steps", warm_up, 0)
    _at_least("lr_decay_steps", decay, 0)
    _at_least("n_restart_cycles", settings.n_restart_cycles, 1)
    if warm_up + decay >= n_steps and n_steps > 1:
        raise SaeError(
            f"lr_warm_up_steps={warm_up} and lr_decay_steps={decay} leave nothing of {n_steps} steps: lower them, or "
            "raise total_training_samples."
        )
    if decay and settings.lr_end == 0 and settings.lr_scheduler_name != "constant":
        raise SaeError(
            "lr_end=0 has nothing left for lr_decay_steps to lower: set lr_decay_steps=0, or lr_end above 0."
        )


def _own_options(config: type[Any]) -> set[str]:
    """What `options` may hold for a config class: its fields, without those that have a setting of their own."""
    elsewhere = {
        "d_in",
        "d_out",
        "d_sae",
        "k",
        "dtype",
        "device",
        "normalize_activations",
        "reshape_activations",
        "metadata",
    }
    return {field.name for field in dataclasses.fields(config)} - elsewhere


def _check_options(settings: SaeSettings, config: type[Any]) -> None:
    known = _own_options(config)
    for name in settings.options:
        if name not in known:
            raise SaeError(
                f"{settings.architecture!r} has no option {name!r}: it has {', '.join(sorted(known))}."
                + did_you_mean(name, known)
            )
    if "matryoshka_widths" in known:
        widths = matryoshka_widths(settings)
        if sorted(set(widths)) != widths or not widths or widths[0] < 1 or widths[-1] != settings.d_sae:
            raise SaeError(f"matryoshka_widths must rise and end with d_sae={settings.d_sae}, got {widths}.")
