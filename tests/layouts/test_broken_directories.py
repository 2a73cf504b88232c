"""Whatever is wrong with a directory, every layout answers in one sentence, with the right exit code, and never by guessing.

A damaged directory is refused, or it is read exactly as the whole one is (a file that nobody needs was damaged). Nothing between.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.layouts.fixtures import MAKERS

from recerase.__main__ import run
from recerase.catalog import Histories
from recerase.errors import ArtefactError, RecEraseError
from recerase.layouts.registry import detect_layout, layouts, named_layout, open_checkpoint, recognised

NAMES = [layout.name for layout in layouts() if layout.name != "sid-gr"]  # which is refused, whatever is in it


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A directory of every layout; read only."""
    home = tmp_path_factory.mktemp("whole")
    return {name: MAKERS[name](home / name) for name in NAMES if name in MAKERS}


def place_of(homes: dict[str, Path], name: str) -> Path:
    assert name in homes, f"give layout {name} a line in tests/layouts/fixtures.py, MAKERS"
    return homes[name]


@dataclass(frozen=True)
class Read:
    """What of a directory decides what anybody would be recommended."""

    layout: str
    items: list[str]
    rows: np.ndarray
    listed: np.ndarray
    tokens: list[list[int]]
    state: dict[str, Any]

    def same(self, other: Read) -> bool:
        return (
            (self.layout, self.items, self.tokens) == (other.layout, other.items, other.tokens)
            and np.array_equal(self.rows, other.rows)
            and np.array_equal(self.listed, other.listed)
            and self.state.keys() == other.state.keys()
            and all(torch.equal(tensor, other.state[name]) for name, tensor in self.state.items())
        )


def read(path: Path, layout: str | None = None) -> Read:
    known = detect_layout(path, layout)
    if known.table is not None:
        table, _ = known.table(path)
        return Read(known.name, table.item_ids.tolist(), table.rows(), table.listed, [], {})
    found = open_checkpoint(path, trust_pickle=True, layout=layout)
    tokens, lengths = found.recommender.tokens(Histories.from_lists([[3, 4], [7]]), found.table)
    asked = [row[: int(n)].tolist() for row, n in zip(tokens, lengths, strict=True)]
    state = found.recommender.module.state_dict()
    return Read(known.name, found.table.item_ids.tolist(), found.table.rows(), found.table.listed, asked, state)


def refusal(path: Path, layout: str | None = None) -> tuple[RecEraseError | None, Read | None]:
    """The refusal, or what was read; any other exception rises and fails the test."""
    try:
        return None, read(path, layout)
    except RecEraseError as error:
        return error, None


def check_sentence(error: RecEraseError) -> None:
    assert isinstance(error, ArtefactError), repr(error)
    assert error.exit_code == 4
    assert error.message
    assert error.remedy
    assert "\n" not in str(error).strip()
    assert "Traceback" not in str(error)
    assert len(str(error)) < 700


def halved(file: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])


def garbage(file: Path) -> None:
    file.write_bytes(np.random.default_rng(0).bytes(max(64, file.stat().st_size // 2)))


DAMAGE: dict[str, Callable[[Path], None]] = {
    "missing": Path.unlink,
    "empty": lambda file: file.write_bytes(b"") and None,  # type: ignore[dict-item]
    "halved": halved,
    "garbage": garbage,
    "other json": lambda file: file.write_text('{"answer": [42]}') and None,  # type: ignore[dict-item]
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_file_is_refused_or_was_not_needed(
    homes: dict[str, Path], tmp_path: Path, name: str, damage: str
) -> None:
    """Each file in turn; what is recognised no more is also read by name, so that detection does not answer for the loader."""
    whole = place_of(homes, name)
    wanted = read(whole)
    files = sorted(file.relative_to(whole) for file in whole.rglob("*") if file.is_file())
    refused = 0
    for number, file in enumerate(files):
        place = Path(shutil.copytree(whole, tmp_path / str(number)))
        DAMAGE[damage](place / file)
        for layout in (None, name) if not recognised(place) else (None,):
            error, found = refusal(place, layout)
            if error is not None:
                check_sentence(error)
                refused += 1
            else:
                assert found is not None
                assert found.same(wanted), f"{file} {damage}: read as something else"
    assert refused >= 1  # a layout that reads nothing would pass everything


@pytest.mark.parametrize("name", NAMES)
def test_inspect_says_what_is_missing(
    homes: dict[str, Path], tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = place_of(homes, name)
    files = sorted(file.relative_to(whole) for file in whole.rglob("*") if file.is_file())
    for number, file in enumerate(files):
        place = Path(shutil.copytree(whole, tmp_path / str(number)))
        (place / file).unlink()
        code = run(["inspect", str(place), "--trust-pickle"])
        said = capsys.readouterr()
        assert code in (0, 4), (file, said.err)
        assert "Traceback" not in said.err
        assert code == 0 or said.err.strip(), file


EMPTY: dict[str, Callable[[Path], Path]] = {
    "empty": lambda place: place,
    "a text": lambda place: _put(place, "notes.txt", "nothing"),
    "unrelated json": lambda place: _put(place, "package.json", '{"name": "x", "version": [1, 2]}'),
    "a config of another kind": lambda place: _put(place, "config.json", '{"model_type": "bert"}'),
    "a config that is no object": lambda place: _put(place, "config.json", "[1, 2]"),
    "binary json": lambda place: _put(place, "manifest.json", "\x00\x01"),
    "folders alone": lambda place: _put(place, "info/deep/x.md", "x"),
    "a file": lambda place: _put(place, "notes.txt", "nothing") / "notes.txt",
    "a json file": lambda place: _put(place, "x.json", '{"name": "x"}') / "x.json",
    "an empty file": lambda place: _put(place, "x.sem_ids", "") / "x.sem_ids",
    "nowhere": lambda place: place / "nowhere",
}


def _put(place: Path, name: str, text: str) -> Path:
    (place / name).parent.mkdir(parents=True, exist_ok=True)
    (place / name).write_text(text)
    return place


@pytest.mark.parametrize("what", EMPTY)
def test_what_is_no_checkpoint_is_refused_with_what_was_looked_for_and_found(
    tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = EMPTY[what](tmp_path)
    assert recognised(path) == ()
    error, _ = refusal(path)
    assert error is not None
    check_sentence(error)
    if what != "nowhere":
        assert all(name in str(error) for name in NAMES)
        assert "it holds" in str(error)
    assert run(["inspect", str(path)]) == 4
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("what", EMPTY)
def test_a_named_layout_refuses_what_is_not_its_own(tmp_path: Path, what: str, name: str) -> None:
    """--layout NAME on something else: the loader of that layout says what it lacks."""
    error, _ = refusal(EMPTY[what](tmp_path), name)
    assert error is not None
    check_sentence(error)


@pytest.mark.parametrize("one", NAMES)
def test_two_layouts_mixed_are_refused(homes: dict[str, Path], tmp_path: Path, one: str) -> None:
    """The files of one laid over those of another, whichever lies above.

    Where the upper one has overwritten files of the lower one, what is left may be wholly the upper one, and then is read as that.
    """
    first = place_of(homes, one)
    for other in (name for name in NAMES if name != one):
        second = place_of(homes, other)
        place = Path(shutil.copytree(first, tmp_path / other))
        shutil.copytree(second, place, dirs_exist_ok=True)
        error, found = refusal(place)
        shared = {file.name for file in first.iterdir()} & {file.name for file in second.iterdir()}
        if error is not None:
            check_sentence(error)
            assert shared or (one in str(error) and other in str(error)), f"{one} and {other}: {error}"
            continue
        assert shared, (one, other)
        assert found is not None
        assert found.same(read(second)), f"{other} over {one} was read as {found.layout}"


@pytest.mark.parametrize("name", NAMES)
def test_each_is_told_by_its_content_alone(homes: dict[str, Path], name: str) -> None:
    assert [layout.name for layout, _ in recognised(place_of(homes, name))] == [name]
    assert named_layout(name).marks


@pytest.mark.parametrize("name", NAMES)
def test_what_training_leaves_beside_it_changes_nothing(homes: dict[str, Path], tmp_path: Path, name: str) -> None:
    """Logs, optimiser states and notes, as transformers' Trainer, accelerate, deepspeed and people lay them beside weights."""
    whole = place_of(homes, name)
    place = Path(shutil.copytree(whole, tmp_path / name))
    for file in ("README.md", ".gitattributes", "training.log", "runs/events.out.tfevents.1", "exact_trie.pkl"):
        _put(place, file, "lr 3e-4\n")
    for file in ("trainer_state.json", "all_results.json", "zero_to_fp32.py", "wandb/run.json", "package.json"):
        _put(place, file, '{"epoch": 3.0, "log_history": [{"loss": 1.5, "step": 10}]}')
    moments = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(4, 2)}}, "param_groups": [{"lr": 0.1}]}
    files = ["optimizer.pt", "training_args.bin", "global_step3/mp_rank_00_model_states.pt"]
    for file in (
        files if name == "tiger-cf" else [*files, "rng_state.pth"]
    ):  # where weights are a .pth, it is the only one
        (place / file).parent.mkdir(exist_ok=True)
        torch.save(moments, place / file)
    torch.save({"last_epoch": 3, "_step_count": 4}, place / "scheduler.pt")
    wanted = read(whole)
    assert [layout.name for layout, _ in recognised(place)] == [name]
    assert read(place).same(wanted)


def test_weights_in_shards_beside_whole_ones_are_refused(homes: dict[str, Path], tmp_path: Path) -> None:
    place = Path(shutil.copytree(place_of(homes, "onerec-think"), tmp_path / "model"))
    shutil.copy(place_of(homes, "openonerec") / "model.safetensors", place)
    error, _ = refusal(place)
    assert error is not None
    check_sentence(error)
    assert "model.safetensors and model.safetensors.index.json" in str(error)
