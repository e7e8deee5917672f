"""From a name or a path to a network with its weights."""
