"""Songs made from a seed, with four stems that are their mixture's parts: `sepcli data render`.

From nothing (oscillators, noise, a formant voice), or from recorded one-shots, notes and voices. The same seed gives
the same bits on the same machine.
"""

import functools
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sepcli.errors import AudioError, SepcliError, UsageError
from sepcli.training import effects as fx
from sepcli.training import samples
from sepcli.training.band import Session, bass, drums, other
from sepcli.training.effects import RATE, Sound
from sepcli.training.score import Score, between, chance, compose, drum_hits, stream
from sepcli.training.vocals import vocals
from sepcli.training.voices import world

STEMS = {"drums": drums, "bass": bass, "other": other, "vocals": vocals}
LOUDNESS = {"drums": (-21.0, 3.0), "bass": (-21.5, 3.5), "other": (-22.5, 3.5), "vocals": (-21.5, 3.5)}
"""Mean and deviation of each stem's loudness where it sounds, in dB, before the song's own level is drawn."""
SPREAD = 7.0
"""No stem's loudness is further from its mean, in dB."""
LEVELS = (-24.0, -10.0)
"""The mixture's loudness in dB of full scale, as far as its peak allows."""
PEAK = 0.98
"""What neither the mixture nor a stem exceeds."""
CONTAINERS = ("wav", "flac")
Job = tuple[int, Path]
"""The seed of a song, and its folder."""


@dataclass(frozen=True)
class Rendered:
    """A song: its score and its stems (2, T) by name."""

    score: Score
    stems: dict[str, Sound]


def render(seed: int, seconds: float, folder: samples.Folder | None = None) -> Rendered:
    """The song of a seed. Raises AudioError for a damaged recording, UsageError without pyworld where it has voices."""
    song = begin(seed, seconds, folder)
    return Rendered(song.score, mastered(balanced({name: make(song) for name, make in STEMS.items()}, seed), song))


def begin(seed: int, seconds: float, folder: samples.Folder | None = None) -> Session:
    """What all stems of a song share. One song in sixteen ends at 7.8 kHz, as its voices may."""
    score = compose(seed, seconds)
    rng = stream(seed, "hall")
    long = float(np.exp(between(rng, np.log(0.25), np.log(3.0))))
    hall = fx.room(rng, long, between(rng, 1500, 9000), between(rng, 0.0, 0.06))
    narrow = chance(stream(seed, "narrow"), 1 / 16)
    return Session(score, seed, round(seconds * RATE), drum_hits(score, seed), hall, folder, narrow)


def balanced(stems: dict[str, Sound], seed: int) -> dict[str, Sound]:
    """Each stem at its drawn loudness, measured where it sounds. One song in twelve is mono, one in ten fades out."""
    rng = stream(seed, "balance")
    out = {}
    for name, sound in stems.items():
        mean, deviation = LOUDNESS[name]
        wanted = mean + float(np.clip(rng.normal(0, deviation), -SPREAD, SPREAD))
        level = loudness(sound)
        out[name] = sound * np.float32(10 ** ((wanted - level) / 20)) if level > -90 else sound
    if chance(rng, 1 / 12):
        out = {name: fx.wide(sound, 0.0) for name, sound in out.items()}
    if chance(rng, 0.1):
        out = {name: faded(sound) for name, sound in out.items()}
    return out


def loudness(sound: Sound) -> float:
    """The level in dB of where a sound is not silent: of the tenths of a second within 40 dB of the loudest."""
    size = RATE // 10
    whole = np.pad(sound, ((0, 0), (0, -sound.shape[1] % size)))
    power = np.square(whole, dtype=np.float64).mean(axis=0).reshape(-1, size).mean(axis=1)
    loud = power[power >= 1e-4 * power.max()]
    return float(10 * np.log10(loud.mean() + 1e-12))


def faded(sound: Sound) -> Sound:
    """The last four seconds, or the last third of a short song, fade away."""
    slope = np.linspace(1, 0, min(4 * RATE, sound.shape[1] // 3), dtype=np.float32)
    out = sound.copy()
    out[:, out.shape[1] - len(slope) :] *= slope
    return out


def mastered(stems: dict[str, Sound], song: Session) -> dict[str, Sound]:
    """One compressor, equaliser and gain for the whole song: the same for each stem, so that they still sum up."""
    rng = stream(song.seed, "master")
    whole = np.stack(list(stems.values()))
    if chance(rng, 0.6):
        attack, release = between(rng, 0.005, 0.05), between(rng, 0.08, 0.4)
        ratio, threshold = between(rng, 1.3, 4), between(rng, -3, 5)
        whole = whole * fx.compression(whole.sum(axis=0), threshold, ratio, attack, release)
    if chance(rng, 0.5):
        whole = fx.equalise(whole, tilt=between(rng, -1, 1), bells=[(between(rng, 60, 8000), between(rng, -3, 3), 2.0)])
    if song.narrow:
        whole = fx.cut_above(whole, between(rng, 7400, 7800))
    elif chance(rng, 0.25):
        whole = fx.cut_above(whole, between(rng, 14500, 20000))
    mixture = whole.sum(axis=0)
    gain = 10 ** (between(rng, *LEVELS) / 20) / (fx.rms(mixture) + fx.QUIET)
    gain = min(gain, *(PEAK / (float(np.abs(sound).max()) + fx.QUIET) for sound in (mixture, whole)))
    return dict(zip(stems, (whole * np.float32(gain)).astype(np.float32), strict=True))


# Files


def render_songs(
    seed: int,
    songs: int,
    out: Path,
    *,
    seconds: float = 30.0,
    folder: samples.Folder | None = None,
    jobs: int = 1,
    container: str = "wav",
    progress: Callable[[float, float | None], None] = lambda _done, _total: None,
) -> list[Path]:
    """Render the songs of `songs` seeds into folders below `out`, four stems and a mixture in 16 bit each.

    Songs already there stay. Raises AudioError; UsageError, before anything is made, without pyworld where there are
    voices to sing.
    """
    if container not in CONTAINERS:
        raise UsageError(f"--format {container}: must be one of {', '.join(CONTAINERS)}")
    if folder and folder.voices:
        world()
    work = [(number, out / f"song-{number:06d}") for number in range(seed, seed + songs)]
    missing = [(number, place) for number, place in work if not place.is_dir()]
    one = functools.partial(render_song, seconds=seconds, folder=folder, container=container)
    done = len(work) - len(missing)
    progress(done, songs)
    if jobs < 2 or len(missing) < 2:
        for job in missing:
            one(job)
            progress(done := done + 1, songs)
    else:
        with closing(side_by_side(one, missing, jobs)) as finished:
            for _ in finished:
                progress(done := done + 1, songs)
    return [place for _, place in work]


def side_by_side(one: Callable[[Job], None], work: Sequence[Job], jobs: int) -> Generator[None, None, None]:
    """Do the work in processes, and tell of each song that is done. The processes end with the generator.

    Raises what `one` raises, SepcliError where a process is killed; what is half made then is removed.
    """
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), initializer=begun)
    others = set(multiprocessing.active_children())
    ours: set[multiprocessing.process.BaseProcess] = set()
    try:
        with without_interrupts():
            waiting = [pool.submit(one, job) for job in work]
            ours = set(multiprocessing.active_children()) - others
        for job in as_completed(waiting):
            job.result()
            yield
    except BrokenProcessPool:
        hint = "memory? use fewer --jobs; songs that are done are kept"
        raise SepcliError("a process ended before its song was made", hint) from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        ours |= set(multiprocessing.active_children()) - others  # a signal may come while they are begun
        for process in ours:
            process.terminate()
        for process in ours:
            process.join()
            for folder in {place.parent for _, place in work}:
                for aside in folder.glob(aside_of(folder / "*", process.pid).name):
                    shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def without_interrupts() -> Iterator[None]:
    """Processes begun within are born deaf to Ctrl-C, of which they would show tracebacks while they import."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def begun() -> None:
    """What a process of `side_by_side` does first: Ctrl-C is for the one that started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def render_song(job: Job, *, seconds: float, folder: samples.Folder | None, container: str) -> None:
    """Render one song into its folder, whole or not at all; the mixture is the sum of the stems as they are written."""
    import soundfile

    number, place = job
    stems = {name: quantised(sound) for name, sound in render(number, seconds, folder).stems.items()}
    mixture = np.sum(list(stems.values()), axis=0, dtype=np.int32).astype(np.int16)
    aside = aside_of(place, os.getpid())
    try:
        aside.mkdir(parents=True, exist_ok=True)
        for name, sound in {**stems, "mixture": mixture}.items():
            soundfile.write(aside / f"{name}.{container}", sound.T, RATE, "PCM_16")
        aside.replace(place)
    except (OSError, soundfile.SoundFileError) as error:
        raise AudioError(f"{place}: cannot be written ({error})") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def aside_of(place: Path, process: int | None) -> Path:
    """Where a process makes a song before it is moved to its place."""
    return place.with_name(f".{place.name}.{process}")


def quantised(sound: Sound) -> npt.NDArray[np.int16]:
    return np.round(sound * 32767).astype(np.int16)
