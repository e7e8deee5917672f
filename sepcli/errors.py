"""Every error that a user can meet, with the exit code of the command that ends in it.

SepcliError     1  something about one job failed; the others go on
  AudioError    1  one song: cannot be read, written, or makes no sense
  UsageError    2  options, settings, formats, plans: nothing was begun
  ModelError    3  a model: unknown name, download, digest, file, fit, bag

`what` says what is wrong with which file or option, `hint` what to do next; each is one line.
"""


class SepcliError(Exception):
    """An error told in one line. `assert` and other exceptions are for our own mistakes."""

    exit_code = 1

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.what = " ".join(what.split())
        self.hint = " ".join(hint.split())

    def __str__(self) -> str:
        return f"{self.what}; {self.hint}" if self.hint else self.what


class AudioError(SepcliError):
    """One song cannot be read, written, or separated; the others go on.

    `reason` is its class in a batch's journal: "decode" (the recording), "nan" (samples that are no numbers), "memory",
    or "io" (files, disks and networks: another try may do). `input` is what was named, where that is known to be no
    song.
    """

    def __init__(self, what: str, hint: str = "", *, reason: str = "decode", input: str = "") -> None:
        super().__init__(what, hint)
        self.reason = reason
        self.input = input


class UsageError(SepcliError):
    """Options, settings, formats or plans that cannot be; nothing was begun."""

    exit_code = 2


class ModelError(SepcliError):
    """A model cannot be had: unknown name, download, digest, file, fit, bag."""

    exit_code = 3
