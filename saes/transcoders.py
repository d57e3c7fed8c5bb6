"""Training transcoders, which read one hook and write another; SAELens has them for use alone.

One is trained as a BatchTopK SAE whose target is the other hook's row, under SAELens's `SAETrainer`, and saved as
SAELens's `jumprelu_transcoder`, or, with a linear path from input to output (`skip=True`), as
`jumprelu_skip_transcoder` (Dunefsky et al. 2024, arXiv 2406.11944; Paulo et al. 2025, arXiv 2501.18823).

A row of a batch is what it reads and what it is to write, side by side. Importing this module imports SAELens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from hooked_whisper.saes.saelens import import_saelens

import_saelens()  # first, for its error and without its warning
from sae_lens import (  # noqa: E402
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    JumpReLUSkipTranscoderConfig,
    JumpReLUTranscoderConfig,
    SAEConfig,
    register_sae_training_class,
)
from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY  # noqa: E402
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput  # noqa: E402

ARCHITECTURE = "batchtopk_transcoder"


@dataclass
class TranscoderTrainingConfig(BatchTopKTrainingSAEConfig):
    """SAELens's `BatchTopKTrainingSAEConfig`, the width of what is written, and whether there is a linear path past."""

    d_out: int = 0
    skip: bool = False
    apply_b_dec_to_input: bool = False

    @override
    @classmethod
    def architecture(cls) -> str:
        return ARCHITECTURE

    @override
    def get_inference_config_class(self) -> type[SAEConfig]:
        return JumpReLUSkipTranscoderConfig if self.skip else JumpReLUTranscoderConfig


class TranscoderTraining(BatchTopKTrainingSAE):
    """A transcoder in training."""

    cfg: TranscoderTrainingConfig  # type: ignore[assignment]

    @override
    def initialize_weights(self) -> None:
        super().initialize_weights()  # the encoder is that of an SAE
        cfg = self.cfg
        decoder = torch.empty(cfg.d_sae, cfg.d_out, dtype=self.dtype, device=self.device)
        nn.init.kaiming_uniform_(decoder)
        if cfg.decoder_init_norm is not None:
            decoder *= cfg.decoder_init_norm / decoder.norm(dim=-1, keepdim=True)
        self.W_dec = nn.Parameter(decoder)
        self.b_dec = nn.Parameter(torch.zeros(cfg.d_out, dtype=self.dtype, device=self.device))
        if cfg.skip:
            self.W_skip = nn.Parameter(torch.zeros(cfg.d_out, cfg.d_in, dtype=self.dtype, device=self.device))

    @override
    def process_sae_in(self, sae_in: Tensor) -> Tensor:
        return self.hook_sae_input(sae_in.to(self.dtype))

    def transcode(self, x: Tensor, acts: Tensor) -> Tensor:
        """What is written, given what was read and its activations."""
        out = self.decode(acts)
        return out + x.to(self.dtype) @ self.W_skip.T if self.cfg.skip else out

    @override
    def forward(self, x: Tensor) -> Tensor:
        return self.hook_sae_output(self.transcode(x, self.encode(x)))

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        x, wanted = step_input.sae_in.split([self.cfg.d_in, self.cfg.d_out], dim=-1)
        acts, hidden_pre = self.encode_with_hidden_pre(x)
        out = self.transcode(x, acts)
        mse_loss = self.mse_loss_fn(out, wanted).sum(dim=-1).mean()
        losses: dict[str, Any] = self.calculate_aux_loss(
            step_input=replace(step_input, sae_in=wanted), feature_acts=acts, hidden_pre=hidden_pre, sae_out=out
        )
        self.update_topk_threshold(acts)
        return TrainStepOutput(
            sae_in=wanted,
            sae_out=out,
            feature_acts=acts,
            hidden_pre=hidden_pre,
            loss=mse_loss + sum(losses.values()),
            losses={"mse_loss": mse_loss, **losses},
            metrics={"topk_threshold": self.topk_threshold},
        )


if ARCHITECTURE not in SAE_TRAINING_CLASS_REGISTRY:
    register_sae_training_class(ARCHITECTURE, TranscoderTraining, TranscoderTrainingConfig)
