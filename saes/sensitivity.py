"""How much what the model predicts depends on each direction at a hook, and training an SAE by that.

Reconstruction counts every direction alike; the model reads some far more than others. To second order a small error
`e` of an activation costs a token's prediction KL(plain || off) = 1/2 E[(g . e)^2], where g is the gradient of the log
probability of a token that is drawn from the model's own prediction: 1/2 e^T F e, with Fisher's information F. An SAE
that is trained on rows multiplied by the root of F keeps its errors out of the directions that the model reads.

Sources: Amari 1998, "Natural Gradient Works Efficiently in Learning", for F as the metric of predictions; Martens 2020,
"New Insights and Perspectives on the Natural Gradient Method", for labels drawn from the model itself; Braun et al.
2024, "Identifying Functionally Important Features with End-to-End Sparse Dictionary Learning", arXiv:2405.12241, for
the aim.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from hooked_whisper.errors import CorpusError, SaeError, did_you_mean
from hooked_whisper.file_modes import as_new_file
from hooked_whisper.mel import HOP_LENGTH
from hooked_whisper.saes.coding import Site, hook_positions, hook_width
from hooked_whisper.saes.fingerprints import weights_fingerprint
from hooked_whisper.saes.spliced_evaluation import Spliced, listen, predicted, teacher_forced, transcripts

if TYPE_CHECKING:
    from hooked_whisper.model import HookedWhisper
    from hooked_whisper.saes.corpus import Corpus

_FORMAT = "hooked-whisper sensitivity 1"
_COUNTS = ("n_clips", "n_tokens", "n_rows")


@dataclass(frozen=True, eq=False)  # tensors have no one answer to ==
class Sensitivity:
    """What predictions depend on at a hook.

    Attributes:
        fisher: summed over a clip's rows, per predicted token: nats for a squared unit of activation, times two.
        hook: where.
        model_name, weights_sha256: of the model.
        n_clips, n_tokens, n_rows: what it was measured on.
    """

    fisher: Float[Tensor, "width width"]
    hook: str
    model_name: str
    weights_sha256: str
    n_clips: int
    n_tokens: int
    n_rows: int

    def __str__(self) -> str:
        return (
            f"{self.hook}: half of what predictions depend on lies in {self.n_directions(0.5)} of {len(self.fisher)} "
            f"directions, nine tenths in {self.n_directions(0.9)} ({self.n_tokens:,} tokens of {self.n_clips:,} clips)"
        )

    def n_directions(self, share: float) -> int:
        """How many directions hold that share of all that predictions depend on."""
        values = torch.linalg.eigvalsh(self.fisher).flip(0).clamp(min=0).cumsum(0)
        return int((values < share * values[-1]).sum()) + 1

    def kl(self, errors: Float[Tensor, "row width"]) -> float:
        """What errors like these cost a token's prediction, in nats, were those of one row nothing to those of others.

        Where rows that are near each other are off alike, as those of an SAE are, it costs more.
        """
        rows = errors.detach().cpu().double().flatten(1)
        return 0.5 * float(((rows @ self.fisher) * rows).sum()) / len(rows)

    def root(self, share: float) -> tuple[Float[Tensor, "width width"], Float[Tensor, "width width"]]:
        """The matrix that rows are to be multiplied by, and its inverse; both symmetric.

        Args:
            share: 1 counts directions as the model reads them alone, and leaves those that it does not read to
                chance; 0 counts all alike. Between them the two are mixed, with the same trace.
        """
        if not 0 <= share < 1:
            raise SaeError(
                f"sensitivity_share={share!r}: expected at least 0 and less than 1; at 1 nothing would be learnt in "
                "directions that the model does not read."
            )
        width = len(self.fisher)
        mixed = share * self.fisher * (width / self.fisher.trace()) + (1 - share) * torch.eye(width).double()
        values, vectors = torch.linalg.eigh(mixed)
        return (vectors * values.sqrt()) @ vectors.T, (vectors * values.rsqrt()) @ vectors.T

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes a safetensors file, whole or not at all."""
        path = Path(path)
        about = {name: getattr(self, name) for name in ("hook", "model_name", "weights_sha256", *_COUNTS)}
        partial = path.with_name(f"{path.name}.partial")
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"fisher": self.fisher.contiguous()}, partial, {"format": _FORMAT, "sensitivity": json.dumps(about)})
        os.replace(as_new_file(partial), path)
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Sensitivity:
        """Reads what `save` wrote.

        Raises:
            SaeError: no such file, or one that holds something else.
        """
        try:
            with safe_open(path, framework="pt") as file:
                about: Mapping[str, str] = file.metadata() or {}
                if about.get("format") != _FORMAT:
                    raise SaeError(f"{path} holds no sensitivity: expected a file that `Sensitivity.save` wrote.")
                fisher = file.get_tensor("fisher")
            found = cls(fisher=fisher, **json.loads(about["sensitivity"]))
        except (OSError, SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise SaeError(f"The sensitivity {path} cannot be read: {error}. Measure it anew.") from error
        square = fisher.ndim == 2 and fisher.shape[0] == fisher.shape[1]
        if not square or not bool(fisher.isfinite().all()) or not fisher.trace() > 0:
            raise SaeError(f"The sensitivity {path} is damaged: its matrix is {tuple(fisher.shape)}. Measure it anew.")
        return found

    def sha256(self) -> str:
        """Of the matrix: a training goes on only with the one that it began with."""
        return hashlib.sha256(self.fisher.contiguous().numpy().data).hexdigest()

    def check(self, hook: str, width: int, weights_sha256: str | None) -> None:
        """Raises SaeError where it is of another hook, width or model than what is to be trained on."""
        if hook != self.hook or width != len(self.fisher):
            raise SaeError(
                f"The sensitivity is that of {self.hook!r} with {len(self.fisher)} dimensions, and {hook!r} with "
                f"{width} was asked for: measure it there."
            )
        if weights_sha256 is not None and weights_sha256 != self.weights_sha256:
            raise SaeError(
                f"The sensitivity is that of {self.model_name} with weights {self.weights_sha256[:12]}, and the "
                f"activations come from weights {weights_sha256[:12]}: measure it with that model."
            )


def measure_sensitivity(
    model: HookedWhisper,
    corpus: Corpus,
    *,
    hook: str = "encoder.hook_out",
    batch_size: int = 4,
    draws: int = 1,
    seed: int = 0,
    progress: bool | None = None,
) -> Sensitivity:
    """How much the model's predictions depend on each direction at `hook`, over its own transcripts of a corpus.

    Each clip is heard alone in its window of 30 s, as `evaluate_sae` hears it; clips longer than a window are left out.
    Directions that few clips tell of look less read than they are: give it hundreds, and `draws` of more than one.

    Args:
        corpus: keep the clips that an SAE will be evaluated on out of it.
        hook: whose rows an SAE is to be trained on; of the encoder or the decoder.
        draws: how often tokens are drawn for each text: more make the figure surer, at a pass backward each.
        seed: of the tokens that are drawn from the predictions.
        progress: show a progress bar; None shows it where the output is a terminal.

    Raises:
        SaeError: no such hook, or one without rows. CorpusError: no clip of at most one window, or one that cannot be
            read where the corpus does not skip those.
        LanguageError: a clip's language is none of the model's.
    """
    if hook not in model.hook_dict:
        near = did_you_mean(hook, model.hook_dict)
        raise SaeError(f"{model.cfg.model_name} has no hook {hook!r}.{near}")
    if batch_size < 1 or draws < 1:
        raise SaeError(f"batch_size={batch_size} and draws={draws}: expected at least 1 of each.")
    site = Site(hook, hook, hook_positions(hook))
    width = hook_width(model, hook)
    fisher = torch.zeros(width, width, dtype=torch.float64)
    draw = torch.Generator().manual_seed(seed)
    counts = dict.fromkeys(_COUNTS, 0)
    items = list(corpus)
    hidden = None if progress is None else not progress
    with tqdm(desc="sensitivity", unit="clip", total=len(items), disable=hidden) as bar:
        for at in range(0, len(items), batch_size):
            longest = model.cfg.n_mel_frames * HOP_LENGTH
            loaded = [(corpus.load(item), item.language) for item in items[at : at + batch_size]]
            part = [(sound, code) for sound, code in loaded if sound is not None and len(sound) <= longest]
            if part:
                grads, n_tokens = _gradients(model, site, part, draws, draw)
                for rows in grads:
                    rows = rows.flatten(1).cpu().double()
                    fisher += rows.T @ rows / draws
                    counts["n_rows"] += len(rows)
                counts["n_clips"] += len(part)
                counts["n_tokens"] += n_tokens
            bar.update(min(batch_size, len(items) - at))
    if not counts["n_tokens"] or not fisher.trace() > 0:
        raise CorpusError(f"None of the {len(items)} clips of {corpus.name} could be used: they must fit one window.")
    counts["n_rows"] //= draws
    return Sensitivity(fisher / counts["n_tokens"], hook, model.cfg.model_name, weights_fingerprint(model), **counts)


def _gradients(
    model: HookedWhisper,
    site: Site,
    part: list[tuple[Tensor, str | None]],
    draws: int,
    draw: torch.Generator,
) -> tuple[list[Float[Tensor, "row *width"]], int]:
    """By the rows of each clip, for each draw: the gradient of the drawn tokens' log probability; how many are drawn.

    The tokens of one text are drawn apart, so what their gradients have in common goes out on average, and one pass
    backward gives the sum over them.
    """
    batch = listen(model, [sound for sound, _ in part], [language for _, language in part])
    fed = teacher_forced(model, batch, transcripts(model, batch.encoder_out, batch.languages))
    pushes: list[Tensor] = []

    def push(read: Tensor, written: Tensor) -> Tensor:
        pushes.append(torch.zeros_like(written, requires_grad=True))
        return written + pushes[-1]

    with torch.enable_grad():
        logits = Spliced(model, site, [push] * len(part), batch, padding=False).logits(fed)
        at = predicted(fed)
        log_probs = logits[at].float().log_softmax(-1)
        drawn = torch.multinomial(log_probs.detach().exp().cpu(), draws, True, generator=draw).to(log_probs.device)
        found: list[Tensor] = []
        for tokens in drawn.split(1, dim=-1):
            found += torch.autograd.grad(log_probs.gather(-1, tokens).sum(), pushes, retain_graph=True)
    return found, int(at.sum())
