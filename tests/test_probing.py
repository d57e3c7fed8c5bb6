"""Probes: they find what is there, nothing where nothing is, and do not cheat by knowing a group."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from small import small_model
from small_store import HOOK, make_store

from hooked_whisper import AnalysisError, HookedWhisper, MissingExtraError
from hooked_whisper.analysis.probing import Examples, clip_features, probe, probe_hooks, store_features
from hooked_whisper.saes.estimates import Estimate
from hooked_whisper.speech import clips

N_GROUPS, EACH, WIDTH = 20, 8, 12


def made_up(signal: float, *, identity: float = 0.0, seed: int = 0) -> tuple[Examples, np.ndarray, np.ndarray]:
    """Rows that hold a label, and who said them, along random directions."""
    generator = torch.Generator().manual_seed(seed)
    groups = torch.arange(N_GROUPS).repeat_interleave(EACH)
    labels = torch.randint(2, (len(groups),), generator=generator)
    x = torch.randn(len(groups), WIDTH, generator=generator)
    x[:, 0] += signal * (2.0 * labels - 1)
    x += identity * torch.randn(N_GROUPS, WIDTH, generator=generator)[groups]
    return Examples(x, torch.arange(len(x)), len(x)), labels.numpy(), groups.numpy()


def numbers(estimate: Estimate) -> tuple[float, float, float]:
    """Low end, figure, high end; all are there."""
    assert estimate.value is not None and estimate.low is not None and estimate.high is not None
    return estimate.low, estimate.value, estimate.high


def test_what_is_there_is_found_and_what_is_not_is_not() -> None:
    found = probe(*made_up(3.0))
    low, value, high = numbers(found.score)
    assert value > 0.97 and low <= value <= high
    assert low > found.chance
    assert numbers(found.selectivity)[0] > 0.2
    assert (found.n_examples, found.n_groups) == (N_GROUPS * EACH, N_GROUPS)
    nothing = [numbers(probe(*made_up(0.0, seed=seed)).score)[1] for seed in range(6)]
    assert np.mean(nothing) == pytest.approx(0.5, abs=0.05)


def test_a_probe_that_knows_the_group_gains_in_the_control_task_and_nowhere_else() -> None:
    examples, labels, groups = made_up(0.0, identity=10.0)
    found = probe(examples, labels, groups)
    assert numbers(found.control)[1] > 0.9  # groups can be told apart, so any label of groups can be learnt
    assert numbers(found.selectivity)[2] < 0
    # A label of whole groups: known only by the group. Across groups there is nothing to be learnt.
    of_group = np.random.default_rng(0).permutation(N_GROUPS) % 2
    alone = probe(examples, of_group[groups], groups)
    assert numbers(alone.score)[1] < 0.75


def test_regression_is_r2_across_groups() -> None:
    examples, labels, groups = made_up(0.0)
    wanted = (examples.x @ torch.arange(WIDTH).float() + 100).numpy()
    found = probe(examples, wanted, groups, task="regression", regularisation=1e-3)
    assert numbers(found.score)[1] > 0.999
    assert found.chance == 0
    assert numbers(probe(examples, labels.astype(float), groups, task="regression").score)[1] < 0.1


def test_interval_is_over_groups() -> None:
    """Copies of the same rows in a group tell nothing new; more groups do."""
    examples, labels, groups = made_up(0.5)
    once = probe(examples, labels, groups)
    x = examples.x.repeat(3, 1)
    thrice = probe(Examples(x, torch.arange(len(x)), len(x)), np.tile(labels, 3), np.tile(groups, 3))
    (low, _, high), (low_once, _, high_once) = numbers(thrice.score), numbers(once.score)
    assert high - low == pytest.approx(high_once - low_once, rel=0.5)


def test_labels_of_clips_go_to_their_rows() -> None:
    examples = Examples(torch.zeros(5, 2), torch.tensor([0, 0, 1, 2, 2]), 3)
    assert examples.spread(["a", "b", "c"], "labels").tolist() == ["a", "a", "b", "c", "c"]
    assert examples.spread([1, 2, 3, 4, 5], "labels").tolist() == [1, 2, 3, 4, 5]
    with pytest.raises(AnalysisError, match="4 labels were given for 3 clips and 5 rows"):
        examples.spread([1, 2, 3, 4], "labels")


def test_features_of_clips_leave_padding_out(shared_whisper_base: HookedWhisper) -> None:
    chosen = [clips("en", key)[0] for key in ("vm-sorry", "conf-leaderhasleft", "tt-weasels")]
    paths = [clip.path for clip in chosen]
    hook = "encoder.blocks.0.attn.hook_z"
    frames = clip_features(shared_whisper_base, paths, hook, pool="none", batch_size=2, progress=False)[hook]
    lengths = torch.bincount(frames.clips).tolist()
    assert lengths == [pytest.approx(clip.seconds * 50, abs=1) for clip in chosen]
    assert frames.x.shape[1] == 512
    _, cache = shared_whisper_base.run_with_cache(paths[1], names_filter=hook)
    torch.testing.assert_close(
        frames.x[frames.clips == 1], cache[hook][0, : lengths[1]].flatten(1), atol=1e-4, rtol=1e-4
    )
    pooled = clip_features(shared_whisper_base, paths[:1], hook, progress=False)[hook]
    torch.testing.assert_close(pooled.x[0], frames.x[frames.clips == 0].mean(0), atol=1e-4, rtol=1e-4)


def test_features_of_tokens_leave_padding_out(shared_whisper_base: HookedWhisper) -> None:
    hook = "decoder.blocks.0.hook_resid_pre"
    audio = [torch.zeros(16_000), torch.zeros(16_000)]
    found = clip_features(
        shared_whisper_base, audio, hook, ["one", "one two three"], language="en", pool="none", progress=False
    )
    assert torch.bincount(found[hook].clips).tolist() == [5, 7]


def test_features_of_a_store(tmp_path: Path) -> None:
    store = make_store(tmp_path, [[3, 2], [4]])
    whole = store_features(store, HOOK, pool="none")
    assert torch.bincount(whole.clips).tolist() == [3, 2, 4]
    assert whole.x[:, 0].tolist() == list(range(9))
    pooled = store_features(store.where(key="a"), HOOK)  # clips 0 and 2
    assert pooled.x[:, 0].tolist() == [1.0, 6.5]


def test_layer_by_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    (weak, labels, groups), (strong, _, _) = made_up(0.2), made_up(2.0)
    sweep = probe_hooks({"early": weak, "late": strong}, labels, groups, progress=False)
    assert numbers(sweep["late"].score)[1] > numbers(sweep["early"].score)[1]
    assert sweep["late"] == probe(strong, labels, groups)
    assert str(sweep["late"]).startswith("accuracy 0.9")
    axes = sweep.plot().axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["early", "late"]
    assert axes.lines[0].get_ydata().tolist() == [sweep[name].score.value for name in ("early", "late")]
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match="Pictures need matplotlib"):
        sweep.plot()
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'hooked-whisper\[analysis\]'"):
        probe(weak, labels, groups)


def test_what_cannot_be_probed_is_refused() -> None:
    examples, labels, groups = made_up(1.0)
    broken = Examples(examples.x.clone(), examples.clips, examples.n_clips)
    broken.x[0, 0] = torch.nan
    for given, of, options, message in (
        ((examples, labels), groups, {"task": "ranking"}, "Unknown task 'ranking'"),
        ((examples, labels), groups, {"regularisation": 0.0}, "regularisation=0.0 must be positive"),
        ((examples, labels), groups, {"folds": 21}, "folds=21 of 20 groups"),
        ((examples, labels), groups, {"folds": 1}, "folds=1 of 20 groups: expected at least 2"),
        ((examples, np.zeros(len(labels))), groups, {}, "All labels are .*0.0.*: expected two classes"),
        ((examples, groups == 3), groups, {}, "All examples of True are in one group"),
        ((examples, np.ones(len(labels))), groups, {"task": "regression"}, "finite numbers that differ"),
        ((broken, labels), groups, {}, "The activations are not finite"),
    ):
        with pytest.raises(AnalysisError, match=message):
            probe(*given, of, **options)
    model = small_model()
    with pytest.raises(AnalysisError, match="No hooks were given"):
        probe_hooks({}, labels, groups)
    for audio, hooks, options, message in (
        ([torch.zeros(9)], "encoder.hook_out", {"pool": "max"}, "Unknown pool 'max'"),
        ([torch.zeros(9)], "encoder.blocks.0.attn.hook_pattern", {}, "expected frames or tokens after the batch"),
        ("speech.wav", "encoder.hook_out", {}, "Expected a list of clips, got str"),
        ([torch.zeros(9)], "encoder.hook_out", {"batch_size": 0}, "batch_size=0 must be at least 1"),
    ):
        with pytest.raises(AnalysisError, match=message):
            clip_features(model, audio, hooks, **options)
