"""The house's order, read off the source: who may import whom, what importing costs, and what only one room may do."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import recerase

SOURCE = Path(recerase.__file__).parent
MODULES = sorted(SOURCE.rglob("*.py"))
FLOORS = {
    **dict.fromkeys(
        ["types", "errors", "disk", "encoded", "outputs", "store", "stats", "runtime", "settings", "resume", "limits"],
        0,
    ),
    **dict.fromkeys(["parallel", "launching", "connection"], 0),
    **dict.fromkeys(["catalog", "sid", "report"], 1),
    **dict.fromkeys(["model", "layouts"], 2),
    **dict.fromkeys(["audit", "erase"], 3),
    **dict.fromkeys(["assembly", "auditing", "recommending", "reporting", "growing", "erasure", "tokenizing"], 4),
    **dict.fromkeys(["earlier", "streaming", "sid_export", "preparing", "planning", "api"], 4),
    "prefixes": 2,
    **dict.fromkeys(["exporting", "patches", "comparing"], 4),
    **dict.fromkeys(["demo", "doctor"], 5),
    "cli": 6,
    **dict.fromkeys(["__main__", "__init__"], 7),
}
"""DESIGN section 2: a room imports from its own floor or a lower one."""
STRANGERS = {("audit", "erase"), ("erase", "audit"), ("report", "catalog"), ("report", "sid"), ("model", "layouts")}
NO_TORCH = [
    "types",
    "errors",
    "stats",
    "disk",
    "encoded",
    "outputs",
    "store",
    "settings",
    "resume",
    "report",
    "audit/policy",
]
"""Importing these must not load torch."""


def name_of(path: Path) -> str:
    return path.relative_to(SOURCE).with_suffix("").as_posix()


def room_of(module: str) -> str:
    """`recerase.audit.run` -> audit; `recerase` itself -> __init__."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imports_of(path: Path) -> Iterator[str]:
    """Every module named by an import statement in the file, also inside functions and under TYPE_CHECKING."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module == "recerase":
                yield from (f"recerase.{alias.name}" for alias in node.names if alias.name in FLOORS)
                yield from ("recerase" for alias in node.names if alias.name not in FLOORS)
            elif node.module:
                yield node.module


def calls_of(path: Path) -> Iterator[ast.Call]:
    yield from (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_down(path: Path) -> None:
    own = name_of(path).split("/")[0]
    for module in imports_of(path):
        if module.split(".")[0] != "recerase":
            continue
        other = room_of(module)
        if other == "__init__":  # `from recerase import __version__`: the edge may ask
            assert own in ("cli", "__main__"), f"{name_of(path)} imports the package it is part of"
            continue
        assert FLOORS[other] <= FLOORS[own], f"{name_of(path)} must not import {module}"
        assert (own, other) not in STRANGERS, f"{name_of(path)} must not know {module}"


def test_every_room_has_a_floor() -> None:
    rooms = {name_of(path).split("/")[0] for path in MODULES}
    assert rooms <= FLOORS.keys()


def loaded_after(statement: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{statement}; import sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.split())


HEAVY = {"torch", "transformers", "faiss", "sklearn", "matplotlib", "sentence_transformers", "accelerate"}


@pytest.mark.parametrize(
    "module", ["recerase", "recerase.cli.app", "recerase.__main__", "recerase.report", "recerase.audit.policy"]
)
def test_importing_is_cheap(module: str) -> None:
    assert not loaded_after(f"import {module}") & HEAVY


@pytest.mark.parametrize("room", NO_TORCH)
def test_rooms_that_promise_it_never_name_torch(room: str) -> None:
    for path in MODULES:
        if name_of(path) == room or name_of(path).startswith(room + "/"):
            assert not {module for module in imports_of(path) if module.split(".")[0] == "torch"}, name_of(path)


def test_public_names_exist_and_load_lazily() -> None:
    assert sorted(recerase.__all__) == recerase.__all__
    for name in recerase.__all__:
        assert getattr(recerase, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        _ = recerase.nonsense


WRITERS = {
    "write_text",
    "write_bytes",
    "savefig",
    "to_parquet",
    "write_table",
    "save_file",
    "save_pretrained",
    "tofile",
}


def is_writing(call: ast.Call) -> bool:
    """Whether a call opens a file for writing: open(..., "w"), Path.write_*, a library's writer on a path."""
    function = call.func
    if isinstance(function, ast.Name) and function.id == "open":
        modes = [*call.args[1:2], *(word.value for word in call.keywords if word.arg == "mode")]
        return any(isinstance(mode, ast.Constant) and set(str(mode.value)) & set("wax+") for mode in modes)
    if isinstance(function, ast.Attribute):
        owner = function.value.id if isinstance(function.value, ast.Name) else ""
        return owner != "store" and (
            function.attr in WRITERS
            or (function.attr == "open" and any(isinstance(a, ast.Constant) and "w" in str(a.value) for a in call.args))
            or (owner in ("np", "numpy") and function.attr in ("save", "savez", "savez_compressed", "savetxt"))
            or (owner == "torch" and function.attr == "save")
        )
    return False


@pytest.mark.parametrize("path", [p for p in MODULES if name_of(p) != "store"], ids=name_of)
def test_only_the_store_writes(path: Path) -> None:
    lines = [call.lineno for call in calls_of(path) if is_writing(call) and not to_memory(call)]
    assert not lines, f"{name_of(path)} opens a file for writing at lines {lines}: go through recerase.store"


def to_memory(call: ast.Call) -> bool:
    """savefig, torch.save and writers given a buffer by that name do not touch the disk."""
    given = call.args[1:2] if ast.unparse(call.func) == "torch.save" else call.args[:1]
    return any(isinstance(place, ast.Name) and place.id in ("buffer", "sink") for place in given)


def test_the_writing_test_can_tell() -> None:
    def call(text: str) -> ast.Call:
        node = ast.parse(text, mode="eval").body
        assert isinstance(node, ast.Call)
        return node

    for text in [
        'open(p, "w")',
        'open(p, mode="ab")',
        'Path(p).write_text("x")',
        "np.save(p, a)",
        "pq.write_table(t, p)",
    ]:
        assert is_writing(call(text)), text
    for text in ["open(p)", 'open(p, "rb")', "store.write_bytes(p, b)", "json.dumps(x)"]:
        assert not is_writing(call(text)), text


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_code_is_read_from_data(path: Path) -> None:
    banned_modules = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
    assert not {module.split(".")[0] for module in imports_of(path)} & banned_modules
    for call in calls_of(path):
        function = call.func
        if isinstance(function, ast.Name):
            assert function.id not in ("eval", "exec"), f"{name_of(path)}:{call.lineno}"
        elif isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
            spelled = f"{function.value.id}.{function.attr}"
            assert spelled != "yaml.load", f"{name_of(path)}:{call.lineno}"
            words = {word.arg: word.value for word in call.keywords}
            if spelled == "torch.load":
                safe = words.get("weights_only")
                assert safe is not None, f"{name_of(path)}:{call.lineno}"
                assert ast.unparse(safe) == "True", f"{name_of(path)}:{call.lineno}"
            if spelled in ("np.load", "numpy.load"):
                unsafe = words.get("allow_pickle")
                assert unsafe is None or (isinstance(unsafe, ast.Constant) and unsafe.value is False), name_of(path)


@pytest.mark.parametrize("path", [p for p in MODULES if not name_of(p).startswith(("cli", "__main__"))], ids=name_of)
def test_the_library_never_prints(path: Path) -> None:
    printed = [c.lineno for c in calls_of(path) if isinstance(c.func, ast.Name) and c.func.id == "print"]
    assert not printed, f"{name_of(path)} prints at lines {printed}: tell the observer"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_nothing_is_seeded_or_pinned_for_the_whole_process(path: Path) -> None:
    """Random state and threads are set for a block and given back: only under fork_rng, or in runtime.pinned."""
    text = path.read_text()
    for call in calls_of(path):
        function = call.func
        if not isinstance(function, ast.Attribute):
            continue
        spelled = ast.unparse(function)
        assert spelled not in ("random.seed", "np.random.seed", "numpy.random.seed"), f"{name_of(path)}:{call.lineno}"
        if spelled == "torch.manual_seed":
            assert "fork_rng" in text, f"{name_of(path)}:{call.lineno} seeds torch outside fork_rng"
        if spelled == "torch.set_num_threads":
            assert name_of(path) == "runtime", f"{name_of(path)}:{call.lineno} sets threads outside runtime.pinned"


def test_every_public_name_keeps_its_meaning_whatever_is_imported() -> None:
    """A subpackage that is imported becomes an attribute of the package; no public name may be one, but `api`."""
    import recerase

    rooms = {path.name for path in SOURCE.iterdir() if path.is_dir()} | {path.stem for path in SOURCE.glob("*.py")}
    assert set(recerase.__all__) & rooms == {"api"}
    for name in recerase.__all__:
        assert getattr(recerase, name) is not None
    assert callable(recerase.api.audit)
