"""One source of an excerpt played in another way: faster, through an equaliser, in a room, to one side.

On the CPU, since the processes that read ahead do it; repeatable by the draws.
"""

import random

import numpy as np
import numpy.typing as npt
import soxr
import torch

from sepcli.training.recipe import Vary

Wave = npt.NDArray[np.float32]

QUICK = 4096
"""Fourier transforms of a multiple of so many samples are fast."""

LOUDNESS = 0.1
"""Root mean square of a source of one loudness, where it sounds."""


def speeds(rules: Vary, draw: random.Random) -> float:
    """By how much a source is played faster: 1 is as it was."""
    if draw.random() >= rules.chance or not rules.speed:
        return 1.0
    return float(2 ** (draw.uniform(-rules.speed, rules.speed) / 12))


def played(wave: Wave, speed: float, length: int) -> Wave:
    """(C, T) -> (C, length) at another speed; what is missing is silent."""
    if speed != 1:
        wave = soxr.resample(np.ascontiguousarray(wave.T), speed, 1.0, quality="LQ").T
    found = wave[:, :length]
    return np.pad(found, ((0, 0), (0, length - found.shape[1])))


def varied(wave: Wave, rules: Vary, sample_rate: int, draw: random.Random) -> Wave:
    """(C, T) -> (C, T) with another colour, room and place."""
    if not wave.any():
        return wave
    coloured = rules.equaliser > 0 and draw.random() < rules.chance
    roomy = rules.reverb > 0 and draw.random() < rules.chance
    if coloured or roomy:
        size = -(-wave.shape[1] // QUICK) * QUICK  # the room's end comes round to the beginning
        spectrum = torch.fft.rfft(torch.from_numpy(np.ascontiguousarray(wave)), size)
        if coloured:
            spectrum *= torch.from_numpy(response(spectrum.shape[1], sample_rate, rules.equaliser, draw))
        if roomy:
            spectrum *= torch.fft.rfft(torch.from_numpy(room(len(wave), size, sample_rate, rules.reverb, draw)))
        wave = torch.fft.irfft(spectrum, size)[:, : wave.shape[1]].numpy()
    if len(wave) == 2 and draw.random() < rules.chance:
        middle, side = (wave[0] + wave[1]) / 2, (wave[0] - wave[1]) / 2
        side = side * np.float32(draw.uniform(*rules.width))
        wave = np.stack([middle + side, middle - side])
    if len(wave) == 2 and rules.pan and draw.random() < rules.chance:
        tilt = draw.uniform(-rules.pan, rules.pan) / 2
        wave = wave * np.array([[10 ** (tilt / 20)], [10 ** (-tilt / 20)]], np.float32)
    return wave


def response(bins: int, sample_rate: int, decibels: float, draw: random.Random) -> npt.NDArray[np.float32]:
    """A smooth gain over frequency: so many decibels up or down at each octave or two, straight lines between."""
    knots = np.arange(np.log2(40.0), np.log2(sample_rate / 2) + 1.5, 1.5)
    gains = np.array([draw.uniform(-decibels, decibels) for _ in knots])
    octaves = np.log2(np.maximum(np.arange(bins) * (sample_rate / 2 / max(1, bins - 1)), 20.0))
    found: Wave = (10 ** (np.interp(octaves, knots, gains) / 20)).astype(np.float32)
    return found


def room(channels: int, size: int, sample_rate: int, longest: float, draw: random.Random) -> Wave:
    """The response of a room: the sound itself, then noise that decays, other noise in each channel, (C, size)."""
    decay = draw.uniform(0.1, 1.0) * longest
    noise = np.random.default_rng(draw.getrandbits(32))
    count = min(size, max(1, round(decay * sample_rate)))
    time = np.arange(count, dtype=np.float32) / sample_rate
    tail = noise.standard_normal((channels, count), np.float32) * np.exp(-6.9 * time / decay)
    first = round(draw.uniform(0.0, 0.04) * sample_rate)
    response = np.zeros((channels, size), np.float32)
    response[:, first:count] = tail[:, : max(0, count - first)]
    energy = np.sqrt(np.square(response).sum(axis=1, keepdims=True)) + 1e-9
    response *= 10 ** (draw.uniform(-20.0, -3.0) / 20) / energy
    response[:, 0] += 1
    return response


def evened(wave: Wave) -> Wave:
    """A source of one loudness where it sounds; silence stays so."""
    power = np.einsum("ct,ct->t", wave, wave) / len(wave)
    blocks = power[: len(power) // 2205 * 2205].reshape(-1, 2205).mean(axis=1) if len(power) >= 2205 else power
    loudest = float(blocks.max(initial=0))
    if loudest < 1e-8:
        return wave
    sounding = blocks[blocks > loudest * 1e-3]
    return wave * np.float32(LOUDNESS / np.sqrt(sounding.mean()))
