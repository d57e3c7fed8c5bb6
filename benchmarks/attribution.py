"""How well attribution follows exact patching on whisper-base, and what each costs.

    python -m benchmarks.attribution --out benchmarks/results/attribution.md
    python -m benchmarks.attribution --window 5              # seconds: the same weights, and a sixth of the time
    python -m benchmarks.attribution --parts edges           # only some of the tables

Two contrasts on real speech: the same sentence in English and in French, judged by the difference of the two language
tokens' logits; and a sentence with and without its first word, judged by the log-probability of its transcript.
`nodes`: every head and MLP, the encoder's in windows of the clip, the decoder's over all tokens. `windows`: every head,
the encoder's in windows of 0.1 s, the decoder's token by token. `edges`: some of all edges. Times are of the processor
that runs this process, so that what else a machine does counts little.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor

from benchmarks import report
from benchmarks.measure import peak_growth_mb
from hooked_whisper import HookedWhisper
from hooked_whisper.analysis.attribution import attribute
from hooked_whisper.analysis.contrast import Contrast
from hooked_whisper.analysis.edge_attribution import attribute_edges
from hooked_whisper.analysis.edge_patching import patch_edges
from hooked_whisper.analysis.edges import edges
from hooked_whisper.analysis.metrics import LogitDifference, LogProbability, Metric
from hooked_whisper.analysis.nodes import Node, nodes, windows
from hooked_whisper.analysis.patching import patch
from hooked_whisper.audio import SAMPLE_RATE
from hooked_whisper.mel import FRAMES_PER_SECOND
from hooked_whisper.speech import clips
from hooked_whisper.windows import with_window

N_WINDOWS = 8
SHORT = 5  # frames, 0.1 s: about a phone
N_SAMPLED = 200  # nodes, or edges, that are patched where there are too many
FIRST_WORD = 0.75  # seconds: "Weasels" in tt-weasels
METHODS: dict[str, dict[str, Any]] = {
    "plain": {"method": "patching"},
    "integrated along inputs (EAP-IG), 10 steps": {"method": "integrated", "along": "inputs"},
    "integrated along nodes, 8 steps": {"method": "integrated", "steps": 8},
    "integrated along nodes, 32 steps": {"method": "integrated"},
}
BY_WINDOW = ("plain", "integrated along nodes, 8 steps", "integrated along nodes, 32 steps")


@dataclass(frozen=True)
class Task:
    """A contrast, what judges it, and the length of its clips."""

    name: str
    contrast: Contrast
    metric: Metric
    seconds: float


def heads_and_mlps(model: HookedWhisper, seconds: float) -> list[Node]:
    """Every head and MLP, the encoder's in equal windows of a clip of this length."""
    frames = math.ceil(seconds * FRAMES_PER_SECOND)
    return nodes(model, ["head", "mlp"], spans={"frame": windows(0, frames, math.ceil(frames / N_WINDOWS))})


def heads_by_window(model: HookedWhisper, task: Task) -> list[Node]:
    """Every head, the encoder's in short windows of the clip, the decoder's token by token."""
    n_tokens = task.contrast.clean.tokens.shape[1]
    frames = math.ceil(task.seconds * FRAMES_PER_SECOND)
    return nodes(model, "head", spans={"frame": windows(0, frames, SHORT), "pos": windows(0, n_tokens, 1)})


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
            english.seconds,
        ),
        Task(
            "timing (first word silenced)",
            second,
            LogProbability(second.clean.tokens, second.prompt_length),
            weasels.seconds,
        ),
    ]


def agreement(model: HookedWhisper, task: Task) -> list[str]:
    """Rows of the table for one task: each method against the exact sweep of the same nodes."""
    chosen = heads_and_mlps(model, task.seconds)
    exact, sweep = timed(lambda: patch(model, task.contrast, chosen, task.metric, batch_size=4, progress=True))
    encoder = torch.tensor([node.stack == "encoder" for node in chosen])
    rows = []
    for name, options in METHODS.items():
        found, seconds = timed(
            lambda options=options: attribute(model, task.contrast, chosen, task.metric, progress=False, **options)
        )
        sides = [
            rank_correlation(found.scores[at, 0], exact.change[at, 0]) for at in (encoder | True, encoder, ~encoder)
        ]
        correlations = " | ".join(f"{figure:.3f}" for figure in sides)
        rows.append(f"| {task.name} | {len(chosen)} | {name} | {correlations} | {sweep / seconds:.0f}x |")
        print(rows[-1], flush=True)
    return rows


def by_window(model: HookedWhisper, task: Task) -> list[str]:
    """The same of heads by window, of which only some are patched."""
    chosen = heads_by_window(model, task)
    sample = random.Random(0).sample(range(len(chosen)), min(N_SAMPLED, len(chosen)))
    patched = [chosen[place] for place in sample]
    exact, sweep = scaled(
        lambda some: patch(model, task.contrast, some, task.metric, batch_size=4, progress=True), patched, len(chosen)
    )
    rows = []
    for name in BY_WINDOW:
        options = METHODS[name]
        found, seconds = timed(
            lambda options=options: attribute(model, task.contrast, chosen, task.metric, progress=False, **options)
        )
        figure = rank_correlation(found.scores[sample, 0], exact.change[:, 0])
        rows.append(f"| {task.name} | {len(chosen)} | {len(sample)} | {name} | {figure:.3f} | {sweep / seconds:.0f}x |")
        print(rows[-1], flush=True)
    return rows


def of_edges(model: HookedWhisper, task: Task) -> list[str]:
    """The same of edges: whole heads and MLPs at both ends."""
    chosen = edges(model)
    patched = random.Random(0).sample(chosen, N_SAMPLED)
    exact, sweep = scaled(
        lambda some: patch_edges(model, task.contrast, some, task.metric, batch_size=4, progress=True),
        patched,
        len(chosen),
    )
    rows = []
    for name, steps in (("plain (EAP)", 1), ("integrated along inputs (EAP-IG), 10 steps", 10)):
        found, seconds = timed(lambda steps=steps: attribute_edges(model, task.contrast, task.metric, steps=steps))
        figure = rank_correlation(found.of(patched)[:, 0], exact.change[:, 0])
        rows.append(
            f"| {task.name} | {len(chosen)} | {len(patched)} | {name} | {figure:.3f} | {sweep / seconds:.0f}x |"
        )
        print(rows[-1], flush=True)
    return rows


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """What a call gives, and the processor's time for it."""
    start = time.process_time()
    result = call()
    return result, time.process_time() - start


def scaled(call: Callable[[list[Any]], Any], some: list[Any], n: int) -> tuple[Any, float]:
    """What a sweep over some parts gives, and the time that one over `n` would take."""
    _, alone = timed(lambda: call(some[:1]))
    result, together = timed(lambda: call(some))
    return result, alone + (together - alone) / (len(some) - 1) * (n - 1)


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's."""
    result: Any = spearmanr(a.numpy(), b.numpy())
    return float(result[0])


def memory() -> list[str]:
    """Growth of peak memory of node attribution on 10 s of speech and 20 tokens, each in a process of its own."""
    rows = []
    for window in (10, 20, 30):
        for name in ("plain", "integrated along nodes, 8 steps"):
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
                n_nodes, peak = alone.submit(peak_of, name, window).result()
            rows.append(f"| {window} | {name} | {n_nodes} | {'?' if peak is None else f'{peak:.0f}'} |")
            print(rows[-1], flush=True)
    return rows


def peak_of(name: str, window: int) -> tuple[int, float | None]:
    """How many nodes, and the growth of peak memory, MB."""
    torch.set_num_threads(1)
    model = with_window(HookedWhisper.from_pretrained("openai/whisper-base", device="cpu", dtype="float32"), window)
    waveform = torch.cat([clip.load() for clip in clips("en")])[: 10 * SAMPLE_RATE]
    tokenizer = model.tokenizer
    assert tokenizer is not None
    text = [*tokenizer.prompt("en", "transcribe", False), *list(tokenizer.to_tokens(clips("en")[0].text))]
    text = [*text, *text[4:]][:20]
    contrast = Contrast.of(model, clean=waveform, corrupted=torch.zeros_like(waveform), text=text)
    metric = LogProbability(contrast.clean.tokens, contrast.prompt_length)
    chosen = heads_and_mlps(model, 10.0)
    options: dict[str, Any] = METHODS[name]
    return len(chosen), peak_growth_mb(lambda: attribute(model, contrast, chosen, metric, progress=False, **options))


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
    parser = report.parser(__doc__)
    parser.add_argument("--window", type=int, default=30, help="seconds of the model's window in the sweeps")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="which tables to make")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = HookedWhisper.from_pretrained("openai/whisper-base", device="cpu", dtype="float32")
    shorter = with_window(model, arguments.window)
    windows_of = f"windows of {arguments.window} s unless said"
    notes = f"{torch.get_num_threads()} threads, whisper-base in float32, {windows_of}, denoising"
    lines = [report.head("torch", notes=notes)]
    for part in arguments.parts:
        lines += [*HEADS[part], *PARTS[part](model, shorter), ""]
    report.publish("\n".join(lines), arguments.out)


PARTS: dict[str, Callable[[HookedWhisper, HookedWhisper], list[str]]] = {
    "nodes": lambda _, shorter: [row for task in tasks(shorter) for row in agreement(shorter, task)],
    "windows": lambda _, shorter: [row for task in tasks(shorter) for row in by_window(shorter, task)],
    "edges": lambda _, shorter: [row for task in tasks(shorter) for row in of_edges(shorter, task)],
    "memory": lambda *_: memory(),
    "convergence": lambda _, shorter: convergence(shorter),
}
HEADS = {
    "nodes": [
        "### Agreement with exact patching, and the exact sweep's time over attribution's\n",
        "Spearman's rank correlation of the scores with (patched - base), over all nodes, the encoder's and the "
        "decoder's. The cost of attribution does not depend on the number of nodes; that of the sweep, which "
        "starts each run at the node's layer, is proportional to it.\n",
        "| task | nodes | attribution | all | encoder | decoder | speed-up |",
        "|---|---|---|---|---|---|---|",
    ],
    "windows": [
        f"### Heads by window: {SHORT / FRAMES_PER_SECOND:g} s in the encoder, a token in the decoder\n",
        "Exact patching of a random sample of the nodes; its time is scaled to all of them.\n",
        "| task | nodes | patched | attribution | Spearman's | speed-up |",
        "|---|---|---|---|---|---|",
    ],
    "edges": [
        "### Edges between heads, MLPs and logits, of both stacks and across\n",
        "Exact patching of a random sample of the edges; its time is scaled to all of them.\n",
        "| task | edges | patched | attribution | Spearman's | speed-up |",
        "|---|---|---|---|---|---|",
    ],
    "memory": [
        "### Growth of peak memory: 10 s of speech, 20 tokens\n",
        "Each in a process of its own, with windows of three lengths.\n",
        "| window, s | attribution | nodes | MB |",
        "|---|---|---|---|",
    ],
    "convergence": [
        "### Integrated gradients: convergence\n",
        "Baseline: silence. Metric: log-probability of the first word.\n",
        "| to | steps | change of the metric, nats | delta, nats | delta, share of the change |",
        "|---|---|---|---|---|",
    ],
}


if __name__ == "__main__":
    main()
