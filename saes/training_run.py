"""One SAE in training: SAELens's trainer, what its weights start from, checkpoints, figures, and the SAE for use."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor

from hooked_whisper.errors import SaeError
from hooked_whisper.saes.saelens import import_saelens
from hooked_whisper.saes.sensitivity import Sensitivity
from hooked_whisper.saes.training_checks import config_class
from hooked_whisper.saes.training_data import geometric_median, norm_scale
from hooked_whisper.saes.training_evaluation import Figures, measure, threshold_for
from hooked_whisper.saes.training_files import STATE, RunFolder, read_json, write_folder, write_json
from hooked_whisper.saes.training_parallel import Team
from hooked_whisper.saes.training_settings import (
    BATCHTOPK_FAMILY,
    TOPK_FAMILY,
    RunSettings,
    SaeSettings,
    decay_steps,
    k_at,
    matryoshka_widths,
    warm_up_steps,
)
from hooked_whisper.saes.training_start import Start

# What reading a broken checkpoint raises; SaeError is a ValueError.
_DAMAGED = (OSError, RuntimeError, KeyError, ValueError, EOFError, SafetensorError, UnpicklingError)


def build_sae(settings: SaeSettings, widths: Sequence[int], metadata: Mapping[str, Any]) -> Any:
    """SAELens's training SAE on the CPU, its weights fixed by the seed; `widths` are those of its hooks.

    Raises:
        SaeError: settings that SAELens refuses.
    """
    sae_lens = import_saelens()
    config = config_class(settings.training_architecture)
    options: dict[str, Any] = dict(settings.options)
    names = {field.name for field in dataclasses.fields(config)}
    if settings.k is not None:
        options["k"] = int(settings.k) if settings.architecture in ("topk", "abstopk") else float(settings.k)
    if "matryoshka_widths" in names:
        options["matryoshka_widths"] = matryoshka_widths(settings)
    if settings.architecture == "matching_pursuit":
        options.setdefault("decoder_init_norm", 1.0)
    if "d_out" in names:
        options["d_out"] = widths[-1]
    if settings.hook.endswith(".attn.hook_z"):  # in use it takes and gives [..., head, d_head]
        options["reshape_activations"] = "hook_z"
    try:
        cfg = config(
            d_in=widths[0],
            d_sae=settings.d_sae,
            dtype=settings.dtype,
            normalize_activations=settings.normalize_activations,
            metadata=sae_lens.saes.sae.SAEMetadata(**metadata),
            **options,
        )
        with sae_lens.util.temporary_seed(settings.seed):
            return sae_lens.TrainingSAE.get_sae_class_for_architecture(settings.training_architecture)(cfg)
    except (ValueError, TypeError) as error:
        raise SaeError(f"SAELens refuses these settings of {settings.architecture!r}: {error}") from error


class TrainingRun:
    """One SAE among those that a stream of rows trains.

    Attributes:
        settings, folder: what it is, and where it is written.
        trainer: SAELens's `SAETrainer`, driven step by step.
        seconds: time spent on it, in all its processes' lives.
    """

    def __init__(
        self, settings: SaeSettings, run: RunSettings, widths: Sequence[int], metadata: Mapping[str, Any],
        folder: RunFolder, team: Team, start: Start | None = None,
        metric: Sensitivity | None = None,
    ) -> None:  # fmt: skip
        sae_lens = import_saelens()
        self.settings = settings
        self.run = run
        self.folder = folder
        self.team = team
        self.seconds = 0.0
        self.start = start
        self.metric = metric
        self.sae = build_sae(settings, widths, metadata).to(run.device)
        if start is not None:
            start.check(self.sae)  # before anything is written
        self.trainer = sae_lens.SAETrainer(_trainer_config(settings, run), self.sae, iter(()))
        if torch.device(run.device).type in ("cpu", "cuda"):
            for group in self.trainer.optimizer.param_groups:
                group["fused"] = True  # one pass over the weights instead of eight
        self._teammate: Any = None
        self._output: Any = None

    @property
    def name(self) -> str:
        return self.settings.default_name

    @property
    def step_number(self) -> int:
        """Steps made so far."""
        return self.trainer.n_training_steps

    # Before the first step

    @torch.no_grad()
    def initialise(self, rows: Mapping[str, Tensor]) -> None:
        """Sets the scale of activations and the decoder's bias, or all weights if it has a start, by some rows."""
        self._initialise(rows[self.settings.hooks[-1]])

    def _initialise(self, rows: Float[Tensor, "row width"]) -> None:
        scaler = self.trainer.activation_scaler
        if self.metric is not None:
            scaler.whitening = _whitening(*self.metric.root(self.settings.sensitivity_share), rows)
        elif self.settings.normalize_activations == "expected_average_only_in":
            scaler.scaling_factor = norm_scale(rows)
        elif self.settings.normalize_activations == "covariance_whitening":
            scaler.estimate_whitening(rows.shape[1], iter([rows]), n_batches_for_norm_estimate=1)
        if self.start is not None:
            factor = scaler.scaling_factor
            matrix = None if scaler.whitening is None else scaler.whitening.matrix.cpu()
            self.start.put_into(self.sae, 1.0 if factor is None else float(factor), matrix)
            return
        method = self.settings.b_dec_init_method
        if method != "zeros" and self.settings.normalize_activations != "layer_norm":
            scaled = scaler.scale(rows)
            start = scaled.mean(0) if method == "mean" else geometric_median(scaled)
            self.sae.b_dec.copy_(start.to(self.sae.b_dec))
        if self.settings.latents_init_method == "rows":
            self._latents_at(scaler.scale(rows))

    def _latents_at(self, rows: Float[Tensor, "row width"]) -> None:
        """Lets each latent start in the direction of a row, seen from the decoder's bias, at the length it has."""
        d_sae = self.settings.d_sae
        if len(rows) < d_sae:
            raise SaeError(
                f"latents_init_method='rows' wants a row for each of {d_sae:,} latents, and there are {len(rows):,} to "
                "train on: harvest more, or take 'random'."
            )
        chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(self.settings.seed))[:d_sae]
        directions = torch.nn.functional.normalize(rows[chosen].to(self.sae.b_dec) - self.sae.b_dec, dim=-1)
        self.sae.W_dec.copy_(directions * self.sae.W_dec.norm(dim=-1, keepdim=True))
        if "W_enc" in dict(self.sae.named_parameters()):
            self.sae.W_enc.copy_(directions.T * self.sae.W_enc.norm(dim=0, keepdim=True))

    def load(self, step: int) -> None:
        """Goes on from the checkpoint after `step` steps.

        Raises:
            SaeError: it is damaged.
        """
        path = self.folder.checkpoint(step)
        try:
            self.sae.load_weights_from_checkpoint(path)
            self.trainer.load_trainer_state(path)  # torch's loader refuses what is not tensors and plain values
            self.seconds = float(read_json(path / STATE)["seconds"])
        except _DAMAGED as error:
            reason = str(error).partition("\n")[0]
            raise SaeError(
                f"The checkpoint {path} is damaged ({reason}): remove it to go on from the one before."
            ) from error

    def join(self) -> None:
        """Makes this process's trainer one of the team's."""
        self._teammate = self.team.join(self.trainer)

    # Steps

    def step(self, batch: Mapping[str, Tensor]) -> None:
        """One step on this process's share of a batch of rows of its hooks."""
        hooks = self.settings.hooks
        own = self.team.share(batch[hooks[0]] if len(hooks) == 1 else torch.cat([batch[hook] for hook in hooks], 1))
        self._set_k(k_at(self.settings, self.step_number, self.run.n_steps))
        self.trainer.maybe_reset_sparsity()
        if self._teammate is not None:
            self._teammate.before_step()
        self._output = self.trainer.step(own)
        self.trainer.n_training_steps += 1
        if self._teammate is not None:
            self._teammate.after_step(len(own))

    def _set_k(self, k: float | None) -> None:
        """How many latents the next step, and whoever looks at the SAE after it, has active."""
        for holder in (self.sae.cfg, self.sae.activation_fn):
            if k is not None and hasattr(holder, "k"):
                holder.k = type(holder.k)(k)

    @torch.no_grad()
    def values(self, known: Mapping[str, float], seconds: float) -> dict[str, float]:
        """What is known already, and loss, FVU, L0 and the like of the last batch; `seconds` have passed.

        Raises:
            SaeError: a loss that is not finite.
        """
        output = self._output
        x, out, acts = output.sae_in.float(), output.sae_out.float(), output.feature_acts
        active = acts._values() if acts.is_sparse else acts
        found = {
            "loss": output.loss,
            "fvu": (x - out).pow(2).sum() / (x - x.mean(0)).pow(2).sum(),
            "l0": (active != 0).sum() / len(x),
            "dead": self.trainer.dead_neurons.float().mean(),
            **output.losses,
        }
        means = self.team.mean(torch.stack([value.detach().double() for value in found.values()]))
        values = dict(zip(found, means.tolist(), strict=True))
        if not math.isfinite(values["loss"]):
            raise SaeError(
                f"The loss of {self.name} is {values['loss']} after {self.step_number} steps: lower lr, or raise "
                "lr_warm_up_steps, and train into another folder."
            )
        self.seconds += seconds
        values = {**known, "seconds": self.seconds, **values}
        values["lr"] = self.trainer.optimizer.param_groups[0]["lr"]
        if self.settings.architecture in BATCHTOPK_FAMILY:
            values["topk_threshold"] = self.sae.topk_threshold.item()
        return values

    def evaluate(self, rows: Mapping[str, Tensor]) -> Figures:
        """Figures of the SAE as it is, on held-out rows of its hooks."""
        self.sae.eval()  # SAELens's trainer sets it back
        return measure(
            self.sae, rows[self.settings.hook], scaler=self.trainer.activation_scaler, wanted=self._wanted(rows)
        )

    def _wanted(self, rows: Mapping[str, Tensor]) -> Tensor | None:
        return None if self.settings.hook_out is None else rows[self.settings.hook_out]

    def checkpoint(self) -> None:
        """Writes a checkpoint, if this process is the one that writes."""
        if not self.team.is_first:
            return

        def fill(path: Path) -> None:
            self.trainer.save_checkpoint(path.name, base_path=path.parent)
            write_json(path / STATE, {"step": self.step_number, "seconds": self.seconds})

        self.folder.save_checkpoint(self.step_number, fill, keep=self.run.keep_checkpoints)

    # After the last step

    @torch.no_grad()
    def finish(self, held_out: Mapping[str, Tensor] | None, seen: Mapping[str, Tensor], record: dict[str, Any]) -> None:
        """Folds, calibrates, saves and measures the SAE for use.

        Args:
            held_out: rows of its hooks that it was not trained on, for threshold and figures.
            seen: rows that it was, for both where nothing was held out.
            record: what training.json is to say; figures are added.
        """
        self._fold()
        self.trainer.set_final_sae_metadata()
        chosen = seen if held_out is None else held_out
        rows, wanted = chosen[self.settings.hook], self._wanted(chosen)
        figures: dict[str, Any] = {}
        if self.settings.architecture in BATCHTOPK_FAMILY:
            assert self.settings.k is not None
            moving = self.sae.topk_threshold.item()
            threshold = threshold_for(self.sae, rows, self.settings.k)
            self.sae.topk_threshold.fill_(threshold)
            figures["threshold"] = {
                "value": threshold, "moving_average": moving, "n_rows": len(rows),
                "rows": "trained on" if held_out is None else "held out",
            }  # fmt: skip
        write_folder(self.folder.sae, lambda path: self.sae.save_inference_model(path))
        sae = load_trained(self.folder, self.run.device)
        figures["held_out" if held_out is not None else "trained_on"] = dataclasses.asdict(
            _measure_flat(sae, rows, wanted)
        )
        figures["dead"] = self.trainer.dead_neurons.float().mean().item()
        self.folder.write_record(
            {**record, "status": "finished", "steps": self.step_number, "rows": self.step_number
             * self.run.train_batch_size_samples, "seconds": round(self.seconds, 1), "figures": figures}
        )  # fmt: skip

    def _fold(self) -> None:
        """What SAELens's trainer does at the end of `fit`."""
        scaler = self.trainer.activation_scaler
        if scaler.scaling_factor is not None:
            self.sae.fold_activation_norm_scaling_factor(scaler.scaling_factor)
        if scaler.whitening is not None:
            whitening = scaler.whitening
            self.sae.fold_activation_whitening(
                mean=whitening.mean,
                whitening_matrix=whitening.matrix,
                unwhitening_matrix=whitening.inverse_matrix,
            )
            if self.settings.architecture in TOPK_FAMILY:
                _latents_of_length_one(self.sae)
        scaler.scaling_factor = scaler.whitening = None


def _whitening(root: Tensor, inverse: Tensor, rows: Float[Tensor, "row width"]) -> Any:
    """SAELens's form of rows that are multiplied by a root, and brought to a mean length of the root of their width."""
    whitening = import_module("sae_lens.training.activation_scaler").ActivationWhitening
    scale = norm_scale((rows.cpu().double() @ root).float())
    return whitening(mean=torch.zeros(len(root), dtype=root.dtype), matrix=scale * root, inverse_matrix=inverse / scale)


def _latents_of_length_one(sae: Any) -> None:
    """Counts all latents of a TopK SAE in one other unit, so that its decoder's rows have a length near 1 on average.

    Those that are chosen by their activations stay the same ones. By a power of two, which rounds nothing.
    """
    unit = 2.0 ** round(math.log2(sae.W_dec.norm(dim=-1).mean().item()))
    sae.W_dec.div_(unit)
    for name in ("W_enc", "b_enc", "topk_threshold"):
        if hasattr(sae, name):
            getattr(sae, name).mul_(unit)


def load_trained(folder: RunFolder, device: str) -> Any:
    """The SAE for use of a finished run."""
    return import_saelens().SAE.load_from_disk(folder.sae, device=device)


def _measure_flat(sae: Any, rows: Tensor, wanted: Tensor | None) -> Figures:
    """Figures of an SAE for use on flat rows, also where it takes heads apart."""
    by_head = sae.hook_z_reshaping_mode
    if by_head:
        sae.turn_off_forward_pass_hook_z_reshaping()
    figures = measure(sae, rows, wanted=wanted)
    if by_head:
        sae.turn_on_forward_pass_hook_z_reshaping()
    return figures


def _trainer_config(settings: SaeSettings, run: RunSettings) -> Any:
    sae_lens = import_saelens()
    return sae_lens.config.SAETrainerConfig(
        total_training_samples=run.n_steps * run.train_batch_size_samples,
        train_batch_size_samples=run.train_batch_size_samples,
        lr=settings.lr,
        lr_end=settings.lr / 10 if settings.lr_end is None else settings.lr_end,
        lr_scheduler_name=settings.lr_scheduler_name,
        lr_warm_up_steps=warm_up_steps(settings, run.n_steps),
        lr_decay_steps=decay_steps(settings, run.n_steps),
        n_restart_cycles=settings.n_restart_cycles,
        adam_beta1=settings.adam_beta1,
        adam_beta2=settings.adam_beta2,
        device=run.device,
        autocast=run.autocast,
        dead_feature_window=settings.dead_feature_window,
        feature_sampling_window=settings.feature_sampling_window,
        logger=sae_lens.LoggingConfig(log_to_wandb=False),
    )
