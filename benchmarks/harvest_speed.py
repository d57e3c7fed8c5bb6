"""What a harvest costs beyond the model, what packing saves, and what a second process adds.

    python -m benchmarks.harvest_speed prompts/manifest.jsonl [--clips 200] [--model openai/whisper-base]

Harvests some clips of a corpus, drawn evenly, packed, with one process and with two under torchrun (one thread each),
and compares the bytes. Bars: at most 10 % of the time outside the model, at least 4 times fewer windows than clips, two
processes at least 0.9 of twice the rate of one where two cores are free. The load of the machine is printed, because
the last figure means nothing on a busy one.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks import report
from hooked_whisper import HookedWhisper
from hooked_whisper.saes import ActivationStore, Corpus, harvest

HOOK = "encoder.hook_out"
SHARD_ROWS = 4_096


def work(manifest: str, n_clips: int, model: str, out: Path) -> None:
    """One process's part: harvests, and leaves its report beside the store."""
    torch.set_num_threads(1)
    corpus = Corpus.from_manifest(manifest)
    part = corpus.shard(0, max(1, len(corpus) // n_clips))
    whisper = HookedWhisper.from_pretrained(model, device="cpu")
    store = harvest(
        whisper, part, hooks=HOOK, out=out, packing="windows", batch_size=4, shard_rows=SHARD_ROWS, progress=False
    )
    report = vars(store.report) | {"outside": store.report.outside}
    out.with_name(f"{out.name}-{os.environ.get('RANK', '0')}.json").write_text(json.dumps(report), encoding="utf-8")


def run(n_processes: int, options: argparse.Namespace, out: Path) -> list[dict[str, float]]:
    """The reports of all processes of one harvest."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n_processes}"]
    command += ["-m", "benchmarks.harvest_speed", options.manifest, "--clips", str(options.clips)]
    command += ["--model", options.model, "--worker", str(out)]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return [json.loads(out.with_name(f"{out.name}-{rank}.json").read_text()) for rank in range(n_processes)]


def rate(reports: list[dict[str, float]]) -> float:
    """Rows a second of all processes together."""
    return sum(report["n_rows"] for report in reports) / max(report["seconds"] for report in reports)


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("manifest")
    parser.add_argument("--clips", type=int, default=200, help="roughly how many clips of the manifest to take")
    parser.add_argument("--model", default="openai/whisper-base")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        work(options.manifest, options.clips, options.model, options.worker)
        return
    with tempfile.TemporaryDirectory() as temporary:
        one, two = Path(temporary, "one"), Path(temporary, "two")
        load = os.getloadavg()[0]
        (alone,), together = run(1, options, one), run(2, options, two)
        store = ActivationStore.open(one)
        windows = store.manifests[0].n_windows
        same = all((two / path.name).read_bytes() == path.read_bytes() for path in one.iterdir())
        lines = [
            report.head("torch", notes=f"1 thread a process, {os.cpu_count()} cores, load before {load:.1f}"),
            f"- {store.n_rows:,} rows of {store.clips.num_rows} clips, {len(store.manifests[0].shards)} shards",
            f"- outside the model: {alone['outside']:.1%} of the time (bar: 10 %)",
            f"- windows: {windows}, {store.clips.num_rows / windows:.1f} times fewer than clips (bar: 4)",
            f"- rate of two processes over twice one's: {rate(together) / (2 * rate([alone])):.2f} (bar: 0.9)",
            f"- bytes of two processes: {'the same' if same else 'DIFFERENT'}",
        ]
    report.publish("\n".join(lines), options.out)


if __name__ == "__main__":
    main()
