"""The command line in this process, as tests/cli has it."""

from tests.cli.conftest import sepcli, song, weights

__all__ = ["sepcli", "song", "weights"]
