"""`evaluate_sae` on real clips, with SAEs whose figures are known."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_files import metadata, random_sae, sae_lens
from short_windows import constant_sae, exact_sae, short_windows, tiny_whisper
from torch import Tensor

from hooked_whisper import ConfigError, CorpusError, HookedWhisper, LanguageError, SaeError, StoreError
from hooked_whisper.saes import ActivationStore, Corpus, evaluate_sae, harvest
from hooked_whisper.saes.corpus_item import CorpusItem
from hooked_whisper.saes.evaluation import choose_clips, configured_l0, moments_of
from hooked_whisper.saes.report import SaeReport
from hooked_whisper.speech import Clip, clips

OUT = "encoder.hook_out"
KEYS = ("conf-leaderhasleft", "vm-savefolder")


def chosen() -> list[Clip]:
    """Two sentences of 2.2 to 2.9 s in English and Italian."""
    return [clips(language, key)[0] for language in ("en", "it") for key in KEYS]


@pytest.fixture(scope="module")
def base(shared_whisper_base: HookedWhisper) -> HookedWhisper:
    """whisper-base with windows of 3 s, for what depends on what the model knows."""
    return short_windows(shared_whisper_base, seconds=3)


@pytest.fixture(scope="module")
def shared_tiny(shared_whisper_base: HookedWhisper) -> HookedWhisper:
    return tiny_whisper(shared_whisper_base)


@pytest.fixture
def model(shared_tiny: HookedWhisper) -> Iterator[HookedWhisper]:
    """A random model of width 32, for everything else."""
    yield shared_tiny
    assert not any(point.live for point in shared_tiny.hook_dict.values()), "a hook was left behind"


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return Corpus.from_clips(chosen())


def rows_of(model: HookedWhisper) -> list[Tensor]:
    """What the encoder says of each clip, padding left out."""
    _, cache = model.run_with_cache([clip.path for clip in chosen()], names_filter=OUT)
    return [cache[OUT][i, mask] for i, mask in enumerate(cache.frame_mask)]


@pytest.fixture(scope="module")
def rows(shared_tiny: HookedWhisper) -> list[Tensor]:
    return rows_of(shared_tiny)


@pytest.fixture(scope="module")
def store(shared_tiny: HookedWhisper, corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    return harvest(shared_tiny, corpus, hooks=OUT, out=tmp_path_factory.mktemp("acts") / "store")


@pytest.fixture(scope="module")
def exact(base: HookedWhisper, corpus: Corpus) -> SaeReport:
    """Of an SAE that gives everything back."""
    return evaluate_sae(base, exact_sae(), corpus, batch_size=2, baselines=(), progress=False)


@pytest.fixture(scope="module")
def coarse(base: HookedWhisper, corpus: Corpus) -> SaeReport:
    """Of one that keeps the largest 128 of 512 values, in English alone."""
    return evaluate_sae(base, exact_sae(k=128), corpus, languages=["en"], reference=True, batch_size=2)


def test_an_exact_sae_changes_nothing(exact: SaeReport) -> None:
    for group in (exact.overall, *exact.languages.values()):
        assert group.reconstruction.fvu.value == pytest.approx(0, abs=1e-10)
        assert group.on_transcript is not None and group.transcripts is not None
        assert group.on_transcript.recovered_from_zero.value == pytest.approx(1, abs=1e-6)
        assert group.on_transcript.recovered_from_mean.value == pytest.approx(1, abs=1e-6)
        assert group.on_transcript.kl.value == pytest.approx(0, abs=1e-6)
        assert group.on_transcript.agreement.value == 1
        assert group.on_transcript.ce_mean > group.on_transcript.ce_unhooked + 1
        assert group.transcripts.wer_to_unhooked.value == group.transcripts.wer_change.value == 0
        assert group.transcripts.n_changed == 0
    assert all(gate.passes for gate in exact.gates())
    assert exact.changes == []


def test_the_mean_recovers_nothing_from_the_mean(model: HookedWhisper, corpus: Corpus, rows: list[Tensor]) -> None:
    sae = constant_sae(torch.cat(rows).mean(0))
    found = evaluate_sae(model, sae, corpus, baselines=("pca",), transcribe=False)
    assert found.overall.reconstruction.fvu.value == pytest.approx(1, abs=1e-5)
    loss = found.overall.on_transcript
    assert loss is not None
    assert loss.recovered_from_mean.value == pytest.approx(0, abs=1e-3)
    assert loss.ce_spliced == pytest.approx(loss.ce_mean, rel=1e-3)
    assert found.overall.transcripts is None
    assert found.overall.firing.n_silent == found.d_sae == 64
    assert found.overall.reconstruction.l0.value == 0
    assert found.baselines["pca"].k == 1  # at least one coefficient
    assert not any(gate.passes for gate in found.gates() if gate.name in ("FVU", "dead latents", "L0"))


def test_groups_are_the_corpus_languages_and_speakers(exact: SaeReport, rows: list[Tensor]) -> None:
    # (as many rows as the tiny model has: both have frames of 20 ms)
    assert list(exact.languages) == ["en", "it"]
    assert list(exact.speakers) == ["Allison Smith", "Carlo Flora"]
    sizes = [len(part) for part in rows]
    assert exact.overall.reconstruction.n_rows == sum(sizes)
    assert exact.languages["it"].reconstruction.n_rows == exact.speakers["Carlo Flora"].n_rows == sum(sizes[2:])
    assert exact.languages["it"].transcripts is not None
    assert exact.languages["it"].transcripts.n_clips == 2
    assert any("Each language has one speaker here" in note for note in exact.notes)


def test_the_report_says_how_it_was_made(exact: SaeReport) -> None:
    assert (exact.model, exact.hook, exact.hook_out) == ("openai/whisper-base", OUT, OUT)
    assert (exact.architecture, exact.d_in, exact.d_sae, exact.configured_l0) == ("topk", 512, 1024, 512)
    assert exact.settings["padding"] == "keep"
    assert exact.corpus["name"] == "shipped speech"
    assert "SAE, ablations and baselines replace frames with audio alone." in exact.notes
    assert SaeReport.from_json(exact.to_json()) == exact


def test_a_coarse_sae_lies_between(coarse: SaeReport, base: HookedWhisper) -> None:
    english = torch.cat(rows_of(base)[:2])
    error = (english - exact_sae(k=128)(english).detach()).square().sum() / (english - english.mean(0)).square().sum()
    assert coarse.overall.reconstruction.fvu.value == pytest.approx(float(error), rel=1e-3)
    loss, said, rates = coarse.overall.on_transcript, coarse.overall.on_reference, coarse.overall.transcripts
    assert loss is not None and said is not None and rates is not None
    assert loss.recovered_from_zero.value is not None
    assert 0.3 < loss.recovered_from_zero.value < 0.9999
    assert loss.kl.value is not None and loss.kl.value > 1e-3
    # The text that somebody wrote is less expected than the model's own.
    assert said.ce_unhooked > loss.ce_unhooked
    assert (rates.n_clips, rates.n_reference_clips, rates.n_words) == (2, 2, 14)


def test_the_best_basis_beats_the_neurons(coarse: SaeReport, model: HookedWhisper, corpus: Corpus) -> None:
    # Measured from their mean, neurons lose less than an SAE that keeps the largest without taking a mean off.
    assert coarse.baselines["neurons"].k == coarse.baselines["pca"].k == 128
    assert (coarse.baselines["neurons"].reconstruction.fvu.value or 1) < (coarse.overall.reconstruction.fvu.value or 0)
    found = evaluate_sae(model, exact_sae(32, k=6), corpus, splice=False)
    pca, neurons = (found.baselines[name].reconstruction.fvu.value for name in ("pca", "neurons"))
    assert pca is not None and neurons is not None
    assert pca < neurons


def test_baselines_can_be_fitted_elsewhere(model: HookedWhisper, corpus: Corpus, store: ActivationStore) -> None:
    sae = exact_sae(32, k=6)
    found = evaluate_sae(model, sae, corpus, languages=["it"], fit_on=store, transcribe=False)
    assert any("fitted on" in note and "rows of elsewhere" in note for note in found.notes)
    assert found.baselines["pca"].on_transcript is not None
    whole = evaluate_sae(model, sae, store, splice=False, fit_on=store, baselines=("pca",))
    fit = moments_of(store, OUT)
    assert fit.n_rows == whole.overall.reconstruction.n_rows
    # Fitted on the very rows: no six coefficients of any basis explain more than the six largest of this one.
    leading = torch.linalg.eigvalsh(fit.covariance)[:-6].sum() / fit.covariance.trace()
    assert (whole.baselines["pca"].reconstruction.fvu.value or 1) <= float(leading)


def test_baselines_are_fitted_on_other_clips_than_they_are_measured_on(
    model: HookedWhisper, corpus: Corpus, rows: list[Tensor]
) -> None:
    found = evaluate_sae(model, exact_sae(32, k=6), corpus, splice=False, baselines=("pca",))
    errors = squares = 0.0
    for i, part in enumerate(rows):
        others = torch.cat([rows[j] for j in range(4) if j % 2 != i % 2]).double()
        mean = others.mean(0)
        _, vectors = torch.linalg.eigh(torch.cov(others.T, correction=0))
        coefficients = (part.double() - mean) @ vectors
        smallest = coefficients.square().sort(dim=-1).values[:, : 32 - 6]
        errors += float(smallest.sum())
    whole = torch.cat(rows).double()
    squares = float((whole - whole.mean(0)).square().sum())
    assert found.baselines["pca"].reconstruction.fvu.value == pytest.approx(errors / squares, rel=1e-3)
    assert any("So few rows do not settle 32 directions" in note for note in found.notes)


def test_a_store_gives_the_same_reconstruction(model: HookedWhisper, corpus: Corpus, store: ActivationStore) -> None:
    sae = exact_sae(32, k=6)
    heard = evaluate_sae(model, sae, corpus, splice=False)
    read = evaluate_sae(model, sae, store, splice=False)
    assert read.overall.reconstruction.n_rows == heard.overall.reconstruction.n_rows
    for one, other in (
        (read.overall, heard.overall), (read.languages["it"], heard.languages["it"]),
    ):  # fmt: skip
        assert one.reconstruction.fvu.value == pytest.approx(other.reconstruction.fvu.value, rel=1e-3)
        assert one.reconstruction.l0 == other.reconstruction.l0
        assert one.on_transcript is one.transcripts is None
    assert read.baselines["pca"].reconstruction.fvu.value == pytest.approx(
        heard.baselines["pca"].reconstruction.fvu.value, rel=1e-3
    )
    assert list(read.speakers) == list(heard.speakers)


def test_an_sae_in_the_decoder_reads_positions(model: HookedWhisper, corpus: Corpus) -> None:
    hook = "decoder.blocks.1.hook_resid_post"
    found = evaluate_sae(
        model, exact_sae(32, hook=hook), corpus, languages=["it"], baselines=(), batch_size=2, n_resamples=10
    )
    loss, rates = found.overall.on_transcript, found.overall.transcripts
    assert loss is not None and rates is not None
    # Every position is a row: the prompt of four and the text; the end token is predicted, not read.
    assert found.overall.reconstruction.n_rows == loss.n_tokens + 2 * (4 - 1)
    assert loss.recovered_from_zero.value == pytest.approx(1, abs=1e-4)
    assert rates.wer_to_unhooked.value == 0
    assert any("Rows are decoder positions, prompt included" in note for note in found.notes)
    assert not any("replace" in note for note in found.notes)


def test_a_long_clip_goes_window_by_window(model: HookedWhisper) -> None:
    whole = torch.cat([clip.load() for clip in chosen()[:2]])  # 5.1 s
    item = CorpusItem("long", whole, "the reference", "en")
    found = evaluate_sae(model, exact_sae(32), Corpus([item]), reference=True, n_resamples=0, batch_size=2)
    assert found.overall.reconstruction.n_clips == 2
    assert found.overall.reconstruction.n_rows == pytest.approx(len(whole) / 320, abs=2)
    assert found.overall.transcripts is not None
    assert found.overall.transcripts.n_reference_clips == 0
    assert found.overall.on_reference is None
    assert found.overall.reconstruction.fvu.low is None


def test_a_clip_that_cannot_be_read_is_left_out_by_choice(model: HookedWhisper, tmp_path: Path) -> None:
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"no sound")
    items = [CorpusItem("broken", broken, language="en"), *Corpus.from_clips(chosen()[:1])]
    found = evaluate_sae(model, exact_sae(32), Corpus(items, on_error="skip"), splice=False, baselines=())
    assert found.overall.reconstruction.n_clips == 1
    with pytest.raises(CorpusError, match="broken"):
        evaluate_sae(model, exact_sae(32), Corpus(items), splice=False)
    with pytest.raises(CorpusError, match=r"None of the 1 clips could be read: see corpus\.skipped"):
        evaluate_sae(model, exact_sae(32), Corpus(items[:1], on_error="skip"), splice=False)


def test_a_language_may_be_unknown(model: HookedWhisper) -> None:
    item = CorpusItem("nameless", chosen()[2].path)
    found = evaluate_sae(model, exact_sae(32), Corpus([item]), baselines=(), n_resamples=0)
    assert list(found.languages) == ["unknown"]
    assert found.speakers == {}
    assert found.overall.transcripts is not None
    assert found.overall.transcripts.n_words > 4  # detected, so transcribed


def items(*languages: str | None) -> list[CorpusItem]:
    return [CorpusItem(str(i), "nowhere.wav", language=language) for i, language in enumerate(languages)]


def test_clips_are_drawn_by_language_and_seed() -> None:
    known = items(*(["en"] * 30 + ["it"] * 30 + [None] * 5))
    assert choose_clips(known, "corpus", None, None, 0) == known
    some = choose_clips(known, "corpus", None, 7, 0)
    assert [item.language for item in some] == ["en"] * 7 + ["it"] * 7 + [None] * 5
    assert [int(item.id) for item in some] == sorted(int(item.id) for item in some)
    assert choose_clips(known, "corpus", None, 7, 0) == some
    assert choose_clips(known, "corpus", None, 7, 1) != some
    assert choose_clips(known, "corpus", ["it"], None, 0) == known[30:60]
    assert choose_clips(known, "corpus", ["unknown"], None, 0) == known[60:]


def test_impossible_choices_are_refused(model: HookedWhisper, corpus: Corpus, store: ActivationStore) -> None:
    sae = exact_sae(32)
    with pytest.raises(CorpusError, match="shipped speech has no clips in de: its languages are en, it"):
        evaluate_sae(model, sae, corpus, languages=["de", "it"])
    with pytest.raises(ConfigError, match="clips_per_language must be at least 1, got 0"):
        evaluate_sae(model, sae, corpus, clips_per_language=0)
    with pytest.raises(CorpusError, match="streaming has no clips: there is nothing to evaluate on"):
        choose_clips([], "streaming", None, None, 0)
    with pytest.raises(ConfigError, match="Unknown padding 'mute': expected one of keep, replace"):
        evaluate_sae(model, sae, corpus, padding="mute")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="batch_size must be at least 1, got 0"):
        evaluate_sae(model, sae, corpus, batch_size=0)
    with pytest.raises(ConfigError, match=r"A store has no sound.*or splice=False"):
        evaluate_sae(model, sae, store)
    with pytest.raises(StoreError, match=r"fit_on has no rows of 'encoder.blocks.1.hook_resid_post': it has encoder"):
        moments_of(store, "encoder.blocks.1.hook_resid_post")
    one = Corpus.from_clips(chosen()[:1])
    with pytest.raises(ConfigError, match="One window leaves nothing to fit baselines on"):
        evaluate_sae(model, sae, one, splice=False)
    live = sae_lens.BatchTopKTrainingSAE(sae_lens.BatchTopKTrainingSAEConfig(d_in=32, d_sae=8, k=2))
    with pytest.raises(SaeError, match="over the whole batch"):
        evaluate_sae(model, live, corpus, hook=OUT)
    nobody_speaks = Corpus([CorpusItem("a", chosen()[0].path, language="klingon")])
    with pytest.raises(LanguageError, match="Unknown language 'klingon'"):
        evaluate_sae(model, sae, nobody_speaks, splice=False)


def test_a_store_of_another_model_is_refused(
    model: HookedWhisper, store: ActivationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model.cfg, "model_name", "openai/whisper-small")
    with pytest.raises(StoreError, match="has activations of tiny, the model is openai/whisper-small"):
        evaluate_sae(model, exact_sae(32), store, splice=False)


@pytest.mark.parametrize(
    ("sae", "wanted"),
    [
        (exact_sae(16, k=5), 5.0),
        (random_sae("abstopk"), 4.0),
        (random_sae("standard"), None),
        (random_sae("jumprelu", about={"k": 50}), 50.0),
    ],
    ids=["topk", "abstopk", "standard", "jumprelu"],
)
def test_the_configured_l0_is_what_the_sae_says(sae: Any, wanted: float | None) -> None:
    assert configured_l0(sae) == wanted


def test_an_expected_l0_can_be_given(model: HookedWhisper, store: ActivationStore) -> None:
    found = evaluate_sae(model, exact_sae(32, k=6), store, splice=False, baselines=(), expected_l0=12)
    assert found.configured_l0 == 12
    assert [gate.passes for gate in found.gates() if gate.name == "L0"] == [False]


def test_any_hook_of_the_model_will_do(model: HookedWhisper, corpus: Corpus) -> None:
    sae = exact_sae(32, hook="encoder.blocks.1.attn.hook_z", reshape_activations="hook_z")
    found = evaluate_sae(model, sae, corpus, languages=["it"], splice=False, n_resamples=0)
    assert found.overall.reconstruction.fvu.value == pytest.approx(0, abs=1e-9)
    assert found.baselines["neurons"].reconstruction.fvu.value == pytest.approx(0, abs=1e-9)
    elsewhere = exact_sae(32, hook=OUT)
    found = evaluate_sae(model, elsewhere, corpus, hook="encoder.blocks.0.hook_resid_mid", splice=False, baselines=())
    assert found.hook == "encoder.blocks.0.hook_resid_mid"


def test_metadata_is_not_needed_where_the_hook_is_given(model: HookedWhisper, corpus: Corpus) -> None:
    sae = exact_sae(32)
    sae.cfg.metadata = metadata(None)
    found = evaluate_sae(model, sae, corpus, hook=OUT, splice=False, baselines=(), n_resamples=0)
    assert found.hook == OUT
    assert found.overall.reconstruction.l0.value is not None
    assert math.isclose(found.overall.reconstruction.l0.value, 32)
