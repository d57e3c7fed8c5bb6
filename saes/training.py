"""Training sparse autoencoders on rows of activations, with SAELens's trainer.

    sae = train_sae(store, hook="encoder.hook_out", architecture="topk", k=45, d_sae=16_000, out="runs/base-out")

A run can be killed at any moment: called again, it goes on from its last checkpoint with the very rows that came next.
Under `torchrun` the processes share every batch and make the SAE that one of them would have made.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from hooked_whisper import __version__
from hooked_whisper.errors import SaeError
from hooked_whisper.saes.denormals import flushed_denormals
from hooked_whisper.saes.saelens import import_saelens
from hooked_whisper.saes.sensitivity import Sensitivity
from hooked_whisper.saes.source import ActivationSource
from hooked_whisper.saes.training_checks import check, check_device
from hooked_whisper.saes.training_data import first_rows, joint_batches, split
from hooked_whisper.saes.training_files import RunFolder
from hooked_whisper.saes.training_log import ConsoleLog, LogTo, RunLogs, check_log
from hooked_whisper.saes.training_parallel import Team
from hooked_whisper.saes.training_run import TrainingRun, load_trained
from hooked_whisper.saes.training_settings import (
    ArchitectureOptions,
    BDecInit,
    LatentsInit,
    Normalization,
    RunSettings,
    SaeSettings,
    Scheduler,
)
from hooked_whisper.saes.training_start import Start, find_sensitivity, find_start

if TYPE_CHECKING:
    from sae_lens import SAE

__all__ = ["SaeSettings", "train_sae", "train_saes"]


def train_sae(
    source: ActivationSource,
    *,
    hook: str,
    d_sae: int,
    out: str | os.PathLike[str],
    architecture: str = "topk",
    k: float | None = None,
    k_start: float | None = None,
    k_anneal_steps: int | None = None,
    hook_out: str | None = None,
    sparse: bool = True,
    total_training_samples: int = 10_000_000,
    train_batch_size_samples: int = 4096,
    lr: float = 3e-4,
    lr_end: float | None = None,
    lr_scheduler_name: Scheduler = "constant",
    lr_warm_up_steps: int | None = None,
    lr_decay_steps: int | None = None,
    n_restart_cycles: int = 1,
    adam_beta1: float = 0.9,
    adam_beta2: float = 0.999,
    autocast: bool = False,
    dead_feature_window: int = 1000,
    feature_sampling_window: int = 2000,
    normalize_activations: Normalization = "none",
    b_dec_init_method: BDecInit = "mean",
    latents_init_method: LatentsInit = "random",
    n_init_rows: int = 16_384,
    dtype: str = "float32",
    device: str | None = None,
    seed: int = 0,
    start: str | os.PathLike[str] | None = None,
    sensitivity: str | os.PathLike[str] | None = None,
    sensitivity_share: float = 0.7,
    held_out: float | ActivationSource | None = 0.1,
    held_out_by: str = "clip",
    evaluate_every: int = 500,
    evaluation_rows: int = 16_384,
    checkpoint_every: int = 500,
    keep_checkpoints: int = 2,
    log_every: int = 50,
    log: LogTo | Sequence[LogTo] = "console",
    progress: bool | None = None,
    resume: bool = True,
    **options: Unpack[ArchitectureOptions],
) -> SAE[Any]:
    """Trains an SAE on the rows of a hook, saves it in SAELens's format in `out/sae`, and returns it.

    Args:
        source: a store, a stream, or another `ActivationSource`.
        hook: the hook whose rows it reads; its width is `d_in`.
        d_sae: number of latents.
        out: folder of the run; `load_sae(out)` loads the SAE.
        architecture: "topk", "batchtopk", "matryoshka_batchtopk", "jumprelu", "gated", "standard", "abstopk",
            "matching_pursuit", "batchtopk_transcoder", or another that is registered with SAELens for training.
        k: latents active in a row (on average over the batch for BatchTopK); needed for the TopK family.
        k_start, k_anneal_steps: how many are active at first, more than k, and in how many steps that falls to k in a
            line, a tenth of all where left out. Fewer latents are dead from the start (the K-annealing of Llama Scope,
            He et al. 2024, arXiv:2410.20526).
        hook_out: the hook whose rows a transcoder writes, such as an MLP's output, read from its input.
        sparse: train TopK, BatchTopK and matryoshka SAEs on sparse codes: the same result for a fraction of time and
            memory.
        total_training_samples: rows to train on, rounded down to whole batches; the data are gone through as often
            as that takes.
        train_batch_size_samples: rows of a batch, of all processes together.
        lr, lr_end, lr_scheduler_name, lr_warm_up_steps, lr_decay_steps, n_restart_cycles, adam_beta1, adam_beta2:
            as in SAELens. Left out, lr_end is lr / 10, the warm-up takes a twentieth of the steps (at most 1,000) and
            the fall to 0 at the end a fifth.
        autocast: the products in bfloat16; on sparse codes it decides which latents are active, and their values are
            computed in full.
        dead_feature_window: steps without firing after which a latent counts as dead; the auxiliary loss revives it.
        feature_sampling_window: steps over which firing is counted for the SAE's metadata.
        normalize_activations: "expected_average_only_in" brings rows to a mean length of sqrt(d_in) while training;
            it and "covariance_whitening" are folded into the weights before they are saved.
        b_dec_init_method: what the decoder's bias starts from: "mean", "geometric_median" or "zeros".
        latents_init_method: where encoder and decoder of a latent start: in "random" directions, or each in that of
            one of the "rows", less the bias, which leaves few latents silent at first. With SAELens's lengths.
        n_init_rows: rows that bias and scale are taken from.
        dtype: of the weights.
        device: "cuda" where there is one, else "cpu".
        seed: fixes weights and order of the rows.
        start: an SAE to go on from, as `load_sae` takes its name: a folder, a shipped one, a hub repository. It must
            have the same sizes and kind of weights; k and all else may differ.
        sensitivity: a file that `Sensitivity.save` wrote, of the hook and the model: errors then count by how much
            predictions depend on the direction that they lie in (`measure_sensitivity`). Rows are multiplied by the
            root of it, brought to a mean length of sqrt(d_in), and it is folded into the weights before they are saved.
            Decoder rows are then of different lengths, near 1. The loss and `fvu` of log.csv are of rows so multiplied;
            held-out figures are not.
        sensitivity_share: how far: 0 counts all directions alike, towards 1 as the model reads them, at the cost of
            those that it does not.
        held_out: the part of the clips to evaluate on instead of training on them, a source of other rows, or None.
        held_out_by: what must not be on both sides: "clip", or a column of the store, such as "key" or "speaker".
        evaluate_every, checkpoint_every, log_every: in steps; 0 for never.
        evaluation_rows: held-out rows to look at.
        keep_checkpoints: how many to keep.
        log: "console", "tensorboard", "wandb", several of these, or "nothing". `out/log.csv` is always written.
        progress: whether to show a bar; None shows it on a terminal.
        resume: go on with a run in `out`, or return its SAE if it is finished; False removes that run first.
        options: of the architecture, with SAELens's names, such as aux_loss_coefficient or l1_coefficient.

    Raises:
        SaeError: settings that cannot train, activations or a loss that are not finite, a folder that holds something
            else, a damaged checkpoint. StoreError, CorpusError: a source that fails.
        MissingExtraError: SAELens, or the package of a log, is not installed.
    """
    settings = SaeSettings(
        hook=hook, d_sae=d_sae, architecture=architecture, k=k, k_start=k_start, k_anneal_steps=k_anneal_steps,
        hook_out=hook_out, sparse=sparse,
        name=Path(out).name or "sae", seed=seed, start=None if start is None else os.fspath(start),
        sensitivity=None if sensitivity is None else os.fspath(sensitivity), sensitivity_share=sensitivity_share,
        dtype=dtype, normalize_activations=normalize_activations,
        b_dec_init_method=b_dec_init_method, latents_init_method=latents_init_method, lr=lr, lr_end=lr_end,
        lr_scheduler_name=lr_scheduler_name, lr_warm_up_steps=lr_warm_up_steps, lr_decay_steps=lr_decay_steps,
        n_restart_cycles=n_restart_cycles, adam_beta1=adam_beta1, adam_beta2=adam_beta2,
        dead_feature_window=dead_feature_window, feature_sampling_window=feature_sampling_window, options=dict(options),
    )  # fmt: skip
    run = RunSettings(
        total_training_samples=total_training_samples, train_batch_size_samples=train_batch_size_samples, seed=seed,
        n_init_rows=n_init_rows, autocast=autocast, device=_device(device), evaluate_every=evaluate_every,
        evaluation_rows=evaluation_rows, checkpoint_every=checkpoint_every, keep_checkpoints=keep_checkpoints,
        log_every=log_every,
    )  # fmt: skip
    return _train(
        source, [settings], [Path(out)], run, held_out=held_out, held_out_by=held_out_by, log=log, progress=progress,
        resume=resume,
    )[0]  # fmt: skip


def train_saes(
    source: ActivationSource,
    saes: Sequence[SaeSettings],
    *,
    out: str | os.PathLike[str],
    total_training_samples: int = 10_000_000,
    train_batch_size_samples: int = 4096,
    autocast: bool = False,
    n_init_rows: int = 16_384,
    device: str | None = None,
    seed: int = 0,
    held_out: float | ActivationSource | None = 0.1,
    held_out_by: str = "clip",
    evaluate_every: int = 500,
    evaluation_rows: int = 16_384,
    checkpoint_every: int = 500,
    keep_checkpoints: int = 2,
    log_every: int = 50,
    log: LogTo | Sequence[LogTo] = "console",
    progress: bool | None = None,
    resume: bool = True,
) -> dict[str, SAE[Any]]:
    """Trains several SAEs, on one hook or several, from one stream of rows that is read (or made) once.

    Args:
        saes: one `SaeSettings` each; its seed fixes its weights.
        out: each SAE's run is the folder `out/NAME`.
        seed: of the order of the rows.
        The others are as in `train_sae`.

    Returns:
        The SAEs by name.

    Raises:
        As `train_sae`.
    """
    run = RunSettings(
        total_training_samples=total_training_samples, train_batch_size_samples=train_batch_size_samples, seed=seed,
        n_init_rows=n_init_rows, autocast=autocast, device=_device(device), evaluate_every=evaluate_every,
        evaluation_rows=evaluation_rows, checkpoint_every=checkpoint_every, keep_checkpoints=keep_checkpoints,
        log_every=log_every,
    )  # fmt: skip
    names = [settings.default_name for settings in saes]
    trained = _train(
        source, saes, [Path(out) / name for name in names], run, held_out=held_out, held_out_by=held_out_by, log=log,
        progress=progress, resume=resume,
    )  # fmt: skip
    return dict(zip(names, trained, strict=True))


def _device(device: str | None) -> str:
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":  # each process that torchrun starts has its own
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    return device


def _train(
    source: ActivationSource,
    saes: Sequence[SaeSettings],
    folders: Sequence[Path],
    run: RunSettings,
    *,
    held_out: float | ActivationSource | None,
    held_out_by: str,
    log: str | Sequence[str],
    progress: bool | None,
    resume: bool,
) -> list[Any]:
    import_saelens()
    logs = check_log(log)
    check_device(run.device, run.autocast)
    team = Team(run.device)
    try:
        check(saes, run, source, team.size)
        train_on, evaluate_on = split(source, held_out, by=held_out_by, seed=run.seed)
        check(saes, run, train_on, team.size)  # the rest may be too small
        _check_held_out(saes, evaluate_on)
        widths = [[train_on.width(hook) for hook in one.hooks] for one in saes]
        starts = [find_start(one, of_hooks) for one, of_hooks in zip(saes, widths, strict=True)]
        metrics = [find_sensitivity(one, of_hooks, train_on) for one, of_hooks in zip(saes, widths, strict=True)]
        records = [
            _record(one, run, train_on, evaluate_on, start, metric)
            for one, start, metric in zip(saes, starts, metrics, strict=True)
        ]
        homes = [RunFolder(folder) for folder in folders]
        finished = [home.check(record, resume=resume) for home, record in zip(homes, records, strict=True)]
        if all(finished):
            return [load_trained(home, run.device) for home in homes]
        runs = [
            TrainingRun(one, run, of_hooks, _metadata(one, train_on), home, team, start, metric)
            for one, of_hooks, home, start, metric in zip(saes, widths, homes, starts, metrics, strict=True)
        ]
        team.wait()  # until all have looked
        if team.is_first:
            for home, record in zip(homes, records, strict=True):
                home.prepare(record, resume=resume)
        team.wait()
        return _Loop(runs, records, run, train_on, evaluate_on, team).go(logs, progress)
    finally:
        team.close()


class _Loop:
    """The steps of a run, from where it stands to its end."""

    def __init__(
        self, runs: list[TrainingRun], records: list[dict[str, Any]], run: RunSettings, train_on: ActivationSource,
        evaluate_on: ActivationSource | None, team: Team,
    ) -> None:  # fmt: skip
        self.runs = runs
        self.records = records
        self.run = run
        self.train_on = train_on
        self.team = team
        self.hooks = list(dict.fromkeys(hook for one in runs for hook in one.settings.hooks))
        self.held_out = None if evaluate_on is None else self._rows(evaluate_on, run.evaluation_rows)

    def _rows(self, source: ActivationSource, n_rows: int) -> dict[str, Tensor]:
        size = self.run.train_batch_size_samples
        return first_rows(source, self.hooks, n_rows, batch_size=size, seed=self.run.seed)

    def go(self, logs: Sequence[str], progress: bool | None) -> list[Any]:
        """Trains, and gives back the SAEs."""
        start = self._start()
        n_rows = self.run.n_steps * self.run.train_batch_size_samples
        done = start * self.run.train_batch_size_samples
        show = progress if self.team.is_first and "console" in logs else False
        console = ConsoleLog(n_rows, done, bar=show) if "console" in logs and self.team.is_first else None
        written = [
            RunLogs(one.folder, one.name, record, logs, after_step=start, console=console)
            for one, record in zip(self.runs, self.records, strict=True)
        ] if self.team.is_first else []  # fmt: skip
        try:
            self._steps(start, written, console)
            return [self._finish(one, record) for one, record in zip(self.runs, self.records, strict=True)]
        finally:
            for log in written:
                log.close()
            if console is not None:
                console.close()

    def _start(self) -> int:
        """Sets all SAEs to the last step of which each has a checkpoint, or to their beginning."""
        common = set.intersection(*(set(one.folder.checkpoint_steps()) for one in self.runs))
        start = max(common, default=0)
        self.team.wait()  # until all have looked
        at_rows = [one.settings.d_sae for one in self.runs if one.settings.latents_init_method == "rows"]
        rows = {} if start else self._rows(self.train_on, max(self.run.n_init_rows, *at_rows, 0))
        for one in self.runs:
            if start:
                one.load(start)
            else:
                one.initialise(rows)
            one.join()
            if self.team.is_first:
                one.folder.drop_checkpoints_after(start)
        return start

    def _batches(self, start: int) -> Any:
        size = self.run.train_batch_size_samples
        batches = joint_batches(self.train_on, self.hooks, size, seed=self.run.seed, start=start * size)
        if torch.device(self.run.device).type == "cpu":
            return batches
        from sae_lens.training.prefetch import PrefetchingIterator

        return PrefetchingIterator(batches)

    def _steps(self, start: int, logs: Sequence[RunLogs], console: ConsoleLog | None) -> None:
        with closing(self._batches(start)) as batches, flushed_denormals():
            self._go_through(batches, start, logs, console)

    def _go_through(
        self, batches: Iterator[dict[str, Tensor]], start: int, logs: Sequence[RunLogs], console: ConsoleLog | None
    ) -> None:
        size = self.run.train_batch_size_samples
        last, last_rows = time.monotonic(), 0
        for number in range(start + 1, self.run.n_steps + 1):
            batch = next(batches)
            for one in self.runs:
                one.step(batch)
            last_rows += size
            if console is not None:
                console.advance(size)
            is_last = number == self.run.n_steps
            evaluate = self.held_out is not None and (_is_due(number, self.run.evaluate_every) or is_last)
            if evaluate or _is_due(number, self.run.log_every) or is_last:
                now = time.monotonic()
                known = {"rows": number * size, "rows_per_second": last_rows / (now - last)}
                values = [one.values(known, now - last) for one in self.runs]  # by all processes
                for one, log, found in zip(self.runs, logs, values, strict=False):  # by the one that writes
                    log.write(number, {**found, **(self._evaluated(one) if evaluate else {})})
                last, last_rows = now, 0
            if _is_due(number, self.run.checkpoint_every) or (is_last and self.run.checkpoint_every):
                for one in self.runs:
                    one.checkpoint()

    def _evaluated(self, one: TrainingRun) -> dict[str, float]:
        assert self.held_out is not None
        figures = one.evaluate(self.held_out)
        return {"held_out_fvu": figures.fvu, "held_out_l0": figures.l0, "held_out_silent": figures.silent}

    def _finish(self, one: TrainingRun, record: dict[str, Any]) -> Any:
        if self.team.is_first:
            held_out = self.held_out
            seen = self._rows(self.train_on, self.run.evaluation_rows) if held_out is None else held_out
            one.finish(held_out, seen, record)
        self.team.wait()
        return load_trained(one.folder, self.run.device)


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _check_held_out(saes: Sequence[SaeSettings], held_out: ActivationSource | None) -> None:
    for one in saes:
        for hook in one.hooks:
            if held_out is not None and hook not in held_out.hooks:
                raise SaeError(
                    f"The held-out source has no activations of {hook!r}: it has {', '.join(held_out.hooks)}."
                )


def _record(
    settings: SaeSettings,
    run: RunSettings,
    train_on: ActivationSource,
    held_out: ActivationSource | None,
    start: Start | None,
    metric: Sensitivity | None,
) -> dict[str, Any]:
    """What training.json says before the first step: all that decides the result, and where it comes from."""
    left_out = ("name",) if metric is not None else ("name", "sensitivity", "sensitivity_share")
    deciding = ("total_training_samples", "train_batch_size_samples", "seed", "n_init_rows", "autocast")
    return {
        "format": 1,
        "settings": {name: value for name, value in dataclasses.asdict(settings).items() if name not in left_out}
        | {
            "start": None if start is None else start.describe(),
        }
        | (
            {}
            if metric is None
            else {"sensitivity": {"file": Path(str(settings.sensitivity)).name, "sha256": metric.sha256()}}
        ),
        "run": {name: getattr(run, name) for name in deciding},
        "source": train_on.describe(),
        "held_out": None if held_out is None else held_out.describe(),
        "versions": {
            "hooked_whisper": __version__,
            "sae_lens": import_saelens().__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }


def _metadata(settings: SaeSettings, source: ActivationSource) -> Mapping[str, Any]:
    """What the SAE's cfg.json says of itself, with SAELens's names where it has one."""
    described = source.describe()
    corpus = described.get("corpus")
    rate = described.get("rate")
    version = import_saelens().__version__
    return {
        "model_name": source.model_name,
        "model_class_name": "HookedWhisper",
        "hook_name": settings.hook,
        **({} if settings.hook_out is None else {"hook_name_out": settings.hook_out}),
        "hook_head_index": None,
        "prepend_bos": False,
        "context_size": None if rate is None else round(30 * rate),
        "dataset_path": corpus.get("name") if isinstance(corpus, Mapping) else None,
        "sae_lens_version": version,
        "sae_lens_training_version": version,
        "hooked_whisper_version": __version__,
        "frame_rate": rate,
        "position": described.get("position"),
        "weights_sha256": described.get("weights_sha256"),
        "corpus": corpus,
        "licences": described.get("licences"),
        "n_training_rows": described.get("n_rows"),
    }
