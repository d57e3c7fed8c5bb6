"""Every example runs, on the bundled model and speech, as a user would run it, and says something."""

from __future__ import annotations

import inspect
import runpy
from pathlib import Path

import pytest

# Options that make a study short: what it finds then means little.
SHORT = {
    "word_timing_heads.py": ["--window", "4", "--languages", "en", "it"],
    "language_decision.py": ["--pairs", "1", "--steps", "1", "--gates", "2", "--random", "1"],
    "classes.py": [
        "--work",
        "w",
        "--designs",
        "lexical",
        "--every",
        "lexical=12",
        "--voices",
        "1",
        "1",
        "--coders",
        "SAE",
    ],
    "steering.py": ["--work", "w", "--languages", "en", "--clips", "1", "--doses", "4", "--random", "1"],
    "run_all.py": ["--work", "w", "--list"],
    "phone_layers.py": [
        *("--work", "layers", "--languages", "en", "es", "--sentences", "4"),
        *("--configs", "2/64/4/10", "2/64/4/20/matryoshka/rows/from16/first+2/32/4/10/batchtopk"),
        *("--test-all", "--batch", "64", "--min-rows", "2"),
    ],
    "real_phones.py": [
        *("--work", "real", "--study", "layers", "--languages", "en", "es", "--min-rows", "2"),
        *("--aligner", "encoder.blocks.2.hook_resid_post", "--unlearnt", "anywhere", "--confidence", "0"),
    ],
    "non_speech.py": [
        "--work",
        "w",
        "--each",
        "1",
        "--clips",
        "2",
        "--doses",
        "2.4",
        "--random",
        "1",
        "--window",
        "10",
    ],
    "hallucination.py": ["--each", "2", "--speech", "1", "--heads", "3"],
    "phones.py": [
        "--work",
        "phones",
        "--languages",
        "en",
        "es",
        "--sentences",
        "4",
        "--voices",
        "2",
        "--min-rows",
        "4",
    ],
}
# What has to be there first, in the same folder; it is run there alone.
BEFORE = {"real_phones.py": "phone_layers.py"}
FOLDER = Path(__file__).resolve().parent.parent / "examples"
EXAMPLES = sorted(FOLDER.rglob("*.py"))


@pytest.mark.parametrize(
    "path", [path for path in EXAMPLES if path.name not in BEFORE.values()], ids=lambda path: path.name
)
def test_example_runs(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in filter(None, (BEFORE.get(path.name), path.name)):
        monkeypatch.setattr("sys.argv", [str(path.with_name(name)), *SHORT.get(name, [])])
        runpy.run_path(str(path.with_name(name)), run_name="__main__")
    assert capsys.readouterr().out.strip()


def test_the_full_size_run_is_made_of_options_that_exist() -> None:
    from hooked_whisper.saes import train_sae
    from hooked_whisper.saes.train_command import read_config

    asked = read_config(FOLDER / "paper" / "full_size.yaml")
    known = inspect.signature(train_sae).parameters
    assert asked["d_sae"] == 16_000 and asked["k"] == 45 and asked.keys() <= known.keys()


def test_there_are_examples() -> None:
    assert "quickstart.py" in [path.name for path in EXAMPLES]
