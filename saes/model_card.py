"""The README of a published SAE: what it is, how to load it, what it was trained on, how good it is."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

TAGS = ("sparse-autoencoder", "sae", "saelens", "hooked-whisper", "whisper", "speech", "mechanistic-interpretability")

# Metadata that say where it comes from, in the order in which the card lists them.
_LISTED = {
    "model_name": "model",
    "hook_name": "hook",
    "hook_name_out": "hook that it writes",
    "frame_rate": "rows a second of audio",
    "architecture": "architecture",
    "k": "active latents (k)",
    "licence": "licence",
    "licences": "licences of the training data",
    "source_format": "converted from",
}


def model_card(
    repository: str,
    folder: str,
    config: Mapping[str, Any],
    *,
    evaluation: str | None = None,
    files: Sequence[str] = (),
    others: Sequence[str] = (),
    revision: str | None = None,
) -> str:
    """The card as Markdown, with the header that the hub reads.

    Args:
        repository: hub id, "user/name".
        folder: of the SAE in the repository; its id for SAELens.
        config: the SAE's cfg.json, metadata included.
        evaluation: an evaluation report as Markdown.
        files: what else lies in the folder, such as a dashboard.
        others: folders of other SAEs in the repository.
        revision: the branch, where it is not the main one.
    """
    metadata = config["metadata"]
    model, hook = metadata["model_name"], metadata["hook_name"]
    size = f"{config['d_in']} → {config['d_sae']:,} latents"
    parts = [
        _header(metadata),
        f"# Sparse autoencoder on {model}, `{hook}`",
        f"A {config['architecture']} sparse autoencoder ({size}) on the activations of `{hook}` in {_linked(model)}, "
        "in the format of [SAELens](https://github.com/decoderesearch/SAELens), made with hooked-whisper.",
        "## Load it",
        _snippets(repository, folder, model, hook, revision),
        "## What it is",
        _facts(config),
    ]
    if metadata.get("corpus"):
        parts += ["## What it was trained on", _block(metadata["corpus"])]
    if metadata.get("training_settings"):
        parts += ["## How it was trained", _block(metadata["training_settings"])]
    if metadata.get("training_figures"):
        parts += ["## Figures at the end of training", _block(metadata["training_figures"])]
    if metadata.get("metrics"):
        parts += ["## Figures", _table(["figure", "value"], list(metadata["metrics"].items()))]
    if evaluation:
        # A report is a page of its own: its headings go one level down.
        parts.append(re.sub(r"^(#+) ", r"#\1 ", evaluation.strip(), flags=re.MULTILINE))
    if metadata.get("versions"):
        parts += ["## Versions", _table(["package", "version"], list(metadata["versions"].items()))]
    if files:
        parts += ["## Also in its folder", "\n".join(f"- [`{name}`]({folder}/{name})" for name in files)]
    if others:
        parts += ["## Other SAEs in this repository", "\n".join(f"- `{name}`" for name in others)]
    return "\n\n".join(parts) + "\n"


def _header(metadata: Mapping[str, Any]) -> str:
    lines = ["library_name: saelens"]
    if "/" in metadata["model_name"]:
        lines.append(f"base_model: {json.dumps(metadata['model_name'])}")
    if metadata.get("licence"):
        lines.append(f"license: {json.dumps(_licence_id(metadata['licence']))}")
    lines += ["tags:", *(f"- {tag}" for tag in TAGS)]
    return "\n".join(["---", *lines, "---"])


def _licence_id(licence: str) -> str:
    """A licence as the hub writes it: "CC BY-SA 3.0" is "cc-by-sa-3.0"."""
    return re.sub(r"[\s_]+", "-", licence.strip().lower())


def _linked(model: str) -> str:
    return f"[{model}](https://huggingface.co/{model})" if "/" in model else model


def _snippets(repository: str, folder: str, model: str, hook: str, revision: str | None) -> str:
    there = f', revision="{revision}"' if revision else ""
    # It was trained on audio alone: frames of padding are left to the model.
    padding = ", skip_padding=True" if hook.startswith("encoder.") else ""
    steps = [
        "With SAELens alone:",
        f'```python\nfrom sae_lens import SAE\n\nsae = SAE.from_pretrained("{repository}", "{folder}")\n```',
    ]
    if revision:
        steps = [f"It lies in the branch `{revision}`, and SAELens itself reads the main one."]
    return "\n\n".join([
        *steps,
        "With hooked-whisper, in the model:",
        "```python\nfrom hooked_whisper import HookedWhisper\nfrom hooked_whisper.saes import load_sae\n\n"
        f'model = HookedWhisper.from_pretrained("{model}")\n'
        f'sae = load_sae("{repository}", hook="{folder}"{there})\n'
        f'logits, cache = model.run_with_cache_with_saes("speech.wav", saes=sae{padding})\n'
        f'cache["{hook}.hook_sae_acts_post"]\n```',
    ])  # fmt: skip


def _facts(config: Mapping[str, Any]) -> str:
    known = {**config["metadata"], "architecture": config["architecture"]}
    rows = [[label, known[name]] for name, label in _LISTED.items() if known.get(name) not in (None, "", [])]
    rows += [["d_in", config["d_in"]], ["d_sae", config["d_sae"]], ["dtype", config.get("dtype")]]
    if not known.get("licence"):
        rows.append(["licence", "not stated"])
    return _table(["", ""], rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(map(_cell, row))} |" for row in rows)])


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _block(value: Any) -> str:
    return f"```json\n{json.dumps(value, indent=1, ensure_ascii=False)}\n```"
