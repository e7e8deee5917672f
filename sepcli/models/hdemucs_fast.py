"""Hybrid Demucs for float32 inference on a CPU: the network of hdemucs.py to rounding, at less than half of its time.

The outer levels are those of nn/tiled.py. Further in than where the branches meet there is little data: ordinary
operators do it well.
"""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sepcli.models.hdemucs import HDemucs
from sepcli.models.separator import Estimate
from sepcli.nn.attention import LocalState
from sepcli.nn.folded import parameters
from sepcli.nn.hybrid import DecoderLayer, EncoderLayer
from sepcli.nn.lstm import BLSTM
from sepcli.nn.tiled import TiledUNets, branches_of


def covers(model: HDemucs) -> bool:
    """Whether the fast form knows a network's settings: complex spectrograms, both branches, plain outer levels."""
    if not (model.cac and model.hybrid) or model.hybrid_old:
        return False
    if not all(isinstance(layer, EncoderLayer) and layer.rewrite is not None for layer in model.encoder):
        return False
    if any(not isinstance(layer, DecoderLayer) or layer.dconv is not None for layer in model.decoder):
        return False
    outer = len(model.tencoder) - 1
    return all(
        isinstance(layer.norm1, nn.Identity)
        and layer.dconv is not None
        and not any(isinstance(part, BLSTM | LocalState) for part in layer.dconv.modules())
        for layer in cast(Sequence[EncoderLayer], (*model.encoder[:outer], *model.tencoder[:outer]))
    )


class FastHDemucs(nn.Module):
    """The fast form of a network that it `covers`. Holds the weights as they are when it is made."""

    def __init__(self, model: HDemucs) -> None:
        super().__init__()
        self.sources = len(model.sources)
        outer = len(model.tencoder) - 1
        encoder, decoder = cast(Sequence[EncoderLayer], model.encoder), cast(Sequence[DecoderLayer], model.decoder)
        embedding = None
        if model.freq_emb is not None:
            embedding = (model.freq_emb_weight * model.freq_emb().detach())[..., None]
        self.nets = TiledUNets(
            encoder[:outer],
            model.tencoder[:outer],
            Middle(encoder[outer:], model.tencoder[outer], decoder[:-outer], model.tdecoder[0]),
            decoder[-outer:],
            model.tdecoder[-outer:],
            window=model.window,
            embedding=embedding,
        )

    def forward(self, mixture: Tensor) -> Estimate:
        """(B, C, T) -> waveforms (B, S, C, T), one item after the other."""
        waveforms = torch.stack([self.nets(item) for item in mixture])
        return Estimate(torch.unflatten(waveforms, 1, (self.sources, -1)))


class Middle(nn.Module):
    """The levels from the meeting of the branches inwards, and back: both branches' last outer levels, spectral
    (F, H, N) and waveform (T, H), get the decoders' outputs added.
    """

    def __init__(
        self,
        encoder: Sequence[EncoderLayer],
        tencoder: EncoderLayer,
        decoder: Sequence[DecoderLayer],
        tdecoder: DecoderLayer,
    ) -> None:
        super().__init__()
        self.encoder, self.tencoder, self.decoder, self.tdecoder = encoder, tencoder, decoder, tdecoder
        self.branches = [branches_of(layer) for layer in encoder]

    def forward(self, x: Tensor, xt: Tensor) -> None:
        skips: list[Tensor] = []
        sizes: list[int] = []
        h = self.encoder[0].reduce(x.transpose(0, 1)[None])[:, :, 0] + self.tencoder.reduce(xt.T[None])  # (1, H, N)
        for index, (encode, branches) in enumerate(zip(self.encoder, self.branches, strict=True)):
            if index:
                sizes.append(h.shape[-1])
                h = encode.reduce(h)
            h = F.gelu(encode.norm1(h))
            for branch in branches:
                branch(h)
            h = gated(F.conv1d(h, *narrow(encode.rewrite)), encode.norm2)
            skips.append(h)
        h = torch.zeros_like(h)  # the innermost layer has nothing but its skip connection
        for decode in self.decoder:
            shared = gated(F.conv1d(h + skips.pop(), *narrow(decode.rewrite), padding=1), decode.norm1)
            if skips:
                h = decode(shared, sizes.pop())
        x.add_(self.decoder[-1](shared[:, :, None], len(x))[0].transpose(0, 1))
        xt.add_(self.tdecoder(shared, len(xt))[0].T)


def gated(x: Tensor, norm: nn.Module | None) -> Tensor:
    assert norm is not None
    return F.glu(norm(x), dim=1)


def narrow(convolution: nn.Module | None) -> tuple[Tensor, Tensor]:
    """A convolution's weight and bias over frames, where there is one bin: the middle row alone sees it."""
    weight, bias = parameters(convolution)
    return weight[:, :, weight.shape[2] // 2] if weight.dim() == 4 else weight, bias
