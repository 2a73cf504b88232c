"""Are the tests able to fail? Small faults are put into the modules that carry the promises; a test must see each.

The decision that shaped this file: the faults and the runs are mutmut's, so that they are not of our own choosing; what is
here puts a copy of the repository under it (no fault ever stands in the real files), lets it into properties and cached
functions, which it would leave out, and counts. Out of the count stay faults that change only the words of an error, and
those in mutants.toml, where each has the reason why no test can see it. mutmut does not change what stands outside of
functions.

    pip install mutmut && python benchmarks/mutants.py [stats table policy store] [--sample N] [--json FILE]
"""

from __future__ import annotations

import argparse
import ast
import datetime
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
LISTED = Path(__file__).with_name("mutants.toml")
TARGET = 0.85
"""The share of faults that must be seen, of those that can be."""
_TABLE = ["tests/sid/test_table.py", "tests/sid/test_table_lengths.py"]
_POLICY = ["tests/audit/test_policy.py", "tests/audit/test_policy_reasons.py"]
_STORE = ["tests/test_store.py", "tests/test_store_words.py", "tests/test_disk.py"]
MODULES = {
    "stats": ("src/recerase/stats.py", ["tests/test_stats.py"]),
    "table": ("src/recerase/sid/table.py", _TABLE),
    "table_files": ("src/recerase/sid/table_files.py", _TABLE),
    "checks": ("src/recerase/sid/checks.py", _TABLE),
    "policy": ("src/recerase/audit/policy.py", _POLICY),
    "policy_file": ("src/recerase/audit/policy_file.py", _POLICY),
    "limits": ("src/recerase/limits.py", [*_POLICY, "tests/audit/test_gate.py"]),
    "store": ("src/recerase/store.py", _STORE),
    "disk": ("src/recerase/disk.py", _STORE),
    "encoded": ("src/recerase/encoded.py", _STORE),
    "outputs": ("src/recerase/outputs.py", _STORE),
}
"""Name -> the file, and the tests that mirror it; what was moved out of a file for its length is judged like it."""
TRANSPARENT = ("property", "cached_property", "functools.cache")
"""Decorators that may as well be applied after the function is made, which lets mutmut see it."""
STEADY = """
from hypothesis import Phase

_steady = dict(derandomize=True, database=None, phases=[Phase.explicit, Phase.generate])
settings.register_profile("mutants", parent=settings.get_profile("tests"), **_steady)
settings.load_profile("mutants")
"""
"""Goes under the copy's conftest: the same examples for every fault, and no time spent on making a failure small."""
SURVIVED = {0: "no test saw it", 5: "no test runs it", 33: "no test runs it"}
"""mutmut's exit codes for a fault that was not seen; all others are kinds of seeing it (a failure, a hang, a crash)."""


@dataclass(frozen=True)
class Mutant:
    """One fault: where it stands, and what became of the line."""

    name: str
    line: int
    function: str
    was: str
    becomes: str
    wording: bool
    """Only a text in an error changed."""


def main() -> int:
    """Exit code 0 when every module reaches the target, 1 when one does not, 2 when mutmut is not there or does not run."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "modules", nargs="*", choices=[[], *MODULES], help=f"any of {', '.join(MODULES)}; all by default"
    )
    parser.add_argument("--sample", type=int, default=0, help="so many faults of each module, drawn with one seed")
    parser.add_argument("--json", type=Path, help="write the counts and survivors here as well")
    asked = parser.parse_args()
    out = asked.json and asked.json.resolve()  # before anything changes the directory
    if find_spec("mutmut") is None:
        print("mutmut is not installed: pip install mutmut", file=sys.stderr)
        return 2
    rows = []
    for module in asked.modules or MODULES:
        with tempfile.TemporaryDirectory(prefix="mutants-") as place:
            rows.append(counted(module, Path(place), asked.sample))
        print(f"{module}: {rows[-1]['killed']} of {rows[-1]['total']}", file=sys.stderr)
    sampled = f" --sample {asked.sample}" if asked.sample else ""
    command = f"python benchmarks/mutants.py{''.join(f' {m}' for m in asked.modules)}{sampled}"
    told = {"command": command, "date": datetime.date.today().isoformat(), "modules": rows}
    print("\n".join(lines_of(rows)))
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(told, indent=1) + "\n", "utf-8")
    return 0 if all(share(row) >= TARGET for row in rows) else 1


def counted(module: str, place: Path, sample: int) -> dict[str, Any]:
    """One row of the table: how many faults of a module its tests saw, and which they did not."""
    source, tests = MODULES[module]
    known = reasons(source)
    copy_into(place, source, tests)
    mutants = [m for m in made(place, source) if not m.wording]
    total = len(mutants)
    if sample and sample < total:
        mutants = random.Random(0).sample(mutants, sample)
    codes = ran(place, source, [m.name for m in mutants])
    survivors = [(m, SURVIVED[codes[m.name]]) for m in mutants if codes[m.name] in SURVIVED]
    hopeless = [m for m, _ in survivors if (m.function, m.was, m.becomes) in known]
    return {
        "module": source.removeprefix("src/recerase/"),
        "tests": tests,
        "total": len(mutants),
        "made": total,
        "killed": len(mutants) - len(survivors),
        "equivalent": len(hopeless),
        "equivalents": [{**shown(m), "reason": known[m.function, m.was, m.becomes]} for m in hopeless],
        "survivors": [{**shown(m), "why": why} for m, why in survivors if m not in hopeless],
    }


def copy_into(place: Path, source: str, tests: Sequence[str]) -> None:
    """The repository as it is on disk, with mutmut's settings for one module; decorated functions are opened up."""
    for folder in ("src", "tests"):
        shutil.copytree(REPOSITORY / folder, place / folder, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    settings = {
        "source_paths": [source],
        "also_copy": ["src", "tests"],
        "pytest_add_cli_args": ["-p", "no:cacheprovider"],
        "pytest_add_cli_args_test_selection": list(tests),
        "use_git_change_detection": False,
    }
    text = (REPOSITORY / "pyproject.toml").read_text("utf-8")
    table = "\n".join(f"{key} = {json.dumps(value)}" for key, value in settings.items())
    (place / "pyproject.toml").write_text(f"{text}\n[tool.mutmut]\n{table}\n", "utf-8")
    with open(place / "tests" / "conftest.py", "a", encoding="utf-8") as file:
        file.write(STEADY)
    (place / source).write_text(opened((place / source).read_text("utf-8")), "utf-8")


def opened(code: str) -> str:
    """`@property` over a function becomes an assignment on the empty line under it, so that no line moves."""
    lines = [*code.split("\n"), ""]
    for node in ast.walk(ast.parse(code)):
        if not isinstance(node, ast.FunctionDef) or len(node.decorator_list) != 1 or node.end_lineno is None:
            continue
        decorator, indent = ast.unparse(node.decorator_list[0]), " " * node.col_offset
        if decorator in TRANSPARENT and not lines[node.end_lineno].strip():
            lines[node.decorator_list[0].lineno - 1] = f"{indent}# opened"
            lines[node.end_lineno] = f"{indent}{node.name} = {decorator}({node.name})"
    return "\n".join(lines)


def made(place: Path, source: str) -> Iterator[Mutant]:
    """Every fault that mutmut makes in a file, in order."""
    os.chdir(place)  # mutmut reads its settings where it stands, on import
    from mutmut.mutation.file_mutation import mutate_file_contents

    code = (place / source).read_text("utf-8")
    spoilt = mutate_file_contents(source, code).code
    found = {n.name: n for n in ast.walk(ast.parse(spoilt)) if isinstance(n, ast.FunctionDef) and "__mutmut_" in n.name}
    rows = spoilt.split("\n")
    starts = dict(_starts(code))
    module = source.removeprefix("src/").removesuffix(".py").replace("/", ".")
    for name, node in found.items():
        stem, _, number = name.rpartition("__mutmut_")
        if number == "orig":
            continue
        first = found[f"{stem}__mutmut_orig"]
        at, was, becomes = _changed(rows, first, node)
        function = re.split("[_ǁ]", stem, maxsplit=1)[1].replace("ǁ", ".")
        yield Mutant(f"{module}.{name}", starts[stem] + at, function, was, becomes, _only_wording(first, node))


def _starts(code: str) -> Iterator[tuple[str, int]]:
    """mutmut's name of every function and method, and where its `def` stands."""
    tree = ast.parse(code)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            yield f"x_{node.name}", node.lineno
    for owner in (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)):
        for node in owner.body:
            if isinstance(node, ast.FunctionDef):
                yield f"xǁ{owner.name}ǁ{node.name}", node.lineno


def _changed(rows: Sequence[str], first: ast.FunctionDef, second: ast.FunctionDef) -> tuple[int, str, str]:
    """How many lines under `def` the first difference stands, and the lines before and after the change."""
    one, two = (rows[f.lineno - 1 : f.end_lineno] for f in (first, second))
    one, two = ([row.replace(f.name, "f") for row in some] for f, some in ((first, one), (second, two)))
    head = next(i for i, (a, b) in enumerate(zip([*one, None], [*two, None], strict=False)) if a != b)
    tail = 0
    while tail < min(len(one), len(two)) - head and one[-1 - tail] == two[-1 - tail]:
        tail += 1
    was, becomes = (" ".join(row.strip() for row in some[head : len(some) - tail]) for some in (one, two))
    return head, was, becomes


def _only_wording(first: ast.AST, second: ast.AST, within: bool = False) -> bool:
    """Whether two functions differ in nothing but a text given to an error."""
    if isinstance(first, ast.Constant) and isinstance(first.value, str):
        return within and isinstance(second, ast.Constant) and isinstance(second.value, str)
    if type(first) is not type(second):
        return False
    if isinstance(first, ast.Call):
        within = ast.unparse(first.func).endswith("Error")
    for (key, a), (_, b) in zip(ast.iter_fields(first), ast.iter_fields(second), strict=True):
        if key == "name" and isinstance(first, ast.FunctionDef):
            continue
        pairs = list(zip(a, b, strict=False)) if isinstance(a, list) else [(a, b)]
        if isinstance(a, list) and len(a) != len(b):
            return False
        for x, y in pairs:
            if isinstance(x, ast.AST) and isinstance(y, ast.AST):
                if ast.dump(x) != ast.dump(y):
                    return _only_wording(x, y, within)
            elif x != y:
                return False
    return False


def ran(place: Path, source: str, names: Sequence[str]) -> dict[str, int]:
    """mutmut's exit code of each fault. Children of the tests see the same fault: they import the copy as well."""
    (place / "mutants" / "src").mkdir(parents=True)  # Python forgets a search path that is not there when it starts
    surroundings = {
        **os.environ,
        "PYTHONPATH": str(place / "mutants" / "src"),
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    command = [sys.executable, "-m", "mutmut", "run", "--max-children", "1", *names]
    ended = subprocess.run(command, cwd=place, env=surroundings, capture_output=True, text=True, check=False)
    told = place / "mutants" / f"{source}.meta"
    codes = json.loads(told.read_text("utf-8"))["exit_code_by_key"] if told.exists() else {}
    if any(codes.get(name) is None for name in names):
        print((ended.stdout + ended.stderr)[-3000:], file=sys.stderr)
        raise SystemExit(f"mutmut did not run all faults of {source}: see above.")
    return {name: int(codes[name]) for name in names}


def reasons(source: str) -> dict[tuple[str, str, str], str]:
    """(function, line, what became of it) -> why no test can see it, from mutants.toml."""
    listed = [e for e in tomllib.loads(LISTED.read_text("utf-8"))["equivalent"] if e["file"] == source]
    return {(e["function"], e["was"], becomes): e["reason"] for e in listed for becomes in e["becomes"]}


def share(row: dict[str, Any]) -> float:
    """Of the faults that can be seen, how many were."""
    return float(row["killed"] / max(row["total"] - row["equivalent"], 1))


def shown(mutant: Mutant) -> dict[str, Any]:
    """What the JSON file says of a fault."""
    return {key: value for key, value in asdict(mutant).items() if key != "wording"}


def lines_of(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The table, and every survivor under it."""
    yield "| module | mutants | killed | share | equivalent, listed | survivors |"
    yield "|---|---:|---:|---:|---:|---:|"
    for row in rows:
        counts = f"{row['total']} | {row['killed']} | {share(row):.1%} | {row['equivalent']} | {len(row['survivors'])}"
        yield f"| {row['module']} | {counts} |"
    for row in rows:
        for m in row["survivors"]:
            yield f"\n{row['module']}:{m['line']} {m['function']}: {m['why']}\n  - {m['was']}\n  + {m['becomes']}"


if __name__ == "__main__":
    sys.exit(main())
