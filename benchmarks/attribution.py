"""How well attribution follows exact patching on whisper-base, and what each costs.

    python -m benchmarks.attribution --out benchmarks/results/attribution.md
    python -m benchmarks.attribution --window 5              # seconds: the same weights, and a sixth of the time

Two contrasts on real speech: the same sentence in English and in French, judged by the difference of the two language
tokens' logits; and a sentence with and without its first word, judged by the log-probability of its transcript.
Nodes are every head and MLP: the encoder's in windows of the clip, the decoder's over all tokens.
"""

from __future__ import annotations

import argparse
import math
import platform
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor

from benchmarks.measure import peak_growth_mb
from hooked_whisper import HookedWhisper, __version__
from hooked_whisper.analysis.attribution import attribute
from hooked_whisper.analysis.contrast import Contrast
from hooked_whisper.analysis.metrics import LogitDifference, LogProbability, Metric
from hooked_whisper.analysis.nodes import Node, nodes, windows
from hooked_whisper.analysis.patching import patch
from hooked_whisper.audio import SAMPLE_RATE
from hooked_whisper.mel import FRAMES_PER_SECOND
from hooked_whisper.speech import clips
from hooked_whisper.windows import with_window

N_WINDOWS = 8
FIRST_WORD = 0.75  # seconds: "Weasels" in tt-weasels
METHODS: dict[str, dict[str, Any]] = {
    "plain": {"method": "patching"},
    "integrated along inputs (EAP-IG), 10 steps": {"method": "integrated", "along": "inputs"},
    "integrated along nodes, 8 steps": {"method": "integrated", "steps": 8},
    "integrated along nodes, 32 steps": {"method": "integrated"},
}


@dataclass(frozen=True)
class Task:
    """A contrast, what judges it, and the nodes to sweep."""

    name: str
    contrast: Contrast
    metric: Metric
    nodes: list[Node]


def heads_and_mlps(model: HookedWhisper, seconds: float) -> list[Node]:
    """Every head and MLP, the encoder's in equal windows of a clip of this length."""
    frames = math.ceil(seconds * FRAMES_PER_SECOND)
    return nodes(model, ["head", "mlp"], spans={"frame": windows(0, frames, math.ceil(frames / N_WINDOWS))})


def tasks(model: HookedWhisper) -> list[Task]:
    """The two contrasts."""
    tokenizer = model.tokenizer
    assert tokenizer is not None
    english, french = (clips(language, "vm-sorry")[0] for language in ("en", "fr"))
    language = {code: tokenizer.prompt(code, "transcribe", False)[1] for code in ("en", "fr")}
    first = Contrast.of(model, clean=english.path, corrupted=french.path, text=[tokenizer.sot])
    weasels = clips("en", "tt-weasels")[0]
    whole = weasels.load()
    without = whole.clone()
    without[: int(FIRST_WORD * SAMPLE_RATE)] = 0
    second = Contrast.of(
        model, clean=whole, corrupted=without, text=" Weasels have eaten our phone system.", language="en"
    )
    return [
        Task(
            "language (English or French)",
            first,
            LogitDifference((language["en"],), (language["fr"],), 0),
            heads_and_mlps(model, english.seconds),
        ),
        Task(
            "timing (first word silenced)",
            second,
            LogProbability(second.clean.tokens, second.prompt_length),
            heads_and_mlps(model, weasels.seconds),
        ),
    ]


def agreement(model: HookedWhisper, task: Task) -> list[str]:
    """Rows of the table for one task: each method against the exact sweep of the same nodes."""
    start = time.perf_counter()
    exact = patch(model, task.contrast, task.nodes, task.metric, batch_size=4, progress=True).change[:, 0]
    sweep = time.perf_counter() - start
    encoder = torch.tensor([node.stack == "encoder" for node in task.nodes])
    rows = []
    for name, options in METHODS.items():
        start = time.perf_counter()
        found = attribute(model, task.contrast, task.nodes, task.metric, progress=False, **options).scores[:, 0]
        speed_up = sweep / (time.perf_counter() - start)
        figures = [rank_correlation(found[chosen], exact[chosen]) for chosen in (encoder | True, encoder, ~encoder)]
        correlations = " | ".join(f"{figure:.3f}" for figure in figures)
        rows.append(f"| {task.name} | {len(task.nodes)} | {name} | {correlations} | {speed_up:.0f}x |")
        print(rows[-1], flush=True)
    return rows


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's."""
    result: Any = spearmanr(a.numpy(), b.numpy())
    return float(result[0])


def memory(model: HookedWhisper) -> list[str]:
    """Growth of peak memory of node attribution on 10 s of speech and 20 tokens."""
    waveform = torch.cat([clip.load() for clip in clips("en")])[: 10 * SAMPLE_RATE]
    tokenizer = model.tokenizer
    assert tokenizer is not None
    text = [*tokenizer.prompt("en", "transcribe", False), *list(tokenizer.to_tokens(clips("en")[0].text))]
    text = [*text, *text[4:]][:20]
    contrast = Contrast.of(model, clean=waveform, corrupted=torch.zeros_like(waveform), text=text)
    metric = LogProbability(contrast.clean.tokens, contrast.prompt_length)
    chosen = heads_and_mlps(model, 10.0)
    rows = []
    for name in ("plain", "integrated along nodes, 8 steps"):
        options = METHODS[name]
        peak = peak_growth_mb(
            lambda options=options: attribute(model, contrast, chosen, metric, progress=False, **options)
        )  # type: ignore[arg-type]
        rows.append(f"| {name} | {len(chosen)} | {'?' if peak is None else f'{peak:.0f}'} |")
        print(rows[-1], flush=True)
    return rows


def convergence(model: HookedWhisper) -> list[str]:
    """Convergence deltas of integrated gradients to spectrogram and waveform."""
    from hooked_whisper.analysis.input_gradients import integrated_gradients

    clip = clips("en", "tt-weasels")[0]
    tokenizer = model.tokenizer
    assert tokenizer is not None
    word = list(tokenizer.to_tokens(" Weasels"))
    tokens = torch.tensor([[*tokenizer.prompt("en", "transcribe", False), *word]])  # type: ignore[list-item]
    metric = LogProbability(tokens, 4)
    rows = []
    for wrt in ("mel", "waveform"):
        found = integrated_gradients(model, clip.path, tokens, metric, wrt=wrt, progress=True)
        change = float((found.value - found.baseline_value)[0])
        share = float(found.relative_delta[0])
        rows.append(f"| {wrt} | {found.steps} | {change:.2f} | {float(found.delta[0]):.4f} | {100 * share:.2f} % |")
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--window", type=int, default=30, help="seconds of the model's window in the sweeps")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--out", type=Path, default=None, help="also write the tables to this Markdown file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = HookedWhisper.from_pretrained("openai/whisper-base", device="cpu", dtype="float32")
    shorter = with_window(model, arguments.window)
    command = " ".join(["python -m benchmarks.attribution", *sys.argv[1:]])
    text = "\n".join(
        [
            f"Written by `{command}`: hooked-whisper {__version__}, "
            f"torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}, "
            f"{torch.get_num_threads()} threads, whisper-base in float32, windows of "
            f"{arguments.window} s (of 30 s where memory is measured), denoising.\n",
            "### Agreement with exact patching, and the exact sweep's time over attribution's\n",
            "Spearman's rank correlation of the scores with (patched - base), over all nodes, the encoder's and the "
            "decoder's. The cost of attribution does not depend on the number of nodes; that of the sweep, which "
            "starts each run at the node's layer, is proportional to it.\n",
            "| task | nodes | attribution | all | encoder | decoder | speed-up |",
            "|---|---|---|---|---|---|---|",
            *[row for task in tasks(shorter) for row in agreement(shorter, task)],
            "\n### Growth of peak memory: 10 s of speech, 20 tokens\n",
            "The second row is measured in the same process, and reuses memory that the first left to it.\n",
            "| attribution | nodes | MB |",
            "|---|---|---|",
            *memory(model),
            "\n### Integrated gradients: convergence\n",
            "Baseline: silence. Metric: log-probability of the first word.\n",
            "| to | steps | change of the metric, nats | delta, nats | delta, share of the change |",
            "|---|---|---|---|---|",
            *convergence(shorter),
            "",
        ]
    )
    print(text)
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text)
        print(f"Wrote {arguments.out}")


if __name__ == "__main__":
    main()
