"""Scores from sparse counts are those of the dense definition, ties and unknown rows included."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_features import labels_of

from hooked_whisper import AnalysisError
from hooked_whisper.analysis.codes import sparse
from hooked_whisper.analysis.frame_labels import FrameLabels
from hooked_whisper.analysis.score_kernels import (
    Entries,
    block_ranks,
    check_labels,
    label_groups,
    latent_blocks,
    mutual_information,
    rank_test,
    score_pairs,
)


def f1_of(active: np.ndarray, there: np.ndarray) -> float:
    both = (active & there).sum()
    return 2 * both / max(active.sum() + there.sum(), 1)


def auc_of(x: np.ndarray, there: np.ndarray) -> float:
    """Over all pairs of a row with the label and one without."""
    difference = x[there][:, None] - x[~there]
    return float(((difference > 0) + 0.5 * (difference == 0)).mean())


def information_of(active: np.ndarray, there: np.ndarray) -> float:
    found = 0.0
    for a in (False, True):
        for b in (False, True):
            both = ((active == a) & (there == b)).mean()
            if both:
                found += both * np.log2(both / ((active == a).mean() * (there == b).mean()))
    return found


def dense_scores(x: np.ndarray, there: np.ndarray, train: np.ndarray) -> dict[str, float]:
    """One latent and one label by the definition, all rows written out."""
    here, seen = x[train], there[train]
    options = sorted({value for value in here[seen] if value > 0}, reverse=True)
    best = max(options, key=lambda cut: f1_of(here >= cut, seen), default=None)
    x, y = x[~train], there[~train]
    active = np.zeros(len(x), dtype=bool) if best is None else x >= best
    inside, outside = x[y].mean(), x[~y].mean()
    return {
        "f1_train": 0.0 if best is None else f1_of(here >= best, seen),
        "threshold": np.nan if best is None else best,
        "f1": f1_of(active, y),
        "precision": (active & y).sum() / max(active.sum(), 1),
        "recall": (active & y).sum() / y.sum(),
        "auc": auc_of(x, y),
        "information": information_of(x > 0, y),
        "selectivity": (inside - outside) / (inside + outside) if x.any() else 0.0,
    }


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_sparse_scores_are_the_dense_ones(seed: int, partly_known: bool) -> None:
    """Activations are few round numbers, so that there are ties within and across the halves."""
    generator = np.random.default_rng(seed)
    n_rows, n_latents, n_labels = 60, 5, 4
    levels = generator.integers(1, 5, size=(n_rows, n_latents)) / 2
    dense = levels * (generator.random((n_rows, n_latents)) < [0.02, 0.2, 0.5, 0.9, 0.0])
    there = generator.random((n_rows, n_labels)) < [0.1, 0.3, 0.5, 0.3]
    there[:4] = np.eye(4, dtype=bool)  # each label is there and missing in both halves
    there[-8:-4], there[4:8], there[-4:] = True, False, False
    known = {"b": generator.random(n_rows) < 0.7} if partly_known else None
    if known is not None:
        known["b"][:8] = known["b"][-8:] = True
    train = np.arange(n_rows) < n_rows // 2
    labels = labels_of({f"{'aabb'[at]}={at}": there[:, at] for at in range(n_labels)}, known)
    by_latent = sparse.csc_array(dense.astype(np.float32))
    groups = label_groups(labels, train)
    assert len(groups) == (2 if partly_known else 1)
    for first, last in ((0, 2), (2, 5)):
        entries = Entries.of(by_latent, first, last)
        for group in groups:
            rows = np.ones(n_rows, dtype=bool) if group.known is None else group.known
            found = score_pairs(entries, group, train)
            for latent in range(first, last):
                for at, label in enumerate(group.columns):
                    wanted = dense_scores(dense[rows, latent], there[rows, label], train[rows])
                    for name, value in wanted.items():
                        got = getattr(found, name)[latent - first, at]
                        if name == "threshold" and not np.isnan(value):
                            # another threshold of the same worth is as good
                            x, y = dense[rows & train, latent], there[rows & train, label]
                            assert f1_of(x >= got, y) == pytest.approx(wanted["f1_train"], abs=1e-9)
                        else:
                            assert got == pytest.approx(value, abs=1e-6, nan_ok=True), name


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_rank_sums_within_strata(seed: int, n_strata: int) -> None:
    generator = np.random.default_rng(seed)
    n_rows, n_latents, n_labels = 50, 3, 2
    dense = generator.integers(0, 4, size=(n_rows, n_latents)) * (generator.random((n_rows, n_latents)) < 0.5)
    there = generator.random((n_rows, n_labels)) < 0.4
    stratum = generator.integers(-1, n_strata, size=n_rows)
    sizes = np.bincount(stratum[stratum >= 0], minlength=n_strata)
    inside = there * (stratum >= 0)[:, None]
    positives = np.stack([inside[stratum == s].sum(0) for s in range(n_strata)])
    ranks = block_ranks(sparse.csc_array(dense.astype(np.float32)), 0, n_latents, stratum, sizes)
    auc, z = rank_test(ranks, sparse.csr_array(inside.astype(np.float64)), positives, sizes)
    for latent in range(n_latents):
        for label in range(n_labels):
            wins = pairs = variance = 0.0
            for s in range(n_strata):
                x, y = dense[stratum == s, latent], there[stratum == s, label]
                n, p = len(x), y.sum()
                if not 0 < p < n:
                    continue
                wins += auc_of(x, y) * p * (n - p)
                pairs += p * (n - p)
                counts = np.unique(x, return_counts=True)[1]
                variance += p * (n - p) * (n**3 - n - (counts**3 - counts).sum()) / (12 * n * (n - 1))
            assert auc[latent, label] == pytest.approx(wins / pairs if pairs else 0.5)
            expected = (wins - pairs / 2) / np.sqrt(variance) if variance > 0 else 0.0
            assert z[latent, label] == pytest.approx(expected, abs=1e-9)


def test_standard_scores_are_standard_where_nothing_is_there() -> None:
    generator = np.random.default_rng(0)
    dense = generator.random((400, 100)) * (generator.random((400, 100)) < 0.3)
    there = sparse.csr_array((generator.random((400, 60)) < 0.2).astype(np.float64))
    sizes = np.array([400])
    ranks = block_ranks(sparse.csc_array(dense.astype(np.float32)), 0, 100, np.zeros(400, dtype=np.int64), sizes)
    _, z = rank_test(ranks, there, there.sum(0)[None], sizes)
    assert z.std() == pytest.approx(1.0, abs=0.03) and abs(z.mean()) < 0.05


def test_information_of_what_is_the_same_is_its_entropy() -> None:
    found = mutual_information(np.array([[25.0, 0.0]]), np.array([[25.0]]), np.array([25.0, 75.0]), 100)
    entropy = -0.25 * np.log2(0.25) - 0.75 * np.log2(0.75)
    assert found == pytest.approx(np.array([[entropy, entropy]]))


def test_blocks_cover_all_latents_and_respect_memory() -> None:
    counts = np.array([5, 0, 100, 1, 1, 1, 0, 50])
    by_latent = sparse.csc_array(
        (np.ones(158), np.concatenate([np.arange(n) for n in counts]), np.cumsum([0, *counts]))
    )
    blocks = list(latent_blocks(by_latent, 2.0, hits=100))
    assert [first for first, _ in blocks] == [0, *(last for _, last in blocks[:-1])] and blocks[-1][1] == 8
    assert all(2 * counts[first:last].sum() <= 100 or last == first + 1 for first, last in blocks)


def test_labels_that_do_not_fit_are_refused() -> None:
    labels = labels_of({"a=1": np.array([True, False])})
    for broken, n_rows, message in (
        (labels, 3, "The labels are of 2 rows and the codes have 3"),
        (FrameLabels(labels.matrix[:, :0], (), ()), 2, "There are no labels"),
    ):
        with pytest.raises(AnalysisError, match=message):
            check_labels(broken, n_rows)
