"""`hooked-whisper train`, from a store and flags or a YAML file to an SAE."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from memory_source import MemorySource, toy_source
from typer.testing import CliRunner

from hooked_whisper import ConfigError, SaeError, cli
from hooked_whisper.saes import ActivationStore

FLAGS = ["--hook", "hook", "--d-sae", "64", "--rows", "1280", "--batch-size", "64", "--log", "nothing", "--seed", "3"]


@pytest.fixture(autouse=True)
def stores(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Paths of the stores that were opened; each is a toy source."""
    opened: list[Any] = []

    def opens(path: object) -> MemorySource:
        opened.append(path)
        return toy_source()

    monkeypatch.setattr(ActivationStore, "open", opens)
    monkeypatch.setattr(ActivationStore, "join", lambda sources: sources[0])
    return opened


def run(*arguments: object) -> str:
    result = CliRunner().invoke(cli.app, ["train", *map(str, arguments)])
    if result.exception is not None:
        raise result.exception
    return result.output


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "training.json").read_text())


def test_flags(tmp_path: Path, stores: list[Any]) -> None:
    out = tmp_path / "run"
    said = run("acts", *FLAGS, "--k", 4, "--out", out, "--lr", "3e-3", "--set", "lr_warm_up_steps=2",
               "--set", "b_dec_init_method=zeros", "--set", "aux_loss_coefficient=0.5", "--by", "clip")  # fmt: skip
    assert stores == ["acts"]
    settings = record(out)["settings"]
    assert (settings["k"], settings["lr"], settings["lr_warm_up_steps"], settings["seed"]) == (4, 3e-3, 2, 3)
    assert settings["b_dec_init_method"] == "zeros" and settings["options"] == {"aux_loss_coefficient": 0.5}
    assert said.startswith("run: FVU ") and "L0 4.0" in said and "on 400 rows held out" in said
    assert said.splitlines()[-1] == f"Next: hooked-whisper evaluate {out} --corpus MANIFEST"
    again = run("acts", *FLAGS, "--k", 4, "--out", out, "--lr", "3e-3", "--set", "lr_warm_up_steps=2",
                "--set", "b_dec_init_method=zeros", "--set", "aux_loss_coefficient=0.5", "--by", "clip")  # fmt: skip
    assert again == said  # finished: nothing is trained again
    run("acts", *FLAGS, "--k", 5, "--out", out, "--no-resume", "--held-out", "none")
    assert record(out)["settings"]["k"] == 5 and record(out)["held_out"] is None


def test_a_file_and_flags_over_it(tmp_path: Path, stores: list[Any]) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(
        f"store: [a, b]\nout: {tmp_path / 'run'}\nhook: hook\nd_sae: 32\nk: 4\nlr: 1e-3\n"
        "total_training_samples: 1_280\ntrain_batch_size_samples: 64\n"
        "log: nothing\narchitecture: batchtopk\nheld_out: 0.2\n"
    )
    said = run("--config", config, "--d-sae", 64)
    assert stores == ["a", "b"]
    settings = record(tmp_path / "run")["settings"]
    assert (settings["d_sae"], settings["lr"], settings["architecture"]) == (64, 1e-3, "batchtopk")
    assert "rows held out" in said


def test_several_saes_of_one_file(tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(
        f"store: acts\nout: {tmp_path / 'runs'}\nhook: hook\nd_sae: 64\ntotal_training_samples: 1280\n"
        "train_batch_size_samples: 64\nlog: nothing\nk: 4\nlr: 2e-3\n"
        "saes:\n- {name: a, seed: 1}\n- {name: b, architecture: jumprelu, k: null, l0_coefficient: 0.1}\n"
    )
    said = run("--config", config)
    assert [text.split(":")[0] for text in said.splitlines()] == ["a", "b", "Next"]
    assert record(tmp_path / "runs" / "a")["settings"]["lr"] == 2e-3
    assert record(tmp_path / "runs" / "b")["settings"]["options"] == {"l0_coefficient": 0.1}
    assert f"evaluate {tmp_path / 'runs' / 'a'} " in said


BAD: list[tuple[str, list[str], str]] = [
    ("Missing: a STORE", ["--out", "x"], ""),
    ("Missing: --out", ["acts"], ""),
    ("Missing: --hook, or hook in --config", ["acts", "--out", "x", "--d-sae", "4"], ""),
    ("Unknown option 'larning_rate'", ["acts", "--out", "x", "--set", "larning_rate=1"], ""),
    ("--set 'lr' sets nothing: expected name=value", ["acts", "--out", "x", "--set", "lr"], ""),
    ("d_sae must be a whole number, got 4.5", [], "store: a\nout: x\nhook: h\nd_sae: 4.5"),
    ("lr must be a number, got 'fast'", [], "store: a\nout: x\nhook: h\nd_sae: 4\nlr: fast"),
    ("holds list: expected options, one a line", [], "- 1"),
    ("cannot be read as YAML", [], "a: [1"),
    ("Each of saes must hold options", [], "store: a\nout: x\nsaes: [1]"),
    ("Missing: d_sae of one of saes", [], "store: a\nout: x\nsaes: [{hook: hook}]"),
    ("'autocast' is no option of one SAE", [], "store: a\nout: x\nsaes: [{hook: h, d_sae: 4, autocast: true}]"),
]


@pytest.mark.parametrize(("message", "arguments", "file"), BAD, ids=[message[:30] for message, _, _ in BAD])
def test_what_is_refused(message: str, arguments: list[str], file: str, tmp_path: Path) -> None:
    if file:
        (tmp_path / "run.yaml").write_text(file)
        arguments = ["--config", str(tmp_path / "run.yaml")]
    with pytest.raises(ConfigError, match=message):
        run(*arguments)


def test_a_file_that_is_not_there_and_settings_that_cannot_train(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read as YAML"):
        run("--config", tmp_path / "none.yaml")
    with pytest.raises(SaeError, match="'topk' needs k"):
        run("acts", *FLAGS, "--out", tmp_path / "run")
