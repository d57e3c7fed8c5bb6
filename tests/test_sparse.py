"""The sparse training classes against SAELens's own: losses, gradients, statistics, what is saved."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_files import sae_lens
from sae_lens.config import SAETrainerConfig
from sae_lens.registry import get_sae_training_class
from sae_lens.saes.sae import TrainingSAE, TrainStepInput, TrainStepOutput
from torch import Tensor

from hooked_whisper.errors import ConfigError, SaeError
from hooked_whisper.saes.sparse import (
    SparseBatchTopKTrainingSAE,
    SparseBatchTopKTrainingSAEConfig,
    SparseTopKTrainingSAE,
    SparseTopKTrainingSAEConfig,
)

MATRYOSHKA = "matryoshka_batchtopk"
KINDS = ["topk", "batchtopk", MATRYOSHKA]
PARAMETERS = ("W_dec", "W_enc", "b_enc", "b_dec")


def pair(kind: str, d_in: int = 16, d_sae: int = 64, k: int = 4, **settings: Any) -> tuple[TrainingSAE, TrainingSAE]:
    """SAELens's class and the sparse one with the same random weights, all away from their neutral values."""
    if kind == MATRYOSHKA:  # an odd width, one that is not a multiple of it, and all
        settings = {"matryoshka_widths": [d_sae // 9, d_sae // 3, d_sae], **settings}
    made = []
    for name in (kind, f"sparse_{kind}"):
        cls, config = get_sae_training_class(name)
        torch.manual_seed(0)
        sae = cls(config(d_in=d_in, d_sae=d_sae, k=k, **settings))
        with torch.no_grad():
            for parameter in PARAMETERS:
                value = getattr(sae, parameter)
                value.add_(torch.randn(value.shape, dtype=torch.float64).to(value) * 0.3)
        made.append(sae)
    for parameter in PARAMETERS:
        assert torch.equal(getattr(made[0], parameter), getattr(made[1], parameter))
    return made[0], made[1]


def step(sae: TrainingSAE, x: Tensor, n_dead: int = 0) -> TrainStepOutput:
    """Forward and backward, with the first `n_dead` latents dead."""
    dead = torch.arange(sae.cfg.d_sae) < n_dead
    sae.zero_grad()
    output = sae.training_forward_pass(
        TrainStepInput(
            sae_in=x, coefficients={}, dead_neuron_mask=dead, n_training_steps=0, is_logging_step=False
        )
    )  # fmt: skip
    output.loss.backward()
    return output


def dense(acts: Tensor) -> Tensor:
    return acts.to_dense() if acts.is_sparse else acts


def agree(kind: str, x: Tensor, n_dead: int, close: float, **settings: Any) -> None:
    theirs, ours = pair(kind, **settings)
    for _ in range(2):  # the second time BatchTopK has a guess where to look
        expected, found = step(theirs, x, n_dead), step(ours, x, n_dead)
        assert found.feature_acts.is_sparse
        assert found.losses.keys() == expected.losses.keys()
        for name, loss in expected.losses.items():
            torch.testing.assert_close(found.losses[name], loss, atol=close, rtol=close)
        torch.testing.assert_close(found.loss, expected.loss, atol=close, rtol=close)
        torch.testing.assert_close(found.sae_out, expected.sae_out, atol=close, rtol=close)
        torch.testing.assert_close(dense(found.feature_acts), expected.feature_acts, atol=close, rtol=close)
        for name in PARAMETERS:
            wanted = getattr(theirs, name).grad
            relative = (getattr(ours, name).grad - wanted).abs().max() / wanted.abs().max()
            assert relative < close, f"{name}: {relative}"
        if kind != "topk":
            torch.testing.assert_close(ours.topk_threshold, theirs.topk_threshold)
            torch.testing.assert_close(found.metrics, expected.metrics)


# With 16 inputs, the auxiliary loss uses 8 dead latents a row: all, some by a dense product, some by sparse codes.
@pytest.mark.parametrize("n_dead", [0, 3, 20, 64])
@pytest.mark.parametrize("apply_b_dec", [True, False])
@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_gradients_are_saelens_s(kind: str, rescale: bool, apply_b_dec: bool, n_dead: int) -> None:
    x = torch.randn(32, 16, dtype=torch.float64)
    agree(
        kind, x, n_dead, 1e-10, dtype="float64", rescale_acts_by_decoder_norm=rescale, apply_b_dec_to_input=apply_b_dec
    )
    agree(kind, x, 65, 1e-10, dtype="float64", d_sae=65, aux_loss_coefficient=0.1)  # no groups in an odd width


@pytest.mark.parametrize("kind", KINDS)
def test_float32_gradients_within_1e5(kind: str) -> None:
    agree(kind, torch.randn(256, 64), 100, 1e-5, d_in=64, d_sae=1024, k=16)


@pytest.mark.parametrize("kind", KINDS)
def test_normalised_inputs(kind: str) -> None:
    x = torch.randn(32, 16, dtype=torch.float64)
    if kind == MATRYOSHKA:  # where SAELens's own class fails: it forgets the scale before it wants it again
        with pytest.raises(SaeError, match="'layer_norm' was given to a matryoshka SAE"):
            pair(kind, normalize_activations="layer_norm")
        return
    agree(kind, x, 0, 1e-10, dtype="float64", normalize_activations="layer_norm")
    ours = pair(kind, dtype="float64", normalize_activations="layer_norm")[1]
    with pytest.raises(SaeError, match="'layer_norm' was given .* choose 'none'"):
        step(ours, x, 3)


def trainer(sae: TrainingSAE, **settings: Any) -> Any:
    chosen = {"lr": 1e-3, "lr_end": 1e-4, "lr_warm_up_steps": 20, "dead_feature_window": 30, **settings}
    return sae_lens.SAETrainer(
        SAETrainerConfig(total_training_samples=128 * 200, train_batch_size_samples=128, **chosen), sae, iter(())
    )


@pytest.mark.parametrize("by_level", [True, False])
@pytest.mark.parametrize("widths", [[64], [1, 2, 64], [5, 40], [16, 32, 48, 64]])
@pytest.mark.parametrize("n_dead", [0, 3, 20, 64])
def test_levels_of_a_matryoshka_sae(n_dead: int, widths: list[int], by_level: bool) -> None:
    """Any number of levels, the last of them added by SAELens; dead latents that learn what all leave, or their level.

    One level is what a BatchTopK SAE is.
    """
    x = torch.randn(32, 16, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SAELens's, of one level, and of a last one that is added
        settings = {"dtype": "float64", "matryoshka_widths": widths, "use_matryoshka_aux_loss": by_level}
        agree(MATRYOSHKA, x, n_dead, 1e-10, **settings)
        ours = pair(MATRYOSHKA, **settings)[1]
    found = step(ours, x)
    assert list(found.losses)[2:] == [f"inner_mse_loss_{width}" for width in widths if width < 64]
    if widths == [64]:
        torch.testing.assert_close(found.loss, step(pair("batchtopk", dtype="float64")[1], x).loss)


@pytest.mark.parametrize(
    ("kind", "dtype"), [("topk", "float32"), ("topk", "float64"), ("batchtopk", "float64"), (MATRYOSHKA, "float64")]
)
def test_losses_equal_over_200_steps_of_saelens_s_trainer(kind: str, dtype: str) -> None:
    """The trainer as it is, its statistics of firing included; latents die on the way and the auxiliary loss works.

    BatchTopK in double precision, because a batch has one edge at which latents are nearly equal, and in single
    precision rounding decides there, and soon tells two trajectories apart.
    """
    trainers = [trainer(sae) for sae in pair(kind, d_in=32, d_sae=512, k=4, dtype=dtype)]
    directions = torch.randn(60, 32)
    worst, n_dead, batch = 0.0, 0, torch.empty(0)
    for _ in range(200):
        batch = (torch.rand(128, 60) * (torch.rand(128, 60) < 0.1)) @ directions
        theirs, ours = (one.step(batch) for one in trainers)
        worst = max(worst, float((theirs.loss - ours.loss).detach().abs()))
        for one in trainers:
            one.n_training_steps += 1
        n_dead = max(n_dead, int(trainers[0].dead_neurons.sum()))
    assert worst < 5e-4 and n_dead > 10
    theirs, ours = trainers
    assert theirs.n_frac_active_samples == ours.n_frac_active_samples
    # a latent near the edge may fire once more in one of two trajectories that rounding has set apart
    assert (theirs.act_freq_scores - ours.act_freq_scores).abs().sum() <= 1e-3 * theirs.act_freq_scores.sum()
    assert (theirs.dead_neurons != ours.dead_neurons).sum() <= 2
    logged = [one.build_train_step_log_dict(one.step(batch), 1) for one in trainers]
    assert logged[0].keys() == logged[1].keys()
    assert logged[1]["metrics/l0"] == pytest.approx(logged[0]["metrics/l0"], rel=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_saved_as_any_saelens_sae(kind: str, tmp_path: Path) -> None:
    """Checkpoints and the inference format, the latter loaded by SAELens alone in a process of its own."""
    theirs, ours = pair(kind)
    x = torch.randn(40, 16)
    step(ours, x)
    if kind != "topk":
        step(theirs, x)
    theirs.save_inference_model(tmp_path / "theirs")
    ours.save_inference_model(tmp_path / "ours")
    torch.save(x, tmp_path / "x.pt")
    script = f"""
import torch
from sae_lens import SAE
x = torch.load({str(tmp_path / "x.pt")!r})
theirs, ours = (SAE.load_from_disk({str(tmp_path)!r} + "/" + name) for name in ("theirs", "ours"))
assert type(theirs) is type(ours), (type(theirs), type(ours))
torch.testing.assert_close(ours(x), theirs(x))
torch.testing.assert_close(ours.encode(x), theirs.encode(x))
print(ours.cfg.architecture())
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["topk" if kind == "topk" else "jumprelu"]
    about = json.loads((tmp_path / "ours" / "cfg.json").read_text())["metadata"]
    assert about["training_architecture"] == f"sparse_{kind}"

    ours.save_model(tmp_path / "checkpoint")
    again = TrainingSAE.load_from_disk(tmp_path / "checkpoint")
    assert type(again) is type(ours)
    torch.testing.assert_close(again(x), ours(x))
    step(again, x)
    resumed = pair(kind)[1]
    resumed.load_weights_from_checkpoint(tmp_path / "checkpoint")
    assert resumed.W_enc.stride() == (1, 16)  # the layout survives
    step(resumed, x)
    torch.testing.assert_close(resumed.W_enc.grad, again.W_enc.grad)


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_selects_and_full_precision_values(kind: str) -> None:
    theirs, ours = pair(kind, d_in=32, d_sae=256, k=8)
    x = torch.randn(64, 32)
    exact = step(theirs, x, 20)
    with torch.autocast("cpu", torch.bfloat16):
        found = step(ours, x, 20)
    assert found.sae_out.dtype == torch.float32 and ours.W_enc.grad.dtype == torch.float32
    acts, right = dense(found.feature_acts), exact.feature_acts
    both = (acts > 0) & (right > 0)
    assert both.sum() > 0.97 * (right > 0).sum()  # a few at the edge are others
    torch.testing.assert_close(acts[both], right[both])
    assert found.loss.item() == pytest.approx(exact.loss.item(), rel=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_weights(kind: str) -> None:
    theirs, ours = pair(kind, d_in=32, d_sae=256, k=8, dtype="bfloat16")
    x = torch.randn(64, 32, dtype=torch.bfloat16)
    expected, found = step(theirs, x, 5), step(ours, x, 5)
    assert ours.W_dec.grad.dtype == torch.bfloat16
    assert found.loss.item() == pytest.approx(expected.loss.item(), rel=0.03)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("point", ["hook_sae_acts_pre", "hook_sae_acts_post"])
def test_a_hook_inside_sees_dense_activations(kind: str, point: str) -> None:
    _, ours = pair(kind)
    x = torch.randn(32, 16)
    sparse = step(ours, x).loss.detach()
    seen = []
    getattr(ours, point).add_hook(lambda acts, hook: seen.append(tuple(acts.shape)))
    output = step(ours, x)
    assert seen == [(32, 64)] and not output.feature_acts.is_sparse
    torch.testing.assert_close(output.loss.detach(), sparse)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_to_the_input_and_more_axes(kind: str) -> None:
    theirs, ours = pair(kind, dtype="float64")
    grads = []
    for sae in (theirs, ours):
        x = torch.randn(32, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
        step(sae, x)
        grads.append(x.grad)
    torch.testing.assert_close(grads[0], grads[1])
    if kind != MATRYOSHKA:  # of which SAELens cuts the second axis into levels
        assert step(ours, torch.randn(4, 8, 16, dtype=torch.float64)).sae_out.shape == (4, 8, 16)


def test_a_jump_of_scale_between_batches_is_found_out() -> None:
    """BatchTopK's guess from the last batch is far too high for the next: the batch is gone through again."""
    theirs, ours = pair("batchtopk", dtype="float64")
    x = torch.randn(32, 16, dtype=torch.float64)
    for scale in (1.0, 100.0, 1.0, 1e-3):
        expected, found = step(theirs, x * scale), step(ours, x * scale)
        torch.testing.assert_close(dense(found.feature_acts), expected.feature_acts)
        assert (dense(found.feature_acts) > 0).sum() == 4 * 32


def test_a_backend_that_cannot_run_is_refused() -> None:
    sae = SparseTopKTrainingSAE(SparseTopKTrainingSAEConfig(d_in=16, d_sae=64, k=4, kernels="triton"))
    with pytest.raises(ConfigError, match="kernels='triton' needs a CUDA device"):
        step(sae, torch.randn(8, 16))
    batch = SparseBatchTopKTrainingSAE(SparseBatchTopKTrainingSAEConfig(d_in=16, d_sae=64, k=0.5, kernels="torch"))
    assert (dense(step(batch, torch.randn(8, 16)).feature_acts) > 0).sum() == 4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu(kind: str) -> None:
    theirs, ours = pair(kind, d_in=64, d_sae=1024, k=16)
    x = torch.randn(256, 64)
    expected = step(theirs, x)
    ours.to("cuda")
    output = ours.training_forward_pass(
        TrainStepInput(x.cuda(), {}, torch.zeros(1024, dtype=torch.bool, device="cuda"), 0, False)
    )
    output.loss.backward()
    torch.testing.assert_close(output.loss.cpu(), expected.loss, rtol=1e-4, atol=1e-4)
    for name in PARAMETERS:
        torch.testing.assert_close(getattr(ours, name).grad.cpu(), getattr(theirs, name).grad, rtol=1e-2, atol=1e-4)
