"""A trained network as the package carries it: half precision on disk, with its entry and nothing of where it was made.

`python -m sepcli.weights.bundle runs/mini/best.safetensors sepcli/mini.safetensors` writes the file and prints the
digest that weights.toml wants.
"""

import sys
from pathlib import Path

from sepcli.errors import ModelError
from sepcli.weights import checkpoint
from sepcli.weights.fetch import digest_of


def bundle(trained: Path, target: Path) -> str:
    """Write a run's checkpoint in half precision and return the file's digest.

    Loading widens it again: networks are float32 in memory. Raises ModelError.
    """
    import torch

    from sepcli.weights.read import read

    entry = checkpoint.read_entry(trained)
    if entry is None:
        raise ModelError(f"{trained}: is no checkpoint of sepcli train", "give a run's best.safetensors")
    tensors = read(trained).tensors
    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    if broken := [name for name, tensor in half.items() if not bool(torch.isfinite(tensor).all())]:
        raise ModelError(f"{trained}: {broken[0]} does not fit half precision")
    checkpoint.save(target, half, {key: value for key, value in entry.items() if key != "training"}, {})
    return digest_of(target)


if __name__ == "__main__":
    print(bundle(Path(sys.argv[1]), Path(sys.argv[2])))
