"""`hooked-whisper train`. Importing it costs nothing: what the command needs is imported when it runs."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

# What `train_sae` takes from a file or a flag, by kind; what is left of it are options of the architecture.
_WHOLE = (
    "d_sae", "k_anneal_steps", "total_training_samples", "train_batch_size_samples", "lr_warm_up_steps",
    "lr_decay_steps", "n_restart_cycles", "dead_feature_window", "feature_sampling_window", "n_init_rows", "seed",
    "evaluate_every", "evaluation_rows", "checkpoint_every", "keep_checkpoints", "log_every",
)  # fmt: skip
_NUMBER = ("k", "sensitivity_share", "k_start", "lr", "lr_end", "adam_beta1", "adam_beta2", "held_out")
_OF_ONE_SAE = (
    "hook", "hook_out", "d_sae", "architecture", "k", "k_start", "k_anneal_steps", "sparse", "name", "seed",
    "start", "sensitivity", "sensitivity_share",
    "dtype", "normalize_activations", "b_dec_init_method", "latents_init_method", "lr", "lr_end",
    "lr_scheduler_name", "lr_warm_up_steps", "lr_decay_steps", "n_restart_cycles", "adam_beta1", "adam_beta2",
    "dead_feature_window", "feature_sampling_window",
)  # fmt: skip
_FILE_ONLY = ("store", "saes")


def train(
    stores: Annotated[
        list[Path] | None, typer.Argument(help="Folders that `harvest` wrote; several are one.", metavar="STORE...")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML file with options by their names in `train_sae`; flags come first.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run.")] = None,
    hook: Annotated[str | None, typer.Option(help="The hook to train on, such as encoder.hook_out.")] = None,
    architecture: Annotated[
        str | None, typer.Option("--architecture", "-a", help="topk (as left out), batchtopk, jumprelu, gated, ...")
    ] = None,
    d_sae: Annotated[int | None, typer.Option(help="Number of latents.")] = None,
    k: Annotated[float | None, typer.Option(help="Latents active in a row, for the TopK family.")] = None,
    rows: Annotated[int | None, typer.Option("--rows", help="total_training_samples: rows to train on.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="train_batch_size_samples: rows of a batch.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate.")] = None,
    held_out: Annotated[
        str | None, typer.Option(help="Part of the clips to evaluate on, such as 0.1; 'none' for none.")
    ] = None,
    by: Annotated[
        str | None, typer.Option(help="held_out_by: the column that is not to be on both sides, such as key.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights and order.")] = None,
    start: Annotated[
        str | None, typer.Option(help="An SAE to go on from: a folder, a shipped one's name, a hub repository.")
    ] = None,
    sensitivity: Annotated[
        Path | None, typer.Option(help="What `Sensitivity.save` wrote: errors count by what predictions depend on.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:1; the best there is if left out.")] = None,
    autocast: Annotated[bool | None, typer.Option(help="Products in bfloat16.")] = None,
    log: Annotated[
        list[str] | None, typer.Option(help="console, tensorboard, wandb or nothing; may be repeated.")
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on with a run in --out, or remove it first.")] = True,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Any other option of `train_sae`, as name=value; repeatable.")
    ] = None,
) -> None:
    """Train a sparse autoencoder on harvested activations; killed, it goes on where it was when called again."""
    from hooked_whisper.errors import ConfigError

    asked = {} if config is None else read_config(config)
    asked |= _assignments(set_ or [])
    flags = {
        "store": None if not stores else [str(path) for path in stores], "out": out, "hook": hook, "k": k,
        "architecture": architecture, "d_sae": d_sae, "total_training_samples": rows, "lr": lr, "seed": seed,
        "start": start, "sensitivity": None if sensitivity is None else str(sensitivity),
        "train_batch_size_samples": batch_size, "held_out": held_out, "held_out_by": by,
        "device": device, "autocast": autocast, "log": log or None,
    }  # fmt: skip
    asked |= {name: value for name, value in flags.items() if value is not None}
    asked.setdefault("resume", resume)
    for name, what in (("store", "a STORE, a folder that `harvest` wrote"), ("out", "--out, a folder for the run")):
        if not asked.get(name):
            raise ConfigError(f"Missing: {what}.")
    folder = Path(asked["out"])
    trained = _train(asked)
    if os.environ.get("RANK", "0") != "0":
        return
    for name, figures in trained.items():
        typer.echo(f"{name}: {figures}")
    first = folder if len(trained) == 1 and (folder / "sae").is_dir() else folder / next(iter(trained))
    typer.echo(f"Next: hooked-whisper evaluate {first} --corpus MANIFEST")


def read_config(path: Path) -> dict[str, Any]:
    """The options in a YAML file.

    Raises:
        ConfigError: no such file, or one that holds something else.
    """
    from hooked_whisper.errors import ConfigError

    yaml: Any = importlib.import_module("yaml")  # comes with transformers
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read as YAML: {error}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path} holds {type(found).__name__}: expected options, one a line, such as `d_sae: 4096`.")
    return {str(name): value for name, value in found.items()}


def _assignments(given: Sequence[str]) -> dict[str, Any]:
    """Options from name=value, values as in JSON where they are that, else text."""
    from hooked_whisper.errors import ConfigError

    found: dict[str, Any] = {}
    for assignment in given:
        name, is_one, value = assignment.partition("=")
        if not is_one:
            raise ConfigError(f"--set {assignment!r} sets nothing: expected name=value, such as lr_warm_up_steps=100.")
        try:
            found[name.strip()] = json.loads(value)
        except json.JSONDecodeError:
            found[name.strip()] = value
    return found


def _train(asked: Mapping[str, Any]) -> dict[str, str]:
    """Trains what is asked for; one line of figures for each SAE."""
    from hooked_whisper.saes import ActivationStore, train_sae, train_saes

    options = _checked(asked)
    stores, out = options.pop("store"), Path(options.pop("out"))
    opened = [ActivationStore.open(path) for path in ([stores] if isinstance(stores, str) else stores)]
    source = opened[0] if len(opened) == 1 else ActivationStore.join(opened)
    several = options.pop("saes", None)
    if several is None:
        train_sae(source, out=out, **options)
        return {out.name: _figures(out)}
    trained = train_saes(source, [_settings(one, options) for one in several], out=out, **_of_the_run(options))
    return {name: _figures(out / name) for name in trained}


def _figures(run: Path) -> str:
    figures = json.loads((run / "training.json").read_text(encoding="utf-8"))["figures"]
    rows, found = next((name, figures[name]) for name in ("held_out", "trained_on") if name in figures)
    where = "held out" if rows == "held_out" else "it was trained on (none were held out)"
    what = f"FVU {found['fvu']:.4f}, L0 {found['l0']:.1f}, silent latents {found['silent']:.1%}"
    return f"{what} on {found['n_rows']:,} rows {where}"


def _checked(asked: Mapping[str, Any]) -> dict[str, Any]:
    """The options with numbers as numbers, each of them one that `train_sae` has.

    Raises:
        ConfigError: an option that there is not, or one that is missing.
    """
    import inspect

    from hooked_whisper.errors import ConfigError, did_you_mean
    from hooked_whisper.saes import train_sae
    from hooked_whisper.saes.training_settings import ArchitectureOptions

    parameters = inspect.signature(train_sae).parameters
    known = [name for name in parameters if name not in ("source", "options")]
    known += [*ArchitectureOptions.__annotations__, *_FILE_ONLY]
    for name in asked:
        if name not in known:
            raise ConfigError(f"Unknown option {name!r}.{did_you_mean(name, known)} `train_sae` has them all.")
    options = {name: _number(name, value) for name, value in asked.items()}
    needed = [] if "saes" in options else ["hook", "d_sae"]
    for name in needed:
        if options.get(name) is None:
            raise ConfigError(f"Missing: --{name.replace('_', '-')}, or {name} in --config.")
    return options


def _number(name: str, value: Any) -> Any:
    """A number where one belongs: YAML takes 1e-3 for text, and the command line everything."""
    from hooked_whisper.errors import ConfigError

    if name == "held_out" and value == "none":
        return None
    if name not in (*_WHOLE, *_NUMBER) or value is None:
        return value
    try:
        number = float(str(value).replace("_", ""))
    except ValueError:
        raise ConfigError(f"{name} must be a number, got {value!r}.") from None
    if name in _WHOLE:
        if number != int(number):
            raise ConfigError(f"{name} must be a whole number, got {value!r}.")
        return int(number)
    return number


def _settings(one: Any, shared: Mapping[str, Any]) -> Any:
    """One of `saes`: what it says itself, else what is said for all."""
    from hooked_whisper.errors import ConfigError
    from hooked_whisper.saes.training_settings import ArchitectureOptions, SaeSettings

    if not isinstance(one, dict):
        raise ConfigError(f"Each of saes must hold options, such as `- {{k: 32, d_sae: 4096}}`, got {one!r}.")
    own = {
        name: value for name, value in shared.items() if name in (*_OF_ONE_SAE, *ArchitectureOptions.__annotations__)
    }
    own |= {str(name): _number(str(name), value) for name, value in one.items()}
    options = {name: own.pop(name) for name in list(own) if name in ArchitectureOptions.__annotations__}
    for name in own:
        if name not in _OF_ONE_SAE:
            raise ConfigError(
                f"{name!r} is no option of one SAE: give it once, outside of saes, if `train_saes` has it."
            )
    for name in ("hook", "d_sae"):
        if name not in own:
            raise ConfigError(f"Missing: {name} of one of saes.")
    return SaeSettings(**own, options=options)


def _of_the_run(options: Mapping[str, Any]) -> dict[str, Any]:
    from hooked_whisper.saes.training_settings import ArchitectureOptions

    of_saes = {*_OF_ONE_SAE, *ArchitectureOptions.__annotations__} - {"seed"}
    return {name: value for name, value in options.items() if name not in of_saes}
