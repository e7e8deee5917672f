"""The one path from a song to its stems."""
