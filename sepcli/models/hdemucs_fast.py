"""Hybrid Demucs for float32 inference on a CPU: the network of hdemucs.py to rounding, at a third of its time.

Half of the plain network's time is not arithmetic but memory: fresh pages, copies between layouts, norms. Here

- the spectral branch's outer levels lie as [bin, channel, frame], with zeros around, so that a strided, a transposed
  and a 3×3 convolution are products of matrices over views, without a copy. The encoder's are computed for a few bins
  at a time, from the strided convolution to the GLU: its residual branches see one bin over all frames, so that the
  bins are independent. The decoder's as well, with one row carried from tile to tile.
- the waveform branch's outer levels lie as [sample, channel], likewise, a few thousand samples at a time.
- one buffer a level is skip connection and decoder's input: the decoder below adds its output into it.
- the transforms are made in blocks of frames, in the layout of their neighbours.

Further in than where the branches meet there is little data: ordinary operators do it well.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sepcli.dsp.stft import reflect
from sepcli.models.hdemucs import KERNEL, PADDING, STRIDE, DecoderLayer, EncoderLayer, HDemucs, normalised
from sepcli.models.separator import Estimate
from sepcli.nn.folded import FoldedBranch

BINS = 192  # bins × channels of a tile of the spectral branch
ROWS = 2048 * 48  # samples × channels of a tile of the waveform branch
FRAMES = 64  # of a block of the transforms


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
        and all(len(branch) == 7 for branch in layer.dconv.layers)  # neither BLSTM nor attention
        for layer in (*model.encoder[:outer], *model.tencoder[:outer])
    )


class FastHDemucs(nn.Module):
    """The fast form of a network that it `covers`. Holds the weights as they are when it is made."""

    def __init__(self, model: HDemucs) -> None:
        super().__init__()
        self.model = model
        outer = len(model.tencoder) - 1
        embedding = None
        if model.freq_emb is not None:
            embedding = (model.freq_emb_weight * model.freq_emb().detach())[..., None]
        self.encoder = nn.ModuleList(
            SpectralEncoder(layer, None if index else embedding) for index, layer in enumerate(model.encoder[:outer])
        )
        self.tencoder = nn.ModuleList(WaveformEncoder(layer) for layer in model.tencoder[:outer])
        self.middle = Middle(model)
        self.decoder = nn.ModuleList(SpectralDecoder(layer) for layer in model.decoder[-outer:])
        self.tdecoder = nn.ModuleList(WaveformDecoder(layer) for layer in model.tdecoder[-outer:])

    def forward(self, mixture: Tensor) -> Estimate:
        """(B, C, T) -> waveforms (B, S, C, T), one item after the other."""
        return Estimate(torch.stack([self.separated(item) for item in mixture]))

    def separated(self, mixture: Tensor) -> Tensor:
        """(C, T) -> (S, C, T). Levels are freed as they have been used."""
        spectra, mean, deviation = self.analysed(mixture)
        waveform, mean_t, deviation_t = normalised(mixture[None])
        bins, frames = spectra.shape[0] - 4, spectra.shape[2] - 2
        levels, levels_t, lengths = [self.encoder[0](spectra)], [bordered_rows(waveform[0].T)], [mixture.shape[-1]]
        del spectra, waveform
        for encode in self.encoder[1:]:
            levels.append(encode(levels[-1]))
        for encode in self.tencoder:
            levels_t.append(encode(levels_t[-1], lengths[-1]))
            lengths.append(-(-lengths[-1] // STRIDE))
        self.middle(inside(levels[-1]), levels_t[-1][PADDING:][: lengths[-1]])

        outputs = mixture.shape[0] * len(self.model.sources)
        levels_t[0] = mixture.new_empty(PADDING + lengths[0], outputs)
        for decode in self.tdecoder:
            decode(levels_t.pop(), lengths.pop(), levels_t[-1][PADDING:][: lengths[-1]])
        x = mixture.new_empty(bins, 2 * outputs, frames)
        for decode in self.decoder:
            decode(levels.pop(), inside(levels[-1]) if levels else x)
        waveforms = self.synthesised(x, mean, deviation, lengths[0])
        waveforms.addcmul_(levels_t[0][PADDING:].T, deviation_t[0]).add_(mean_t[0])
        return torch.unflatten(waveforms, 0, (len(self.model.sources), -1))

    def analysed(self, mixture: Tensor) -> tuple[Tensor, float, float]:
        """(C, T) -> spectra at zero mean and unit deviation, in a buffer (F + 4, 2 C, N + 2); mean and deviation."""
        size, hop = len(self.model.window), self.model.hop
        margin = hop * 3 // 2
        sounds = reflect(mixture, margin, margin + -mixture.shape[-1] % hop).unfold(-1, size, hop)  # (C, N, size)
        window = self.model.window / size**0.5
        spectra = bordered(size // 2, 2 * len(mixture), sounds.shape[1])
        x = inside(spectra)
        for sound, pair in zip(sounds, x.split(2, dim=1), strict=True):
            for block in tiles(len(sound), FRAMES):
                values = torch.view_as_real(torch.fft.rfft(sound[block] * window))[:, :-1]
                pair[..., block] = values.movedim(0, -1)  # (n, F, 2) -> (F, 2, n)
        mean = float(x.mean())
        x.sub_(mean)
        squares = sum(float(torch.linalg.vector_norm(row)) ** 2 for row in x)
        deviation = float((squares / max(1, x.numel() - 1)) ** 0.5)
        x.div_(1e-5 + deviation)
        return spectra, mean, deviation

    def synthesised(self, x: Tensor, mean: float, deviation: float, length: int) -> Tensor:
        """The spectral branch's output (F, S * 2 C, N) -> (S * C, length)."""
        size, hop, frames = len(self.model.window), self.model.hop, x.shape[-1]
        window = self.model.window * (size**0.5 / 1.5)  # 1.5: the sum of the squared windows wherever four overlap
        first = size // 2 + hop * 3 // 2
        waveforms = x.new_empty(x.shape[1] // 2, length)
        for waveform, pair in zip(waveforms, x.split(2, dim=1), strict=True):
            sound = x.new_zeros(frames + 7, hop)  # two frames of zeros at either end, and the tail of the last one
            for block in tiles(frames, FRAMES):
                values = x.new_zeros(block.stop - block.start, size // 2 + 1, 2)
                values[:, :-1] = pair[..., block].movedim(-1, 0)
                values[:, :-1].mul_(deviation).add_(mean)
                parts = torch.fft.irfft(torch.view_as_complex(values), n=size).mul_(window).unflatten(1, (4, hop))
                for part in range(4):
                    sound[2 + part + block.start : 2 + part + block.stop] += parts[:, part]
            waveform.copy_(sound.flatten()[first : first + length])
        return waveforms


class SpectralEncoder(nn.Module):
    """An EncoderLayer over bins: buffer (F + 4, C, N + 2) -> (F / 4 + 4, H, N + 2). `embedding` (F / 4, H, 1)."""

    def __init__(self, layer: EncoderLayer, embedding: Tensor | None) -> None:
        super().__init__()
        self.weight, self.bias = matrix(layer.conv)  # (H, 8 C)
        self.branches = branches_of(layer)
        self.rewrite, self.rewrite_bias = matrix(layer.rewrite)  # (2 H, H)
        self.embedding = embedding

    def forward(self, x: Tensor) -> Tensor:
        width, (rows, _, frames) = len(self.weight), x.shape
        out = bordered((rows - 4) // STRIDE, width, frames - 2)
        for tile in tiles(len(out) - 4, max(1, BINS // width)):
            seen = windows(x, STRIDE * tile.start, tile.stop - tile.start, KERNEL, STRIDE)[..., 1:-1]
            h = F.gelu(product(self.weight, self.bias, seen))
            for branch in self.branches:
                branch(h)
            given, gate = product(self.rewrite, self.rewrite_bias, h).tensor_split(2, dim=1)
            y = torch.mul(given, gate.sigmoid_(), out=inside(out)[tile])
            if self.embedding is not None:
                y.add_(self.embedding[tile])
        return out


class SpectralDecoder(nn.Module):
    """A DecoderLayer over bins: from a buffer (F + 4, H, N + 2) into `out` (4 F, C, N), to which it is added unless
    it is the last layer.
    """

    def __init__(self, layer: DecoderLayer) -> None:
        super().__init__()
        self.last = layer.last
        weight, self.bias = parameters(layer.rewrite)  # (2 H, H, 3, 3)
        self.taps = [weight[..., tap].transpose(1, 2).flatten(1).contiguous() for tap in range(3)]  # (2 H, 3 H)
        self.up, self.up_bias = upwards(layer)

    def forward(self, x: Tensor, out: Tensor) -> None:
        rows, width, frames = len(x) - 4, x.shape[1], x.shape[2] - 2
        step = max(1, BINS // width)
        y = x.new_zeros(step + 1, width, frames)  # and before them the last tile's last row
        for tile in tiles(rows + 1, step):
            count, there = tile.stop - tile.start, min(tile.stop, rows) - tile.start
            if there:
                seen = windows(x, tile.start + 1, there, 3)
                z = product(self.taps[0], self.bias, seen[..., :-2])
                for tap in (1, 2):
                    z.baddbmm_(self.taps[tap].expand(there, -1, -1), seen[..., tap : tap + frames])
                given, gate = z.tensor_split(2, dim=1)
                torch.mul(given, gate.sigmoid_(), out=y[1 : 1 + there])
            y[1 + there :] = 0
            grown = product(self.up, self.up_bias, windows(y, 0, count, 2))
            merge(grown.reshape(STRIDE * count, -1, frames), STRIDE * tile.start - PADDING, out, self.last)
            y[0] = y[count]


class WaveformEncoder(nn.Module):
    """An EncoderLayer over samples: buffer of `length` rows (T, C) -> one of T / 4 rows (T / 4, H)."""

    def __init__(self, layer: EncoderLayer) -> None:
        super().__init__()
        weight, self.bias = matrix(layer.conv)
        self.weight = weight.T.contiguous()  # (8 C, H)
        self.branches = branches_of(layer)
        self.rewrite = halves(layer.rewrite)

    def forward(self, x: Tensor, length: int) -> Tensor:
        count, width = -(-length // STRIDE), self.weight.shape[1]
        parts = tiles(count, max(1, ROWS // width))
        y = x.new_empty(count, width)
        for tile in parts:
            seen = windows(x, STRIDE * tile.start, tile.stop - tile.start, KERNEL, STRIDE)
            y[tile] = F.gelu(torch.addmm(self.bias, seen, self.weight))
        for branch in self.branches:
            branch.over_rows(y, parts)
        out = bordered_rows(y)
        for tile in parts:
            gated(y[tile], self.rewrite, out[PADDING:][tile])
        return out


class WaveformDecoder(nn.Module):
    """A DecoderLayer over samples: from a buffer of `length` rows (T, H) into `out` (4 T or less, C), to which it is
    added unless it is the last layer.
    """

    def __init__(self, layer: DecoderLayer) -> None:
        super().__init__()
        self.last = layer.last
        self.rewrite = halves(layer.rewrite)
        up, self.up_bias = upwards(layer)
        self.up = up.T.contiguous()

    def forward(self, x: Tensor, length: int, out: Tensor) -> None:
        width = x.shape[1]
        step = max(1, ROWS // width)
        y = x.new_zeros(step + 1, width)
        for tile in tiles(length + 1, step):
            count, there = tile.stop - tile.start, min(tile.stop, length) - tile.start
            if there:
                gated(windows(x, tile.start + 1, there, 3), self.rewrite, y[1 : 1 + there])
            y[1 + there :] = 0
            grown = torch.addmm(self.up_bias[:, 0], windows(y, 0, count, 2), self.up)
            merge(grown.view(STRIDE * count, -1), STRIDE * tile.start - PADDING, out, self.last)
            y[0] = y[count]


class Middle(nn.Module):
    """The levels from the meeting of the branches inwards, and back: both branches' last outer levels, spectral
    (F, H, N) and waveform (T, H), get the decoders' outputs added.
    """

    def __init__(self, model: HDemucs) -> None:
        super().__init__()
        self.meeting = len(model.tencoder) - 1
        self.encoder, self.decoder = model.encoder[self.meeting :], model.decoder[: -self.meeting]
        self.tencoder, self.tdecoder = model.tencoder[-1], model.tdecoder[0]
        self.branches = nn.ModuleList(branches_of(layer) for layer in self.encoder)

    def forward(self, x: Tensor, xt: Tensor) -> None:
        skips, sizes = [], []
        h = self.encoder[0].reduce(x.transpose(0, 1)[None])[:, :, 0]  # (1, H, N)
        h = h + self.tencoder.reduce(xt.T[None])
        for index, (layer, branches) in enumerate(zip(self.encoder, self.branches, strict=True)):
            if index:
                sizes.append(h.shape[-1])
                h = layer.reduce(h)
            h = F.gelu(layer.norm1(h))
            for branch in branches:
                branch(h)
            h = F.glu(layer.norm2(F.conv1d(h, *narrow(layer.rewrite))), dim=1)
            skips.append(h)
        h = torch.zeros_like(h)
        for layer in self.decoder:
            shared = F.conv1d(h + skips.pop(), *narrow(layer.rewrite), padding=1)
            shared = F.glu(layer.norm1(shared), dim=1)
            if skips:
                h = layer(shared, sizes.pop())
        x.add_(layer(shared[:, :, None], len(x))[0].transpose(0, 1))
        xt.add_(self.tdecoder(shared, len(xt))[0].T)


def branches_of(layer: EncoderLayer) -> nn.ModuleList:
    return nn.ModuleList(FoldedBranch(branch) for branch in (layer.dconv.layers if layer.dconv else ()))


def parameters(convolution: nn.Module | None) -> tuple[Tensor, Tensor]:
    """A convolution's weight and bias, without gradients."""
    assert isinstance(convolution, nn.Conv1d | nn.Conv2d)
    assert convolution.bias is not None
    return convolution.weight.detach(), convolution.bias.detach()


def matrix(convolution: nn.Module | None) -> tuple[Tensor, Tensor]:
    """A convolution along one axis as a matrix (H, taps * C), and its bias."""
    weight, bias = parameters(convolution)
    return weight.flatten(2).transpose(1, 2).flatten(1).contiguous(), bias


def halves(convolution: nn.Module | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A convolution along one axis before a GLU, as matrices (taps * C, H) and biases of what goes in and of the gate:
    apart, so that each product is contiguous.
    """
    weight, bias = matrix(convolution)
    (given, gate), (given_bias, gate_bias) = weight.tensor_split(2), bias.tensor_split(2)
    return given.T.contiguous(), given_bias, gate.T.contiguous(), gate_bias


def narrow(convolution: nn.Module | None) -> tuple[Tensor, Tensor]:
    """A convolution's weight and bias over frames, where there is one bin: the middle row alone sees it."""
    weight, bias = parameters(convolution)
    return weight[:, :, weight.shape[2] // 2] if weight.dim() == 4 else weight, bias


def upwards(layer: DecoderLayer) -> tuple[Tensor, Tensor]:
    """A transposed convolution as a matrix from two neighbouring rows, (4 C, 2 H), and its bias (4 C, 1): row g and the
    one before it give the rows 4 g to 4 g + 3 that it has before it is cropped.
    """
    assert layer.conv_tr.bias is not None
    weight = layer.conv_tr.weight.detach().flatten(2).permute(2, 1, 0)  # (8, C, H)
    now, before = weight.flatten(0, 1).tensor_split(2)
    return torch.cat([before, now], dim=1), layer.conv_tr.bias.detach().repeat(STRIDE)[:, None]


def product(weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    """weight (H, C) by each item of x (n, C, N), and the bias."""
    return torch.baddbmm(bias.view(-1, 1), weight.expand(len(x), -1, -1), x)


def gated(x: Tensor, weights: tuple[Tensor, Tensor, Tensor, Tensor], out: Tensor) -> None:
    """A convolution and a GLU of rows (n, taps * C) into `out` (n, H)."""
    given, given_bias, gate, gate_bias = weights
    torch.mul(torch.addmm(given_bias, x, given), torch.addmm(gate_bias, x, gate).sigmoid_(), out=out)


def merge(rows: Tensor, first: int, out: Tensor, last: bool) -> None:
    """Put rows into `out` from its row `first` on, as far as they lie in it: as they are, or activated and added."""
    start, stop = max(0, first), min(len(out), first + len(rows))
    rows, place = rows[start - first : stop - first], out[start:stop]
    if last:
        place.copy_(rows)
    else:
        place.add_(F.gelu(rows))


def tiles(count: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]


def windows(x: Tensor, first: int, count: int, span: int, step: int = 1) -> Tensor:
    """`count` views (count, span * C, ...) of `span` rows each, one every `step` rows, of a buffer (rows, C, ...)."""
    row = x.stride(0)
    seen = x.as_strided((count, span * row), (step * row, 1), x.storage_offset() + first * row)
    return seen.unflatten(1, (span * x.shape[1], *x.shape[2:]))


def bordered(bins: int, channels: int, frames: int) -> Tensor:
    """A buffer (F + 4, C, N + 2), of which only the borders are set: they are zero."""
    buffer = torch.empty(bins + 2 * PADDING, channels, frames + 2)
    buffer[:PADDING], buffer[-PADDING:] = 0, 0
    buffer[..., 0], buffer[..., -1] = 0, 0
    return buffer


def inside(buffer: Tensor) -> Tensor:
    """What lies between the borders, (F, C, N)."""
    return buffer[PADDING:-PADDING, :, 1:-1]


def bordered_rows(rows: Tensor) -> Tensor:
    """Rows (T, C) in a buffer with two rows of zeros at either end, and as many as fill the last stride."""
    end = PADDING + -len(rows) % STRIDE
    return F.pad(rows, (0, 0, PADDING, end))
