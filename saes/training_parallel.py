"""Training in several processes, each on its share of every batch: the same SAE as in one.

Started by `torchrun --nproc-per-node 2 train.py`, which sets RANK, WORLD_SIZE and LOCAL_RANK. Every process reads
whole batches and takes its rows, so that the data are the same whatever the number of processes. After that:

- gradients are averaged while the backward pass makes them;
- BatchTopK selects over the batch of all processes, exactly;
- which latents fired is shared, so that all have the same dead latents, the same auxiliary loss, the same counts;
- the moving average of BatchTopK's threshold takes the smallest activation of all.
"""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hooked_whisper.errors import SaeError
from hooked_whisper.saes.selection import BatchSelector


class Team:
    """The processes that train together; one alone where torchrun did not start them.

    Attributes:
        rank, size: this process's place, and how many there are.
        group: torch's process group; None for one process.
    """

    def __init__(self, device: str) -> None:
        self._owns = False
        self.group: dist.ProcessGroup | None = None
        size = os.environ.get("WORLD_SIZE", "1")
        if dist.is_available() and dist.is_initialized():
            self.group = dist.group.WORLD
        elif size.isdecimal() and int(size) > 1:
            try:
                dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
            except (RuntimeError, ValueError) as error:
                raise SaeError(
                    f"WORLD_SIZE is {size}, but the processes did not find each other ({error}): start them with "
                    "torchrun."
                ) from error
            self._owns = True
            self.group = dist.group.WORLD
        self.rank = 0 if self.group is None else dist.get_rank(self.group)
        self.size = 1 if self.group is None else dist.get_world_size(self.group)

    @property
    def is_first(self) -> bool:
        """True in the process that writes."""
        return self.rank == 0

    def share(self, rows: Tensor) -> Tensor:
        """This process's rows of a batch."""
        return rows if self.size == 1 else rows.chunk(self.size)[self.rank]

    def wait(self) -> None:
        """Until all are here."""
        if self.group is not None:
            dist.barrier(self.group)

    def mean(self, value: Tensor) -> Tensor:
        """The mean over processes."""
        if self.group is not None:
            value = value.detach().clone()
            dist.all_reduce(value, group=self.group)
            value /= self.size
        return value

    def close(self) -> None:
        """Parts the processes, if this brought them together."""
        if self._owns:
            dist.destroy_process_group()

    def join(self, trainer: Any) -> TeamTrainer | None:
        """Makes one of SAELens's trainers part of the team; None where there is one process."""
        return None if self.group is None else TeamTrainer(trainer, self.group)


class TeamTrainer:
    """Keeps the trainer of each process in step with the others."""

    def __init__(self, trainer: Any, group: dist.ProcessGroup) -> None:
        self.trainer = trainer
        self.group = group
        self.size = dist.get_world_size(group)
        self._fired_before = trainer.act_freq_scores
        sae = trainer.sae
        for tensor in [*sae.parameters(), *sae.buffers()]:
            dist.broadcast(_dense(tensor.data), 0, group=group)
        for parameter in sae.parameters():
            parameter.register_post_accumulate_grad_hook(self._average)
        self._has_threshold = _select_across(sae, group)

    def _average(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        grad = _dense(parameter.grad)
        dist.all_reduce(grad, group=self.group)
        grad /= self.size

    def before_step(self) -> None:
        """Notes the counts, of which the step will add to."""
        self._fired_before = self.trainer.act_freq_scores.clone()

    def after_step(self, n_rows: int) -> None:
        """Makes of this process's statistics those of all, of a batch of which it had `n_rows`."""
        trainer = self.trainer
        trainer.n_training_samples += n_rows * (self.size - 1)
        fired = trainer.act_freq_scores - self._fired_before
        dist.all_reduce(fired, group=self.group)
        trainer.act_freq_scores = self._fired_before + fired
        dist.all_reduce(trainer.n_forward_passes_since_fired, dist.ReduceOp.MIN, group=self.group)
        if self._has_threshold:
            dist.all_reduce(trainer.sae.topk_threshold, dist.ReduceOp.MIN, group=self.group)


def _dense(tensor: Tensor) -> Tensor:
    """A contiguous view of a tensor that is contiguous but for the order of its axes."""
    return tensor if tensor.is_contiguous() else tensor.T


def _select_across(sae: Any, group: dist.ProcessGroup) -> bool:
    """Has a BatchTopK SAE select over the batch of all processes; False for others."""
    from sae_lens import BatchTopKTrainingSAE

    from hooked_whisper.saes.sparse import SparseBatchTopKTrainingSAE

    if isinstance(sae, SparseBatchTopKTrainingSAE):
        sae.process_group = group
    elif isinstance(sae, BatchTopKTrainingSAE):
        sae.activation_fn = BatchTopKAcross(sae.cfg.k, group)
    return isinstance(sae, BatchTopKTrainingSAE)


class BatchTopKAcross(nn.Module):
    """SAELens's BatchTopK activation over the batches of all processes together; while evaluating, over its own."""

    def __init__(self, k: float, group: dist.ProcessGroup) -> None:
        super().__init__()
        self.k = k
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, -2)
        with torch.no_grad():
            group = self.group if self.training else None
            n_processes = 1 if group is None else dist.get_world_size(group)
            selector = BatchSelector(int(self.k * len(flat) * n_processes))
            selector.add(flat.detach().contiguous(), 0)
            chosen = selector.selected(group)
            mask = torch.zeros_like(flat)
            mask[chosen.rows, chosen.latents] = 1
        return (flat * mask).reshape(x.shape)
