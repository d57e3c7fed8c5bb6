"""`hooked-whisper publish`. Importing it costs nothing: what the command needs is imported when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def publish(
    sae: Annotated[str, typer.Argument(help="A run's folder, or an SAE's folder.")],
    repository: Annotated[str, typer.Argument(help="Where to: USER/NAME; made where it is missing.")],
    hook: Annotated[str | None, typer.Option(help="Which SAE, where the folder has several.")] = None,
    dashboard: Annotated[
        Path | None, typer.Option(help="Folder of its dashboard, to go along; the run's own if left out.")
    ] = None,
    licence: Annotated[
        str | None, typer.Option("--licence", "--license", help="Of the SAE, such as cc-by-sa-4.0.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    revision: Annotated[str | None, typer.Option(help="A branch; made where it is missing.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead of committing.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, print the card, send nothing.")] = False,
    message: Annotated[str | None, typer.Option(help="Of the commit.")] = None,
    attempts: Annotated[int, typer.Option(help="How often to try where the line or the hub fails.", min=1)] = 5,
) -> None:
    """Publish an SAE on the Hugging Face hub, with a card and its evaluation."""
    from hooked_whisper.saes import publish_sae

    published = publish_sae(
        Path(sae) if Path(sae).exists() else sae,
        repository,
        hook=hook,
        dashboard=dashboard,
        licence=licence,
        private=private,
        revision=revision,
        create_pr=create_pr,
        dry_run=dry_run,
        commit_message=message,
        attempts=attempts,
    )
    if dry_run:
        typer.echo(published.card)
        typer.echo(f"Would go to {repository}:\n  " + "\n  ".join(published.files))
        typer.echo("Next: the same command without --dry-run")
        return
    typer.echo(f"Published: {published.pull_request_url or published.url}")
    typer.echo(f'Next: load_sae("{repository}", hook="{published.sae_id}")')
