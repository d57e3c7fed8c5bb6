"""Linear probes: what can be read off an activation by a straight line, and whether that says anything.

    found = clip_features(model, paths, "encoder.blocks.*.hook_resid_post", pool="mean")
    sweep = probe_hooks(found, labels=languages, groups=keys)
    sweep["encoder.blocks.3.hook_resid_post"].score       # accuracy with a 95 % interval
    sweep.plot()

A probe is trained on some groups (sentences, speakers) and tested on others, so that it cannot know a clip by its
neighbour. Beside the score stand the rate of guessing and a control task: each group is given a random label, and the
same probe has to learn those. What it gets right there it has memorised; the score less that is the selectivity
(Hewitt & Liang 2019, "Designing and Interpreting Probes with Control Tasks").

In the speech that the repository ships one speaker says everything in one language: a probe for the language is a
probe for the speaker there, and no grouping can tell the two apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from hooked_whisper.analysis.figures import new_figure
from hooked_whisper.audio import AudioInput
from hooked_whisper.axes import axes
from hooked_whisper.errors import AnalysisError, MissingExtraError
from hooked_whisper.hooks import NamesFilter
from hooked_whisper.inputs import TextInput
from hooked_whisper.model import HookedWhisper
from hooked_whisper.saes.estimates import Estimate, bootstrap

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from hooked_whisper.saes.store import ActivationStore

    Pool = Literal["mean", "none"]
    Task = Literal["classification", "regression"]
else:
    Pool = Task = str  # checked here, with a message that says more than a type checker's


@dataclass(frozen=True)
class Examples:
    """Activations to probe.

    Attributes:
        x: one row for each clip (pooled), or for each frame or token that is not padding.
        clips: which clip each row is of.
        n_clips: clips in all.
    """

    x: Float[Tensor, "example width"]
    clips: Int[Tensor, " example"]
    n_clips: int

    def spread(self, values: Sequence[Any] | np.ndarray | Tensor, what: str) -> np.ndarray:
        """Values of each clip as values of each row; values of each row as they are.

        Raises:
            AnalysisError: neither as many as clips nor as rows.
        """
        found = np.asarray(values)
        if len(found) == self.n_clips:
            return found[self.clips.cpu().numpy()]
        if len(found) == len(self.x):
            return found
        raise AnalysisError(
            f"{len(found)} {what} were given for {self.n_clips} clips and {len(self.x)} rows: expected one for each "
            "clip, or one for each row."
        )


@torch.no_grad()
def clip_features(
    model: HookedWhisper,
    audio: Sequence[Any] | AudioInput,
    hooks: NamesFilter,
    text: TextInput = None,
    *,
    language: str | Sequence[str | None] | None = None,
    pool: Pool = "mean",
    batch_size: int = 8,
    progress: bool | None = None,
) -> dict[str, Examples]:
    """Activations of some hooks on a list of clips; frames and tokens of padding are left out.

    Args:
        hooks: with frames or tokens as their second axis; heads are laid side by side.
        text: of each clip, for decoder hooks; None takes the model's own transcripts.
        pool: "mean" over a clip's frames or tokens, or "none" for all of them.
        batch_size: clips in a pass.
        audio, language: as `HookedWhisper.forward` takes them.
        progress: whether to show a bar; None shows it where standard error is a terminal.

    Raises:
        AnalysisError: no list of clips, an unknown `pool`, a hook without frames or tokens.
    """
    _check_pool(pool)
    names = model.resolve_names(hooks)
    for name in names:
        if axes(name)[:2] not in (("batch", "frame"), ("batch", "pos")):
            raise AnalysisError(f"{name!r} holds [{' '.join(axes(name))}]: expected frames or tokens after the batch.")
    if not isinstance(audio, Sequence) or isinstance(audio, str | bytes) or not len(audio):
        raise AnalysisError(f"Expected a list of clips, got {type(audio).__name__}.")
    if batch_size < 1:
        raise AnalysisError(f"batch_size={batch_size} must be at least 1.")
    rows: dict[str, list[Tensor]] = {name: [] for name in names}
    starts = range(0, len(audio), batch_size)
    for at in tqdm(starts, desc="activations", disable=None if progress is None else not progress):
        part = slice(at, at + batch_size)
        _, cache = model.run_with_cache(
            list(audio[part]), _part(text, part), language=_part(language, part), names_filter=names
        )
        for name in names:
            mask = cache.frame_mask if axes(name)[1] == "frame" else cache.token_mask
            for value, kept in zip(cache[name], mask, strict=True):
                rows[name].append(_pooled(value[kept].flatten(1).float().cpu(), pool))
    return {name: _examples(of) for name, of in rows.items()}


def store_features(store: ActivationStore, hook: str, *, pool: Pool = "mean") -> Examples:
    """Activations of a store of `hooked_whisper.saes`, its clips in the order of `store.clips`, where labels are, too.

    Raises:
        AnalysisError: an unknown `pool`. StoreError: a hook that the store does not have.
    """
    _check_pool(pool)
    spans = zip(store.clips["first_row"].to_pylist(), store.clips["n_rows"].to_pylist(), strict=True)
    return _examples([_pooled(store.rows(hook, first, first + count).float(), pool) for first, count in spans])


def _check_pool(pool: str) -> None:
    if pool not in ("mean", "none"):
        raise AnalysisError(f"Unknown pool {pool!r}: expected 'mean' or 'none'.")


def _part(value: Any, part: slice) -> Any:
    return value if value is None or isinstance(value, str) else list(value)[part]


def _pooled(x: Float[Tensor, "row width"], pool: str) -> Float[Tensor, "kept width"]:
    return x.mean(0, keepdim=True) if pool == "mean" else x


def _examples(rows: list[Tensor]) -> Examples:
    counts = torch.tensor([len(x) for x in rows])
    return Examples(torch.cat(rows), torch.arange(len(rows)).repeat_interleave(counts), len(rows))


@dataclass(frozen=True)
class Probe:
    """How well a linear probe does on groups that it was not trained on.

    Attributes:
        task: "classification" (scores are accuracies) or "regression" (shares of variance explained, R2).
        score: with a 95 % interval over resampled groups.
        control: the same probe's score on random labels, one for each group, on other rows of groups that it has seen.
        selectivity: score less control.
        chance: what guessing the commonest label (or the mean) gives.
        n_examples, n_groups: rows and groups in all.
    """

    task: str
    score: Estimate
    control: Estimate
    selectivity: Estimate
    chance: float
    n_examples: int
    n_groups: int

    def __str__(self) -> str:
        name = "accuracy" if self.task == "classification" else "R2"
        return f"{name} {self.score} (chance {self.chance:.3g}), control {self.control}, selectivity {self.selectivity}"


@dataclass(frozen=True)
class ProbeSweep:
    """One probe for each hook."""

    probes: dict[str, Probe]

    def __getitem__(self, hook: str) -> Probe:
        return self.probes[hook]

    def plot(self) -> Figure:
        """Score and control of each hook, with their intervals; dashed: chance.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        figure = new_figure(1.5 + 0.8 * len(self.probes), 4.5)
        ax = figure.add_subplot()
        for label, colour in (("score", "#0b6e99"), ("control", "#c2410c")):
            found: list[Estimate] = [getattr(probe, label) for probe in self.probes.values()]
            values = np.array([estimate.value for estimate in found], dtype=float)
            low = np.array([estimate.low for estimate in found], dtype=float)
            high = np.array([estimate.high for estimate in found], dtype=float)
            whiskers = [np.maximum(values - low, 0), np.maximum(high - values, 0)]
            ax.errorbar(range(len(found)), values, yerr=whiskers, fmt="o-", color=colour, label=label)
        ax.axhline(next(iter(self.probes.values())).chance, color="#5b6475", linestyle="--", linewidth=0.8)
        ax.set_xticks(range(len(self.probes)), list(self.probes), rotation=60, ha="right", fontsize=8)
        ax.legend(frameon=False)
        return figure


def probe(
    examples: Examples,
    labels: Sequence[Any] | np.ndarray | Tensor,
    groups: Sequence[Any] | np.ndarray,
    *,
    task: Task = "classification",
    folds: int = 5,
    regularisation: float = 1.0,
    seed: int = 0,
) -> Probe:
    """Trains and tests a linear probe across groups: logistic or ridge regression on standardised activations.

    Args:
        labels: one for each clip, or one for each row: classes, or numbers.
        groups: what stays together, likewise: sentence keys or speakers. What may leak from one clip to another should
            be a group.
        folds: into which the groups are dealt.
        regularisation: strength of the penalty; larger holds the probe simpler.
        seed: of the control's labels and of the bootstrap.

    Raises:
        AnalysisError: labels or groups that do not fit, fewer groups than folds, one class alone, a class that one
            group alone has, numbers that are not finite. MissingExtraError: scikit-learn is not installed.
    """
    sklearn = _sklearn()
    if task not in ("classification", "regression"):
        raise AnalysisError(f"Unknown task {task!r}: expected 'classification' or 'regression'.")
    if regularisation <= 0:
        raise AnalysisError(f"regularisation={regularisation} must be positive.")
    x = examples.x.cpu().double().numpy()
    y, of = examples.spread(labels, "labels"), examples.spread(groups, "groups")
    names, group = np.unique(of, return_inverse=True)
    if not 2 <= folds <= len(names):
        raise AnalysisError(f"folds={folds} of {len(names)} groups: expected at least 2 folds, and a group for each.")
    classes = None
    if task == "classification":
        classes, y = np.unique(y, return_inverse=True)
        _check_classes(classes, y, group)
    else:
        y = y.astype(np.float64)
        if not np.isfinite(y).all() or np.ptp(y) == 0:
            raise AnalysisError("The labels of a regression must be finite numbers that differ.")
    if not np.isfinite(x).all():
        raise AnalysisError("The activations are not finite.")
    generator = np.random.default_rng(seed)
    random = generator.choice(y, size=len(names))[group]
    while len(np.unique(random)) < 2:  # of a single class nothing can be learnt
        random = generator.choice(y, size=len(names))[group]
    across = sklearn.GroupKFold(n_splits=folds).split(x, y, group)
    within = sklearn.KFold(n_splits=folds, shuffle=True, random_state=seed).split(x)
    settings = (sklearn, task, regularisation)
    real = _Tally.of(_predictions(x, y, across, *settings), y, group, task)
    control = _Tally.of(_predictions(x, random, within, *settings), random, group, task)
    chance = float(np.bincount(y).max() / len(y)) if classes is not None else 0.0

    def difference(weights: Float[np.ndarray, "resample group"]) -> Float[np.ndarray, " resample"]:
        return real.score(weights) - control.score(weights)

    return Probe(
        task=task,
        score=bootstrap(real.score, len(names), seed=seed),
        control=bootstrap(control.score, len(names), seed=seed),
        selectivity=bootstrap(difference, len(names), seed=seed),
        chance=chance,
        n_examples=len(x),
        n_groups=len(names),
    )


def probe_hooks(
    examples: Mapping[str, Examples],
    labels: Sequence[Any] | np.ndarray | Tensor,
    groups: Sequence[Any] | np.ndarray,
    *,
    task: Task = "classification",
    folds: int = 5,
    regularisation: float = 1.0,
    seed: int = 0,
    progress: bool | None = None,
) -> ProbeSweep:
    """`probe` at each of some hooks, such as those of `clip_features`: layer by layer.

    Raises:
        AnalysisError: no hooks, and what `probe` raises. MissingExtraError: scikit-learn is not installed.
    """
    if not examples:
        raise AnalysisError("No hooks were given.")
    bar = tqdm(examples.items(), desc="probes", unit="hook", disable=None if progress is None else not progress)
    options: dict[str, Any] = {"task": task, "folds": folds, "regularisation": regularisation, "seed": seed}
    return ProbeSweep({name: probe(of, labels, groups, **options) for name, of in bar})


def _check_classes(classes: np.ndarray, y: np.ndarray, group: np.ndarray) -> None:
    if len(classes) < 2:
        raise AnalysisError(f"All labels are {classes[0]!r}: expected two classes or more.")
    for index, name in enumerate(classes):
        if len(np.unique(group[y == index])) < 2:
            raise AnalysisError(
                f"All examples of {name!s} are in one group, so that no probe can be trained on it and tested on it: "
                "group by something that has several groups for each class."
            )


def _predictions(
    x: np.ndarray, y: np.ndarray, folds: Any, sklearn: Any, task: str, regularisation: float
) -> Float[np.ndarray, " example"]:
    """For each row, what the probe that was not trained on its fold says."""
    found = np.zeros(len(y))
    for train, test in folds:
        if task == "regression":
            model = sklearn.Ridge(alpha=regularisation)
        elif len(np.unique(y[train])) < 2:
            found[test] = y[train][0]
            continue
        else:
            model = sklearn.LogisticRegression(C=1 / regularisation, max_iter=5000)
        fitted = sklearn.make_pipeline(sklearn.StandardScaler(), model).fit(x[train], y[train])
        found[test] = fitted.predict(x[test])
    return found


@dataclass(frozen=True)
class _Tally:
    """Sums over each group from which a score follows: `gained` of `possible`, counted from `base`."""

    gained: Float[np.ndarray, " group"]
    possible: Float[np.ndarray, " group"]

    @classmethod
    def of(cls, predicted: np.ndarray, y: np.ndarray, group: np.ndarray, task: str) -> _Tally:
        if task == "classification":
            gained, possible = (predicted == y).astype(np.float64), np.ones(len(y))
        else:
            possible = (y - y.mean()) ** 2
            gained = possible - (y - predicted) ** 2
        return cls(np.bincount(group, gained), np.bincount(group, possible))

    def score(self, weights: Float[np.ndarray, "resample group"]) -> Float[np.ndarray, " resample"]:
        return (weights @ self.gained) / np.maximum(weights @ self.possible, 1e-12)


def _sklearn() -> Any:
    """What of scikit-learn is used, in one namespace.

    Raises:
        MissingExtraError: it is not installed.
    """
    from types import SimpleNamespace

    try:
        from sklearn.linear_model import LogisticRegression, Ridge
        from sklearn.model_selection import GroupKFold, KFold
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError as error:
        raise MissingExtraError(
            "Probes need scikit-learn, which cannot be imported: pip install 'hooked-whisper[analysis]'."
        ) from error
    return SimpleNamespace(
        LogisticRegression=LogisticRegression, Ridge=Ridge, GroupKFold=GroupKFold, KFold=KFold,
        make_pipeline=make_pipeline, StandardScaler=StandardScaler,
    )  # fmt: skip
