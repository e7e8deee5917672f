"""Batch norm over the batches of all processes, on any device (torch's own knows accelerators only)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class Shared(torch.autograd.Function):
    """The mean of a tensor over all processes; the gradient is the mean of theirs, which data parallelism expects."""

    @staticmethod
    def forward(_context: Any, value: Tensor) -> Tensor:
        return shared(value)

    @staticmethod
    def backward(_context: Any, gradient: Tensor) -> Tensor:
        return shared(gradient)


def shared(value: Tensor) -> Tensor:
    total = value.contiguous().clone()
    torch.distributed.all_reduce(total)
    return total / torch.distributed.get_world_size()


class SyncedBatchNorm(_BatchNorm):
    """Batch norm whose statistics in training are those of all processes, which have batches of one size."""

    def _check_input_dim(self, _input: Tensor) -> None:
        """Any (B, C, …)."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        wide = input if input.dtype == torch.float64 else input.float()
        axes = [axis for axis in range(input.dim()) if axis != 1]
        mean: Tensor = Shared.apply(wide.mean(axes, keepdim=True))  # type: ignore[no-untyped-call]
        variance: Tensor = Shared.apply((wide - mean).square().mean(axes, keepdim=True))  # type: ignore[no-untyped-call]
        self._remember(mean.detach().flatten(), variance.detach().flatten(), input.numel() // input.shape[1])
        weight, bias = (parameter.view_as(mean) for parameter in (self.weight, self.bias))
        return ((wide - mean) * torch.rsqrt(variance + self.eps) * weight + bias).to(input.dtype)

    def _remember(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """The running statistics, as torch keeps them: the variance without bias, over all `count` of each process."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        count *= torch.distributed.get_world_size()
        self.num_batches_tracked += 1
        weight = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean), weight)
        self.running_var.lerp_((variance * (count / max(1, count - 1))).to(self.running_var), weight)


def synchronise(model: nn.Module) -> None:
    """Let every batch norm of a network share its statistics; parameters, buffers and their names stay."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, _BatchNorm) and not isinstance(child, SyncedBatchNorm):
                setattr(module, name, synced(child))


def synced(norm: _BatchNorm) -> SyncedBatchNorm:
    other = SyncedBatchNorm(norm.num_features, norm.eps, norm.momentum)
    other.weight, other.bias = norm.weight, norm.bias
    for name, buffer in norm.named_buffers():
        setattr(other, name, buffer)
    return other.train(norm.training)
