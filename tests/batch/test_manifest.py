"""Lists of songs: what is read from paths, JSON lines and CSV, and what is said of lines that name none."""

from pathlib import Path

import pytest

from sepcli.batch.manifest import Item, is_remote, read_list
from sepcli.batch.scan import find_items
from sepcli.errors import UsageError


def test_paths_stand_one_a_line_and_may_hold_anything(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(b"a b.wav\n\n  {c}.wav\nd,e.wav\n\xff.wav\n")
    items, problems = read_list(tmp_path / "list.txt")
    assert [item.uri for item in items] == ["a b.wav", "  {c}.wav", "d,e.wav", "\udcff.wav"]
    assert not problems


def test_json_lines_tell_lengths_and_digests(tmp_path: Path) -> None:
    text = (
        '{"uri": "s3://b/a.wav", "seconds": 3.5, "digest": "ab", "rate": 44100}\n{"path": "b.wav", "reldir": "x/y"}\n'
    )
    (tmp_path / "list").write_text(text)
    items, problems = read_list(tmp_path / "list")
    assert items == [Item("s3://b/a.wav", seconds=3.5, digest="ab"), Item("b.wav", reldir="x/y")]
    assert not problems


@pytest.mark.parametrize("name", ["list.csv", "list.txt"])
def test_csv_has_a_column_of_addresses(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text('title,URI,seconds\nA,"a, one.wav",12\nB,b.wav,\n')
    items, problems = read_list(tmp_path / name)
    assert items == [Item("a, one.wav", seconds=12.0), Item("b.wav")]
    assert not problems


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{broken", "no JSON object"),
        ("[1]", "no JSON object"),
        ('{"seconds": 3}', "field `uri`"),
        ('{"uri": 7}', "field `uri`"),
        ('{"uri": "a", "seconds": "long"}', "seconds = 'long' is no length"),
        ('{"uri": "a", "seconds": -1}', "seconds = -1 is no length"),
        ('{"uri": "a", "seconds": NaN}', "seconds = nan is no length"),
    ],
)
def test_an_unreadable_line_is_named_and_the_others_are_there(line: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "list.jsonl").write_text(f'{{"uri": "a.wav"}}\n{line}\n{{"uri": "b.wav"}}\n')
    items, problems = read_list(tmp_path / "list.jsonl")
    assert [item.uri for item in items] == ["a.wav", "b.wav"]
    assert len(problems) == 1
    assert "list.jsonl, line 2: " in problems[0].what
    assert words in problems[0].what


@pytest.mark.parametrize(
    ("name", "text"), [("list.txt", "a.wav\nb.wav\n"), ("l.jsonl", '{"uri": "a.wav"}\n'), ("l.csv", "uri,x\na.wav,1\n")]
)
def test_the_mark_that_some_editors_begin_a_file_with_is_passed_over(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8-sig")
    items, problems = read_list(tmp_path / name)
    assert (items[0], problems) == (Item("a.wav"), [])


def test_a_list_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_list(tmp_path / "none.txt")


def test_items_keep_what_their_list_tells_and_folders_are_searched(tmp_path: Path) -> None:
    (tmp_path / "songs/deep").mkdir(parents=True)
    for name in ("songs/b.wav", "songs/deep/c.wav", "a.wav"):
        (tmp_path / name).touch()
    entries = [Item(f"{tmp_path}/./a.wav", seconds=5.0), Item(f"{tmp_path}/songs")]
    items, problems = find_items(entries, recursive=True)
    assert not problems
    assert [(item.index, Path(item.uri).name, item.reldir, item.seconds) for item in items] == [
        (1, "a.wav", "", 5.0),
        (2, "b.wav", "", None),
        (3, "c.wav", "deep", None),
    ]


def test_an_address_is_told_from_a_path() -> None:
    assert [is_remote(text) for text in ("s3://b/a", "https://x/y", "a/b.wav", "C:\\a", "://", "a b://c")] == [
        *(True, True),
        *(False, False, False, False),
    ]
