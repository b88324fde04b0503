"""The command ``nextscale``. Every command's file is light: what it works with is imported inside its function."""

from __future__ import annotations

import logging
import warnings
from importlib import import_module
from importlib.util import find_spec
from typing import Annotated

import typer

from nextscale.cli.build import build
from nextscale.cli.doctor import doctor
from nextscale.cli.draw import draw
from nextscale.cli.errors import Commands
from nextscale.cli.export import export
from nextscale.cli.generate import generate
from nextscale.cli.inspect import inspect
from nextscale.cli.plan import plan
from nextscale.cli.recipes import recipes
from nextscale.cli.weights import weights

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        from nextscale.runtime._version import __version__

        typer.echo(f"nextscale {__version__}")
        raise typer.Exit


@app.callback()
def common(
    context: typer.Context,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say on stderr what is being done.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error, and all log lines.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Make small static engines, one per scale step, of a visual autoregressive model, and run them without PyTorch.

    \b
    nextscale draw var-d16 -o drawn/
    nextscale export --recipe var-d16-fastvar --model drawn/var_d16.pth \\
        --vae drawn/vae_ch160v4096z32.pth -o engines/mine
    nextscale generate engines/mine --labels 207,88 --seed 0 -o out/

    Errors are one sentence on stderr; the exit status tells their kind:
    2 refused input, 3 this machine lacks something, 4 numbers differ.
    """
    if isinstance(context.command, Commands):
        context.command.debug = debug
    if not debug:
        warnings.simplefilter("ignore")  # of libraries, on what is theirs
    logger = logging.getLogger("nextscale")
    logger.handlers = [logging.StreamHandler()]  # stderr
    logger.handlers[0].setFormatter(logging.Formatter("%(name)s: %(message)s"))
    logger.setLevel(logging.DEBUG if debug else logging.INFO if verbose else logging.WARNING)


for command in (recipes, plan, draw, export, weights, inspect, build, generate):
    app.command()(command)
for name in ("compare", "debug", "demo", "gpu_check"):
    if find_spec(f"nextscale.cli.{name}"):
        app.command(name.replace("_", "-"))(getattr(import_module(f"nextscale.cli.{name}"), name))
app.command()(doctor)
