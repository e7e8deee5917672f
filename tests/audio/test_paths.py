from pathlib import Path, PurePath

import pytest

from sepcli.audio.paths import TEMPLATE, clashes, find_songs, output_path, track_name
from sepcli.errors import UsageError


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def place(template=TEMPLATE, **values):
    settled = {"model": "hdemucs", "reldir": "", "track": "song", "stem": "vocals", "ext": "wav", "index": 1}
    return output_path(Path("out"), template, **(settled | values))


def test_folders_give_their_audio_files_sorted_and_without_hidden_ones(tmp_path):
    touch(
        *(tmp_path / name for name in ("b.WAV", "a.mp3", "cover.jpg", ".hidden.wav", "sub/c.flac", ".sepcli-1-a/0.wav"))
    )
    found, problems = find_songs([tmp_path], recursive=False)
    assert [song.path.name for song in found] == ["a.mp3", "b.WAV"]
    assert problems == []


def test_recursive_keeps_each_folder_s_relative_path(tmp_path):
    touch(*(tmp_path / name for name in ("z.wav", "x/y/b.m4a", "x/a.ogg", ".git/c.wav")))
    found, _ = find_songs([tmp_path], recursive=True)
    assert [(song.path.name, song.reldir.as_posix()) for song in found] == [
        ("z.wav", "."),
        ("a.ogg", "x"),
        ("b.m4a", "x/y"),
    ]


def test_a_loop_of_links_ends_and_each_song_comes_once(tmp_path):
    touch(tmp_path / "a" / "one.wav")
    (tmp_path / "a" / "again").symlink_to(tmp_path)
    found, _ = find_songs([tmp_path, tmp_path / "a" / "one.wav"], recursive=True)
    assert [song.path for song in found] == [tmp_path / "a" / "one.wav"]


def test_files_are_taken_whatever_their_suffix_and_missing_ones_too(tmp_path):
    touch(tmp_path / "song.xyz")
    found, problems = find_songs([tmp_path / "song.xyz", tmp_path / "missing.wav"], recursive=False)
    assert [song.path.name for song in found] == ["song.xyz", "missing.wav"]
    assert problems == []


@pytest.mark.parametrize("names", [[], ["missing.wav"], ["missing.wav", "other"]])
def test_nothing_that_exists_is_a_usage_error(tmp_path, names):
    with pytest.raises(UsageError) as error:
        find_songs([tmp_path / name for name in names], recursive=False)
    assert "\n" not in str(error.value)


def test_a_folder_without_songs_is_an_error_alone_and_a_problem_in_company(tmp_path):
    touch(tmp_path / "empty" / "note.txt", tmp_path / "song.wav")
    with pytest.raises(UsageError, match="empty: no song in this folder; --recursive"):
        find_songs([tmp_path / "empty"], recursive=False)
    found, problems = find_songs([tmp_path / "empty", tmp_path / "song.wav"], recursive=True)
    assert len(found) == 1
    assert [str(problem) for problem in problems] == [f"{tmp_path / 'empty'}: no song in this folder"]


@pytest.mark.parametrize(
    ("name", "track"),
    [("song.mp3", "song"), ("song.stem.mp4", "song"), ("a.b.wav", "a.b"), ("song", "song"), (".stem.mp4", ".stem")],
)
def test_the_track_is_the_file_s_name_without_its_suffix(name, track):
    assert track_name(Path("folder") / name) == track


def test_an_empty_reldir_leaves_no_gap():
    assert place() == Path("out/hdemucs/song/vocals.wav")
    assert place(reldir=PurePath("a/b")) == Path("out/hdemucs/a/b/song/vocals.wav")
    assert place("{index}-{track}.{stem}.{ext}", index=7) == Path("out/7-song.vocals.wav")


@pytest.mark.parametrize(
    ("track", "part"),
    [
        ("a/b", "a_b"),
        ("a\\b", "a_b"),
        ("..", "_"),
        ("line\nbreak\0", "line_break_"),
        ('what? "no": <1|2>*', "what_ _no__ _1_2__"),
        ("CON", "_CON"),
        ("nul.txt", "_nul.txt"),
        ("com1", "_com1"),
        ("console", "console"),
        ("trailing. ", "trailing"),
        ("", "_"),
        ("{stem}", "{stem}"),
        ("Ünï", "Ünï"),
        ("ü" * 300, "ü" * 100),
    ],
)
def test_what_a_file_system_does_not_like_is_replaced(track, part):
    assert place(track=track) == Path("out/hdemucs") / part / "vocals.wav"


def test_reldir_cannot_climb():
    assert place(reldir="../../etc") == Path("out/hdemucs/_/_/etc/song/vocals.wav")


@pytest.mark.parametrize(
    "template",
    [
        "../{stem}",
        "a/../../{stem}",
        "/tmp/{stem}",
        "{track}/{foo}/{stem}",
        "{stem",
        "stem}",
        "{track}",
        "{}{stem}",
        "{stem!r}",
    ],
)
def test_templates_that_cannot_be_are_refused_in_one_line(template):
    with pytest.raises(UsageError) as error:
        place(template)
    assert template in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_field_is_answered_with_the_known_ones():
    known = r"\{model\}, \{reldir\}, \{track\}, \{trackext\}, \{stem\}, \{ext\}, \{index\}"
    with pytest.raises(UsageError, match=r"\{foo\}.*" + known):
        place("{foo}{stem}")


def test_two_inputs_with_one_output_are_refused_naming_both():
    with pytest.raises(UsageError, match=r"a/song.wav and b/song.mp3 would both be written to out/Song.wav"):
        clashes([(Path("a/song.wav"), [Path("out/song.wav")]), (Path("b/song.mp3"), [Path("out/Song.wav")])])


def test_an_output_that_is_an_input_is_refused():
    with pytest.raises(UsageError, match="is the input"):
        clashes([(Path("vocals.wav"), [Path("./vocals.wav")])])


def test_outputs_clash_wherever_the_call_before_was_made(tmp_path, monkeypatch):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "one")
    clashes([(Path("a.wav"), [Path("out/a/vocals.wav")])])
    monkeypatch.chdir(tmp_path / "two")
    with pytest.raises(UsageError, match="would both be written to"):
        clashes([(Path("a.wav"), [Path("out/a/vocals.wav")]), (Path("A.flac"), [Path("out/A/vocals.wav")])])


def test_different_outputs_do_not_clash():
    assert clashes([(Path("a.wav"), [Path("x"), Path("y")]), (Path("b.wav"), [Path("z")])]) is None
