"""Options that several commands have, each written once. Importing it costs nothing."""

from __future__ import annotations

from typing import Annotated

import typer

DEFAULT_MODEL = "openai/whisper-base"

Model = Annotated[
    str, typer.Option("--model", "-m", help="Hub id, folder, OpenAI .pt file or CTranslate2 folder.", metavar="NAME")
]
ModelOfSae = Annotated[
    str | None, typer.Option("--model", "-m", help="The SAE's own when left out.", metavar="NAME", show_default=False)
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 or mps; the best there is when left out.")]
DType = Annotated[str, typer.Option(help="Of the model: float32, float16 or bfloat16.")]
HookOfSae = Annotated[str | None, typer.Option(help="Where the SAE belongs, if its metadata does not say.")]
Languages = Annotated[list[str] | None, typer.Option("--language", help="Only clips of this language; repeatable.")]
Clauses = Annotated[
    list[str] | None,
    typer.Option("--where", help="Only clips with this column=value, such as kind=speech; repeatable."),
]
