"""SAEs to the hub and back, end to end: the real client, a hub on this machine, plain SAELens in another process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from loopback_hub import Hub, environment, running_hub
from sae_files import metadata, random_sae, sae_lens
from safetensors.torch import load_file, save_file
from small import small_inputs, small_model
from torch import Tensor

from hooked_whisper.errors import ConfigError, PublishError, SaeError
from hooked_whisper.saes import hub as saes_hub
from hooked_whisper.saes import load_sae, publish_sae
from hooked_whisper.saes.estimates import Estimate
from hooked_whisper.saes.hub import shipped_saes
from hooked_whisper.saes.reconstruction import DensityHistogram, Firing, Reconstruction
from hooked_whisper.saes.report import Group, SaeReport

OUT, RESID = "encoder.hook_out", "decoder.blocks.1.hook_resid_post"
NAME = "someone/whisper-small-sae"
# The client's own, of the library below it.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with running_hub(tmp_path / "cache", monkeypatch) as running:
        yield running


def rows() -> Tensor:
    return torch.randn(50, 16, generator=torch.Generator().manual_seed(3))


def report() -> SaeReport:
    figures = Reconstruction(4, 900, Estimate(0.07, 0.06, 0.08), *[Estimate(0.9)] * 3, Estimate(4.0))
    group = Group(figures, Firing(900, 32, 1, 0))
    return SaeReport(
        "small", OUT, OUT, "topk", 16, 32, 4.0, group, {"en": group}, {}, DensityHistogram([0, 1], [31], 1), {}, []
    )


TRAINING = {  # as training writes it
    "format": 1,
    "settings": {"lr": 3e-4, "k": 4},
    "run": {"seed": 0, "total_training_samples": 1_000},
    "source": {
        "source": "store", "model": "openai/whisper-small", "rate": 50.0, "weights_sha256": "ab" * 32,
        "licences": ["CC BY-SA 3.0"], "corpus": {"name": "prompts", "n_clips": 7, "languages": ["en", "ru"]},
    },
    "held_out": None,
    "versions": {"hooked_whisper": "0.0.9", "sae_lens": "6.54.0", "torch": "2.6.0", "python": "3.11.7"},
    "status": "finished",
    "figures": {"dead": 0.01},
}  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run as training leaves it, evaluated, with a dashboard."""
    folder = tmp_path / "runs" / "base-out"
    random_sae("topk", OUT, dtype="float32").save_model(folder / "sae")
    (folder / "training.json").write_text(json.dumps(TRAINING))
    (folder / "evaluation.json").write_text(report().to_json())
    (folder / "evaluation.md").write_text(report().to_markdown())
    (folder / "dashboard").mkdir()
    (folder / "dashboard" / "index.html").write_text("<html>")
    (folder / "dashboard" / "clip.png").write_bytes(b"\x89PNG")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "step.pt").write_bytes(b"not for publishing")
    return folder


FILES = [
    "README.md",
    *(f"{OUT}/{name}" for name in ("cfg.json", "dashboard/clip.png", "dashboard/index.html", "evaluation.json")),
    *(f"{OUT}/{name}" for name in ("evaluation.md", "sae_weights.safetensors", "training.json")),
]


def in_a_new_process(program: str, env: dict[str, str], cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **env}, cwd=cwd, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_published_here_and_loaded_by_plain_saelens_elsewhere(run: Path, tmp_path: Path, root: Path, hub: Hub) -> None:
    """Both ends with nothing patched: the endpoint alone is told, as it is for a mirror of the hub."""
    hub.token = "secret"
    publish = (
        "from hooked_whisper.saes import publish_sae\n"
        f"done = publish_sae({str(run)!r}, {NAME!r}, licence='CC BY-SA 4.0', private=True)\n"
        "print(done.url)\n"
    )
    printed = in_a_new_process(publish, environment(hub, tmp_path / "writer"), root)
    repository = hub.repositories[NAME]
    assert printed.split() == [f"{hub.url}/{NAME}/commit/{repository.branches['main']}"]
    assert repository.private
    files = repository.files() or {}
    assert sorted(files) == FILES
    assert files[f"{OUT}/sae_weights.safetensors"] == (run / "sae" / "sae_weights.safetensors").read_bytes()
    card = files["README.md"].decode()
    snippet = card.split("```python\n")[1].split("```")[0]
    assert snippet == f'from sae_lens import SAE\n\nsae = SAE.from_pretrained("{NAME}", "{OUT}")\n'
    torch.save(rows(), tmp_path / "x.pt")
    plain = f"{snippet}\n" + (
        "import json, torch, sys\n"
        "assert 'hooked_whisper' not in sys.modules\n"
        f"x = torch.load({str(tmp_path / 'x.pt')!r})\n"
        "print(json.dumps({'out': sae(x).tolist(), 'metadata': sae.cfg.metadata.to_dict()}))\n"
    )
    loaded = json.loads(in_a_new_process(plain, environment(hub, tmp_path / "reader"), tmp_path))
    with torch.no_grad():
        expected = load_sae(run)(rows())
    torch.testing.assert_close(torch.tensor(loaded["out"]), expected)
    about = loaded["metadata"]
    assert about["hook_name"] == OUT
    assert about["model_name"] == "openai/whisper-small"
    assert (about["frame_rate"], about["k"]) == (50, 4)
    assert about["corpus"] == TRAINING["source"]["corpus"]
    assert about["licences"] == ["CC BY-SA 3.0"]
    assert about["licence"] == "CC BY-SA 4.0"
    assert about["metrics"] == {"fvu": 0.07, "l0": 4.0, "dead_latents": 1 / 32}
    assert about["training_settings"] == {"settings": TRAINING["settings"], "run": TRAINING["run"]}
    assert about["training_figures"] == {"dead": 0.01}
    assert about["versions"] == TRAINING["versions"]
    assert about["sae_lens_version"]


def test_published_and_loaded_again(run: Path, hub: Hub) -> None:
    done = publish_sae(run, NAME)
    assert (done.sae_id, list(done.files), done.pull_request_url) == (OUT, FILES, None)
    assert done.card == (hub.repositories[NAME].files() or {})["README.md"].decode()
    assert hub.repositories[NAME].titles == [f"SAE for openai/whisper-small, {OUT}"]
    assert not hub.repositories[NAME].private
    for options in ({}, {"hook": OUT}, {"revision": "main"}, {"revision": done.commit}):
        sae = load_sae(NAME, **options)
        torch.testing.assert_close(sae(rows()), load_sae(run)(rows()))
    requests = len(hub.requests)
    assert load_sae(NAME, local_files_only=True).cfg.metadata.metrics["fvu"] == 0.07
    assert len(hub.requests) == requests
    model = small_model(dtype=torch.float32)
    mel, tokens = small_inputs(model.cfg, dtype=torch.float32)
    _, cache = model.run_with_cache_with_saes(mel, tokens, saes=sae)
    assert cache[f"{OUT}.hook_sae_acts_post"].shape == (2, 10, 32)
    hub.close()
    assert load_sae(NAME).cfg.d_sae == 32  # from the cache


def test_a_second_sae_and_a_second_time(run: Path, hub: Hub) -> None:
    publish_sae(run, NAME)
    other = random_sae("jumprelu", RESID, dtype="float32", about={"model_name": "openai/whisper-small"})
    done = publish_sae(other, NAME, commit_message="The decoder too")
    assert done.files == ("README.md", f"{RESID}/cfg.json", f"{RESID}/sae_weights.safetensors")
    assert f"## Other SAEs in this repository\n\n- `{OUT}`\n" in done.card
    files = hub.repositories[NAME].files() or {}
    assert {name.partition("/")[0] for name in files} == {"README.md", OUT, RESID}
    assert hub.repositories[NAME].titles[-1] == "The decoder too"
    assert json.loads(files[f"{RESID}/cfg.json"])["metadata"].get("frame_rate") is None  # tokens have no rate
    torch.testing.assert_close(load_sae(NAME, hook=RESID)(rows()), other(rows()))
    with pytest.raises(SaeError, match=rf"'{NAME}' holds the SAEs {RESID}, {OUT}: name one with hook="):
        load_sae(NAME)
    with pytest.raises(SaeError, match="hook='encoder.blocks.0.hook_mlp_out' was asked for"):
        load_sae(NAME, hook="encoder.blocks.0.hook_mlp_out")
    commits = len(hub.repositories[NAME].commits)
    again = publish_sae(other, NAME)
    assert again.commit == done.commit
    assert len(hub.repositories[NAME].commits) == commits  # nothing has changed, so nothing is committed


def test_to_a_branch_and_as_a_pull_request(run: Path, hub: Hub) -> None:
    done = publish_sae(run, NAME, revision="try-1")
    repository = hub.repositories[NAME]
    assert repository.files("main") == {}
    assert sorted(repository.files("try-1") or {}) == FILES
    assert 'load_sae("someone/whisper-small-sae", hook="encoder.hook_out", revision="try-1")' in done.card
    assert "SAE.from_pretrained" not in done.card  # which reads the main branch alone
    assert load_sae(NAME, revision="try-1").cfg.metadata.hook_name == OUT
    with pytest.raises(SaeError, match=r"holds no SAE of SAELens's: expected cfg\.json and sae_weights\.safetensors"):
        load_sae(NAME)
    request = publish_sae(run, NAME, create_pr=True)
    assert request.pull_request_url == f"{hub.url}/{NAME}/discussions/1"
    assert repository.files("main") == {}
    assert sorted(repository.files("refs/pr/1") or {}) == FILES
    with pytest.raises(PublishError, match="leave out either create_pr or revision"):
        publish_sae(run, NAME, create_pr=True, revision="try-1")


def test_a_dry_run_sends_nothing(run: Path, hub: Hub) -> None:
    done = publish_sae(run, NAME, dry_run=True, licence="cc0-1.0")
    assert (list(done.files), done.commit, done.url) == (FILES, None, None)
    assert 'license: "cc0-1.0"' in done.card
    assert hub.requests == []
    with pytest.raises(PublishError, match="'nowhere' is no hub repository: expected 'user/name'"):
        publish_sae(run, "nowhere", dry_run=True)


def test_given_metadata_go_over_what_the_files_say(run: Path) -> None:
    done = publish_sae(run, NAME, dry_run=True, metadata={"corpus": "all of it", "frame_rate": 25})
    assert '```json\n"all of it"\n```' in done.card
    with pytest.raises(PublishError, match="metadata cannot be written as JSON: Out of range float values"):
        publish_sae(run, NAME, dry_run=True, metadata={"metrics": float("nan")})
    (run / "training.json").unlink()
    with pytest.raises(
        PublishError, match=r"does not say which model it is for \(model_name is None\).*metadata=\{'model"
    ):
        publish_sae(run, NAME, dry_run=True)
    assert publish_sae(run, NAME, dry_run=True, metadata={"model_name": "whisper-odd"}).sae_id == OUT
    for hook in (None, "../encoder", "a/b", ""):
        sae = random_sae("topk", hook, dtype="float32", about={"model_name": "x"})
        with pytest.raises(PublishError, match="does not say which hook it is for"):
            publish_sae(sae, NAME, dry_run=True)


def test_what_is_not_published(run: Path, tmp_path: Path) -> None:
    training = sae_lens.BatchTopKTrainingSAE(
        sae_lens.BatchTopKTrainingSAEConfig(d_in=16, d_sae=32, k=4, metadata=metadata(OUT, model_name="x"))
    )
    with pytest.raises(PublishError, match=r"BatchTopKTrainingSAE is in training.*save_inference_model\(folder\)"):
        publish_sae(training, NAME, dry_run=True)
    training.save_model(tmp_path / "live")
    with pytest.raises(SaeError, match=r"holds an SAE in training \(batchtopk\), which needs the whole batch"):
        publish_sae(tmp_path / "live", NAME, dry_run=True)
    training.save_inference_model(tmp_path / "kept")
    assert '"threshold"' not in publish_sae(tmp_path / "kept", NAME, dry_run=True).card
    with pytest.raises(PublishError, match="Expected an SAE of SAELens's, or the folder of one, got Linear"):
        publish_sae(torch.nn.Linear(2, 2), NAME, dry_run=True)
    with pytest.raises(PublishError, match="There is no folder .*: expected a run, or a folder that SAELens saved"):
        publish_sae(tmp_path / "nothing", NAME, dry_run=True)
    (run / "evaluation.json").write_text("{}")
    with pytest.raises(PublishError, match=r"evaluation\.json cannot be published: No evaluation report of format"):
        publish_sae(run, NAME, dry_run=True)
    (run / "evaluation.json").unlink()
    (run / "training.json").write_text(json.dumps({**TRAINING, "status": "running"}))
    with pytest.raises(PublishError, match=r"is not finished \(it is 'running'\): go on with it first"):
        publish_sae(run, NAME, dry_run=True)
    (run / "training.json").write_text("[]")
    with pytest.raises(PublishError, match=r"training\.json holds a list, expected a JSON object"):
        publish_sae(run, NAME, dry_run=True)
    (run / "sae" / "sae_weights.safetensors").write_bytes(b"\0" * 40)
    with pytest.raises(SaeError, match="cannot be loaded: .*Its files are damaged"):
        publish_sae(run, NAME, dry_run=True)


def test_what_was_there_stays_when_the_hub_fails(run: Path, hub: Hub) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    publish_sae(random_sae("topk", RESID, dtype="float32", about={"model_name": "x"}), NAME)
    there = hub.repositories[NAME].files()
    hub.answer_with("/commit/", 500, times=2)
    with pytest.raises(
        PublishError, match=r"Could not upload the files of .* in 2 attempt.*Nothing is lost, here or on"
    ):
        publish_sae(run, NAME, attempts=2)
    assert hub.repositories[NAME].files() == there
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    publish_sae(run, NAME)
    assert set(there or {}) - {"README.md"} <= set(hub.repositories[NAME].files() or {})


# Loading from folders


def test_runs_and_folders(run: Path, tmp_path: Path) -> None:
    expected = load_sae(run)(rows())
    assert torch.equal(load_sae(run / "sae")(rows()), expected)
    assert torch.equal(load_sae(str(run), hook=OUT)(rows()), expected)
    with pytest.raises(SaeError, match=rf"is for '{OUT}', and hook='{RESID}' was asked for"):
        load_sae(run, hook=RESID)
    shutil.copytree(run, run.parent / "again")
    random_sae("gated", RESID, dtype="float32").save_model(run.parent / RESID)
    assert load_sae(run.parent, hook=RESID).cfg.architecture() == "gated"
    assert torch.equal(load_sae(run.parent, hook="again")(rows()), expected)
    with pytest.raises(SaeError, match=rf"holds the SAEs again/sae, base-out/sae, {RESID}: name one with hook="):
        load_sae(run.parent)
    with pytest.raises(SaeError, match="hook='encoder.hook_out' was asked for"):
        load_sae(run.parent, hook=OUT)  # two of them
    with pytest.raises(SaeError, match="is a file, expected the folder with"):
        load_sae(run / "sae" / "cfg.json")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SaeError, match="holds no SAE of SAELens's"):
        load_sae(tmp_path / "empty")
    double = load_sae(run, dtype="float64")
    assert double.dtype == double.W_dec.dtype == torch.float64
    assert load_sae(run, device="cpu", dtype=torch.float16).dtype == torch.float16
    with pytest.raises(ConfigError, match="Unknown dtype"):
        load_sae(run, dtype="float8")


@pytest.mark.parametrize("variant", sae_lens.registry.SAE_CLASS_REGISTRY)
def test_every_architecture_is_loaded(tmp_path: Path, variant: str) -> None:
    sae = random_sae(variant, OUT, dtype="float32", about={"note": "kept"})
    sae.save_model(tmp_path)
    loaded = load_sae(tmp_path)
    x = rows()[None]
    with torch.no_grad():
        assert torch.equal(loaded(x), sae(x))
    assert loaded.cfg.to_dict() == sae.cfg.to_dict()


def test_metadata_without_a_version_are_kept(run: Path) -> None:
    """SAELens takes them for those of its old format, and drops them all."""
    path = run / "sae" / "cfg.json"
    config = json.loads(path.read_text())
    del config["metadata"]["sae_lens_version"]
    path.write_text(json.dumps(config))
    assert sae_lens.SAE.load_from_disk(run / "sae").cfg.metadata.hook_name is None
    assert load_sae(run).cfg.metadata.hook_name == OUT


def _change(run: Path, **changes: Any) -> None:
    path = run / "sae" / "cfg.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _change_weights(run: Path, **changes: Any) -> None:
    path = run / "sae" / "sae_weights.safetensors"
    weights = {**load_file(path), **changes}
    save_file({name: value for name, value in weights.items() if value is not None}, path)


DAMAGE = {
    "no weights": (
        lambda run: (run / "sae" / "sae_weights.safetensors").unlink(),
        "cannot be loaded: .*files are damaged",
    ),
    "cut off": (
        lambda run: (run / "sae" / "sae_weights.safetensors").write_bytes(
            (run / "sae" / "sae_weights.safetensors").read_bytes()[:-10]
        ),
        "cannot be loaded: SafetensorError",
    ),
    "no JSON": (lambda run: (run / "sae" / "cfg.json").write_text("{"), r"cfg\.json is not JSON"),
    "metadata of no object": (lambda run: _change(run, metadata=[1]), "has metadata that are no object"),
    "no k": (lambda run: _change(run, k="many"), "cannot be loaded"),
    "wrong width": (lambda run: _change(run, d_in=12), "cannot be loaded: RuntimeError: Error.*size mismatch"),
    "unknown architecture": (
        lambda run: _change(run, architecture="crystal"),
        "unknown architecture 'crystal': this SAELens",
    ),
    "in training": (lambda run: _change(run, architecture="matryoshka_batchtopk"), "holds an SAE in training"),
    "no dtype": (lambda run: _change(run, dtype=7), None),  # the one that is asked for counts
    "weight missing": (
        lambda run: _change_weights(run, b_enc=None),
        "cannot be loaded: RuntimeError: Error.*Missing key",
    ),
    "weight too many": (lambda run: _change_weights(run, extra=torch.ones(1)), "cannot be loaded: .*Unexpected key"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_ones_are_refused(run: Path, damage: str) -> None:
    make, message = DAMAGE[damage]
    make(run)
    if message is None:
        assert load_sae(run).cfg.dtype == "float32"
        return
    with pytest.raises(SaeError, match=message):
        load_sae(run)


def test_shipped_ones(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: Hub) -> None:
    assert all(load_sae(name).cfg.metadata.hook_name for name in shipped_saes())
    shutil.copytree(run / "sae", tmp_path / "shipped" / "whisper-small" / OUT)
    monkeypatch.setattr(saes_hub, "SHIPPED", tmp_path / "shipped")
    assert shipped_saes() == [f"whisper-small/{OUT}"]
    monkeypatch.chdir(tmp_path)
    assert load_sae(f"whisper-small/{OUT}").cfg.metadata.hook_name == OUT
    assert hub.requests == []
    with pytest.raises(
        SaeError, match=rf"no hub repository 'whisper-small/encoder.hook_ot'.*mean 'whisper-small/{OUT}'"
    ):
        load_sae("whisper-small/encoder.hook_ot")
    with pytest.raises(SaeError, match=rf"There is no SAE 'nothing here': .* or a shipped one: whisper-small/{OUT}"):
        load_sae("nothing here")


def test_repositories_that_hold_no_whole_sae(tmp_path: Path, hub: Hub) -> None:
    hub.folders["some/sae"] = tmp_path / "repository"
    (tmp_path / "repository" / OUT).mkdir(parents=True)
    (tmp_path / "repository" / OUT / "cfg.json").write_text("{}")
    with pytest.raises(SaeError, match=rf"has {OUT}/cfg.json and no {OUT}/sae_weights.safetensors"):
        load_sae("some/sae")
    random_sae("topk", OUT, dtype="float32").save_model(tmp_path / "repository")
    shutil.rmtree(tmp_path / "repository" / OUT)
    assert load_sae("some/sae").cfg.metadata.hook_name == OUT  # files at the root of the repository
    hub.close()
    with pytest.raises(SaeError, match="is not in the hub's cache, and the hub was not asked or cannot be reached"):
        load_sae("some/other")
