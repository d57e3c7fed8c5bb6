"""Two processes make the SAE that one makes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from forked import needs_fork, team
from memory_source import toy_source
from safetensors.torch import load_file
from torch import Tensor

from hooked_whisper.errors import SaeError
from hooked_whisper.saes import train_saes
from hooked_whisper.saes.selection import BatchSelector
from hooked_whisper.saes.training_parallel import BatchTopKAcross, Team
from hooked_whisper.saes.training_settings import SaeSettings

# float64, so that a difference is an error and not rounding that BatchTopK's edge has made visible
VARIANTS: dict[str, dict[str, Any]] = {
    "topk": {"architecture": "topk", "k": 4},
    "topk-dense": {"architecture": "topk", "k": 4, "sparse": False},
    "batchtopk": {"architecture": "batchtopk", "k": 4, "normalize_activations": "expected_average_only_in"},
    "batchtopk-dense": {"architecture": "batchtopk", "k": 4, "sparse": False},
    "matryoshka": {"architecture": "matryoshka_batchtopk", "k": 4, "options": {"use_matryoshka_aux_loss": True}},
    "jumprelu": {"architecture": "jumprelu", "options": {"l0_coefficient": 0.05, "pre_act_loss_coefficient": 3e-6}},
    "gated": {"architecture": "gated"},
}
SAES = [
    SaeSettings(**{"hook": "hook", "d_sae": 64, "lr": 3e-3, "name": name, "dtype": "float64", "dead_feature_window": 5,
                   "feature_sampling_window": 15, **options})
    for name, options in VARIANTS.items()
]  # fmt: skip
STEPS = 40


def train(out: Path, n_steps: int = STEPS) -> None:
    train_saes(
        toy_source(), SAES, out=out, total_training_samples=64 * n_steps, train_batch_size_samples=64,
        evaluate_every=20, checkpoint_every=20, log_every=10, log="nothing", device="cpu",
    )  # fmt: skip


@needs_fork
def test_two_processes_make_what_one_makes(tmp_path: Path) -> None:
    train(tmp_path / "one")
    assert team(lambda: train(tmp_path / "two")) == [0, 0]
    for name in VARIANTS:
        one, two = (load_file(tmp_path / run / name / "sae" / "sae_weights.safetensors") for run in ("one", "two"))
        for key, value in one.items():
            torch.testing.assert_close(two[key], value, rtol=1e-6, atol=1e-8, msg=lambda m, n=name: f"{n}: {m}")
        about = [
            json.loads((tmp_path / run / name / "sae" / "cfg.json").read_text())["metadata"] for run in ("one", "two")
        ]
        assert about[0].pop("l0") == pytest.approx(about[1].pop("l0"))
        assert about[0] == about[1]
        assert name != "topk" or about[0]["num_dead_features"] > 0  # so that the auxiliary loss had work to do
        records = [json.loads((tmp_path / run / name / "training.json").read_text()) for run in ("one", "two")]
        for record in records:
            record.pop("seconds")
        assert _flat(records[0]) == pytest.approx(_flat(records[1]))
        logs = [(tmp_path / run / name / "log.csv").read_text().splitlines() for run in ("one", "two")]
        assert len(logs[0]) == len(logs[1]) == 5


def _flat(record: dict[str, Any]) -> dict[str, float]:
    return {f"{k}.{n}": v for k, part in record["figures"].items() if isinstance(part, dict)
            for n, v in part.items() if isinstance(v, float)}  # fmt: skip


def scores() -> Tensor:
    return torch.randn(12, 32, generator=torch.Generator().manual_seed(0))


def select_in_a_team(out: Path) -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    mine = scores().chunk(2)[rank]
    group = dist.group.WORLD
    assert group is not None
    torch.save(BatchTopKAcross(2.5, group)(mine), out / f"dense-{rank}.pt")
    for floor in (0.0, 1.0, 3.0):  # a good guess and one that is too high in both
        selector = BatchSelector(30, floor)
        selector.add(mine, 0)
        assert selector.is_short(group) == (floor == 3.0)
    selector = BatchSelector(30, 0.5)
    selector.add(mine if rank else mine * 0 - 1, 0)  # one process has nothing
    chosen = selector.selected(group)
    assert len(chosen.scores) == (30 if rank else 0) and chosen.smallest is not None
    nothing = BatchSelector(5)
    nothing.add(-mine.abs(), 0)
    assert nothing.selected(group).smallest is None
    dist.destroy_process_group()


@needs_fork
def test_batchtopk_selects_over_all_processes(tmp_path: Path) -> None:
    assert team(lambda: select_in_a_team(tmp_path)) == [0, 0]
    together = torch.cat([torch.load(tmp_path / f"dense-{rank}.pt") for rank in range(2)])
    flat = scores().flatten()
    best = flat.topk(30)
    assert torch.equal(together.flatten(), torch.zeros_like(flat).scatter(0, best.indices, best.values))


def test_alone() -> None:
    one = Team("cpu")
    assert (one.rank, one.size, one.group, one.is_first) == (0, 1, None, True)
    rows = torch.randn(4, 2)
    assert one.share(rows) is rows and torch.equal(one.mean(rows), rows)
    assert one.join(None) is None
    one.wait()
    one.close()


def test_processes_that_do_not_find_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SaeError, match="WORLD_SIZE is 2, but the processes did not find each other .* torchrun"):
        Team("cpu")
