"""Training runs: every architecture on real activations, what a run writes, going on after a kill, bad settings."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from memory_source import MemorySource, PlainSource, toy_rows, toy_source
from sae_files import sae_lens
from torch import Tensor

from hooked_whisper import HookedWhisper
from hooked_whisper.errors import SaeError
from hooked_whisper.saes import train_sae, train_saes
from hooked_whisper.saes.training_run import TrainingRun
from hooked_whisper.saes.training_settings import SaeSettings
from hooked_whisper.speech import clips

HOOK = "encoder.hook_out"
WINDOW = 30 * 16_000  # samples
QUICK: dict[str, Any] = {
    "total_training_samples": 64 * 40, "train_batch_size_samples": 64, "lr": 3e-3, "evaluate_every": 20,
    "checkpoint_every": 20, "log_every": 10, "log": "nothing",
}  # fmt: skip


def quick(out: Path, source: Any = None, **options: Any) -> Any:
    """A run of 40 steps on toy rows."""
    chosen = {**QUICK, "hook": "hook", "d_sae": 64, "k": 4, **options}
    return train_sae(toy_source() if source is None else source, out=out, **chosen)


def weights(out: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(out / "sae" / "sae_weights.safetensors")


@pytest.fixture(scope="module")
def speech_rows(shared_whisper_base: HookedWhisper) -> MemorySource:
    """3,000 frames of whisper-base's encoder on shipped speech in five languages, packed into two windows."""
    sound = torch.cat([clip.load() for language in ("en", "es", "fr", "it", "ru") for clip in clips(language)])
    assert len(sound) >= 2 * WINDOW
    with torch.no_grad():
        frames = shared_whisper_base.encode([sound[:WINDOW], sound[WINDOW : 2 * WINDOW]])
    return MemorySource({HOOK: frames.flatten(0, 1)}, clip_rows=100, model_name="openai/whisper-base")


VARIANTS: dict[str, dict[str, Any]] = {
    "topk": {"architecture": "topk", "k": 16},
    "topk-dense": {"architecture": "topk", "k": 16, "sparse": False},
    "batchtopk": {"architecture": "batchtopk", "k": 16},
    "batchtopk-scaled": {
        "architecture": "batchtopk", "k": 16, "normalize_activations": "expected_average_only_in", "sparse": False,
    },
    "matryoshka": {"architecture": "matryoshka_batchtopk", "k": 16},
    "abstopk": {"architecture": "abstopk", "k": 16},
    "standard": {"options": {"l1_coefficient": 0.3}},
    "gated": {"b_dec_init_method": "geometric_median"},
    "jumprelu": {"options": {"l0_coefficient": 0.1, "l0_warm_up_steps": 100}, "b_dec_init_method": "zeros"},
    "matching_pursuit": {"options": {"max_iterations": 4}},
}  # fmt: skip
ARCHITECTURES = [
    SaeSettings(**{"hook": HOOK, "d_sae": 256, "lr": 2e-3, "name": name, "architecture": name, **options})
    for name, options in VARIANTS.items()
]

LOADS_ALONE = """
import json, sys, torch
from sae_lens import SAE
out = sys.argv[1]
assert not any(name.startswith("hooked_whisper") for name in sys.modules)
rows = torch.load(out + "/rows.pt")
found = {}
for name in sys.argv[2:]:
    sae = SAE.load_from_disk(f"{out}/{name}/sae")
    acts = sae.encode(rows)
    torch.save(sae.decode(acts), f"{out}/{name}/out.pt")
    found[name] = [sae.cfg.architecture(), (acts != 0).sum(1).float().mean().item(), sae.cfg.metadata.hook_name]
print(json.dumps(found))
"""


@pytest.mark.slow
def test_every_architecture_trains_and_loads_in_saelens_alone(speech_rows: MemorySource, tmp_path: Path) -> None:
    """300 steps on real activations, all from one stream; a process that has SAELens alone reconstructs the same."""
    trained = train_saes(
        speech_rows, ARCHITECTURES, out=tmp_path, total_training_samples=48 * 300,
        train_batch_size_samples=48, held_out=0.3, evaluate_every=150, checkpoint_every=0, log="nothing",
    )  # fmt: skip
    rows = speech_rows.split(0.3)[1].rows[HOOK]
    torch.save(rows, tmp_path / "rows.pt")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LOADS_ALONE, str(tmp_path), *trained], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    saved_as = {"batchtopk": "jumprelu", "batchtopk-scaled": "jumprelu", "matryoshka": "jumprelu", "topk-dense": "topk"}
    for name, sae in trained.items():
        architecture, l0, hook = found[name]
        assert (architecture, hook) == (saved_as.get(name, name), HOOK)
        torch.testing.assert_close(torch.load(tmp_path / name / "out.pt"), sae(rows), rtol=1e-5, atol=1e-5)
        record = json.loads((tmp_path / name / "training.json").read_text())
        figures = record["figures"]["held_out"]
        assert figures["l0"] == pytest.approx(l0, rel=1e-3)
        fvu = ((rows - sae(rows)).pow(2).sum() / (rows - rows.mean(0)).pow(2).sum()).item()
        assert figures["fvu"] == pytest.approx(fvu, rel=1e-3)
        assert fvu < 0.7, f"{name}: {fvu}"
        if saved_as.get(name, name) == "jumprelu" and name != "jumprelu":
            assert l0 == pytest.approx(16, rel=0.05)
            threshold = record["figures"]["threshold"]
            assert threshold["rows"] == "held out" and threshold["value"] != threshold["moving_average"]
    # Rounding picks another latent now and then, after which two runs part; how well they do stays the same.
    fvus = [
        json.loads((tmp_path / name / "training.json").read_text())["figures"]["held_out"]["fvu"]
        for name in ("topk", "topk-dense")
    ]
    assert fvus[0] == pytest.approx(fvus[1], rel=0.05)


# What a run writes


def test_a_run_says_what_it_was(tmp_path: Path) -> None:
    sae = quick(tmp_path / "run")
    record = json.loads((tmp_path / "run" / "training.json").read_text())
    assert (record["status"], record["steps"], record["rows"]) == ("finished", 40, 64 * 40)
    assert record["settings"]["k"] == 4 and record["run"]["total_training_samples"] == 64 * 40
    assert record["source"]["corpus"]["name"] == "toy" and record["held_out"]["n_rows"] == 400
    assert record["versions"]["sae_lens"] == sae_lens.__version__
    about = sae.cfg.metadata
    assert (about.model_name, about.hook_name, about.prepend_bos) == ("small", "hook", False)
    assert (about.frame_rate, about.context_size, about.dataset_path) == (50.0, 1500, "toy")
    assert about.sae_lens_version == about.sae_lens_training_version == sae_lens.__version__
    assert about.l0 == pytest.approx(4) and about.licences == ["CC0"]
    with open(tmp_path / "run" / "log.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [int(row["step"]) for row in lines] == [10, 20, 30, 40]
    assert [bool(row["held_out_fvu"]) for row in lines] == [False, True, False, True]
    assert float(lines[-1]["loss"]) < float(lines[0]["loss"]) and float(lines[-1]["lr"]) < 1e-3
    assert float(lines[-1]["held_out_fvu"]) == pytest.approx(record["figures"]["held_out"]["fvu"], rel=1e-4)
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == [
        "step-00000020", "step-00000040",
    ]  # fmt: skip


@pytest.mark.parametrize("normalize", ["expected_average_only_in", "covariance_whitening"])
@pytest.mark.parametrize("architecture", ["topk", "batchtopk"])
def test_normalisation_is_folded(architecture: str, normalize: str, tmp_path: Path) -> None:
    """The SAE that is saved takes and gives rows as they are, as well as the one in training did."""
    uneven = torch.logspace(-1, 1, 16)  # whitening changes which decoder is long
    source = MemorySource({"hook": toy_rows() * uneven * 30 + 100})
    sae = quick(tmp_path, source, architecture=architecture, normalize_activations=normalize)
    assert sae.cfg.normalize_activations == "none"
    with open(tmp_path / "log.csv", newline="") as file:
        last = list(csv.DictReader(file))[-1]
    figures = json.loads((tmp_path / "training.json").read_text())["figures"]["held_out"]
    close = 1e-3 if architecture == "topk" else 0.1  # by threshold in use, by batch in training
    assert figures["fvu"] == pytest.approx(float(last["held_out_fvu"]), rel=close)
    assert figures["fvu"] < 0.8 and figures["l0"] == pytest.approx(4, rel=0.05)


@pytest.mark.parametrize("method", ["mean", "geometric_median", "zeros"])
def test_b_dec_starts_where_it_is_told(method: str, tmp_path: Path) -> None:
    source = MemorySource({"hook": toy_rows() + 100})
    sae = quick(tmp_path, source, b_dec_init_method=method, total_training_samples=64, lr=1e-9, held_out=None)
    centre = source.rows["hook"].mean(0)
    near = (sae.b_dec - centre).norm() < 0.05 * centre.norm()
    assert bool(near) == (method != "zeros")


@pytest.mark.parametrize(
    ("architecture", "normalize"),
    [("topk", "expected_average_only_in"), ("topk", "none"), ("matryoshka_batchtopk", "expected_average_only_in"),
     ("standard", "none"), ("matching_pursuit", "none")],
)  # fmt: skip
def test_latents_start_at_rows(architecture: str, normalize: Any, tmp_path: Path) -> None:
    rows = torch.randn(64, 16, generator=torch.Generator().manual_seed(1)) + 10  # as many as latents
    settings: dict[str, Any] = {
        "architecture": architecture, "normalize_activations": normalize, "latents_init_method": "rows",
        "n_init_rows": 16, "total_training_samples": 64, "lr": 1e-9, "held_out": None,
        "k": 4 if "topk" in architecture else None,
    }  # fmt: skip
    sae = quick(tmp_path / "rows", MemorySource({"hook": rows}), **settings)
    seen = torch.nn.functional.normalize(rows - rows.mean(0), dim=-1)
    likeness = torch.nn.functional.normalize(sae.W_dec.detach(), dim=-1) @ seen.T
    assert likeness.max(1).values.min() > 0.9999
    assert sorted(likeness.argmax(1).tolist()) == list(range(64))  # each row once
    if "W_enc" in dict(sae.named_parameters()):
        assert torch.nn.functional.cosine_similarity(sae.W_enc.T, sae.W_dec, dim=-1).min() > 0.9999
    random = quick(tmp_path / "random", MemorySource({"hook": rows}), **{**settings, "latents_init_method": "random"})
    norms = [one.W_dec.norm(dim=-1) for one in (sae, random)]
    torch.testing.assert_close(*norms)  # lengths are SAELens's
    assert (torch.nn.functional.normalize(random.W_dec.detach(), dim=-1) @ seen.T).max(1).values.median() < 0.95


@pytest.mark.parametrize("architecture", ["topk", "abstopk", "batchtopk", "matryoshka_batchtopk"])
@pytest.mark.parametrize("sparse", [True, False])
def test_k_falls_to_k(architecture: str, sparse: bool, tmp_path: Path) -> None:
    run: dict[str, Any] = {"architecture": architecture, "sparse": sparse, "k_start": 16, "k_anneal_steps": 24}
    sae = quick(tmp_path / "whole", evaluate_every=0, log_every=1, **run)
    with open(tmp_path / "whole" / "log.csv", newline="") as file:
        l0 = [float(row["l0"]) for row in csv.DictReader(file)]
    assert l0[0] == pytest.approx(16, abs=1) and l0[12] == pytest.approx(10, abs=1)
    assert l0[24:] == pytest.approx([4] * 16, abs=0.5)
    figures = json.loads((tmp_path / "whole" / "training.json").read_text())["figures"]["held_out"]
    assert figures["l0"] == pytest.approx(4, rel=0.1) and getattr(sae.cfg, "k", 4) == 4
    # Stopped in the middle of it, and gone on with.
    parts: dict[str, Any] = {**run, "evaluate_every": 0, "checkpoint_every": 10, "keep_checkpoints": 4}
    quick(tmp_path / "parts", **parts)
    for step in (20, 30, 40):
        shutil.rmtree(tmp_path / "parts" / "checkpoints" / f"step-{step:08d}")
    shutil.rmtree(tmp_path / "parts" / "sae")
    quick(tmp_path / "parts", **parts)
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.allclose(one[name], other[name], atol=1e-6) for name in one)


def test_latents_at_rows_want_as_many(tmp_path: Path) -> None:
    few = MemorySource({"hook": toy_rows()[:20]})
    message = "wants a row for each of 64 latents, and there are 20 to train on: harvest more"
    with pytest.raises(SaeError, match=message):
        quick(tmp_path, few, latents_init_method="rows", held_out=None, train_batch_size_samples=4)


def test_nothing_held_out(tmp_path: Path) -> None:
    quick(tmp_path, PlainSource(toy_source()), held_out=None, architecture="batchtopk")
    figures = json.loads((tmp_path / "training.json").read_text())["figures"]
    assert figures["threshold"]["rows"] == "trained on" and "held_out" not in figures
    with open(tmp_path / "log.csv", newline="") as file:
        assert not any(row["held_out_fvu"] for row in csv.DictReader(file))


def test_another_source_is_held_out(tmp_path: Path) -> None:
    train, other = toy_source().split(0.2)
    quick(tmp_path, PlainSource(train), held_out=PlainSource(other))
    assert json.loads((tmp_path / "training.json").read_text())["held_out"]["n_rows"] == other.n_rows


def test_a_seed_fixes_a_run_and_another_changes_it(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(int.from_bytes(name.encode(), "big"))  # what the caller's generator is at does not matter
        quick(tmp_path / name, seed=seed)
    a, b, c = (weights(tmp_path / name) for name in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.allclose(a["W_dec"], c["W_dec"])


def test_several_saes_from_one_stream_are_those_of_their_own_runs(tmp_path: Path) -> None:
    source = toy_source(first=16, second=24)
    settings = [
        SaeSettings(hook="first", d_sae=64, k=4, lr=3e-3, name="a"),
        SaeSettings(hook="second", d_sae=32, k=3, lr=1e-3, architecture="batchtopk", seed=0),
    ]
    options = {name: value for name, value in QUICK.items() if name != "lr"}
    trained = train_saes(source, settings, out=tmp_path / "both", **options)
    assert list(trained) == ["a", "second-batchtopk-k3-32-seed0"]
    quick(tmp_path / "a", source, hook="first")
    quick(tmp_path / "b", source, hook="second", d_sae=32, k=3, lr=1e-3, architecture="batchtopk")
    for name, alone in (("a", "a"), ("second-batchtopk-k3-32-seed0", "b")):
        together = weights(tmp_path / "both" / name)
        assert all(torch.equal(value, together[key]) for key, value in weights(tmp_path / alone).items())


def test_an_sae_of_heads_takes_heads(tmp_path: Path) -> None:
    hook = "encoder.blocks.0.attn.hook_z"
    sae = quick(tmp_path, MemorySource({hook: toy_rows()}), hook=hook)
    assert sae.cfg.reshape_activations == "hook_z" and sae.hook_z_reshaping_mode
    assert sae(torch.randn(2, 5, 4, 4)).shape == (2, 5, 4, 4)


# Going on


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    quick(tmp_path)
    written = (tmp_path / "training.json").stat().st_mtime_ns
    assert quick(tmp_path).cfg.k == 4
    assert (tmp_path / "training.json").stat().st_mtime_ns == written
    quick(tmp_path, resume=False, k=5)
    assert json.loads((tmp_path / "training.json").read_text())["settings"]["k"] == 5


@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "jumprelu"])
def test_a_run_cut_off_at_any_step_ends_the_same(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {
        "architecture": architecture, "k": None if architecture == "jumprelu" else 4, "dead_feature_window": 5,
        "normalize_activations": "expected_average_only_in", "checkpoint_every": 10, "feature_sampling_window": 15,
    }  # fmt: skip
    quick(tmp_path / "whole", **options)
    for cut in (3, 17, 25):
        out = tmp_path / f"cut-{cut}"
        with monkeypatch.context() as patch:
            cut_after(cut, patch)
            with pytest.raises(Cut):
                quick(out, **options)
        quick(out, **options)
        whole, again = weights(tmp_path / "whole"), weights(out)
        for name, value in whole.items():
            torch.testing.assert_close(again[name], value, rtol=1e-5, atol=1e-6)
        logged = [(tmp_path / name / "log.csv").read_text().splitlines() for name in ("whole", out.name)]
        assert [row.split(",")[0] for row in logged[0]] == [row.split(",")[0] for row in logged[1]]
        about = [json.loads((folder / "sae" / "cfg.json").read_text()) for folder in (tmp_path / "whole", out)]
        assert about[0]["metadata"] == about[1]["metadata"]


class Cut(Exception):
    """Stands for a kill."""


def cut_after(n_steps: int, patch: pytest.MonkeyPatch) -> None:
    """Lets this process's next run stop after so many steps."""
    step, made = TrainingRun.step, []

    def counted(self: TrainingRun, batch: Mapping[str, Tensor]) -> None:
        if len(made) == n_steps:
            raise Cut
        made.append(1)
        step(self, batch)

    patch.setattr(TrainingRun, "step", counted)


def test_saes_whose_checkpoints_are_not_of_one_step_go_on_from_the_last_common_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = toy_source()
    settings = [SaeSettings(hook="hook", d_sae=64, k=k, lr=3e-3, name=f"k{k}") for k in (3, 4)]
    options = {**{name: value for name, value in QUICK.items() if name != "lr"}, "checkpoint_every": 10}
    whole = train_saes(source, settings, out=tmp_path / "whole", **options)
    with monkeypatch.context() as patch:
        cut_after(2 * 25, patch)
        with pytest.raises(Cut):
            train_saes(source, settings, out=tmp_path / "cut", **options)
    shutil.rmtree(tmp_path / "cut" / "k4" / "checkpoints" / "step-00000020")
    again = train_saes(source, settings, out=tmp_path / "cut", **options)
    for name, sae in whole.items():
        torch.testing.assert_close(again[name].W_dec, sae.W_dec)
