"""Tensors that change shape on the way in, where a rename in weights.toml is not enough. A function a layout, by name.

Each takes the tensors of a file and gives those of a network, under names to which the entry's `rename` still applies.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


def nnabla_umx(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The HDF5 file of NNabla's X-UMX (sony/ai-research-code, x-umx): `networks.SOURCE.` and Open-Unmix's names.

    Affine weights lie (in, out) there and (out, in) here; norms (1, 1, H) and (H). LSTM weights lie (direction, gate,
    H, input + hidden), for the first layer and for the others together, with one bias in place of two; the order of
    the gates is the same.
    """
    result: dict[str, Tensor] = {}
    sources = [name.removeprefix("input_mean_") for name in tensors if name.startswith("input_mean_")]
    norm = {"weight": "gamma", "bias": "beta", "running_mean": "mean", "running_var": "var"}
    for source in sources:
        into = f"networks.{source}."
        for name in ("input_mean", "input_scale", "output_mean", "output_scale"):
            result[into + name] = tensors[f"{name}_{source}"].flatten()
        for block in "123":
            result[f"{into}fc{block}.weight"] = tensors[f"fc{block}_{source}/affine/W"].T.contiguous()
            for ours, theirs in norm.items():
                result[f"{into}bn{block}.{ours}"] = tensors[f"fc{block}_{source}/bn/{theirs}"].flatten()
            result[f"{into}bn{block}.num_batches_tracked"] = torch.tensor(0)
        first = tensors[f"lstm_{source}/lstm/weight_l0"]
        layers = [first, *tensors[f"lstm_{source}/lstm/weight"]]  # each (direction, gate, H, input + hidden)
        for number, (weights, biases) in enumerate(zip(layers, tensors[f"lstm_{source}/lstm/bias"], strict=True)):
            for weight, bias, suffix in zip(weights, biases, ("", "_reverse"), strict=False):
                rows = weight.flatten(0, 1)  # (4H, input + hidden)
                hidden = weight.shape[1]
                last = f"_l{number}{suffix}"
                result[f"{into}lstm.weight_ih{last}"] = rows[:, :-hidden]
                result[f"{into}lstm.weight_hh{last}"] = rows[:, -hidden:]
                result[f"{into}lstm.bias_ih{last}"] = bias.flatten()
                result[f"{into}lstm.bias_hh{last}"] = torch.zeros_like(bias).flatten()
    return result


def nnabla_d3net(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The HDF5 files of NNabla's D3Net (sony/ai-research-code, d3net), one or more sources: `networks.SOURCE.`.

    Paths become names; the last part before each weight only says what kind of layer it is of. Kernels lie as here,
    norms (1, H, 1, 1) and (H), scales of bins (1, 1, 1, F) and (F).
    """
    leaves = {"W": "weight", "b": "bias", "gamma": "weight", "beta": "bias", "mean": "running_mean",
              "var": "running_var"}  # fmt: skip
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        *path, leaf = name.split("/")
        into = ["networks", *(path[:-1] if leaf in leaves else path)]
        result[".".join([*into, leaves.get(leaf, leaf)])] = tensor if leaf == "W" else tensor.flatten()
        if leaf == "mean":
            result[".".join([*into, "num_batches_tracked"])] = torch.tensor(0)
    return result


LAYOUTS: dict[str, Callable[[Mapping[str, Tensor]], dict[str, Tensor]]] = {
    "nnabla_umx": nnabla_umx,
    "nnabla_d3net": nnabla_d3net,
}
