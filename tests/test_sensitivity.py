"""Sensitivity against the divergence that it predicts, and training by it against what it is for."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from memory_source import MemorySource, toy_rows
from safetensors.torch import save_file
from short_windows import short_windows
from test_training import quick
from torch import Tensor

from hooked_whisper import HookedWhisper
from hooked_whisper.errors import CorpusError, SaeError
from hooked_whisper.saes import Corpus, Sensitivity, measure_sensitivity
from hooked_whisper.saes.coding import Site
from hooked_whisper.saes.spliced_evaluation import Spliced, listen, predicted, teacher_forced, transcripts
from hooked_whisper.speech import clips

OUT = "encoder.hook_out"
N_DRAWS = 48
IN_DECODER = "decoder.blocks.2.hook_resid_post"


@pytest.fixture(scope="module")
def model(shared_whisper_base: HookedWhisper) -> HookedWhisper:
    return short_windows(shared_whisper_base, seconds=3)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    """Four clips of about two seconds."""
    return Corpus.from_clips(sorted(clips(), key=lambda clip: clip.seconds)[:4])


@pytest.fixture(scope="module")
def sensitivity(model: HookedWhisper, corpus: Corpus) -> Sensitivity:
    return measure_sensitivity(model, corpus, progress=False)


def divergence(model: HookedWhisper, corpus: Corpus, hook: str, push: Any, times: int = 1) -> float:
    """Mean KL(plain || pushed) of a token, where `push` is added to rows of `hook`; over as many tries."""
    site = Site(hook, hook, "pos" if hook.startswith("decoder") else "frame")
    items = list(corpus)
    with torch.no_grad():
        batch = listen(model, [item.load() for item in items], [item.language for item in items])
        fed = teacher_forced(model, batch, transcripts(model, batch.encoder_out, batch.languages))
        ways = [lambda read, written: written + push(written)] * len(items)
        plain = model.decode(fed.tokens, batch.encoder_out)[predicted(fed)].double().log_softmax(-1)
        found = []
        for _ in range(times):
            off = Spliced(model, site, ways, batch, padding=False).logits(fed)[predicted(fed)].double().log_softmax(-1)
            found.append(float((plain.exp() * (plain - off)).sum(-1).mean()))
    return sum(found) / times


def test_it_is_of_what_was_heard(sensitivity: Sensitivity, model: HookedWhisper, corpus: Corpus) -> None:
    assert sensitivity.fisher.shape == (512, 512) and sensitivity.n_clips == 4 and sensitivity.n_rows > 200
    assert sensitivity.hook == OUT and sensitivity.model_name == model.cfg.model_name
    assert torch.equal(sensitivity.fisher, sensitivity.fisher.T)
    assert torch.linalg.eigvalsh(sensitivity.fisher).min() > -1e-9
    assert 1 < sensitivity.n_directions(0.5) < sensitivity.n_directions(0.9) < 512
    assert f"{sensitivity.n_tokens} tokens of 4 clips" in str(sensitivity)
    same = measure_sensitivity(model, corpus, progress=False)
    assert torch.equal(same.fisher, sensitivity.fisher)
    assert not torch.equal(measure_sensitivity(model, corpus, seed=1, progress=False).fisher, sensitivity.fisher)


@pytest.mark.parametrize("hook", [OUT, IN_DECODER])
def test_it_predicts_the_divergence(hook: str, model: HookedWhisper, corpus: Corpus) -> None:
    """Of small errors at random, each row's apart from the others': in all directions, and in the few that count."""
    clip = corpus.where(id=[next(iter(corpus)).id])
    known = measure_sensitivity(model, clip, hook=hook, draws=2 * N_DRAWS, seed=2, progress=False)
    # Directions come from other draws: those that stand out in the same ones do so partly by chance.
    other = measure_sensitivity(model, clip, hook=hook, draws=N_DRAWS // 2, seed=3, progress=False)
    vectors = torch.linalg.eigh(other.fisher).eigenvectors
    size = 0.03 if hook == OUT else 0.01
    for basis in (torch.eye(512), vectors[:, -16:].float()):
        draw = torch.Generator().manual_seed(0)

        def noise(like: Tensor, basis: Tensor = basis, draw: torch.Generator = draw) -> Tensor:
            return size * torch.randn(len(like), basis.shape[1], generator=draw) @ basis.T

        measured = divergence(model, clip, hook, noise, times=8)
        assert known.kl(noise(torch.empty(20_000, 1))) == pytest.approx(measured, rel=0.35)


def test_directions_differ_by_what_they_do(sensitivity: Sensitivity, model: HookedWhisper, corpus: Corpus) -> None:
    """The same length of error: along the directions that are read most, and along those that are read least."""
    vectors = torch.linalg.eigh(sensitivity.fisher).eigenvectors.float()
    most, least = (
        divergence(model, corpus, OUT, lambda written, side=side: 0.05 * written.norm(dim=-1, keepdim=True) * side)
        for side in (vectors[:, -1], vectors[:, 0])
    )
    assert most > 10 * least > 0


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_root(share: float, sensitivity: Sensitivity) -> None:
    root, inverse = sensitivity.root(share)
    assert torch.allclose(root @ inverse, torch.eye(512).double(), atol=1e-8)
    wanted = share * sensitivity.fisher * 512 / sensitivity.fisher.trace() + (1 - share) * torch.eye(512).double()
    assert torch.allclose(root @ root, wanted, atol=1e-9)


@pytest.mark.parametrize("share", [1.0, -0.1, 2.0])
def test_a_share_that_is_none(share: float, sensitivity: Sensitivity) -> None:
    with pytest.raises(SaeError, match=r"at least 0 and less than 1"):
        sensitivity.root(share)


def test_it_is_kept(sensitivity: Sensitivity, tmp_path: Path) -> None:
    path = sensitivity.save(tmp_path / "new" / "sensitivity.safetensors")
    back = Sensitivity.load(path)
    assert torch.equal(back.fisher, sensitivity.fisher) and back.sha256() == sensitivity.sha256()
    fields = [field.name for field in dataclasses.fields(back) if field.name != "fisher"]
    assert all(getattr(back, name) == getattr(sensitivity, name) for name in fields)
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def test_files_that_hold_none(tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    save_file({"fisher": torch.eye(4)}, other)
    with pytest.raises(SaeError, match="holds no sensitivity"):
        Sensitivity.load(other)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"nothing of the kind")
    with pytest.raises(SaeError, match="cannot be read"):
        Sensitivity.load(broken)
    with pytest.raises(SaeError, match="cannot be read"):
        Sensitivity.load(tmp_path / "none")
    toy(torch.full((4, 4), torch.nan)).save(tmp_path / "nan.safetensors")
    with pytest.raises(SaeError, match="damaged"):
        Sensitivity.load(tmp_path / "nan.safetensors")


def test_what_cannot_be_measured(model: HookedWhisper, corpus: Corpus) -> None:
    with pytest.raises(SaeError, match=r"no hook 'encoder.hook_outt'.*encoder.hook_out"):
        measure_sensitivity(model, corpus, hook="encoder.hook_outt")
    with pytest.raises(SaeError, match="an SAE needs"):
        measure_sensitivity(model, corpus, hook="encoder.blocks.0.attn.hook_pattern")
    with pytest.raises(SaeError, match="batch_size=0"):
        measure_sensitivity(model, corpus, batch_size=0)
    longest = max(clips(), key=lambda clip: clip.seconds)
    assert longest.seconds > 3
    with pytest.raises(CorpusError, match="must fit one window"):
        measure_sensitivity(model, Corpus.from_clips([longest]), progress=False)


# Training by it


def toy(fisher: Tensor, hook: str = "hook") -> Sensitivity:
    return Sensitivity(fisher, hook, "small", "0" * 64, 1, 1, 1)


@pytest.fixture
def uneven(tmp_path: Path) -> Path:
    """Four of sixteen dimensions count a hundred times as much as the others."""
    return toy(torch.diag(torch.tensor([100.0] * 4 + [1.0] * 12)).double()).save(tmp_path / "uneven.safetensors")


def source() -> MemorySource:
    return MemorySource({"hook": toy_rows() * 3 + 1})


@pytest.mark.parametrize(
    ("architecture", "k"),
    [("topk", 4), ("batchtopk", 4), ("matryoshka_batchtopk", 4), ("jumprelu", None), ("gated", None),
     ("standard", None)],
)  # fmt: skip
def test_errors_move_to_where_they_count_little(
    architecture: str, k: float | None, uneven: Path, tmp_path: Path
) -> None:
    plain, by_it = (
        quick(tmp_path / name, source(), architecture=architecture, k=k, total_training_samples=64 * 200, **options)
        for name, options in (("plain", {}), ("by_it", {"sensitivity": uneven, "sensitivity_share": 0.95}))
    )
    rows = source().rows["hook"]
    parts = [(sae(rows) - rows).pow(2).detach().sum(0) for sae in (plain, by_it)]
    shares = [float(part[:4].sum() / part.sum()) for part in parts]
    assert shares[1] < 0.5 * shares[0]


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("architecture", ["topk", "batchtopk"])
def test_it_is_folded(architecture: str, sparse: bool, uneven: Path, tmp_path: Path) -> None:
    """The SAE for use takes and gives rows as they are, as well as the one in training did."""
    sae = quick(tmp_path / "run", source(), architecture=architecture, sparse=sparse, sensitivity=uneven)
    assert sae.cfg.normalize_activations == "none"
    assert 0.7 < sae.W_dec.norm(dim=-1).mean() < 1.5
    with open(tmp_path / "run" / "log.csv", newline="") as file:
        last = list(csv.DictReader(file))[-1]
    record = json.loads((tmp_path / "run" / "training.json").read_text())
    close = 1e-3 if architecture == "topk" else 0.1  # by threshold in use, by batch in training
    assert record["figures"]["held_out"]["fvu"] == pytest.approx(float(last["held_out_fvu"]), rel=close)
    assert record["settings"]["sensitivity"]["sha256"] == Sensitivity.load(uneven).sha256()
    assert record["settings"]["sensitivity_share"] == 0.7


def test_it_goes_on_after_a_stop_as_if_there_had_been_none(
    uneven: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hooked_whisper.saes.training_run import TrainingRun

    whole = quick(tmp_path / "whole", source(), sensitivity=uneven)
    step = TrainingRun.step

    def stopped(self: TrainingRun, batch: Any) -> None:
        if self.step_number == 30:
            raise KeyboardInterrupt
        step(self, batch)

    monkeypatch.setattr(TrainingRun, "step", stopped)
    with pytest.raises(KeyboardInterrupt):
        quick(tmp_path / "stopped", source(), sensitivity=uneven)
    monkeypatch.setattr(TrainingRun, "step", step)
    with pytest.raises(SaeError, match="other settings"):
        quick(tmp_path / "stopped", source(), sensitivity=uneven, sensitivity_share=0.5)
    again = quick(tmp_path / "stopped", source(), sensitivity=uneven)
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name])


@pytest.mark.parametrize("architecture", ["topk", "jumprelu", "gated", "standard"])
def test_it_starts_where_another_ended(architecture: str, uneven: Path, tmp_path: Path) -> None:
    """A step that moves nothing leaves reconstructions as they were, but for latents chosen by what they add."""
    k = 4 if architecture == "topk" else None
    before = quick(tmp_path / "first", source(), architecture=architecture, k=k)
    after = quick(
        tmp_path / "then", source(), architecture=architecture, k=k, start=tmp_path / "first", sensitivity=uneven,
        total_training_samples=64, lr=1e-12, held_out=None, rescale_acts_by_decoder_norm=False,
    ) if k else quick(
        tmp_path / "then", source(), architecture=architecture, k=k, start=tmp_path / "first", sensitivity=uneven,
        total_training_samples=64, lr=1e-12, held_out=None,
    )  # fmt: skip
    rows = source().rows["hook"]
    assert torch.isclose(after(rows), before(rows), rtol=1e-3, atol=1e-3).float().mean() > 0.99


def test_settings_that_it_does_not_go_with(uneven: Path, tmp_path: Path) -> None:
    other = toy(torch.eye(16).double(), "encoder.hook_out").save(tmp_path / "other.safetensors")
    wide = toy(torch.eye(8).double()).save(tmp_path / "wide.safetensors")
    with pytest.raises(SaeError, match=r"that of 'encoder.hook_out' with 16 .* 'hook' with 16"):
        quick(tmp_path / "a", source(), sensitivity=other)
    with pytest.raises(SaeError, match=r"with 8 dimensions"):
        quick(tmp_path / "b", source(), sensitivity=wide)
    with pytest.raises(SaeError, match="leave that at 'none'"):
        quick(tmp_path / "c", source(), sensitivity=uneven, normalize_activations="expected_average_only_in")
    with pytest.raises(SaeError, match="one matrix for both"):
        quick(tmp_path / "d", source(), sensitivity=uneven, architecture="matching_pursuit", k=None)
    with pytest.raises(SaeError, match="less than 1"):
        quick(tmp_path / "e", source(), sensitivity=uneven, sensitivity_share=1.0)
    mixed = MemorySource(source().rows, described={"weights_sha256": "1" * 64})
    with pytest.raises(SaeError, match="measure it with that model"):
        quick(tmp_path / "f", mixed, sensitivity=uneven, held_out=None)
    assert not any((tmp_path / name).exists() for name in "abcdef")
