"""Arguments that several commands take."""

from __future__ import annotations

from typing import Annotated

import typer

Config = Annotated[str, typer.Argument(help="A YAML file, or the name of one under experiments/.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object, and nothing else.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", help="Changes, e.g. model.mixer=softmax output_dir=DIR.", show_default=False
    ),
]
