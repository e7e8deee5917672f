"""The options of demucs 4.1.0 in our words, so that its users' scripts run: each is translated, or answered."""

from collections.abc import Callable, Collection, Sequence
from itertools import islice
from pathlib import Path

from sepcli.errors import UsageError

FLAGS = {"--flac": ("--format", "flac"), "--mp3": ("--format", "mp3")}
DEPTHS = {"--int24": "24", "--float32": "32f"}
RENAMED = {"--name": "--model", "--sig": "--model", "-s": "--model", "--clip-mode": "--clip"}
WITHOUT = {
    "--mp3-preset": "the encoder always works at its best quality",
    "--no-split": "a song is always cut, and joined without seams; --segment says how long the pieces are",
}
OTHERS = ("none", "add", "minus")
TAKE_VALUES = {*RENAMED, "--repo", "--other-method", "--mp3-bitrate", "--mp3-preset"}


def translate(arguments: Sequence[str], valued: Collection[str]) -> tuple[list[str], list[str]]:
    """The arguments of `separate` with demucs' spellings in our words, and what is to be said of those without effect.

    `valued` are our own options that take a value, which is left alone. Raises UsageError.
    """
    words: list[str] = []
    notices: list[str] = []
    given: dict[str, str] = {}
    rest = iter(arguments)
    for word in rest:
        if word == "--":
            words += [word, *rest]
            break
        option, joined, value = word.partition("=") if word.startswith("--") else (word, "", "")
        if word[:2] == "-s" and len(word) > 2:  # `-sNAME`
            option, joined, value = word[:2], "=", word[2:]
        if option in TAKE_VALUES:
            value = value if joined else next(rest, "")
            if not value:
                raise UsageError(f"{option}: needs a value", "see `sepcli separate --help`")
            if option in RENAMED:
                words += [RENAMED[option], value]
            elif option in WITHOUT:
                notices.append(f"{option} has no effect: {WITHOUT[option]}")
            else:
                given[option] = value
        elif option in FLAGS:
            words += FLAGS[option]
            given["format"] = FLAGS[option][1]
        elif option in DEPTHS:
            given["depth"] = option
        elif option in WITHOUT:
            notices.append(f"{option} has no effect: {WITHOUT[option]}")
        else:
            words.append(word)
            if word in valued:
                words += list(islice(rest, 1))
    front: list[str] = []
    for settle in (settle_depth, settle_bitrate, settle_others):
        settle(given, front, words, notices.append)
    return [*front, *(in_folder(words, given["--repo"]) if "--repo" in given else words)], notices


def settle_depth(given: dict[str, str], front: list[str], words: list[str], say: Callable[[str], None]) -> None:
    """--int24 and --float32, which demucs overlooks where the format has no such samples."""
    if option := given.get("depth"):
        container = given.get("format", "wav")
        if container == "mp3" or (container == "flac" and option == "--float32"):
            say(f"{option} has no effect: {container} has no such samples")
        else:
            front += ["--bit-depth", DEPTHS[option]]


def settle_bitrate(given: dict[str, str], front: list[str], words: list[str], say: Callable[[str], None]) -> None:
    if bitrate := given.get("--mp3-bitrate"):
        if given.get("format") == "mp3" or following(words, "--format") == "mp3":
            front += ["--bitrate", bitrate]
        else:
            say("--mp3-bitrate has no effect: the stems are no MP3; --mp3 makes them so")


def settle_others(given: dict[str, str], front: list[str], words: list[str], say: Callable[[str], None]) -> None:
    """--other-method: what becomes of the rest where --two-stems is given."""
    method = given.get("--other-method")
    if method is None:
        return
    if method not in OTHERS:
        raise UsageError(f"--other-method {method}: is not one of {', '.join(OTHERS)}")
    stem = following(words, "--two-stems")
    if not stem:
        say("--other-method has no effect: it goes with --two-stems")
    elif method == "none":
        place = next(i for i, word in enumerate(words) if word.partition("=")[0] == "--two-stems")
        words[place : place + (1 if "=" in words[place] else 2)] = ["--stems", stem]
    elif method == "minus":
        say(f"--other-method minus has no effect: no_{stem} is the sum of the other stems")


def in_folder(words: list[str], folder: str) -> list[str]:
    """The arguments with the model as a file of the folder of --repo. Raises UsageError where it has none."""
    name = following(words, "--model") or following(words, "-n") or following(words, "-m")
    if name is None:
        raise UsageError(f"--repo {folder}: no model is named", "use it with --name")
    files = sorted(Path(folder).iterdir()) if Path(folder).is_dir() else []
    found = [path for end in (".safetensors", ".th") for path in files if path.suffix == end and fits(path, name)]
    if not found:
        bag = ": a bag" if f"{name}.yaml" in {path.name for path in files} else ""
        hint = "join the files of a bag by commas: --model FILE,FILE" if bag else "it wants NAME.th or NAME.safetensors"
        raise UsageError(f"--repo {folder}: has no model {name}{bag}", hint)
    return [*words, "--model", str(found[0])]  # the last one counts


def fits(path: Path, name: str) -> bool:
    """Whether a file is called like a model: NAME.th, or NAME-CHECKSUM.th."""
    return path.stem == name or path.stem.rpartition("-")[0] == name


def following(words: Sequence[str], option: str) -> str | None:
    """The value that an option has."""
    for index, word in enumerate(words):
        if word == option and index + 1 < len(words):
            return words[index + 1]
        if word.startswith(f"{option}=") and option.startswith("--"):
            return word.partition("=")[2]
    return None
