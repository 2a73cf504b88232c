"""What judges the tests must be able to fail as well: the coverage gate, and the reading of faults."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def scripts() -> Iterator[dict[str, ModuleType]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield {name: importlib.import_module(name) for name in ("coverage_gate", "mutants")}


def report(gate: ModuleType, missing: dict[str, list[list[int]]], overall: float = 90.0) -> dict[str, Any]:
    """A report of coverage in which two of ten branches of a file, those of `missing`, were not taken."""
    names = [name for files in gate.WHOLE.values() for name in files]
    files = {}
    for name in names:
        gone = missing.get(name, [])
        counts = {"num_statements": 10, "covered_lines": 10, "num_branches": 10, "covered_branches": 10 - len(gone)}
        files[f"src/recerase/{name}"] = {"summary": counts, "missing_lines": [], "missing_branches": gone}
    return {"totals": {"percent_covered": overall}, "files": files}


def judged(gate: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: object) -> int:
    (tmp_path / "covered.json").write_text(json.dumps(content))
    monkeypatch.setattr("sys.argv", ["coverage_gate.py", f"{tmp_path}/covered.json", "--json", f"{tmp_path}/out.json"])
    return int(gate.main())


def test_the_coverage_gate_passes_only_what_is_whole(
    scripts: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gate = scripts["coverage_gate"]
    assert judged(gate, tmp_path, monkeypatch, report(gate, {})) == 0
    assert json.loads((tmp_path / "out.json").read_text())["percent"] == {
        "overall": 90.0,
        **dict.fromkeys(gate.WHOLE, 100.0),
    }
    assert judged(gate, tmp_path, monkeypatch, report(gate, {}, overall=89.99)) == 1
    capsys.readouterr()
    assert judged(gate, tmp_path, monkeypatch, report(gate, {"store.py": [[7, 9], [12, -3]]})) == 1
    assert "store.py: lines none; branches 7->9, 12->exit" in capsys.readouterr().out


def test_the_coverage_gate_does_not_pass_a_file_it_cannot_see(
    scripts: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = scripts["coverage_gate"]
    renamed = report(gate, {})
    renamed["files"]["src/recerase/elsewhere.py"] = renamed["files"].pop("src/recerase/errors.py")
    assert judged(gate, tmp_path, monkeypatch, renamed) == 1
    assert judged(gate, tmp_path, monkeypatch, {}) == 2


CODE = """class Table:
    @cached_property
    def rows(self) -> int:
        return 1

    @other
    def kept(self) -> int:
        return 2
"""


def test_opening_a_property_moves_no_line_and_changes_no_meaning(scripts: dict[str, ModuleType]) -> None:
    opened = scripts["mutants"].opened(CODE).split("\n")
    assert opened[1:5] == [
        "    # opened",
        "    def rows(self) -> int:",
        "        return 1",
        "    rows = cached_property(rows)",
    ]
    assert opened[5:8] == CODE.split("\n")[5:8]


@pytest.mark.parametrize(
    ("fault", "wording"),
    [
        ("raise TableError('there is noXX', name)", True),
        ("raise TableError(None, name)", False),
        ("raise TableError('there is no', None)", False),
        ("raise TableError(name)", False),
        ("return TableError('there is no', name)", False),
    ],
)
def test_only_the_words_of_an_error_are_left_out_of_the_count(
    scripts: dict[str, ModuleType], fault: str, wording: bool
) -> None:
    import ast

    one, two = (ast.parse(f"def f():\n    {body}").body[0] for body in ("raise TableError('there is no', name)", fault))
    assert scripts["mutants"]._only_wording(one, two) is wording


def test_every_listed_fault_stands_in_the_code_and_has_a_reason(scripts: dict[str, ModuleType]) -> None:
    mutants = scripts["mutants"]
    for source, _ in mutants.MODULES.values():
        code = " ".join((mutants.REPOSITORY / source).read_text().split())
        for (function, was, becomes), reason in mutants.reasons(source).items():
            assert f"def {function.rpartition('.')[2]}(" in code
            assert was.startswith("def f(") or " ".join(was.split()) in code
            assert was != becomes
            assert reason.endswith(".")
