"""Threads and random state are set for a block and given back; what they were is said."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import recerase
from recerase.errors import UsageError
from recerase.runtime import available_threads, choose_device, choose_dtype, code_digest, environment, pinned, rooms_of


def test_a_pinned_block_draws_the_same_and_leaves_no_trace() -> None:
    torch.manual_seed(5)
    before, threads = torch.random.get_rng_state(), torch.get_num_threads()
    strict = torch.are_deterministic_algorithms_enabled()
    draws = []
    for _ in range(2):
        with pinned(2, seed=7) as count:
            assert (count, torch.get_num_threads()) == (2, 2)
            assert torch.are_deterministic_algorithms_enabled()
            draws.append(torch.rand(4))
    assert torch.equal(*draws)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.get_num_threads() == threads
    assert torch.are_deterministic_algorithms_enabled() == strict


def test_a_pinned_block_is_given_back_after_an_exception() -> None:
    before, threads = torch.random.get_rng_state(), torch.get_num_threads()
    with pytest.raises(RuntimeError), pinned(threads + 1, seed=1):
        torch.rand(3)
        raise RuntimeError
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.random.get_rng_state(), before)


def test_seeds_differ() -> None:
    with pinned(1, seed=1):
        first = torch.rand(4)
    with pinned(1, seed=2):
        assert not torch.equal(first, torch.rand(4))


def test_the_environment_names_what_numbers_depend_on() -> None:
    found = environment(seed=3, threads=2, device="cpu", dtype="bfloat16")
    assert (found.seed, found.threads, found.device, found.dtype) == (3, 2, "cpu", "bfloat16")
    assert found.torch == torch.__version__
    assert "absent" not in found.packages.values()
    assert environment().threads == available_threads()


def test_devices_and_dtypes_that_are_not_there_are_refused() -> None:
    assert choose_device("cpu") == "cpu"
    assert choose_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("abacus", "cuda:99"):
        with pytest.raises(UsageError, match=name):
            choose_device(name)
    assert choose_dtype(None) is None
    assert choose_dtype("bfloat16") is torch.bfloat16
    with pytest.raises(UsageError, match="float32"):
        choose_dtype("float8")


def test_the_code_digest_is_steady() -> None:
    assert code_digest() == code_digest()
    assert len(code_digest()) == 64
    assert (
        len({code_digest("stats.py"), code_digest("types.py"), code_digest("stats.py", "types.py"), code_digest()}) == 4
    )
    assert code_digest("stats.py", "types.py") == code_digest("types.py", "stats.py")
    with pytest.raises(FileNotFoundError):
        code_digest("stats.py", "nowhere")


def test_the_rooms_of_a_module_are_what_it_imports_and_nothing_else() -> None:
    rooms = rooms_of("recerase.erase.npo")
    assert {"erase/npo.py", "erase/steps.py", "erase/paths.py", "model/tree.py", "errors.py"} <= {*rooms}
    assert not {"erase/frontier.py", "erase/twins.py", "__init__.py", "api.py"} & {*rooms}
    assert {"erase/frontier.py", "erase/reassign.py"} <= {*rooms_of("recerase.erase.tracer")}
    assert rooms_of("recerase.erase.npo", "recerase.errors") == rooms
    with pytest.raises(FileNotFoundError):
        rooms_of("recerase.erase.nowhere")


def test_every_module_that_an_import_loads_is_among_the_rooms() -> None:
    """The twin: what a fresh interpreter has loaded of the package after the import (what is imported late is more)."""
    said = "import sys, recerase.erase.tracer; print(*(m.__file__ for n, m in sys.modules.items() if n.startswith('recerase.')))"
    found = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True).stdout.split()
    root = Path(recerase.__file__).parent
    loaded = {Path(path).relative_to(root).as_posix() for path in found}
    assert len(loaded) > 20
    assert loaded <= {*rooms_of("recerase.erase.tracer")}


def test_a_full_device_is_not_one_that_cannot_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(torch, "softmax", full)
    with pytest.raises(torch.OutOfMemoryError):
        choose_dtype("float16")
