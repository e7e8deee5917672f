"""Many songs: lists, shards, journals, workers, clusters. Each engine runs the one function of process.py."""
