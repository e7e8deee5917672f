"""Music source separation: songs into stems."""

__version__ = "0.1.0.dev0"
