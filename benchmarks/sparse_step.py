"""One training step of TopK, BatchTopK and matryoshka SAEs: SAELens's classes, the sparse ones, sparsify, in one run.

    python -m benchmarks.sparse_step --threads 1                              # 512 -> 16,384 on the CPU
    python -m benchmarks.sparse_step --threads 1 --losses 200                 # and the losses, step by step
    python -m benchmarks.sparse_step --device cuda --peer sparsify --shape 512x16384 --shape 1280x40960 --autocast

SAELens's `SAETrainer` drives SAELens's classes and ours alike. sparsify (`pip install eai-sparsify`) gets the same
steps around its coder: backward, clipping, Adam.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks import report
from benchmarks.measure import Row, compare, table
from hooked_whisper.saes.saelens import import_saelens

BATCHES = 4  # different batches that the steps go round
SAELENS = "SAELens"
KINDS = ["topk", "batchtopk", "matryoshka"]
OURS = "hooked-whisper, sparse"


def batches(d_in: int, batch: int, device: torch.device) -> list[Tensor]:
    """Rows with a decaying spectrum, as activations have it."""
    generator = torch.Generator().manual_seed(0)
    spectrum = torch.arange(1, d_in + 1).rsqrt()
    turn = torch.linalg.qr(torch.randn(d_in, d_in, generator=generator)).Q
    return [(torch.randn(batch, d_in, generator=generator) * spectrum @ turn * 4).to(device) for _ in range(BATCHES)]


def saelens_steps(
    kind: str, sparse: bool, arguments: argparse.Namespace, d_in: int, d_sae: int, *, reverse: bool = False
) -> Callable[[int], Any]:
    """A function that makes step i under SAELens's trainer and returns what its `step` returns."""
    import_saelens()
    import sae_lens
    from sae_lens.config import SAETrainerConfig

    from hooked_whisper.saes import sparse as ours

    classes = {
        ("topk", False): (sae_lens.TopKTrainingSAE, sae_lens.TopKTrainingSAEConfig),
        ("batchtopk", False): (sae_lens.BatchTopKTrainingSAE, sae_lens.BatchTopKTrainingSAEConfig),
        ("matryoshka", False): (sae_lens.MatryoshkaBatchTopKTrainingSAE, sae_lens.MatryoshkaBatchTopKTrainingSAEConfig),
        ("matryoshka", True): (
            ours.SparseMatryoshkaBatchTopKTrainingSAE,
            ours.SparseMatryoshkaBatchTopKTrainingSAEConfig,
        ),
        ("topk", True): (ours.SparseTopKTrainingSAE, ours.SparseTopKTrainingSAEConfig),
        ("batchtopk", True): (ours.SparseBatchTopKTrainingSAE, ours.SparseBatchTopKTrainingSAEConfig),
    }
    cls, config = classes[kind, sparse]
    torch.manual_seed(0)
    levels: dict[str, Any] = {}
    if kind == "matryoshka":
        levels = {"matryoshka_widths": [d_sae // 16, d_sae // 4, d_sae]}
    sae = cls(config(d_in=d_in, d_sae=d_sae, k=arguments.k, device=arguments.device, dtype=arguments.dtype, **levels))  # type: ignore[arg-type]
    settings = SAETrainerConfig(
        total_training_samples=arguments.batch * 100_000, train_batch_size_samples=arguments.batch, lr=3e-4,
        lr_end=3e-5, device=arguments.device, autocast=arguments.autocast,
        dead_feature_window=arguments.dead_feature_window,
    )  # fmt: skip
    trainer = sae_lens.SAETrainer(settings, sae, iter(()))  # type: ignore[arg-type]
    data = [rows.to(sae.dtype) for rows in batches(d_in, arguments.batch, torch.device(arguments.device))]
    if reverse:
        data = [rows.flip(0) for rows in data]

    def step(i: int) -> Any:
        output = trainer.step(data[i % BATCHES])
        trainer.n_training_steps += 1
        return output

    return step


def sparsify_steps(arguments: argparse.Namespace, d_in: int, d_sae: int) -> Callable[[int], Any]:
    """The same around sparsify's coder."""
    sparsify: Any = importlib.import_module("sparsify")
    torch.manual_seed(0)
    config = sparsify.SparseCoderConfig(num_latents=d_sae, k=arguments.k, normalize_decoder=False)
    coder = sparsify.SparseCoder(d_in, config, device=arguments.device)
    optimizer = torch.optim.Adam(coder.parameters(), lr=3e-4)
    data = batches(d_in, arguments.batch, torch.device(arguments.device))

    def step(i: int) -> Any:
        with torch.autocast(arguments.device, dtype=torch.bfloat16, enabled=arguments.autocast):
            output = coder(data[i % BATCHES])
        output.fvu.backward()
        torch.nn.utils.clip_grad_norm_(coder.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return output

    return step


def timed(step: Callable[[int], Any], device: str) -> Callable[[], object]:
    """The next step at every call, finished when it returns."""
    state = {"i": 0}

    def call() -> object:
        kept = step(state["i"])
        state["i"] += 1
        if device != "cpu":
            torch.cuda.synchronize()
        return kept

    return call


def cuda_peaks(rows: list[Row], contenders: dict[str, Callable[[], object]]) -> None:
    """Replaces the process's memory in the rows by the GPU's."""
    for row in rows:
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        contenders[row.name]()
        row.peak_mb = (torch.cuda.max_memory_allocated() - before) / 1e6


def section(kind: str, d_in: int, d_sae: int, arguments: argparse.Namespace) -> str:
    """One table: a step of `kind`."""
    steps = {SAELENS: saelens_steps(kind, False, arguments, d_in, d_sae)}
    steps[OURS] = saelens_steps(kind, True, arguments, d_in, d_sae)
    if kind == "topk" and arguments.peer == "sparsify":
        steps["sparsify"] = sparsify_steps(arguments, d_in, d_sae)
    contenders = {name: timed(step, arguments.device) for name, step in steps.items()}
    rows = compare(SAELENS, contenders, arguments.rounds)
    if arguments.device != "cpu":
        cuda_peaks(rows, contenders)
    lens, ours = rows[0], rows[1]
    lines = [table(f"{kind}, {d_in} -> {d_sae:,}, batch {arguments.batch:,}, k={arguments.k}", rows)]
    lines.append(
        f"{1 / ours.ratio:.2f} times as fast as SAELens's class",
    )
    if lens.peak_mb and ours.peak_mb:
        lines[-1] += f", {lens.peak_mb / ours.peak_mb:.1f} times less peak memory growth in a step"
    if len(rows) > 2:
        lines[-1] += f", {rows[2].ratio / ours.ratio:.2f} times as fast as sparsify"
    return "\n".join([*lines, ""])


def losses(kind: str, d_in: int, d_sae: int, arguments: argparse.Namespace) -> str:
    """How far the losses of the two classes are apart over the first steps; with `--floor`, what rounding alone does.

    Rounding decides between latents that are nearly equal, and from there on two trainings are apart. How far that goes
    is seen where SAELens's class is given the same batches with their rows in the opposite order. In double precision
    it does not happen.
    """
    runs = [saelens_steps(kind, sparse, arguments, d_in, d_sae) for sparse in (False, True)]
    if arguments.floor:
        runs.append(saelens_steps(kind, False, arguments, d_in, d_sae, reverse=True))
    apart, last = [0.0] * (len(runs) - 1), 0.0
    for i in range(arguments.losses):
        last, *others = (float(step(i).loss.detach().double()) for step in runs)
        apart = [max(so_far, abs(last - other)) for so_far, other in zip(apart, others, strict=True)]
    rows = torch.cat(batches(d_in, arguments.batch, torch.device("cpu")))
    variance = float((rows - rows.mean(0)).pow(2).sum(1).mean())
    text = (
        f"{kind}, {d_in} -> {d_sae:,}, batch {arguments.batch:,}, {arguments.dtype}: losses of {arguments.losses} "
        f"steps differ by at most {apart[0]:.1e}, {apart[0] / variance:.1e} of the rows' variance of {variance:.1f}; "
        f"the last is {last:.3f}."
    )
    if arguments.floor:
        text += f" Those of SAELens's class, with the rows of each batch in the opposite order: by {apart[1]:.1e}."
    return text + "\n"


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=None, help="torch threads; torch's own choice when left out")
    parser.add_argument("--shape", action="append", help="d_in x d_sae, such as 512x16384; may be given again")
    parser.add_argument("--kind", choices=KINDS, action="append", help="all when left out")
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--autocast", action="store_true", help="the encoder's product in bfloat16")
    parser.add_argument("--dead-feature-window", type=int, default=1000, help="0 makes the auxiliary loss work at once")
    parser.add_argument("--peer", choices=["sparsify"], help="also measure this")
    parser.add_argument("--losses", type=int, default=0, help="instead, compare the losses of so many steps")
    parser.add_argument(
        "--dtype", choices=["float32", "float64"], default="float32", help="of SAELens's and our classes"
    )
    parser.add_argument("--floor", action="store_true", help="with --losses: also how far rounding alone takes them")
    arguments = parser.parse_args()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    where = "cpu" if arguments.device == "cpu" else torch.cuda.get_device_name(arguments.device)
    parts = [report.head("torch", "sae-lens", notes=f"{where}, {torch.get_num_threads()} threads")]
    shapes = [shape.split("x") for shape in arguments.shape or ["512x16384"]]
    made = losses if arguments.losses else section
    kinds = arguments.kind or KINDS
    parts += [made(kind, int(d_in), int(d_sae), arguments) for d_in, d_sae in shapes for kind in kinds]
    report.publish("\n".join(parts), arguments.out)


if __name__ == "__main__":
    main()
