"""An evaluation report with round numbers, to read, write, draw and judge."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hooked_whisper.saes.error_rates import ErrorRates, TranscriptChange
from hooked_whisper.saes.estimates import Estimate
from hooked_whisper.saes.reconstruction import DensityHistogram, Firing, Reconstruction
from hooked_whisper.saes.report import BaselineReport, Group, SaeReport
from hooked_whisper.saes.spliced_evaluation import SplicedLoss


def estimate(value: float, spread: float = 0.001) -> Estimate:
    return Estimate(value, value - spread, value + spread)


def reconstruction(fvu: float = 0.08, *, n_clips: int = 50, l0: float = 45.0) -> Reconstruction:
    return Reconstruction(
        n_clips, 200 * n_clips, estimate(fvu), estimate(fvu + 0.02), estimate(0.97), estimate(0.96), estimate(l0, 0.0)
    )


def loss(recovered: float = 0.995) -> SplicedLoss:
    return SplicedLoss(50, 700, 0.1, 0.12, 4.5, 4.0, estimate(recovered), estimate(recovered - 0.002), estimate(0.01),
                       estimate(0.98))  # fmt: skip


def rates(change: float = 0.001, to_unhooked: float = 0.002, *, references: int = 50) -> ErrorRates:
    known = [estimate(0.1), estimate(0.1 + change), estimate(change, 0.0005)] if references else [Estimate(None)] * 3
    return ErrorRates(50, 3, 600, estimate(to_unhooked), estimate(0.001), references, 11 * references, *known, *known)


def group(**parts: Any) -> Group:
    whole = Group(reconstruction(), Firing(10_000, 16_000, 160, 5), loss(), None, rates())
    return replace(whole, **parts)


def report(**parts: Any) -> SaeReport:
    """A report in which every gate passes."""
    whole = SaeReport(
        model="openai/whisper-base",
        hook="encoder.hook_out",
        hook_out="encoder.hook_out",
        architecture="topk",
        d_in=512,
        d_sae=16_000,
        configured_l0=45.0,
        overall=group(on_reference=loss(0.99)),
        languages={"en": group(), "it": group(reconstruction=reconstruction(0.09, n_clips=20))},
        speakers={"Allison Smith": reconstruction(), "Carlo Flora": reconstruction(0.09)},
        densities=DensityHistogram([1e-4, 1e-3, 1e-2, 1e-1, 1.0], [1000, 9000, 5000, 840], 160),
        baselines={
            "neurons": BaselineReport(45, reconstruction(0.4), loss(0.6)),
            "pca": BaselineReport(45, reconstruction(0.3)),
        },
        changes=[TranscriptChange("it/a|b", "it", "il numero", "il\nnumero", "il numera", 1)],
        corpus={"name": "prompts", "n_clips": 50},
        settings={"padding": "keep", "seed": 0, "n_resamples": 1000},
        notes=["No error term."],
    )  # fmt: skip
    return replace(whole, **parts)
