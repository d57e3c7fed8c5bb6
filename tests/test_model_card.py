"""The card of a published SAE: a header that the hub reads, snippets that are Python, everything that is known."""

from __future__ import annotations

import ast
import re
from typing import Any

import pytest
import yaml

from hooked_whisper.saes.model_card import model_card

CONFIG: dict[str, Any] = {
    "architecture": "topk",
    "d_in": 512,
    "d_sae": 16_000,
    "dtype": "float16",
    "metadata": {"model_name": "openai/whisper-base", "hook_name": "encoder.hook_out", "k": 45},
}


def card(**about: Any) -> str:
    return model_card("user/sae", "encoder.hook_out", {**CONFIG, "metadata": {**CONFIG["metadata"], **about}})


def header(text: str) -> dict[str, Any]:
    match = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    assert match is not None
    return yaml.safe_load(match[1])


def test_header() -> None:
    found = header(card(licence="CC BY-SA 3.0"))
    assert (found["library_name"], found["base_model"], found["license"]) == (
        "saelens",
        "openai/whisper-base",
        "cc-by-sa-3.0",
    )
    assert {"sparse-autoencoder", "saelens", "whisper"} <= set(found["tags"])
    bare = header(card(model_name="C:whisper: odd"))
    assert "base_model" not in bare and "license" not in bare


def test_snippets_are_python() -> None:
    blocks = re.findall(r"```python\n(.*?)```", card(), re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        ast.parse(block)
    assert 'SAE.from_pretrained("user/sae", "encoder.hook_out")' in blocks[0]
    assert 'cache["encoder.hook_out.hook_sae_acts_post"]' in blocks[1]


@pytest.mark.parametrize(
    ("about", "line"),
    [
        ({}, "| active latents (k) | 45 |"),
        ({}, "| licence | not stated |"),
        ({"licence": "mit"}, "| licence | mit |"),
        (
            {"licences": ["CC BY-SA 3.0", "CC BY 3.0"]},
            "| licences of the training data | CC BY-SA 3.0, CC BY 3.0 |",
        ),
        ({"frame_rate": 50}, "| rows a second of audio | 50 |"),
        ({"metrics": {"fvu": 0.0712345}}, "| fvu | 0.07123 |"),
        ({"corpus": {"name": "Prompts über alles"}}, ' "name": "Prompts über alles"'),
        ({"training_figures": {"dead": 0.01}}, ' "dead": 0.01'),
        ({"versions": {"torch": "2|3"}}, "| torch | 2\\|3 |"),
    ],
)
def test_what_is_known_is_told(about: dict[str, Any], line: str) -> None:
    assert line in card(**about).splitlines()


def test_evaluation_files_and_others() -> None:
    text = model_card(
        "user/sae", "encoder.hook_out", CONFIG, evaluation="# Evaluation\n\n## Gates\n", files=["dashboard/index.html"],
        others=["decoder.blocks.3.hook_mlp_out"],
    )  # fmt: skip
    headings = [line for line in text.splitlines() if line.startswith("#")]
    assert headings[0].startswith("# ") and sum(line.startswith("# ") for line in headings) == 1
    assert "## Evaluation" in headings and "### Gates" in headings
    assert "[`dashboard/index.html`](encoder.hook_out/dashboard/index.html)" in text
    assert "- `decoder.blocks.3.hook_mlp_out`" in text
