"""How long it takes to score every latent against every label, and how much memory, on made-up sparse codes.

    python -m benchmarks.feature_scoring --out benchmarks/results/feature_scoring.md
    python -m benchmarks.feature_scoring --rows 40000 --latents 4000 --labels 200       # a quick look

The bar: 16,000 latents by 1,000 labels over 400,000 frames, 45 active latents and 10 labels a frame, in under 10
minutes and 8 GB on 2 cores. One thread is used. Latents differ in density as those of an SAE do (log-normal), a tenth
of the labels have a latent that follows them, labels last for 1 to 20 frames, and one of their ten kinds is known on
half of the rows alone. Processor time is reported beside the clock's, which other work on a machine lengthens.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks import report
from benchmarks.measure import peak_growth_mb
from hooked_whisper.analysis.codes import FeatureCodes, sparse
from hooked_whisper.analysis.feature_nulls import feature_tests
from hooked_whisper.analysis.feature_scores import score_features
from hooked_whisper.analysis.frame_labels import FrameLabels

N_KINDS = 10
CLIP_ROWS = 160  # of a prompt, on average


def make_labels(rows: int, n_labels: int, generator: np.random.Generator) -> FrameLabels:
    """One label of each of ten kinds a row, for some frames at a time."""
    each = n_labels // N_KINDS
    columns = []
    for kind in range(N_KINDS):
        change = generator.random(rows) < 1 / (1 + 2 * kind)
        number = np.cumsum(change)
        of = (generator.random(number[-1] + 1) ** 2 * each).astype(np.int64)[number]  # some are common, some are rare
        columns.append(kind * each + of)
    indices = np.stack(columns, 1).ravel().astype(np.int32)
    indptr = np.arange(0, len(indices) + 1, N_KINDS, dtype=np.int32)
    matrix = sparse.csr_array((np.ones(len(indices), dtype=bool), indices, indptr), shape=(rows, each * N_KINDS))
    known = np.ones((rows, N_KINDS), dtype=bool)
    known[rows // 2 :, 0] = False
    kinds = tuple(f"kind{column // each}" for column in range(each * N_KINDS))
    names = tuple(f"{kind}={column % each}" for column, kind in enumerate(kinds))
    return FrameLabels(matrix, names, kinds, sparse.csr_array(known))


def make_codes(
    rows: int, latents: int, active: int, labels: FrameLabels, generator: np.random.Generator
) -> FeatureCodes:
    """Codes with about `active` latents a row, the first of which follow every tenth label."""
    weights = generator.lognormal(0.0, 1.5, latents)
    cumulative = np.cumsum(weights / weights.sum())
    followed = np.full(labels.matrix.shape[1], -1)
    followed[::10] = np.arange(len(followed[::10]))
    indices, counts = [], []
    for first in range(0, rows, 8192):
        n = min(8192, rows - first)
        drawn = np.searchsorted(cumulative, generator.random((n, active))).clip(max=latents - 1)
        mine = followed[labels.matrix[first : first + n].indices].reshape(n, -1)
        drawn[:, : mine.shape[1]] = np.where(mine >= 0, mine, drawn[:, : mine.shape[1]])
        drawn.sort(1)
        new = np.ones(drawn.shape, dtype=bool)
        new[:, 1:] = drawn[:, 1:] != drawn[:, :-1]
        indices.append(drawn[new].astype(np.int32))
        counts.append(new.sum(1))
    at = np.concatenate(indices)
    indptr = np.concatenate([[0], np.cumsum(np.concatenate(counts))]).astype(np.int32)
    acts = sparse.csr_array((generator.gamma(2.0, 0.5, len(at)).astype(np.float32), at, indptr), shape=(rows, latents))
    clip = (np.arange(rows) // CLIP_ROWS).astype(np.int32)
    frame = (np.arange(rows) % CLIP_ROWS).astype(np.int32)
    return FeatureCodes(acts, clip, frame, tuple(f"{index}" for index in range(clip[-1] + 1)), {}, "made up")


@dataclass(frozen=True)
class Cost:
    """Of one call."""

    name: str
    seconds: float
    processor_seconds: float
    peak_mb: float | None


def cost(name: str, call: Callable[[], object]) -> Cost:
    """Runs a call once."""
    clock, processor = time.perf_counter(), time.process_time()
    peak = peak_growth_mb(call)
    return Cost(name, time.perf_counter() - clock, time.process_time() - processor, peak)


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--rows", type=int, default=400_000)
    parser.add_argument("--latents", type=int, default=16_000)
    parser.add_argument("--labels", type=int, default=1_000)
    parser.add_argument("--active", type=int, default=45)
    parser.add_argument("--permutations", type=int, default=0, help="also the test against moved labels")
    options = parser.parse_args()
    torch.set_num_threads(1)
    generator = np.random.default_rng(0)
    labels = make_labels(options.rows, options.labels, generator)
    codes = make_codes(options.rows, options.latents, options.active, labels, generator)
    costs = [cost("score_features", lambda: score_features(codes, labels, progress=True))]
    if options.permutations:
        test_rows = ~codes.halves()
        costs.append(
            cost(
                f"feature_tests, {options.permutations} permutations",
                lambda: feature_tests(
                    codes, labels, rows=test_rows, n_permutations=options.permutations, progress=True
                ),
            )
        )
    held = (codes.acts.nnz * 8 * 2 + labels.matrix.nnz * 5) / 2**20
    lines = [
        report.head("scipy", "numpy", notes="1 thread"),
        f"{options.latents:,} latents by {options.labels:,} labels over {options.rows:,} frames; {codes.acts.nnz:,} "
        f"activations, {labels.matrix.nnz:,} labels. Codes and labels take {held:,.0f} MB beside what is listed.",
        "",
        "| | seconds of processor | seconds on the clock | growth of peak memory, MB |",
        "|---|---|---|---|",
    ]
    for one in costs:
        peak = "" if one.peak_mb is None else f"{one.peak_mb:,.0f}"
        lines.append(f"| {one.name} | {one.processor_seconds:.0f} | {one.seconds:.0f} | {peak} |")
    lines += ["", "The bar for score_features: 600 s, 8,192 MB."]
    report.publish("\n".join(lines), options.out)


if __name__ == "__main__":
    main()
