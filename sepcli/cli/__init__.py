"""The command line: a Typer application, and main(), where an error becomes one line and an exit code."""

import sys
import traceback
from importlib import import_module
from pathlib import Path

import typer

from sepcli import __version__
from sepcli.cli import console, models, separate
from sepcli.errors import SepcliError

app = typer.Typer(
    name="sepcli",
    help="Separate songs into stems.",
    rich_markup_mode=None,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("separate")(separate.separate)
app.add_typer(models.app, name="models")


@app.callback(invoke_without_command=True)
def common(
    version: bool = typer.Option(False, "--version", help="Print the versions of sepcli and torch, and the device."),
    _quiet: console.Quiet = False,
    _verbose: console.Verbose = False,
    _debug: console.Debug = False,
) -> None:
    if version:
        torch = import_module("torch")
        device = import_module("sepcli.inference.device").choose("auto")
        console.result(f"sepcli {__version__}, torch {torch.__version__}, device {device}")
        raise typer.Exit


def main() -> None:
    """Run the command line. The only place that catches everything."""
    console.listen_for_signals()
    arguments = sys.argv[1:]
    if arguments and arguments[0] not in ("separate", "models") and Path(arguments[0]).exists():
        arguments.insert(0, "separate")  # `sepcli song.wav`
    sys.exit(run(arguments))


def run(arguments: list[str]) -> int:
    """The exit code of a call."""
    command = typer.main.get_command(app)
    try:
        return int(command(arguments, prog_name="sepcli", standalone_mode=False) or 0)
    except SepcliError as error:
        show(f"{error.what}; {error.hint}" if error.hint else error.what)
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        show("interrupted; finished songs are kept")
        return 130
    except console.Terminated:
        show("terminated; finished songs are kept")
        return 143
    except BrokenPipeError:
        console.close_stdout()
        return 1
    except Exception as error:  # noqa: BLE001 - the last resort of the command line
        if hasattr(error, "format_message"):  # the command line itself is wrong
            show(f"{error.format_message()}; see `sepcli {' '.join(arguments[:1])} --help`".replace("  ", " "))
            return 2
        show(f"{type(error).__name__}: {error}; this is a fault of sepcli: please report it with the output of --debug")
        return 1


def show(text: str) -> None:
    if console.state.debug:
        traceback.print_exc()
    console.error(text)
