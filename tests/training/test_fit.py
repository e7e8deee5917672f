"""The loop: it learns, it goes on as if nothing had happened, it keeps what is good."""

import json
import math
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import soundfile
import torch

from sepcli import models
from sepcli.errors import ModelError, SepcliError, UsageError
from sepcli.models.separator import Separator
from sepcli.training import fit as loop
from sepcli.training import session
from sepcli.training.data import Excerpts
from sepcli.training.fit import Interrupted, Tell, Where, loss_of, one_step
from sepcli.training.losses import make_loss
from sepcli.training.recipe import read_recipe, with_values
from sepcli.training.run import Run, claimed, read_state, restore
from sepcli.training.session import Request, plan, traits
from sepcli.weights.catalog import catalog
from sepcli.weights.load import load_separator
from tests.training.songs import free_port, sound, write_data

HERE = Where(torch.device("cpu"))
QUICK = {"data.excerpt": 0.25, "data.stride": 0.25, "data.batch": 2, "augment": {}, "stop": {"steps": 6}}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEPCLI_CACHE", str(tmp_path / "cache"))
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("songs") / "data", songs=2, seconds=2.0)


def request(name: str, songs: Path, path: Path, changes: dict[str, Any] | None = None, **how: Any) -> Request:
    entry = replace(catalog()[name], segment=1.0)
    settings = dict(models.find(entry.architecture).tiny)
    table = with_values({**entry.training, "stop": {"steps": 6}, "augment": {}}, {**QUICK, **(changes or {})})
    entry = replace(entry, training=table)
    return Request(entry, [songs], path, settings=settings, **how)


def trained(asked: Request, tell: Tell | None = None, where: Where = HERE) -> Run:
    run = plan(asked)
    session.train(run, where, tell or Tell(), resume=asked.resume)
    return run


def lines(run: Run, split: str = "train") -> list[dict[str, Any]]:
    text = (run.path / "metrics.jsonl").read_text()
    return [line for line in map(json.loads, text.splitlines()) if line["split"] == split]


def training_of(asked: Request, tell: Tell | None = None) -> tuple[loop.Training, Excerpts]:
    run = plan(asked)
    run.path.mkdir(parents=True, exist_ok=True)
    excerpts, _ = session.gather(run, Tell())
    model = session.network_of(run, excerpts, Tell(), False)
    return loop.begun(model, run, HERE, tell or Tell(), False), excerpts


TRAINABLE = [name for name, entry in catalog().items() if entry.training and name == entry.name]


@pytest.mark.parametrize("name", TRAINABLE)
def test_the_loss_on_one_batch_falls_by_a_fifth(name: str, songs: Path, tmp_path: Path) -> None:
    """Of every name, without the weights that some begin with."""
    entry = catalog()[name]
    if {*entry.sources} - {"drums", "bass", "other", "vocals", "accompaniment"}:
        songs = write_data(tmp_path / "data", songs=2, seconds=1.0, stems=entry.sources)
    rate = 5e-3 if entry.architecture.startswith(("conv_tasnet", "cde_htcn")) else 3e-3
    trims = any(term.trim for term in read_recipe(entry.training, name).loss)  # 0.07 s at either end
    asked = request(name, songs, tmp_path / "run", {"optimiser.rate": rate, "data.excerpt": 0.3 if trims else 0.1})
    training_table = {word: value for word, value in asked.entry.training.items() if word != "start"}
    training, excerpts = training_of(replace(asked, entry=replace(asked.entry, training=training_table)))
    batch = torch.stack([excerpts[0, index] for index in range(2)])
    first = float(loss_of(training, batch).detach())
    for _ in range(100):
        loss, _ = one_step(training, iter([(batch, ["0", "1"])]), rate)
        training.progress.step += 1
        if loss < 0.8 * first:
            return
    pytest.fail(f"from {first:.4g} to {loss:.4g} in a hundred steps")


@pytest.mark.parametrize("name", ["cws-unet", "conv-tasnet", "umx"])
def test_a_run_ends_with_a_file_that_loads(name: str, songs: Path, tmp_path: Path) -> None:
    said: list[str] = []
    run = trained(request(name, songs, tmp_path / "run"), Tell(notice=said.append))
    loaded = load_separator(str(run.best))
    assert loaded.entry.name == name
    assert loaded.entry.settings == run.entry.settings
    assert loaded.separator.sources == run.entry.sources
    own, _ = read_state(run.state)
    assert all(torch.equal(tensor, own[f"model.{key}"]) for key, tensor in loaded.separator.state_dict().items())
    assert [line["step"] for line in lines(run)] == [1, 6]
    valid = lines(run, "valid")[-1]
    assert set(valid["nsdr"]) == set(run.entry.sources)
    assert math.isfinite(valid["loss"])
    assert name in (run.path / "recipe.toml").read_text()
    assert "best.safetensors" in (run.path / "model-card.md").read_text()
    assert any("validation loss" in text for text in said)


def test_a_resumed_run_equals_one_that_was_not_interrupted(songs: Path, tmp_path: Path) -> None:
    """With dropout, averages, random mixing, two epochs and a schedule, bit for bit."""
    changes = {
        "augment": {"mix": True, "swap": 0.5, "scale": [0.5, 1.0]},
        "data.draws": 8,
        "data.excerpt": 0.1,
        "ema": {"steps": [0.9], "epochs": [0.5]},
        "schedule": {"name": "step", "every_steps": 2, "factor": 0.5},
        "stop": {"steps": 6},
    }
    whole = trained(request("cws-unet", songs, tmp_path / "whole", changes))
    count = iter(range(100))
    tell = Tell(interrupted=lambda: next(count) == 4)
    with pytest.raises(Interrupted):
        trained(request("cws-unet", songs, tmp_path / "parts", changes), tell)
    state = read_state(tmp_path / "parts" / "last" / "state.safetensors")[1]["extra"]["state"]
    assert 0 < state["progress"]["step"] < 6
    parts = trained(request("cws-unet", songs, tmp_path / "parts", {}, resume=True))
    (expected, facts), (found, more) = (read_state(run.state) for run in (whole, parts))
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    first, second = (dict(f["extra"]["state"]["progress"]) for f in (facts, more))
    assert first.pop("seconds") > 0
    assert second.pop("seconds") > 0
    assert first == second


def test_a_cosine_falls_to_the_last_step_of_a_run_that_counts_epochs(songs: Path, tmp_path: Path) -> None:
    changes = {"schedule": {"name": "cosine", "warmup": 1}, "optimiser.rate": 1e-3}
    rates = []
    for stop in ({"epochs": 3}, {"steps": 12}):
        run = trained(request("conv-tasnet", songs, tmp_path / next(iter(stop)), {**changes, "stop": stop}))
        rates.append([line["lr"] for line in lines(run)])
    assert lines(run)[-1]["step"] == 12
    assert rates[0] == rates[1]
    assert 1e-3 == rates[0][0] > rates[0][-1] > 0


def test_what_a_killed_run_did_after_its_last_state_is_told_once(songs: Path, tmp_path: Path) -> None:
    """Saved last at the end of an epoch, its validation due; killed when that and five steps more were told."""
    count = iter(range(100))
    asked = request("conv-tasnet", songs, tmp_path / "run", {"stop": {"epochs": 9}})
    with pytest.raises(Interrupted):
        trained(asked, Tell(interrupted=lambda: next(count) == 3))
    saved = read_state(tmp_path / "run" / "last" / "state.safetensors")[1]["extra"]["state"]["progress"]
    assert saved["owed"]
    step = saved["step"]
    metrics = tmp_path / "run" / "metrics.jsonl"
    before = metrics.read_text()
    later = [{"split": "valid", "step": step}, {"split": "train", "step": step + 5}]
    metrics.write_text(before + "".join(json.dumps(line) + "\n" for line in later) + '{"split": "tra')
    run = trained(replace(asked, resume=True, changes={"stop": {"steps": step + 1}}))
    assert metrics.read_text().startswith(before)
    assert [line["step"] for line in lines(run)] == [1, step + 1]
    assert [line["step"] for line in lines(run, "valid")] == [step, step + 1]


def test_a_run_that_is_killed_while_it_saves_leaves_a_state_that_loads(songs: Path, tmp_path: Path) -> None:
    code = f"""
        import os, signal, sys
        sys.path.insert(0, {str(Path(__file__).parents[2])!r})
        from pathlib import Path
        import safetensors.torch
        from tests.training.test_fit import request, trained
        save = safetensors.torch.save_file
        count = 0
        def half(tensors, path, metadata=None):
            global count
            count += 1
            save(tensors, path, metadata)
            if count == 4:
                size = os.path.getsize(path)
                os.truncate(path, size // 2)
                os.kill(os.getpid(), signal.SIGKILL)
        safetensors.torch.save_file = half
        trained(request("cws-unet", Path({str(songs)!r}), Path({str(tmp_path / "run")!r}), {{"stop": {{"epochs": 9}}}}))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    tensors, metadata = read_state(tmp_path / "run" / "last" / "state.safetensors")
    assert any(name.startswith("model.") for name in tensors)
    step = metadata["extra"]["state"]["progress"]["step"]
    changes = {"stop.epochs": 0, "stop.steps": step + 2}
    asked = replace(request("cws-unet", songs, tmp_path / "run"), resume=True, changes=changes)
    assert session.train(plan(asked), HERE, Tell(), resume=True).step == step + 2


def test_parts_of_a_batch_have_the_gradient_of_the_whole(songs: Path, tmp_path: Path) -> None:
    gradients = []
    for parts in (1, 2):
        changes = {"data.batch": 4, "optimiser.accumulate": parts}
        training, excerpts = training_of(request("conv-tasnet", songs, tmp_path / str(parts), changes))
        training.model.double()
        batches = wide(loop.load(excerpts, training.recipe, HERE, training.progress, 1))
        training.optimiser.step = lambda *_: None  # type: ignore[method-assign, assignment]
        one_step(training, batches, 1e-3)
        gradients.append(torch.cat([p.grad.flatten() for p in training.model.parameters() if p.grad is not None]))
    assert float((gradients[0] - gradients[1]).norm() / gradients[0].norm()) < 1e-9
    assert float(gradients[0].norm()) > 0


def wide(batches: Iterator[tuple[torch.Tensor, list[str]]]) -> Iterator[tuple[torch.Tensor, list[str]]]:
    return ((stems.double(), keys) for stems, keys in batches)


CASES = ("conv-tasnet", "cws-unet", "cws-unet synced")


def gradient_of(case: str, songs: Path, path: Path, where: Where, part: Where | None = None) -> dict[str, Any]:
    """The first step's gradient and loss in float64, and what batch norms remember, by this process's part of a batch.

    `part`: the process whose part is taken instead, without the others.
    """
    name, _, synced = case.partition(" ")
    changes = {"data.batch": 4, "augment": {"remix": 2, "swap": 0.5, "shift": 0.1}}
    asked = request(name, songs, path / case, changes)
    run = plan(replace(asked, settings={**asked.settings, **({"dropout": 0.0} if name == "cws-unet" else {})}))
    run.path.mkdir(parents=True, exist_ok=True)
    excerpts, _ = session.gather(run, Tell())
    model = session.network_of(run, excerpts, Tell(), False).double()
    training = loop.begun(model, run, replace(where, sync_batchnorm=bool(synced)), Tell(), False)
    training.optimiser.step = lambda *_: None  # type: ignore[method-assign, assignment]
    loss, why = one_step(training, wide(loop.load(excerpts, run.recipe, part or where, training.progress, 1)), 1e-3)
    assert not why
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    remembered = torch.cat([torch.zeros(1), *(b.flatten() for n, b in model.named_buffers() if "running" in n)])
    return {"gradient": gradient, "loss": loss, "remembered": remembered}


@pytest.fixture(scope="module")
def of_two(songs: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Any]]]:
    """What each of two processes finds in each case."""
    path = tmp_path_factory.mktemp("two")
    code = f"""
        import sys
        from pathlib import Path
        sys.path.insert(0, {str(Path(__file__).parents[2])!r})
        import torch
        from sepcli.training.session import place
        from tests.training.test_fit import CASES, gradient_of
        torch.set_num_threads(1)
        where = place("cpu", "float32", 0)
        assert where.world == 2
        path = Path({str(path)!r})
        found = {{case: gradient_of(case, Path({str(songs)!r}), path, where) for case in CASES}}
        torch.save(found, path / f"{{where.rank}}.pt")
    """
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": "2"}
    shared["SEPCLI_CACHE"] = str(path / "cache")
    script = [sys.executable, "-c", textwrap.dedent(code)]
    both = [subprocess.Popen(script, env={**shared, "RANK": str(rank)}) for rank in (0, 1)]
    assert [process.wait(timeout=240) for process in both] == [0, 0]
    return [torch.load(path / f"{rank}.pt") for rank in (0, 1)]


def apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("case", ["conv-tasnet", "cws-unet synced"])
def test_two_processes_have_the_gradient_of_one_with_the_whole_batch(
    case: str, songs: Path, tmp_path: Path, of_two: list[dict[str, dict[str, Any]]]
) -> None:
    expected = gradient_of(case, songs, tmp_path, HERE)
    for found in (of_two[0][case], of_two[1][case]):
        assert apart(found["gradient"], expected["gradient"]) < 1e-9
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-6)
        assert torch.allclose(found["remembered"], expected["remembered"], rtol=1e-6, atol=1e-12)


def test_without_sync_batch_norm_each_process_has_statistics_of_its_own(
    songs: Path, tmp_path: Path, of_two: list[dict[str, dict[str, Any]]]
) -> None:
    """The gradient is the mean of those of the halves, and not that of the whole batch."""
    halves = [gradient_of("cws-unet", songs, tmp_path, HERE, replace(HERE, world=2, rank=rank)) for rank in (0, 1)]
    mean = (halves[0]["gradient"] + halves[1]["gradient"]) / 2
    for found, half in zip(of_two, halves, strict=True):
        assert apart(found["cws-unet"]["gradient"], mean) < 1e-9
        assert torch.allclose(found["cws-unet"]["remembered"], half["remembered"], rtol=1e-6, atol=1e-12)
    assert apart(mean, gradient_of("cws-unet", songs, tmp_path, HERE)["gradient"]) > 1e-3


def test_a_run_that_is_ended_where_it_stands_is_validated(songs: Path, tmp_path: Path) -> None:
    count = iter(range(100))
    asked = request("conv-tasnet", songs, tmp_path / "run", {"stop": {"steps": 50}, "data.batch": 1})
    with pytest.raises(Interrupted):
        trained(asked, Tell(interrupted=lambda: next(count) == 3))
    run = trained(replace(asked, resume=True, settings={}, changes={"stop.steps": 4}))
    assert [line["step"] for line in lines(run, "valid")] == [4]
    assert run.best.is_file()


def test_the_file_and_its_card_tell_the_licence_that_was_given(songs: Path, tmp_path: Path) -> None:
    run = trained(request("conv-tasnet", songs, tmp_path / "run", {"stop": {"steps": 1}}, licence="CC BY 4.0"))
    assert "- Licence: CC BY 4.0\n" in (run.path / "model-card.md").read_text()
    assert load_separator(str(run.best)).entry.licence == "CC BY 4.0"


def test_processes_that_died_go_on_when_torchrun_begins_them_again(songs: Path, tmp_path: Path) -> None:
    """Each step is saved; before the fourth one of the two processes is gone."""
    script = tmp_path / "dies.py"
    script.write_text(
        textwrap.dedent("""
            import os, sys
            from sepcli.cli import main
            from sepcli.training import fit
            fit.SAVE_SECONDS = 0.0
            step = fit.one_step
            def dying(training, *rest):
                if training.progress.step == 3 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
                    print("saved", training.progress.step, file=sys.stderr)
                    os._exit(9) if os.environ["RANK"] == "1" else None
                return step(training, *rest)
            fit.one_step = dying
            main()
        """)
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    launch += ["--max-restarts", "1", str(script)]
    tiny = ["--bands", "8", "--width", "4", "--segment", "0.25", "--batch-size", "2"]
    words = [
        "train",
        "--model",
        "cws-unet",
        *tiny,
        "--data",
        str(songs),
        "--out",
        str(tmp_path / "run"),
        "--steps",
        "5",
    ]
    done = subprocess.run([*launch, *words], env=environment, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in metrics if line["split"] == "train"] == [1, 5], "the first step is made once"
    assert done.stderr.count("done after 5 steps") == 1
    assert "another process of this run is gone" in done.stderr


def test_two_processes_that_are_resumed_equal_two_that_were_not_interrupted(tmp_path: Path) -> None:
    """With dropout, bit for bit, where a validation is due; and one process goes on with what two have left."""
    songs = write_data(tmp_path / "data" / "train", songs=1, seconds=1.0).parent
    write_data(songs / "valid", songs=2, seconds=1.0)
    script = tmp_path / "parts.py"
    script.write_text(
        textwrap.dedent(f"""
            from dataclasses import replace
            from pathlib import Path
            from sepcli.training.fit import Interrupted, Tell
            from sepcli.training.session import place
            from tests.training.test_fit import request, trained
            place_of_this = place("cpu", "float32", 0)
            assert place_of_this.world == 2
            songs, runs = Path({str(songs)!r}), Path({str(tmp_path)!r})
            changes = {{"ema": {{"epochs": [0.5]}}}}
            trained(request("cws-unet", songs, runs / "whole", changes), where=place_of_this)
            asked = request("cws-unet", songs, runs / "parts", changes)
            steps = iter(range(9))
            try:
                trained(asked, Tell(interrupted=lambda: next(steps) == 3), place_of_this)
            except Interrupted:
                trained(replace(asked, resume=True), where=place_of_this)
        """)
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(launch, env=environment, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    (whole, facts), (parts, more) = (
        read_state(tmp_path / name / "last" / "state.safetensors") for name in ("whole", "parts")
    )
    assert whole.keys() == parts.keys()
    assert [name for name in whole if not torch.equal(whole[name], parts[name])] == []
    losses, found = (f["extra"]["state"]["progress"]["losses"] for f in (facts, more))
    assert losses == found
    assert len(losses) == 3
    assert not torch.equal(whole["random.cpu"], whole["random.cpu.1"]), "each process has random numbers of its own"
    run = trained(replace(request("cws-unet", songs, tmp_path / "parts"), resume=True, changes={"stop.steps": 7}))
    assert lines(run)[-1]["step"] == 7


def test_a_process_whose_random_state_was_not_saved_keeps_its_own(songs: Path, tmp_path: Path) -> None:
    training, _ = training_of(request("conv-tasnet", songs, tmp_path / "run"))
    tensors, metadata = read_state(training.run.state)
    parts = (training.model, training.optimiser, training.averages, training.scaler)
    own = torch.manual_seed(1001).get_state()
    restore(tensors, metadata["extra"]["state"], *parts, rank=1)
    assert torch.equal(torch.get_rng_state(), own)
    restore(tensors, metadata["extra"]["state"], *parts)
    assert torch.equal(torch.get_rng_state(), tensors["random.cpu"])


def poisoned(training: loop.Training, excerpts: Excerpts) -> Any:
    batch = torch.stack([excerpts[0, index] for index in range(2)])
    return iter([(batch * math.nan, ["0", "1"])])


def test_a_loss_that_is_no_number_leaves_everything_as_it_was(songs: Path, tmp_path: Path) -> None:
    training, excerpts = training_of(request("cws-unet", songs, tmp_path / "run"))
    before = {name: tensor.clone() for name, tensor in training.model.state_dict().items()}
    value, why = one_step(training, poisoned(training, excerpts), 1e-3)
    assert math.isnan(value)
    assert why == "the loss is nan"
    assert all(torch.equal(tensor, before[name]) for name, tensor in training.model.state_dict().items())


def test_after_ten_bad_steps_it_goes_back_and_after_three_times_it_gives_up(
    songs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the 7th step on every loss is bad: the last state is that of step 4."""
    said: list[str] = []
    usual = loop.fault
    seen = {"count": 0}

    def bad(loss: float, norm: float, progress: Any, scaler: Any) -> str:
        seen["count"] += 1
        return "the loss is nan" if seen["count"] > 6 else usual(loss, norm, progress, scaler)

    monkeypatch.setattr(loop, "fault", bad)
    asked = request("conv-tasnet", songs, tmp_path / "run", {"stop": {"steps": 1000}, "data.batch": 1})
    with pytest.raises(SepcliError, match="diverges at step 46: the loss is nan, 40 steps skipped"):
        trained(asked, Tell(notice=said.append))
    back = [text for text in said if "back to the weights" in text]
    assert len(back) == 3
    assert all("10 steps in a row: the loss is nan" in text for text in back)
    assert sum("is skipped" in text for text in said) == 4


def test_the_best_weights_are_kept_and_early_stopping_counts_validations(
    songs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = iter([3.0, 1.0, 2.0, 2.0, 2.0, 2.0])
    monkeypatch.setattr(loop, "validate", lambda *_, **__: torch.zeros(0))
    monkeypatch.setattr(loop, "scores", lambda *_: {"loss": next(values), "nsdr": {"vocals": 1.0}})
    run = trained(request("conv-tasnet", songs, tmp_path / "run", {"stop": {"epochs": 50, "patience": 2}}))
    assert [line["loss"] for line in lines(run, "valid")] == [3.0, 1.0, 2.0, 2.0]
    progress = read_state(run.state)[1]["extra"]["state"]["progress"]
    assert progress["best"]["value"] == 1.0
    assert progress["best"]["step"] == lines(run, "valid")[1]["step"]


def test_a_validation_that_is_no_number_is_worse_than_any_other(
    songs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = iter([math.nan, 3.0, math.nan, 1.0, 2.0])
    monkeypatch.setattr(loop, "validate", lambda *_, **__: torch.zeros(0))
    monkeypatch.setattr(loop, "scores", lambda *_: {"loss": next(values), "nsdr": {"vocals": 1.0}})
    run = trained(request("conv-tasnet", songs, tmp_path / "run", {"stop": {"epochs": 5}}))
    progress = read_state(run.state)[1]["extra"]["state"]["progress"]
    assert progress["best"]["value"] == 1.0
    assert progress["best"]["step"] == lines(run, "valid")[3]["step"]


def test_without_songs_to_validate_with_the_newest_weights_are_kept(tmp_path: Path) -> None:
    for name in ("drums", "bass", "other", "vocals"):
        (tmp_path / "data" / name).mkdir(parents=True)
        soundfile.write(tmp_path / "data" / name / "one.wav", sound(1.0, seed=3), 44100)
    said: list[str] = []
    changes = {"augment": {"mix": True}, "stop": {"epochs": 3}}
    asked = request("conv-tasnet", tmp_path / "data", tmp_path / "run", changes, absent="silence")
    run = trained(asked, Tell(notice=said.append))
    state, metadata = read_state(run.state)
    best = metadata["extra"]["state"]["progress"]["best"]
    assert best["step"] == lines(run, "valid")[-1]["step"] > lines(run, "valid")[0]["step"]
    kept = load_separator(str(run.best)).separator.state_dict()
    assert all(torch.equal(tensor, state[f"model.{key}"]) for key, tensor in kept.items())
    assert sum("no songs to validate with" in text for text in said) == 1
    assert not [text for text in said if "nan" in text]


def test_averages_are_validated_and_the_best_of_all_is_kept(songs: Path, tmp_path: Path) -> None:
    changes = {"ema": {"steps": [0.9, 0.99], "epochs": [0.5]}, "stop": {"epochs": 1}}
    run = trained(request("conv-tasnet", songs, tmp_path / "run", changes))
    valid = lines(run, "valid")
    kinds = ["raw", "average by step, 0.9", "average by step, 0.99", "average by epoch, 0.5"]
    assert [line["weights"] for line in valid] == kinds
    losses = [line["loss"] for line in valid]
    assert len(set(losses[:3])) == 3
    assert losses[0] == losses[3], "after one epoch its average is the newest"
    progress = read_state(run.state)[1]["extra"]["state"]["progress"]
    assert progress["best"]["value"] == min(losses)


def test_validation_of_perfect_estimates_is_perfect(songs: Path, tmp_path: Path) -> None:
    from sepcli.training.validate import scores, validate

    run = plan(request("conv-tasnet", songs, tmp_path / "run"))
    _, valid = session.gather(run, Tell())

    class Cheat(Separator):
        """Knows the answer: the truth at the piece's place."""

        def forward(self, mixture: torch.Tensor) -> Any:
            from sepcli.models.separator import Estimate
            from sepcli.training.validate import truth

            whole = truth(valid[0], self, 0, valid[0].frames)
            return Estimate(whole[None, ..., : mixture.shape[-1]])

    cheat = Cheat(**{**traits(run.entry), "level": {}, "segment": 10.0})
    found = scores(
        validate(cheat, make_loss(run.recipe.loss, cheat.sources), valid, HERE.device, seconds=0.5), cheat.sources
    )
    assert found["loss"] == pytest.approx(0, abs=1e-7)
    assert min(found["nsdr"].values()) > 60


def test_standardised_networks_begin_with_the_statistics_of_the_songs(songs: Path, tmp_path: Path) -> None:
    training, _ = training_of(request("umx", songs, tmp_path / "run"))
    network: Any = training.model.networks["vocals"]  # type: ignore[index]
    assert network.input_mean.max().item() < 0
    assert network.input_scale.std().item() > 0


@pytest.mark.parametrize("precision", ["bfloat16"])
def test_half_precision_trains(precision: str, songs: Path, tmp_path: Path) -> None:
    run = trained(request("cws-unet", songs, tmp_path / "run"), where=replace(HERE, precision=precision))
    assert math.isfinite(lines(run)[-1]["loss"])


def test_processes_that_read_ahead_change_nothing(songs: Path, tmp_path: Path) -> None:
    changes = {"augment": {"mix": True, "scale": [0.5, 1.0], "shift": 0.1}}
    losses = []
    for workers in (0, 2):
        asked = request("conv-tasnet", songs, tmp_path / str(workers), changes)
        losses.append([line["loss"] for line in lines(trained(asked, where=replace(HERE, workers=workers)))])
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_a_compiled_network_learns_the_same(songs: Path, tmp_path: Path) -> None:
    losses = []
    for compiled in (False, True):
        asked = request("conv-tasnet", songs, tmp_path / str(compiled))
        losses.append([line["loss"] for line in lines(trained(asked, where=replace(HERE, compile=compiled)))])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_tensorboard_gets_what_the_metrics_have(songs: Path, tmp_path: Path) -> None:
    class Board:
        scalars: ClassVar[list[tuple[str, float, int]]] = []

        def add_scalar(self, name: str, value: float, step: int) -> None:
            self.scalars.append((name, value, step))

    run = plan(request("conv-tasnet", songs, tmp_path / "run", {"stop": {"steps": 4}}))
    session.train(run, HERE, Tell(), resume=False, board=lambda _: Board())
    expected = [("train/loss", line["loss"], line["step"]) for line in lines(run)]
    expected += [("valid/loss raw", line["loss"], line["step"]) for line in lines(run, "valid")]
    assert sorted(item for item in Board.scalars if "loss" in item[0]) == sorted(expected)


# What is begun with


def test_parts_of_another_model_are_taken_frozen_and_sorted(songs: Path, tmp_path: Path) -> None:
    first = trained(request("multiband-m1", songs, tmp_path / "m1"))
    start = {"from": str(first.best), "parts": ["encoder", "decoder"], "freeze": True, "sort": True}
    sizes = {"start": start, "stop": {"steps": 2}}
    run = trained(request("multiband-m6", songs, tmp_path / "m6", sizes))
    given = load_separator(str(first.best)).separator
    expected = type(given).sort_front_end(given.state_dict())  # type: ignore[attr-defined]
    found = load_separator(str(run.best)).separator.state_dict()
    names = [name for name in found if name.startswith(("encoder.", "decoder."))]
    assert names
    assert all(torch.equal(found[name], expected[name]) for name in names)
    assert not torch.equal(expected["encoder.conv1d_U.weight"], given.state_dict()["encoder.conv1d_U.weight"])


def test_other_sources_can_be_tuned_and_new_heads_are_named(songs: Path, tmp_path: Path) -> None:
    first = trained(request("conv-tasnet", songs, tmp_path / "four"))
    said: list[str] = []
    asked = request("conv-tasnet", songs, tmp_path / "two", {"start": {"from": str(first.best)}}, sources=("vocals",))
    run = trained(asked, Tell(notice=said.append))
    assert load_separator(str(run.best)).separator.sources == ("vocals",)
    (text,) = [text for text in said if "new are" in text]
    assert "mask" in text or "separator" in text


def test_weights_of_another_kind_are_refused(songs: Path, tmp_path: Path) -> None:
    first = trained(request("cws-unet", songs, tmp_path / "unet"))
    asked = request("conv-tasnet", songs, tmp_path / "run", {"start": {"from": str(first.best)}})
    with pytest.raises(ModelError, match="is a CwsUnet, not a ConvTasNet"):
        trained(asked)


# What is refused


def test_a_run_in_use_and_a_finished_one_are_refused(songs: Path, tmp_path: Path) -> None:
    asked = request("conv-tasnet", songs, tmp_path / "run")
    with claimed(tmp_path / "run", resume=False), pytest.raises(UsageError, match="another process trains there"):
        trained(asked)
    trained(asked)
    with pytest.raises(UsageError, match="holds a run"):
        trained(asked)


def test_a_resumed_run_refuses_other_songs_and_other_settings(tmp_path: Path) -> None:
    folder = write_data(tmp_path / "data", seconds=1.0)
    asked = request("conv-tasnet", folder, tmp_path / "run")
    trained(asked)
    again = replace(asked, resume=True, settings={})
    with pytest.raises(UsageError, match="optimiser was"):
        plan(replace(again, changes={"optimiser.rate": 1.0}))
    with pytest.raises(UsageError, match="filters was"):
        plan(replace(again, settings={"filters": 99}))
    with pytest.raises(UsageError, match="holds a run of conv-tasnet, not of umx"):
        plan(replace(again, entry=catalog()["umx"]))
    with pytest.raises(UsageError, match="the seed was 0, not 99"):
        plan(replace(again, seed=99))
    with pytest.raises(UsageError, match="absent stems were refused"):
        plan(replace(again, absent="silence"))
    assert plan(replace(again, seed=0, absent="refuse")).facts["seed"] == 0
    os.utime(folder / "song 0" / "bass.wav", ns=(5, 5))
    longer = replace(again, changes={"stop.steps": 9})
    with pytest.raises(UsageError, match="song 0 has changed"):
        trained(longer)


def test_a_full_disk_is_told_and_leaves_the_last_state(
    songs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import safetensors.torch
    from safetensors import SafetensorError

    asked = request("conv-tasnet", songs, tmp_path / "run")
    save = safetensors.torch.save_file
    count = iter(range(100))

    def full(*given: Any) -> None:
        if next(count) >= 1:
            raise SafetensorError("No space left on device")
        save(*given)

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(ModelError, match="No space left"):
        trained(asked)
    assert read_state(tmp_path / "run" / "last" / "state.safetensors")[0]


def test_a_batch_that_cannot_be_shared_is_refused(songs: Path, tmp_path: Path) -> None:
    training, excerpts = training_of(request("conv-tasnet", songs, tmp_path / "run", {"data.batch": 3}))
    with pytest.raises(UsageError, match="batch = 3: cannot be shared by 2 processes"):
        loop.load(excerpts, training.recipe, replace(HERE, world=2), training.progress, 1)
