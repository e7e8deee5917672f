"""The command line: a Typer application, and main(), where an error becomes one line and an exit code."""

import signal
import sys
import traceback
from importlib import import_module
from itertools import takewhile
from pathlib import Path

import typer

from sepcli import __version__
from sepcli.audio.paths import exists
from sepcli.cli import batch, bench, console, data, demo, demucs, evaluate, models, separate, train
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
app.add_typer(evaluate.app, name="evaluate")
app.command("bench")(bench.bench)
app.command("train", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(train.train)
app.add_typer(data.app, name="data")
app.command("demo")(demo.demo)
app.add_typer(batch.app, name="batch")

OWN = ("-h", "--help", "--version", "-q", "--quiet", "-v", "--verbose", "--debug")
"""Options that come before a command; another one before it is one of `separate`."""


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
    console.open_streams()
    console.listen_for_signals()
    code = run(sys.argv[1:])
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # all is tidied up: a Ctrl-C while threads end has nothing to say
    sys.exit(code)


def understood(arguments: list[str]) -> list[str]:
    """The arguments as a command of ours: `separate` may be left out, and demucs' spellings are translated.

    Raises UsageError.
    """
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    front = list(takewhile(lambda word: word in OWN, arguments))
    words = arguments[len(front) :]
    if words and words[0] not in commands and (exists(Path(words[0])) or words[0].startswith("-")):
        words = ["separate", *words]  # `sepcli song.wav`
    if words[:1] != ["separate"]:
        return arguments
    if "--list-models" in words:
        return [*front, "models", "list"]
    options = [option for option in commands["separate"].params if not getattr(option, "is_flag", True)]
    words, notices = demucs.translate(words[1:], {name for option in options for name in option.opts})
    if not {"-q", "--quiet"} & {*front, *words}:
        for text in notices:
            console.notice(text)
    return [*front, "separate", *words]


def run(arguments: list[str]) -> int:
    """The exit code of a call, which begins with nothing said of how much is to be said."""
    vars(console.state).update(vars(console.State()))
    command = typer.main.get_command(app)
    words = arguments
    try:
        words = understood(arguments)
        code = int(command(words, prog_name="sepcli", standalone_mode=False) or 0)
        return code or int(console.state.lost)
    except SepcliError as error:
        show(f"{error.what}; {error.hint}" if error.hint else error.what)
        return error.exit_code
    except console.Stopped as stopped:
        show(f"{stopped.word}; finished songs are kept" if console.state.keeps else stopped.word)
        return stopped.exit_code
    except Exception as error:  # noqa: BLE001 - the last resort of the command line
        if type(error).__name__ == "NoArgsIsHelpError":  # typer keeps the class to itself
            console.write_line(error.format_message())  # type: ignore[attr-defined]
            return 2
        if hasattr(error, "format_message"):  # the command line itself is wrong
            named = next((f"{word} " for word in words if word not in OWN), "")
            show(f"{error.format_message()}; see `sepcli {named}--help`")
            return 2
        show(f"{type(error).__name__}: {error}; this is a fault of sepcli: please report it with the output of --debug")
        return 1


def show(text: str) -> None:
    if console.state.debug:
        traceback.print_exc()
    console.error(text)
