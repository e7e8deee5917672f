"""Journals: what is told is found again, cut-off lines are passed over, other settings are refused."""

import dataclasses
import json
import os
from pathlib import Path

import pytest

from sepcli.batch.journal import Journal, merged, plan_of, read_journal, songs_in
from sepcli.batch.manifest import Item
from sepcli.errors import SepcliError, UsageError
from sepcli.inference.plan import Plan, Record

PLAN = Plan("hdemucs", out=Path("out"), stems=("vocals", "drums"), threads=1)


def entry(folder: Path, name: str = "a.wav", **facts: object) -> tuple[Item, Record]:
    """An item whose file and stem are there, and its record."""
    song, stem = folder / name, folder / f"{name}.stem"
    song.write_bytes(b"song")
    stem.write_bytes(b"stem")
    record = Record(str(song), "hdemucs", status="done", stems={"vocals": str(stem)}, seconds=3.0, device="cpu")
    return Item(str(song), 1, "x", 3.0), dataclasses.replace(record, **facts)  # type: ignore[arg-type]


def write(path: Path, *entries: tuple[Item, Record], plan: Plan = PLAN) -> None:
    journal = Journal(path, plan, len(entries))
    for item, record in entries:
        journal.record(item, record)
    journal.close()


def test_what_is_told_is_found_again(tmp_path: Path) -> None:
    item, record = entry(tmp_path)
    write(tmp_path / "sub/j.jsonl", (item, record))
    found = Journal(tmp_path / "sub/j.jsonl", PLAN, 1).finished(item)
    assert found is not None
    assert (found.status, found.stems, found.seconds) == ("skipped", record.stems, 3.0)
    assert plan_of(read_journal(tmp_path / "sub/j.jsonl").runs[0]) == PLAN


@pytest.mark.parametrize("change", ["song", "stem", "failed"])
def test_what_has_changed_or_failed_is_not_finished(change: str, tmp_path: Path) -> None:
    item, record = entry(tmp_path, **({"status": "failed", "error": "e", "reason": "io"} if change == "failed" else {}))
    write(tmp_path / "j.jsonl", (item, record))
    if change == "song":
        Path(item.uri).write_bytes(b"another song")
    if change == "stem":
        (tmp_path / "a.wav.stem").unlink()
    assert Journal(tmp_path / "j.jsonl", PLAN, 1).finished(item) is None


def test_a_rerun_adds_no_lines_for_what_was_finished(tmp_path: Path) -> None:
    item, record = entry(tmp_path)
    write(tmp_path / "j.jsonl", (item, record))
    write(tmp_path / "j.jsonl", (item, dataclasses.replace(record, status="skipped")))
    rows = [json.loads(line) for line in (tmp_path / "j.jsonl").read_text().splitlines()]
    assert ["run" in row for row in rows] == [True, False, True]


def test_a_line_that_a_kill_cut_off_is_passed_over_and_named(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    write(path, entry(tmp_path), entry(tmp_path, "b.wav"))
    path.write_bytes(path.read_bytes()[:-20])
    assert len(read_journal(path).items) == 1
    write(path, entry(tmp_path, "c.wav"))
    history = read_journal(path)
    assert sorted(Path(uri).name for uri in history.items) == ["a.wav", "c.wav"]
    assert history.broken == [3]
    assert len(history.runs) == 2


@pytest.mark.parametrize("change", [{"model": "umx"}, {"out": Path("b")}, {"shifts": 2}, {"stems": ()}])
def test_a_journal_belongs_to_one_kind_of_run(change, tmp_path: Path) -> None:
    write(tmp_path / "j.jsonl", entry(tmp_path))
    with pytest.raises(UsageError, match=f"other settings.*{next(iter(change))}") as caught:
        write(tmp_path / "j.jsonl", plan=dataclasses.replace(PLAN, **change))
    assert caught.value.exit_code == 2
    assert len((tmp_path / "j.jsonl").read_text().splitlines()) == 2


def test_how_it_is_run_may_change(tmp_path: Path) -> None:
    write(tmp_path / "j.jsonl", entry(tmp_path))
    write(tmp_path / "j.jsonl", plan=dataclasses.replace(PLAN, device="cuda:1", threads=4, batch_size=2, offline=True))
    assert len(read_journal(tmp_path / "j.jsonl").runs) == 2


def test_over_several_journals_finished_stays_finished(tmp_path: Path) -> None:
    item, record = entry(tmp_path)
    write(tmp_path / "one.jsonl", (item, record))
    write(tmp_path / "two.jsonl", (item, dataclasses.replace(record, status="failed", error="e", reason="nan")))
    for order in (("one", "two"), ("two", "one")):
        rows = merged(read_journal(tmp_path / f"{name}.jsonl") for name in order)
        assert [row["status"] for row in rows.values()] == ["done"]


def test_a_list_that_is_shared_by_claims_counts_once_and_others_each(tmp_path: Path) -> None:
    def begun(name: str, items: int, claim: str | None, shard: str | None = None) -> Path:
        Journal(tmp_path / name, PLAN, items, shard, claim and tmp_path / claim).close()
        return tmp_path / name

    shared = [begun("one.jsonl", 4, "claims"), begun("two.jsonl", 5, "sub/../claims")]  # a song came meanwhile
    begun("one.jsonl", 1, None)  # a retry
    assert songs_in(map(read_journal, shared)) == 5
    other = [begun("three.jsonl", 4, "others"), begun("four.jsonl", 3, "claims", "2/2"), begun("five.jsonl", 2, None)]
    assert songs_in(map(read_journal, [*shared, *other])) == 5 + 4 + 3 + 2


def test_a_journal_from_before_claims_were_told_is_counted(tmp_path: Path) -> None:
    write(tmp_path / "j.jsonl", entry(tmp_path))
    first, *rest = (tmp_path / "j.jsonl").read_text().splitlines()
    run = {key: value for key, value in json.loads(first).items() if key != "claim"}
    (tmp_path / "j.jsonl").write_text("\n".join([json.dumps(run), *rest]) + "\n")
    assert songs_in([read_journal(tmp_path / "j.jsonl")]) == 1


def test_a_journal_that_cannot_be_written_ends_the_run(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot be written"):
        Journal(tmp_path / "file" / "j.jsonl", PLAN, 1)
    journal = Journal(tmp_path / "j.jsonl", PLAN, 1)
    monkeypatch.setattr(os, "write", lambda *_: 5)  # as a disk with room for five bytes
    with pytest.raises(SepcliError, match="No space left"):
        journal.record(*entry(tmp_path))
