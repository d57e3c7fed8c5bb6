"""Which latents fire where: the sparse activations of an SAE over a whole store, held in memory.

    sae = load_sae("whisper-base/encoder.hook_out")
    codes = encode_store(sae, ActivationStore.open("acts/"))
    rows, values = codes.latent(1234)                    # where latent 1234 is active, and how strongly
    codes.save("codes.npz"); FeatureCodes.load("codes.npz")

The dense matrix [row latent] never exists: of 400,000 frames by 16,000 latents it would take 26 GB, with 45 active
latents a frame the sparse one takes 150 MB.

The bases of `saes.baselines` have signed coefficients. A direction and its opposite are two features here, each active
where its coefficient has its sign (half-wave rectification): latents 0 to d - 1 are the directions, d to 2 d - 1 their
opposites. So a neuron that falls for one sound and rises for another is given both chances that an SAE would have.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm import tqdm

from hooked_whisper.errors import AnalysisError, MissingExtraError, did_you_mean
from hooked_whisper.saes.arrow import import_pyarrow
from hooked_whisper.saes.baselines import Basis
from hooked_whisper.saes.coding import SparseCoder, check_coder
from hooked_whisper.saes.splitting import held_out_groups
from hooked_whisper.saes.store import ActivationStore

if TYPE_CHECKING:
    sparse: Any = None  # scipy says too little of its types
    CsrArray = CscArray = Any
    Columns = Mapping[str, np.ndarray]
else:
    try:
        from scipy import sparse
    except ImportError as error:
        raise MissingExtraError(
            "The analysis of features needs scipy, which cannot be imported: pip install 'hooked-whisper[analysis]'."
        ) from error
    CsrArray, CscArray = sparse.csr_array, sparse.csc_array
    Columns = Any  # a run-time check would go through every column of every object

_FORMAT = 1
_MAX_ACTIVATIONS = 2**23  # dense activations at a time: 32 MB in float32
_NOT_COLUMNS = ("clip", "frame", "time", "sha256")  # what `clip` and `frame` say, and what nobody groups by


@dataclass(frozen=True)
class FeatureCodes:
    """The activations of all latents on all rows of a store.

    Attributes:
        acts: [row latent], float32, no stored zeros and nothing negative; rows in the store's order.
        clip: of each row, the index into `clips`.
        frame: of each row, the frame within its clip, counted from the clip's start.
        clips: ids of the clips.
        columns: of each row, what the store knows of it: language, speaker, key, position in the window, ...
        hook: what was encoded.
        frames_per_second: 50 in the encoder.
        signed: whether the second half of the latents are the opposites of the first (neurons, PCA).
    """

    acts: CsrArray
    clip: Int[np.ndarray, " row"]
    frame: Int[np.ndarray, " row"]
    clips: tuple[str, ...]
    columns: Columns = field(default_factory=dict)
    hook: str = ""
    frames_per_second: float = 50.0
    signed: bool = False

    def __post_init__(self) -> None:
        for name, values in {"clip": self.clip, "frame": self.frame, **self.columns}.items():
            if len(values) != self.n_rows:
                raise AnalysisError(f"{name!r} has {len(values)} values for {self.n_rows} rows: expected one for each.")
        if len(self.acts.data) and not (np.isfinite(self.acts.data).all() and self.acts.data.min() > 0):
            raise AnalysisError(
                "Activations must be positive and finite where they are stored: zeros are left out, and signed "
                "coefficients are two features, one for each sign."
            )

    @property
    def n_rows(self) -> int:
        """Rows: frames."""
        return self.acts.shape[0]

    @property
    def n_latents(self) -> int:
        """Latents; of a basis, twice its directions."""
        return self.acts.shape[1]

    def __repr__(self) -> str:
        return (
            f"FeatureCodes({self.n_latents:,} latents on {self.n_rows:,} rows of {len(self.clips):,} clips at "
            f"{self.hook}, {self.acts.nnz / max(self.n_rows, 1):.3g} active a row)"
        )

    @cached_property
    def by_latent(self) -> CscArray:
        """`acts` by columns; as much memory again."""
        return self.acts.tocsc()

    def latent(self, latent: int) -> tuple[Int[np.ndarray, " active"], Float[np.ndarray, " active"]]:
        """Rows on which one latent is active, in order, and its activations there.

        Raises:
            AnalysisError: a latent that is not there.
        """
        if not 0 <= latent < self.n_latents:
            raise AnalysisError(f"Latent {latent} does not exist: there are {self.n_latents}, counted from 0.")
        part = slice(*self.by_latent.indptr[latent : latent + 2])
        return self.by_latent.indices[part].astype(np.int64), self.by_latent.data[part]

    def column(self, name: str) -> np.ndarray:
        """Values of one column, one a row; "clip" gives the clips' ids.

        Raises:
            AnalysisError: a column that is not there.
        """
        if name == "clip":
            return np.array(self.clips, dtype=object)[self.clip]
        if name not in self.columns:
            known = ("clip", *self.columns)
            raise AnalysisError(
                f"There is no column {name!r}: there are {', '.join(known)}.{did_you_mean(name, known)}"
            )
        return self.columns[name]

    def groups(self, name: str) -> tuple[Int[np.ndarray, " row"], tuple[str, ...]]:
        """Rows by the value of a column: the number of each row's value (-1: none), and the values as text, sorted.

        Raises:
            AnalysisError: a column that is not there.
        """
        if name == "clip":
            return self.clip.astype(np.int64), self.clips
        return _categories(self.column(name))

    def halves(self, by: str = "clip", *, seed: int = 0, train: float = 0.5) -> Bool[np.ndarray, " row"]:
        """True on the rows to choose on (the training half), False on those to report on.

        No value of the column is on both sides: "clip", or "speaker", "key", "language". Rows without a value count as
        a group of their clip.

        Raises:
            AnalysisError: an unknown column, a part outside 0 to 1, or a single group.
        """
        if not 0 < train < 1:
            raise AnalysisError(f"train={train!r} must be a part between 0 and 1.")
        of, names = self.groups(by)
        if (of < 0).any():
            of = np.where(of < 0, len(names) + self.clip, of)
            names = (*names, *(f"\0{clip}" for clip in self.clips))
        # one member for each clip of a group, so that the halves have about as many clips
        members = np.unique(np.stack([self.clip, of]), axis=1)[1]
        held_out = held_out_groups([names[group] for group in members], 1 - train, seed)
        if not held_out:
            raise AnalysisError(f"All rows are of one {by}: they cannot be halved by it.")
        return ~np.isin(of, [group for group in np.unique(members) if names[group] in held_out])

    def where(self, **columns: Any) -> FeatureCodes:
        """The rows whose columns have the values given; a list means any of them.

        Raises:
            AnalysisError: an unknown column, or no row that matches.
        """
        keep = np.ones(self.n_rows, dtype=bool)
        for name, wanted in columns.items():
            options = wanted if isinstance(wanted, list | tuple | set) else [wanted]
            values = self.column(name)
            keep &= np.logical_or.reduce([values == option for option in options])
        if not keep.any():
            raise AnalysisError(f"No row has {', '.join(f'{name}={value!r}' for name, value in columns.items())}.")
        return self.select(keep)

    def select(self, rows: Bool[np.ndarray, " row"] | Int[np.ndarray, " kept"]) -> FeatureCodes:
        """Some rows, by mask or number; clips that have none left are dropped."""
        clip = self.clip[rows]
        kept, renumbered = np.unique(clip, return_inverse=True)
        return replace(
            self,
            acts=self.acts[rows],
            clip=renumbered.astype(np.int32),
            frame=self.frame[rows],
            clips=tuple(self.clips[index] for index in kept),
            columns={name: values[rows] for name, values in self.columns.items()},
        )

    def rows_of(self, clip: str, start: float = 0.0, end: float | None = None) -> Int[np.ndarray, " span"]:
        """Rows of a clip whose centres lie in `start` to `end` seconds of it.

        Raises:
            AnalysisError: a clip that is not there, or a span without a frame.
        """
        if clip not in self.clips:
            raise AnalysisError(f"No clip is called {clip!r} here.{did_you_mean(clip, self.clips)}")
        rows = np.flatnonzero(self.clip == self.clips.index(clip))
        times = (self.frame[rows] + 0.5) / self.frames_per_second
        found = rows[(times >= start) & (times < (np.inf if end is None else end))]
        if not len(found):
            raise AnalysisError(
                f"No frame of {clip!r} has its centre in {start:g} to {'the end' if end is None else f'{end:g}'} s: "
                f"its frames run from {times.min():.2f} to {times.max():.2f} s."
            )
        return found

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes one .npz file that is read without pickle."""
        about = {
            "format": _FORMAT, "shape": list(self.acts.shape), "hook": self.hook, "signed": self.signed,
            "frames_per_second": self.frames_per_second, "columns": list(self.columns),
        }  # fmt: skip
        arrays: dict[str, np.ndarray] = {
            "about": np.array(json.dumps(about)),
            "clips": np.array(self.clips, dtype=str),
            "clip": self.clip,
            "frame": self.frame,
            "data": self.acts.data,
            "indices": self.acts.indices,
            "indptr": self.acts.indptr,
        }
        for name, values in self.columns.items():
            if values.dtype == object:
                number, names = _categories(values)
                arrays[f"column {name}"] = number.astype(np.int32)
                arrays[f"values {name}"] = np.array(names, dtype=str)
            else:
                arrays[f"column {name}"] = values
        with Path(path).open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> FeatureCodes:
        """Reads what `save` wrote.

        Raises:
            AnalysisError: no such file, or another kind of file.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                found = {name: file[name] for name in file.files}
            about = json.loads(str(found["about"]))
            if about["format"] != _FORMAT:
                raise AnalysisError(f"{path} has format {about['format']!r}, expected {_FORMAT}.")
        except (OSError, ValueError, KeyError, AttributeError, zipfile.BadZipFile) as error:
            if isinstance(error, AnalysisError):
                raise
            raise AnalysisError(f"{path} does not hold feature codes ({error}): expected what save() wrote.") from error
        columns = {}
        for name in about["columns"]:
            values = found[f"column {name}"]
            if f"values {name}" in found:
                names = np.array([*found[f"values {name}"].tolist(), None], dtype=object)
                values = names[values]  # -1 is the last: None
            columns[name] = values
        acts = sparse.csr_array((found["data"], found["indices"], found["indptr"]), shape=tuple(about["shape"]))
        return cls(
            acts, found["clip"], found["frame"], tuple(found["clips"].tolist()), columns,
            about["hook"], about["frames_per_second"], about["signed"],
        )  # fmt: skip


def encode_store(
    sae: SparseCoder, store: ActivationStore, hook: str | None = None, *, progress: bool | None = None
) -> FeatureCodes:
    """The activations of an SAE, or of a basis of `saes.baselines`, on every row of a store.

    Args:
        hook: of the store; None takes the one that the SAE's metadata names, or the only one that there is.
        progress: whether to show a bar; None shows it where standard error is a terminal.

    Raises:
        AnalysisError: a hook that the store does not have or whose rows have another width, a store of tokens, or
            activations that are negative or not finite. SaeError: a training SAE whose activations depend on the batch.
            MissingExtraError: pyarrow is not installed.
    """
    check_coder(sae)
    name = _hook(sae, store, hook)
    settings = store.manifests[0].settings
    if settings.rate is None:
        raise AnalysisError("This store holds decoder tokens: the analysis of features needs frames of audio.")
    signed = isinstance(sae, Basis)
    data, indices, counts = [], [], []
    with tqdm(total=store.n_rows, unit="row", desc="codes", disable=None if progress is None else not progress) as bar:
        for rows in _pieces(sae, store, name):
            with torch.no_grad():
                acts = sae.encode(rows.to(sae.W_dec.device, sae.W_dec.dtype)[None])
            values, latents, active = _sparse(acts.to_dense()[0] if acts.is_sparse else acts[0], signed)
            data.append(values)
            indices.append(latents)
            counts.append(active)
            bar.update(len(active))
    indptr = np.concatenate([[0], np.cumsum(np.concatenate(counts))])
    wide = np.int64 if indptr[-1] > np.iinfo(np.int32).max else np.int32
    parts = (np.concatenate(data), np.concatenate(indices).astype(wide), indptr.astype(wide))
    n_latents = sae.cfg.d_sae * (2 if signed else 1)
    clips, frames = store.clips, store.frames
    clip = np.repeat(np.arange(clips.num_rows, dtype=np.int32), clips["n_rows"].to_numpy())
    return FeatureCodes(
        sparse.csr_array(parts, shape=(store.n_rows, n_latents)),
        clip,
        frames["frame"].to_numpy(),
        tuple(clips["clip"].to_pylist()),
        {name: _column(frames[name]) for name in frames.column_names if name not in _NOT_COLUMNS},
        name,
        float(settings.rate),
        signed,
    )


def _hook(sae: SparseCoder, store: ActivationStore, hook: str | None) -> str:
    named = None if isinstance(sae, Basis) else sae.cfg.metadata.hook_name
    if hook is None:
        hook = named or (store.hooks[0] if len(store.hooks) == 1 else None)
    if hook is None:
        raise AnalysisError(f"Which hook is this SAE of? Pass hook=, one of {', '.join(store.hooks)}.")
    if hook not in store.hooks:
        raise AnalysisError(
            f"This store has no activations of {hook!r}, which the SAE is of: it has {', '.join(store.hooks)}. Harvest "
            "that hook, or load an SAE of one that is there." + did_you_mean(hook, store.hooks)
        )
    if store.width(hook) != sae.cfg.d_in:
        raise AnalysisError(
            f"This SAE reads rows of {sae.cfg.d_in}, and {hook!r} of this store has rows of {store.width(hook)}: it "
            "was made for another hook or another model."
        )
    return hook


def _pieces(sae: SparseCoder, store: ActivationStore, hook: str) -> Iterator[Tensor]:
    """Rows in order: clip by clip for an SAE that looks back in time, else as many as make one product efficient.

    An SAE that lays heads side by side itself gets them as one.
    """
    if sae.cfg.architecture() == "temporal":
        counts = store.clips["n_rows"].to_numpy()
        edges = [0, *np.cumsum(counts).tolist()]
    else:
        step = max(1, _MAX_ACTIVATIONS // sae.cfg.d_sae)
        edges = [*range(0, store.n_rows, step), store.n_rows]
    for first, last in zip(edges[:-1], edges[1:], strict=True):
        rows = store.rows(hook, first, last).float()
        yield rows[:, None] if sae.cfg.reshape_activations == "hook_z" else rows


def _sparse(acts: Tensor, signed: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values, latents and the number of each row, row by row."""
    dense = acts.float().cpu().numpy()
    if signed:
        dense = np.concatenate([np.maximum(dense, 0), np.maximum(-dense, 0)], 1)
    at = np.flatnonzero(dense)
    values = dense.ravel()[at]
    if not np.isfinite(values).all():
        raise AnalysisError("The activations of this SAE are not finite: look at its weights and at the store's rows.")
    if len(values) and values.min() < 0:
        raise AnalysisError("This SAE has negative activations: expected latents that are active or zero.")
    return values, (at % dense.shape[1]).astype(np.int32), np.count_nonzero(dense, axis=1)


def _column(column: Any) -> np.ndarray:
    """A column of a pyarrow table; text as objects that share their strings."""
    pyarrow, _ = import_pyarrow()
    combined = column.combine_chunks()
    if pyarrow.types.is_dictionary(combined.type):
        names = np.array([*combined.dictionary.to_pylist(), None], dtype=object)
        return names[combined.indices.fill_null(len(names) - 1).to_numpy()]
    if combined.null_count:
        return np.array(combined.to_pylist(), dtype=object)
    return combined.to_numpy(zero_copy_only=False)


def _categories(values: np.ndarray) -> tuple[Int[np.ndarray, " row"], tuple[str, ...]]:
    if values.dtype != object:
        names, number = np.unique(values, return_inverse=True)
        return number.astype(np.int64), tuple(str(name) for name in names)
    names = sorted({str(value) for value in set(values.tolist()) if value is not None})
    index = {name: number for number, name in enumerate(names)}
    known = {value: -1 if value is None else index[str(value)] for value in set(values.tolist())}
    return np.array([known[value] for value in values.tolist()], dtype=np.int64), tuple(names)
