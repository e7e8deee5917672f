"""The options of demucs 4.1.0: each is taken, none is ignored in silence; the same files in the same places."""

import re
from pathlib import Path

import pytest

from sepcli.cli.demucs import translate
from sepcli.errors import UsageError
from tests import passthrough

VALUED = ("--model", "-n", "-m", "--out", "-o", "--filename", "--two-stems", "--segment", "--device", "-d", "--overlap")
EACH = [
    ["-n", "m"],
    ["--name", "m"],
    ["--name=m"],
    ["-s", "m"],
    ["--sig", "m"],
    ["-v"],
    ["--verbose"],
    ["-o", "x"],
    ["--out", "x"],
    ["--filename", "{model}/{track}.{trackext}/{stem}.{ext}"],
    ["-d", "cpu"],
    ["--device", "cpu"],
    ["--shifts", "1"],
    ["--overlap", "0.1"],
    ["--no-split"],
    ["--segment", "1"],
    ["--two-stems", "vocals"],
    ["--two-stems=vocals", "--other-method", "none"],
    ["--two-stems=vocals", "--other-method=add"],
    ["--two-stems", "vocals", "--other-method", "minus"],
    ["--int24"],
    ["--float32"],
    ["--clip-mode", "rescale"],
    ["--clip-mode=clamp"],
    ["--clip-mode", "none"],
    ["--flac"],
    ["--flac", "--int24"],
    ["--flac", "--float32"],
    ["--mp3"],
    ["--mp3", "--mp3-bitrate", "192"],
    ["--mp3-bitrate", "192"],
    ["--mp3", "--mp3-preset", "7"],
    ["-j", "2"],
    ["-j2"],
    ["--jobs=2"],
]


@pytest.mark.parametrize("options", EACH, ids=" ".join)
def test_each_option_is_taken(options: list[str], sepcli, song, tmp_path: Path, monkeypatch) -> None:
    passthrough.save(tmp_path / "repo/m.th")
    (tmp_path / "repo/m.th").rename(tmp_path / "repo/m.safetensors")
    named = any(option.startswith(("-n", "--name", "-s")) for option in options)
    done = sepcli(song("a.wav", seconds=0.2), *options, "--repo", "repo", *([] if named else ["-n", "m"]))
    assert done.code == 0, done.err
    assert done.lines


def test_the_help_of_demucs_has_no_other_options() -> None:
    """Every option string of its parser is among those tried above, or lists the models, or is --help or --repo."""
    pytest.importorskip("demucs")
    from demucs.separate import get_parser

    tried = {option.partition("=")[0] for options in EACH for option in options if option.startswith("-")} | {"-j"}
    options = {string for action in get_parser()._actions for string in action.option_strings}
    assert options - tried == {"-h", "--help", "--repo", "--list-models"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--mp3-preset", "2"], "--mp3-preset has no effect"),
        (["--no-split"], "--no-split has no effect"),
        (["--flac", "--float32"], "--float32 has no effect"),
        (["--mp3", "--int24"], "--int24 has no effect"),
        (["--mp3-bitrate", "320"], "--mp3-bitrate has no effect"),
        (["--other-method", "add"], "--other-method has no effect"),
        (["--two-stems", "vocals", "--other-method", "minus"], "--other-method minus has no effect"),
    ],
)
def test_what_has_no_effect_is_said_once(arguments: list[str], words: str) -> None:
    _, notices = translate(["a.wav", *arguments], VALUED)
    assert len(notices) == 1
    assert notices[0].startswith(words)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--name", "x", "--clip-mode=none"], ["--model", "x", "--clip", "none"]),
        (["--mp3", "--mp3-bitrate=192"], ["--bitrate", "192", "--format", "mp3"]),
        (["--int24"], ["--bit-depth", "24"]),
        (["--two-stems", "v", "--other-method", "none"], ["--stems", "v"]),
        (["--out", "--flac", "a.wav"], ["--out", "--flac", "a.wav"]),
        (["--", "--flac"], ["--", "--flac"]),
    ],
)
def test_spellings_become_ours_and_values_stay(arguments: list[str], expected: list[str]) -> None:
    assert translate(arguments, VALUED) == (expected, [])


def test_a_repository_without_the_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bag.yaml").write_text("models: [a, b]")
    with pytest.raises(UsageError, match="has no model bag: a bag; join the files"):
        translate(["--repo", str(tmp_path), "-n", "bag"], VALUED)
    with pytest.raises(UsageError, match="has no model x"):
        translate(["--repo", str(tmp_path), "--name=x"], VALUED)
    (tmp_path / "x-0123abcd.th").write_bytes(b"")
    (tmp_path / "xy-0123abcd.th").write_bytes(b"")
    words, _ = translate(["--repo", str(tmp_path), "-n", "x"], VALUED)
    assert words[-2:] == ["--model", str(tmp_path / "x-0123abcd.th")]


def test_the_list_of_models_is_ours(capfd: pytest.CaptureFixture[str]) -> None:
    from sepcli.cli import run

    assert run(["separate", "--list-models"]) == 0
    assert "hdemucs" in capfd.readouterr().out


def test_separate_may_be_left_out(song, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sepcli.cli import run

    monkeypatch.chdir(tmp_path)
    path = song("a.wav", seconds=0.1)
    assert run([str(path), "--model", str(weights)]) == 0
    assert run(["--model", str(weights), "--flac", str(path)]) == 0
    assert run(["seperate", str(path)]) == 2


@pytest.mark.parametrize("command", [[], ["separate"]])
def test_options_of_every_command_may_come_first(
    command, song, weights: Path, tmp_path: Path, monkeypatch, capfd
) -> None:
    from sepcli.cli import run

    monkeypatch.chdir(tmp_path)
    path = song("a.wav", seconds=0.1)
    words = [str(path), "--model", str(weights), "--mp3", "--mp3-preset", "2"]
    assert run(["-q", *command, *words]) == 0
    told = capfd.readouterr()
    assert (told.err, len(told.out.splitlines())) == ("", 4)
    assert all(line.endswith(".mp3") for line in told.out.splitlines())
    assert run(["-q", *command, str(path), "--nonsense"]) == 2
    assert "see `sepcli separate --help`" in capfd.readouterr().err


@pytest.mark.reference
@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--flac"],
        ["--mp3"],
        ["--two-stems", "vocals"],
        ["--two-stems", "vocals", "--other-method", "none"],
        ["--int24", "--two-stems", "drums", "--flac"],
        ["-o", "elsewhere"],
    ],
    ids=" ".join,
)
def test_the_tree_of_stems_is_that_of_demucs(options: list[str], sepcli, song, tmp_path: Path, monkeypatch) -> None:
    separate = pytest.importorskip("demucs.separate")
    songs = [song(name, seconds=0.3) for name in ("a.wav", "My Song.flac", "x.y.wav")]
    monkeypatch.setattr(separate, "save_audio", lambda _wave, path, **_: Path(path).touch())
    (tmp_path / "theirs").mkdir()
    monkeypatch.chdir(tmp_path / "theirs")
    separate.main(["-n", "demucs_unittest", "-d", "cpu", "--shifts", "0", *options, *map(str, songs)])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ours").mkdir()
    monkeypatch.chdir(tmp_path / "ours")
    model = passthrough.save(tmp_path / "demucs_unittest.safetensors")
    assert sepcli("--name", str(model), "-d", "cpu", *options, "--no-sidecar", *songs).code == 0

    def tree(folder: Path) -> set[str]:
        return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}

    assert tree(tmp_path / "ours") == tree(tmp_path / "theirs")
    assert len(tree(tmp_path / "ours")) >= 3
    assert all(
        re.fullmatch(r"(separated|elsewhere)/demucs_unittest/[^/]+/\w+\.(wav|flac|mp3)", p)
        for p in tree(tmp_path / "ours")
    )
