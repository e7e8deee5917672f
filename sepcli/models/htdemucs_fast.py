"""Hybrid Transformer Demucs for float32 inference on a CPU: the network of htdemucs.py to rounding.

Its U-Nets are those of nn/tiled.py; the transformer between them is the network's own.
"""

import torch
from torch import Tensor, nn

from sepcli.models.htdemucs import HTDemucs
from sepcli.models.separator import Estimate
from sepcli.nn.tiled import TiledUNets


class FastHTDemucs(nn.Module):
    """The fast form of a network in eval mode. Holds the U-Nets' weights as they are when it is made."""

    def __init__(self, model: HTDemucs) -> None:
        super().__init__()
        self.sources = len(model.sources)
        self.model = model
        embedding = None
        if model.freq_emb is not None:
            embedding = (model.freq_emb_weight * model.freq_emb().detach())[..., None]
        self.nets = TiledUNets(
            model.encoder,
            model.tencoder,
            Between(model),
            model.decoder,
            model.tdecoder,
            window=model.window,
            embedding=embedding,
        )

    def forward(self, mixture: Tensor) -> Estimate:
        """(B, C, T) -> waveforms (B, S, C, T), one item after the other. Raises UsageError as the network does."""
        waveforms = torch.stack([self.nets(item) for item in self.model.filled(mixture)])[..., : mixture.shape[-1]]
        return Estimate(torch.unflatten(waveforms, 1, (self.sources, -1)))


class Between(nn.Module):
    """The transformer, whose output is added to both branches, spectral (F, H, N) and waveform (T, H)."""

    def __init__(self, model: HTDemucs) -> None:
        super().__init__()
        self.transform = model.between

    def forward(self, x: Tensor, xt: Tensor) -> None:
        heard, heard_t = self.transform(x.transpose(0, 1)[None].contiguous(), xt.T[None].contiguous())
        x.add_(heard[0].transpose(0, 1))
        xt.add_(heard_t[0].T)
