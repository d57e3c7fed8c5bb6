"""SAEs of others: files of their exact layout, against their published formulas; truncated and hostile ones refused."""

from __future__ import annotations

import inspect
import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sae_files  # noqa: F401  imports SAELens
import torch
import torch.nn.functional as F
from loopback_hub import Hub, running_hub
from sae_files import sae_lens
from small import small_inputs, small_model
from torch import Tensor

from hooked_whisper.errors import SaeError
from hooked_whisper.saes import import_audiosae, import_freud
from hooked_whisper.saes.importers import hook_of_module

D_IN, D_SAE, K = 16, 40, 3


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with running_hub(tmp_path / "cache", monkeypatch) as running:
        yield running


def rows() -> Tensor:
    return torch.randn(200, D_IN, generator=torch.Generator().manual_seed(5))


# What they save


def audiosae_state(threshold: float | None = 0.4, **changes: Any) -> dict[str, Any]:
    state = {
        "encoder.weight": torch.randn(D_SAE, D_IN) / 4,
        "encoder.bias": torch.randn(D_SAE) / 5,
        "decoder.weight": F.normalize(torch.randn(D_IN, D_SAE), dim=0),
        "b_dec": torch.randn(D_IN) / 3,
        "k": torch.tensor(K, dtype=torch.int),
        "threshold": None if threshold is None else torch.tensor(threshold),
    }
    return {name: value for name, value in {**state, **changes}.items() if value is not None}


def audiosae_folder(folder: Path, state: Any, layer: int = 6, config: dict[str, Any] | None = None) -> Path:
    where = folder / f"layer_{layer}"
    where.mkdir(parents=True, exist_ok=True)
    torch.save(state, where / "ae.pt")
    trainer = {"trainer_class": "BatchTopKTrainer", "activation_dim": D_IN, "dict_size": D_SAE, "k": K, "layer": layer}
    (where / "config.json").write_text(json.dumps({"trainer": {**trainer, **(config or {})}, "buffer": {}}))
    return folder


def audiosae_by_formula(state: dict[str, Any], x: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    acts = torch.relu((x - state["b_dec"]) @ state["encoder.weight"].T + state["encoder.bias"])
    acts = acts * (acts > threshold)
    return acts, acts @ state["decoder.weight"].T + state["b_dec"]


def freud_checkpoint(kind: str, layer_name: str = "encoder.blocks.2", **settings: Any) -> dict[str, Any]:
    """As its training loop writes it: model, optimizer, scheduler, step, a numpy scalar, settings."""
    if kind == "l1":
        model = torch.nn.Module()
        model.decoder = torch.nn.Linear(D_SAE, D_IN, bias=False)
        model.encoder_bias = torch.nn.Parameter(torch.randn(D_SAE) / 5)
        config: dict[str, Any] = {"n_dict_components": D_SAE, "recon_alpha": 1e4}
    else:
        model = torch.nn.Module()
        model.encoder = torch.nn.Linear(D_IN, D_SAE)
        model.W_dec = torch.nn.Parameter(torch.randn(D_SAE, D_IN) / 3)
        model.b_dec = torch.nn.Parameter(torch.randn(D_IN) / 3)
        config = {"expansion_factor": 16, "normalize_decoder": True, "k": K, "multi_topk": False, "auxk_alpha": 0.03125}
    optimizer = torch.optim.RAdam(model.parameters(), lr=4e-4, eps=1e-5)
    sum(parameter.square().sum() for parameter in model.parameters()).backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)
    hparams = {
        "autoencoder_variant": kind, "autoencoder_config": config, "lr": 4e-4, "weight_decay": 0.0, "steps": 100_000,
        "clip_thresh": 1.0, "batch_size": 100, "activation_size": D_IN, "train_folder": "activations/train",
        "whisper_config": {"model": "tiny", "layer_name": layer_name}, "optimizer": "radam", "scheduler": "cosine",
        "scheduler_params": {}, **settings,
    }  # fmt: skip
    return {
        "model": model.state_dict(), "optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict(),
        "step": 73_000, "best_val_loss": np.array([0.25, 0.5]).mean(), "hparams": hparams,
    }  # fmt: skip


def freud_by_formula(checkpoint: dict[str, Any], x: Tensor) -> tuple[Tensor, Tensor]:
    state = checkpoint["model"]
    if "encoder_bias" in state:
        columns = state["decoder.weight"] / state["decoder.weight"].norm(dim=0)
        acts = torch.relu(x @ columns + state["encoder_bias"])
        return acts, acts @ columns.T
    pre = torch.relu((x - state["b_dec"]) @ state["encoder.weight"].T + state["encoder.bias"])
    acts = pre * (pre >= pre.topk(K, dim=-1).values[:, -1:])
    return acts, acts @ state["W_dec"] + state["b_dec"]


def saved(content: Any, path: Path, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path, **options)
    return path


def assert_same(sae: Any, expected: tuple[Tensor, Tensor], x: Tensor) -> None:
    with torch.no_grad():
        torch.testing.assert_close(sae.encode(x), expected[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(sae(x), expected[1], rtol=1e-5, atol=1e-5)


# AudioSAE


@pytest.mark.parametrize(("stored", "used"), [(0.4, 0.4), (0.0, 0.0), (-1.0, 0.0)])
def test_audiosae(tmp_path: Path, stored: float, used: float) -> None:
    state = audiosae_state(stored)
    folder = audiosae_folder(tmp_path / "Audio-SAE-Whisper-small", state)
    x = rows()
    expected = audiosae_by_formula(state, x, used)
    assert 0 < float((expected[0] > 0).float().mean()) < 0.6
    sources = [(folder, {}), (folder, {"layer": 6}), (folder / "layer_6", {}), (folder / "layer_6" / "ae.pt", {})]
    for source, options in sources:
        sae = import_audiosae(source, **options)
        assert isinstance(sae, sae_lens.JumpReLUSAE)
        assert_same(sae, expected, x)
        about = sae.cfg.metadata
        assert about.hook_name == "encoder.blocks.5.hook_resid_post"
        assert about.model_name == "openai/whisper-small"
        assert (about.frame_rate, about.k, about.source) == (50, K, "layer_6/ae.pt")
        assert len(about.source_sha256) == 64
        assert dict(about.training_settings or {})["trainer"]["trainer_class"] == "BatchTopKTrainer"
    sae = import_audiosae(folder)
    again = sae_lens.SAE.load_from_disk(sae.save_model(tmp_path / "saved")[0].parent)
    assert_same(again, expected, x)
    assert again.cfg.metadata.to_dict() == sae.cfg.metadata.to_dict()


def test_audiosae_other_ways_to_choose_features(tmp_path: Path) -> None:
    state = audiosae_state(None)
    path = audiosae_folder(tmp_path, state) / "layer_6" / "ae.pt"
    x = rows()
    with pytest.raises(
        SaeError, match=r"holds no threshold, .* pass threshold=, or activation='topk' to keep 3 of each"
    ):
        import_audiosae(path, model="openai/whisper-small")
    assert_same(import_audiosae(path, model="small", threshold=0.7), audiosae_by_formula(state, x, 0.7), x)
    sae = import_audiosae(path, model="small", activation="topk")
    assert isinstance(sae, sae_lens.TopKSAE)
    acts = audiosae_by_formula(state, x, 0)[0]
    acts = acts * (acts >= acts.topk(K, dim=-1).values[:, -1:])
    assert_same(sae, (acts, acts @ state["decoder.weight"].T + state["b_dec"]), x)
    with pytest.raises(SaeError, match="Unknown activation 'batchtopk': expected 'threshold' or 'topk'"):
        inspect.unwrap(import_audiosae)(path, model="small", activation="batchtopk")  # unchecked, as users call it


def test_audiosae_in_a_model(tmp_path: Path) -> None:
    state = audiosae_state()
    path = audiosae_folder(tmp_path, state, layer=2) / "layer_2" / "ae.pt"
    model = small_model(dtype=torch.float32)
    mel, tokens = small_inputs(model.cfg, dtype=torch.float32)
    hook = "encoder.blocks.1.hook_resid_post"
    with torch.no_grad():
        put = [(hook, lambda x, hook: audiosae_by_formula(state, x, 0.4)[1])]
        expected = model.run_with_hooks(mel, tokens, fwd_hooks=put)
        found = model.run_with_saes(mel, tokens, saes=import_audiosae(path, model="small"))
    torch.testing.assert_close(found, expected)


def test_audiosae_from_the_hub(tmp_path: Path, hub: Hub) -> None:
    state = audiosae_state()
    for layer in (6, 7):
        audiosae_folder(tmp_path / "repository", state, layer)
    (tmp_path / "repository" / "README.md").write_text("# Audio-SAE")
    name = "Egorgij21/Audio-SAE-Whisper-large-v3-turbo"
    hub.folders[name] = tmp_path / "repository"
    sae = import_audiosae(name, layer=7)
    assert_same(sae, audiosae_by_formula(state, rows(), 0.4), rows())
    assert sae.cfg.metadata.model_name == "openai/whisper-large-v3-turbo"
    assert sae.cfg.metadata.hook_name == "encoder.blocks.6.hook_resid_post"
    assert sae.cfg.metadata.training_settings["trainer"]["layer"] == 7
    assert sorted(hub.asked) == ["layer_7/ae.pt", "layer_7/ae.pt", "layer_7/config.json", "layer_7/config.json"]
    hub.close()
    assert import_audiosae(name, layer=7).cfg.d_sae == D_SAE  # from the cache, the hub being gone
    with pytest.raises(SaeError, match="has the layers 7; layer=6 was asked for"):
        import_audiosae(name, layer=6, local_files_only=True)


def test_audiosae_what_is_not_there(tmp_path: Path, hub: Hub) -> None:
    state = audiosae_state()
    folder = audiosae_folder(audiosae_folder(tmp_path / "saes", state, 3), state, 12)
    (tmp_path / "empty").mkdir()
    hub.folders["some/saes"], hub.folders["some/Audio-SAE-HuBERT-base"] = tmp_path / "empty", folder
    loose = saved(state, tmp_path / "loose" / "ae.pt")
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (folder, {}, "has the layers 3, 12; layer=None was asked for"),
        (folder, {"layer": 4}, "has the layers 3, 12; layer=4 was asked for"),
        (folder / "layer_3", {"layer": 4}, "is of layer 3 by its name, and layer=4 was given"),
        (folder / "layer_3", {}, "does not say which Whisper .*: pass model=, such as 'openai/whisper-small'"),
        (loose, {"model": "small"}, "Which layer is .*ae.pt of. Pass layer=, counted from 1; got None"),
        (loose, {"model": "small", "layer": 0}, "counted from 1; got 0"),
        (tmp_path / "empty", {"layer": 1}, "is not laid out as AudioSAE's: expected layer_1/ae.pt"),
        ("some/saes", {"layer": 1}, "is not laid out as AudioSAE's"),
        ("some/saes", {}, "Which layer of 'some/saes'. Pass layer=, counted from 1"),
        ("some/Audio-SAE-HuBERT-base", {"layer": 3}, "was trained on HuBERT-base, which is no Whisper"),
        ("nobody/saes", {"layer": 1}, "There is no hub repository 'nobody/saes', or it is private"),
        (
            "saes that are not there",
            {"layer": 1},
            "There is no 'saes that are not there': expected a file, a folder, or",
        ),
    ]
    for source, options, message in cases:
        with pytest.raises(SaeError, match=message):
            import_audiosae(source, **options)
    hub.folders["some/saes"] = folder
    with pytest.raises(SaeError, match="has no revision 'v9'"):
        import_audiosae("some/saes", layer=3, revision="v9")
    hub.gated.add("some/saes")
    with pytest.raises(SaeError, match="is gated: accept its terms"):
        import_audiosae("some/saes", layer=3)


def test_audiosae_of_another_format(tmp_path: Path) -> None:
    nan = torch.full((D_IN,), torch.nan)
    cases: list[tuple[Any, str]] = [
        ([1, 2], "is no SAE of AudioSAE's: expected encoder.weight, .* found list"),
        ({"W_enc": torch.ones(2)}, r"is no SAE of AudioSAE's: .* found \['W_enc'\]"),
        (audiosae_state(k=None), "is no SAE of AudioSAE's"),
        (audiosae_state(b_enc=torch.ones(1)), "is no SAE of AudioSAE's"),
        (audiosae_state(**{"encoder.weight": torch.ones(3)}), r"has no matrix 'encoder.weight': found \[3\]"),
        (audiosae_state(**{"encoder.weight": "x"}), "has no matrix 'encoder.weight': found x"),
        (
            audiosae_state(**{"decoder.weight": torch.ones(D_SAE, D_IN)}),
            r"'decoder.weight' of shape \[40, 16\], expected",
        ),
        ({**audiosae_state(), "threshold": torch.ones(2)}, r"'threshold' of shape \[2\], expected \[\]"),
        (audiosae_state(k=torch.tensor(0)), "says that k is 0: expected 1 to 40"),
        (audiosae_state(b_dec=nan), r"NaN or infinite \(in what becomes b_dec\)"),
    ]
    for content, message in cases:
        path = saved(content, tmp_path / "layer_1" / "ae.pt")
        with pytest.raises(SaeError, match=message):
            import_audiosae(path, model="small")
    path = saved(audiosae_state(), tmp_path / "layer_1" / "ae.pt")
    (tmp_path / "layer_1" / "config.json").write_text("{")
    with pytest.raises(SaeError, match=r"config\.json is not JSON"):
        import_audiosae(path, model="small")


# FREUD


@pytest.mark.parametrize("kind", ["l1", "topk"])
def test_freud(tmp_path: Path, kind: str) -> None:
    checkpoint = freud_checkpoint(kind)
    path = saved(checkpoint, tmp_path / "run" / "checkpoints" / "bestval.pth")
    saved(checkpoint, tmp_path / "run" / "checkpoints" / "step1000.pth")
    x = rows()
    for source in (path, tmp_path / "run"):
        sae = import_freud(source)
        assert sae.cfg.architecture() == {"l1": "standard", "topk": "topk"}[kind]
        assert_same(sae, freud_by_formula(checkpoint, x), x)
        about = sae.cfg.metadata
        assert (about.model_name, about.hook_name) == ("openai/whisper-tiny", "encoder.blocks.2.hook_resid_post")
        assert (about.training_step, about.source_format) == (73_000, f"FREUD {kind}")
        assert about.training_settings["autoencoder_variant"] == kind
    assert import_freud(path, model="base").cfg.metadata.model_name == "openai/whisper-base"
    again = sae_lens.SAE.load_from_disk(sae.save_model(tmp_path / "saved")[0].parent)
    assert_same(again, freud_by_formula(checkpoint, x), x)


def rewritten(path: Path, old: bytes, new: bytes, *, compression: int = zipfile.ZIP_STORED) -> Path:
    """The same file with other bytes in its pickle."""
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in content.items():
            archive.writestr(name, data.replace(old, new) if name.endswith(".pkl") else data)
    return path


def test_freud_saved_with_either_generation_of_numpy(tmp_path: Path) -> None:
    checkpoint = freud_checkpoint("topk")
    path = saved(checkpoint, tmp_path / "a.pth")
    with zipfile.ZipFile(path) as archive:
        program = archive.read("a/data.pkl")
    old, new = (b"numpy._core.multiarray", b"numpy.core.multiarray")
    old, new = (old, new) if old in program else (new, old)
    assert old in program
    assert_same(import_freud(rewritten(path, old, new)), freud_by_formula(checkpoint, rows()), rows())


def test_freud_from_the_hub(tmp_path: Path, hub: Hub) -> None:
    checkpoint = freud_checkpoint("topk", whisper_config={"model": "large-v1", "layer_name": "encoder.blocks.16"})
    folder = tmp_path / "repository"
    saved(checkpoint, folder / "bestval.pth")
    for step in (1000, 2000):
        saved(checkpoint, folder / "checkpoints" / f"step{step}.pth")
    name = "cherrvak/large_v1_block_16_audioset_topk_16"
    hub.folders[name] = folder
    sae = import_freud(name)
    assert_same(sae, freud_by_formula(checkpoint, rows()), rows())
    assert (sae.cfg.metadata.model_name, sae.cfg.metadata.hook_name) == (
        "openai/whisper-large",
        "encoder.blocks.16.hook_resid_post",
    )
    assert set(hub.asked) == {"bestval.pth"}
    assert import_freud(name, filename="checkpoints/step2000.pth").cfg.metadata.source == "checkpoints/step2000.pth"
    (folder / "bestval.pth").rename(folder / "final.pth")
    with pytest.raises(
        SaeError, match="has checkpoints/step1000.pth, checkpoints/step2000.pth, final.pth: name one with"
    ):
        import_freud(name)
    with pytest.raises(SaeError, match="name one with filename="):
        import_freud(folder, filename="step1000.pth")
    assert import_freud(folder, filename="final.pth").cfg.d_in == D_IN
    (tmp_path / "none").mkdir()
    with pytest.raises(SaeError, match="has no .pth at all"):
        import_freud(tmp_path / "none")


@pytest.mark.parametrize(
    ("module", "hook"),
    [
        ("encoder.blocks.2", "encoder.blocks.2.hook_resid_post"),
        ("encoder.blocks.2.mlp.0", "encoder.blocks.2.mlp.hook_pre"),
        ("encoder.blocks.2.mlp.1", "encoder.blocks.2.mlp.hook_post"),
        ("encoder.blocks.2.mlp", "encoder.blocks.2.hook_mlp_out"),
        ("encoder.blocks.0.mlp_ln", "encoder.blocks.0.ln2.hook_normalized"),
        ("decoder.blocks.0.mlp_ln", "decoder.blocks.0.ln3.hook_normalized"),
        ("decoder.blocks.1.cross_attn_ln", "decoder.blocks.1.ln2.hook_normalized"),
        ("decoder.blocks.1.cross_attn.out", "decoder.blocks.1.hook_cross_attn_out"),
        ("decoder.blocks.1.cross_attn.key", "decoder.blocks.1.cross_attn.hook_k"),
        ("encoder.ln_post", "encoder.hook_out"),
        ("decoder.ln", "decoder.ln_final.hook_normalized"),
    ],
)
def test_modules_of_openais_whisper(module: str, hook: str, whisper_module_outputs: dict[str, Tensor]) -> None:
    """The hook has the value that the module puts out, of one and the same model."""
    assert hook_of_module(module) == hook
    torch.testing.assert_close(whisper_module_outputs[f"hook {hook}"], whisper_module_outputs[f"module {module}"])


@pytest.fixture(scope="module")
def whisper_module_outputs() -> dict[str, Tensor]:
    """What modules of transformers' Whisper put out, under OpenAI's names, and what our hooks hold."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    from hooked_whisper import HookedWhisper

    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=31, num_mel_bins=6, d_model=16, encoder_layers=3, encoder_attention_heads=2, encoder_ffn_dim=24,
        decoder_layers=2, decoder_attention_heads=2, decoder_ffn_dim=24, max_source_positions=10,
        max_target_positions=16, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=3,
    )  # fmt: skip
    theirs = WhisperForConditionalGeneration(config).eval()
    names = {
        "blocks": "layers", "mlp.0": "fc1", "mlp_ln": "final_layer_norm", "cross_attn_ln": "encoder_attn_layer_norm",
        "cross_attn.out": "encoder_attn.out_proj", "cross_attn.key": "encoder_attn.k_proj", "ln_post": "layer_norm",
        "decoder.ln": "decoder.layer_norm", "mlp": "fc2",
    }  # fmt: skip
    found: dict[str, Tensor] = {}

    def keep(key: str) -> Any:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            found[key] = (output[0] if isinstance(output, tuple) else output).detach()

        return hook

    for module in (
        "encoder.blocks.2", "encoder.blocks.2.mlp.0", "encoder.blocks.2.mlp", "encoder.blocks.0.mlp_ln",
        "decoder.blocks.0.mlp_ln", "decoder.blocks.1.cross_attn_ln", "decoder.blocks.1.cross_attn.out",
        "decoder.blocks.1.cross_attn.key", "encoder.ln_post", "decoder.ln",
    ):  # fmt: skip
        path = module
        for old, new in names.items():
            path = path.replace(f".{old}", f".{new}") if path.endswith(f".{old}") or old == "blocks" else path
        path = "decoder.layer_norm" if module == "decoder.ln" else path
        theirs.model.get_submodule(path).register_forward_hook(keep(f"module {module}"))
    mel, tokens = torch.randn(1, 6, 20), torch.tensor([[3, 5, 7]])
    with torch.no_grad():
        theirs(input_features=mel, decoder_input_ids=tokens)
        ours = HookedWhisper.from_pretrained(theirs)
        _, cache = ours.run_with_cache(mel, tokens)
    found["module encoder.blocks.2.mlp.1"] = F.gelu(found["module encoder.blocks.2.mlp.0"])
    found |= {f"hook {name}": cache[name] for name in (*cache, "encoder.blocks.2.mlp.hook_post")}
    for name in ("decoder.blocks.1.cross_attn.hook_k",):
        found[f"hook {name}"] = found[f"hook {name}"].flatten(2)
    return found


@pytest.mark.parametrize("module", [None, "encoder.conv1", "encoder.blocks", "encoder.blocks.1.cross_attn.out", "x"])
def test_modules_that_no_hook_holds(module: str | None) -> None:
    with pytest.raises(SaeError, match=r"of OpenAI's Whisper, whose output no hook holds: expected a block, such as"):
        hook_of_module(module)


def test_freud_of_another_format(tmp_path: Path) -> None:
    good = freud_checkpoint("topk")
    l1 = freud_checkpoint("l1")
    settings = good["hparams"]
    cases: list[tuple[Any, str]] = [
        ([1], "holds a list, expected a checkpoint of FREUD's"),
        ({"x": 1}, r"is no checkpoint of FREUD's: expected 'model' and 'hparams', found \['x'\]"),
        ({**good, "hparams": 3}, "is no checkpoint of FREUD's"),
        ({**good, "hparams": {**settings, "autoencoder_variant": "vae"}}, "of the kind 'vae': expected 'l1' or 'topk'"),
        ({**good, "hparams": {**settings, "autoencoder_config": {}}}, "how many features of a frame count: k is None"),
        ({**good, "hparams": {**settings, "autoencoder_config": 7}}, "k is None"),
        ({**good, "hparams": {**settings, "whisper_config": {}}}, "does not say which Whisper it was trained on"),
        ({**good, "model": {}}, "has no matrix 'encoder.weight': found None"),
        ({**good, "model": {**good["model"], "b_dec": torch.ones(3)}}, r"'b_dec' of shape \[3\], expected \[16\]"),
        ({**l1, "model": {"decoder.weight": torch.ones(4, 6)}}, r"'encoder_bias' of shape None, expected \[6\]"),
    ]
    for content, message in cases:
        with pytest.raises(SaeError, match=message):
            import_freud(saved(content, tmp_path / "x.pth"))


# Hostile and broken files


class Malicious:
    """Unpickled by Python's own unpickler, this makes a directory."""

    def __init__(self, proof: Path) -> None:
        self.proof = str(proof)

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (self.proof,))


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before torch 1.6"])
def test_code_is_never_run(tmp_path: Path, legacy: bool) -> None:
    proof = tmp_path / "ran"
    options = {"_use_new_zipfile_serialization": not legacy}
    audio = saved(audiosae_state(note=Malicious(proof)), tmp_path / "layer_1" / "ae.pt", **options)
    freud = saved({**freud_checkpoint("l1"), "note": Malicious(proof)}, tmp_path / "x.pth", **options)
    whole = saved(torch.nn.Linear(2, 2), tmp_path / "model.bestval.pth", **options)
    with pytest.raises(SaeError, match=r"no file that torch\.save writes|holds code or objects"):
        import_audiosae(audio, model="small")
    for path in (freud, whole):
        with pytest.raises(SaeError, match=r"holds code or objects \(.*\), not only tensors|cannot be read"):
            import_freud(path)
    assert not proof.exists()
    torch.load(freud, weights_only=False)  # the file does carry the code
    assert proof.exists()


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.99])
def test_truncated_files_are_refused(tmp_path: Path, keep: float) -> None:
    audio = saved(audiosae_state(), tmp_path / "layer_1" / "ae.pt")
    freud = saved(freud_checkpoint("topk"), tmp_path / "x.pth")
    for path in (audio, freud):
        content = path.read_bytes()
        path.write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    with pytest.raises(SaeError, match="truncated or corrupt"):
        import_audiosae(audio, model="small")
    with pytest.raises(SaeError, match="is truncated, corrupt, or no checkpoint"):
        import_freud(freud)


def test_files_with_other_bytes_in_them_are_refused_or_read(tmp_path: Path) -> None:
    """Nothing but an SaeError comes out, whatever byte is changed."""
    path = saved({**freud_checkpoint("l1"), "optimizer": None, "scheduler": None}, tmp_path / "x.pth")
    content = bytearray(path.read_bytes())
    generator = np.random.default_rng(0)
    refused = 0
    for place in generator.integers(0, len(content), 300):
        changed = bytearray(content)
        changed[place] ^= int(generator.integers(1, 256))
        path.write_bytes(changed)
        try:
            import_freud(path)
        except SaeError:
            refused += 1
    assert refused > 10


def test_a_compressed_checkpoint_is_refused(tmp_path: Path) -> None:
    path = saved(freud_checkpoint("l1"), tmp_path / "x.pth")
    with pytest.raises(SaeError, match="is no file that torch.save writes: it is compressed"):
        import_freud(rewritten(path, b"", b"", compression=zipfile.ZIP_DEFLATED))
