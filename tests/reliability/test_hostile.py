"""Nobody's file runs code, fills the memory, leaves its directory, or stops the clock."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tests.reliability.conftest import Job

import recerase
from recerase.__main__ import run
from recerase.catalog import load_catalogue, load_embeddings, parse_concept
from recerase.catalog.items import items_from_table
from recerase.errors import (
    CheckpointError,
    ConceptError,
    PickleError,
    RecEraseError,
)
from recerase.layouts.native import load_checkpoint, load_sids
from recerase.settings import load_settings
from recerase.store import MANIFEST, pretty_json, write_manifest

Figure = Callable[..., None]
SOURCE = Path(recerase.__file__).parent


class Opens:
    """What a pickle does when it is believed."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.marker), "w")


class Shells(Opens):
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


def refused(command: list[str], code: int, capfd: pytest.CaptureFixture[str]) -> str:
    """What the command says when it refuses: one message, no traceback."""
    capfd.readouterr()
    assert run(command) == code
    said = "".join(capfd.readouterr())
    assert "Traceback" not in said
    assert "bug" not in said
    return said


# ------------------------------------------------------------------------------------------------------ what runs code

BANNED_CALLS = {"eval", "exec", "compile", "__import__", "breakpoint"}
BANNED_MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "yaml", "code", "runpy"}
BANNED_ATTRIBUTES = {
    "os.system",
    "os.popen",
    "pickle.load",
    "yaml.load",
    "builtins.eval",
    "builtins.exec",
    "pd.read_pickle",
}


def dangers(tree: ast.AST) -> Iterator[str]:
    """What in a module could run what it reads."""
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        yield from (f"imports {name}" for name in names if name.split(".")[0] in BANNED_MODULES)
        if not isinstance(node, ast.Call):
            continue
        spelled, words = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
        if spelled in BANNED_CALLS | BANNED_ATTRIBUTES:
            yield f"calls {spelled}"
        if words.get("shell", "False") != "False":
            yield f"calls {spelled} with a shell"
        if spelled == "torch.load" and words.get("weights_only") != "True":
            yield "calls torch.load for more than weights"
        if spelled in ("np.load", "numpy.load") and words.get("allow_pickle") != "False":
            yield "calls np.load without refusing pickles"
        if words.get("trust_remote_code", "False") != "False":
            yield f"calls {spelled} with trust_remote_code"
        if words.get("local_files_only", "True") != "True":
            yield f"calls {spelled} for the network"


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_no_module_runs_what_it_reads(path: Path) -> None:
    assert list(dangers(ast.parse(path.read_text()))) == []


def test_the_search_for_dangers_finds_them() -> None:
    for text in (
        *("eval(x)", "import pickle", "from marshal import loads", "os.system(x)", "subprocess.run(x, shell=True)"),
        *("torch.load(f)", "torch.load(f, weights_only=False)", "np.load(f)", "np.load(f, allow_pickle=True)"),
        *("yaml.load(f)", "__import__(x)", "A.from_config(c, trust_remote_code=yes)", "import yaml"),
    ):
        assert list(dangers(ast.parse(text))), text


def pickled(own_job: Job, content: Any, name: str = "pytorch_model.bin") -> Path:
    """The model with a pickle for weights, under a manifest that is in order."""
    import torch

    (own_job.model / "model.safetensors").unlink()
    torch.save(content, own_job.model / name)
    write_manifest(own_job.model, {})
    return own_job.model


@pytest.mark.parametrize("bomb", [Opens, Shells])
@pytest.mark.parametrize("nested", [False, True])
def test_a_malicious_pickle_leaves_no_marker(
    own_job: Job, capfd: pytest.CaptureFixture[str], bomb: type[Opens], nested: bool, figure: Figure
) -> None:
    """Without --trust-pickle it is not opened, and with it only weights are read."""
    marker = own_job.home / "marker"
    made = bomb(marker)
    path = pickled(own_job, {"model.norm.weight": made} if nested else made)
    audit = ["audit", f"--data={own_job.data}", f"--concept={own_job.concept}", f"--policy={own_job.policy}"]
    assert "--trust-pickle" in refused([*audit, str(path)], 4, capfd)
    said = refused([*audit, "--trust-pickle", str(path)], 4, capfd)
    assert "pytorch_model.bin cannot be read" in said
    refused(["inspect", str(path)], 4, capfd)
    refused(["inspect", str(path), "--trust-pickle"], 4, capfd)
    figure("hostile: pickles that ran code", int(marker.exists()), of=4)
    assert not marker.exists()


def test_the_malicious_pickle_is_malicious(tmp_path: Path) -> None:
    """Else the test above could not fail."""
    import pickle

    for bomb in (Opens, Shells):
        marker = tmp_path / bomb.__name__
        pickle.loads(pickle.dumps(bomb(marker)))  # noqa: S301 - on purpose
        assert marker.exists()


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {}, {1: 2}])
def test_a_trusted_pickle_holds_tensors_or_nothing(own_job: Job, content: Any) -> None:
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
        load_checkpoint(pickled(own_job, content), trust_pickle=True)


def test_the_digest_of_a_pickled_checkpoint_is_of_its_weights(own_job: Job) -> None:
    import torch
    from safetensors.torch import load_file

    weights = load_file(own_job.model / "model.safetensors")
    first = load_checkpoint(pickled(own_job, weights), trust_pickle=True).digest
    weights["model.norm.weight"] += 1
    torch.save(weights, own_job.model / "pytorch_model.bin")
    write_manifest(own_job.model, {})
    assert load_checkpoint(own_job.model, trust_pickle=True).digest != first


def items(n: int = 3) -> Any:
    nothing = [""] * n
    columns = {"item_id": [str(i) for i in range(n)], "title": nothing, "description": nothing, "categories": [[]] * n}
    return items_from_table(pa.table(columns))


def test_arrays_of_objects_are_not_read(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    objects = np.array([Opens(marker)] * 3, dtype=object)
    np.save(tmp_path / "e.npy", objects, allow_pickle=True)
    np.savez(tmp_path / "e.npz", objects)
    for name in ("e.npy", "e.npz"):
        with pytest.raises(PickleError):
            load_embeddings(tmp_path / name, items())
    assert not marker.exists()


# ------------------------------------------------------------------------------------------------------ paths


OUTSIDE = ["../data/items.parquet", "/etc/hostname", "sub/../../policy.toml", "", ".", "a\0b"]
ENDLESS = [pytest.param("a" * 3000, id="a long name"), pytest.param("a/" * 3000 + "b", id="a long path")]


@pytest.mark.parametrize("name", [*OUTSIDE, *ENDLESS])
def test_a_manifest_names_only_what_is_below_it(own_job: Job, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Through the commands that read the directory; its manifest is in order but for the name."""
    from recerase.store import canonical_json, read_manifest, sha256_bytes

    for folder, commands in (
        (
            own_job.model,
            [
                ["inspect", str(own_job.model)],
                ["concept", "brand=x", f"--data={own_job.data}", f"--sids={own_job.model}"],
            ],
        ),
        (
            own_job.data,
            [
                ["concept", "brand=x", f"--data={own_job.data}"],
                ["tokenize", str(own_job.data), f"--out={own_job.home}/new"],
            ],
        ),
    ):
        kept = (folder / MANIFEST).read_bytes()
        manifest = read_manifest(folder)
        manifest["files"][name] = {"bytes": 0, "sha256": "0" * 64}
        manifest.pop("digest")
        manifest["digest"] = sha256_bytes(canonical_json(manifest))
        (folder / MANIFEST).write_bytes(pretty_json(manifest))
        for command in commands:
            assert MANIFEST in refused(command, 4, capfd)
        (folder / MANIFEST).write_bytes(kept)


@pytest.mark.parametrize("method", ["x", [1], 3])
def test_a_manifest_that_lies_about_the_method_makes_no_report_that_cannot_be_read(
    own_job: Job, method: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    write_manifest(own_job.model, {"method": method})
    out = own_job.home / "new.json"
    at = [f"--data={own_job.data}", f"--concept={own_job.concept}", f"--policy={own_job.policy}"]
    assert run(["audit", str(own_job.model), *at, "-o", str(out), "--max-users=30", "--threads=1", "-q"]) in (1, 5)
    assert run(["report", "show", str(out)]) == 0


@pytest.mark.parametrize(
    "words",
    [
        ["inspect", "PATH"],
        ["concept", "brand=x", "--data=PATH"],
        ["tokenize", "{data}", "--out=PATH"],
        ["audit", "{model}", "--data={data}", "--concept=brand=x", "-o", "PATH.json"],
    ],
    ids=lambda words: words[0],
)
def test_a_path_that_no_system_takes_is_no_bug(job: Job, words: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    command = [word.format(data=job.data, model=job.model).replace("PATH", "a" * 300) for word in words]
    assert "longer than the system allows. Give a shorter one." in refused(command, 2, capfd)


def test_a_link_that_leaves_the_directory_is_refused(own_job: Job, capfd: pytest.CaptureFixture[str]) -> None:
    """Though what it leads to has the right digest."""
    for folder, name in (
        (own_job.model, "config.json"),
        (own_job.sids, "sids.parquet"),
        (own_job.data, "items.parquet"),
    ):
        outside = (folder / name).rename(own_job.home / f"outside-{name}")
        (folder / name).symlink_to(outside)
        assert name in refused(["inspect", str(folder)], 4, capfd)


def test_files_named_in_specs_and_settings_are_read_with_our_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    Path("binary").write_bytes(b"\xff\xfe\0")
    for name in ("/dev/zero", "pipe", ".", "../nowhere", "binary", "a\0b", "x" * 5000, "/etc/passwd"):
        with pytest.raises(ConceptError):
            parse_concept([f"@{name}"], items())
    for text in (
        'data = "a\\u0000b"',
        'data = ["x"]',
        "data = 0x" + "f" * 9000,
        "data = " + "9" * 9000,
        "x = " + "[" * 5000,
    ):
        Path("recerase.toml").write_text(text)
        with pytest.raises(RecEraseError) as error:
            load_settings()
        assert error.value.exit_code == 2
    Path("recerase.toml").write_text('data = "../../../../etc"\nconcepts = ["brand=x"]')
    assert run(["concept"]) == 4


# ------------------------------------------------------------------------------------------------------ expressions

EXPLODING = [
    r"(a+)+$",
    r"(a|a)*$",
    r"(a|aa)+$",
    r"(.*a){20}b",
    r"(a?){40}a{40}",
    r"([a-z]+)*\d",
    r"(?:.*)*x",
    r".*.*.*.*.*.*x",
    r"(a*)*b",
]


@pytest.mark.parametrize("pattern", EXPLODING)
def test_an_expression_that_explodes_ends(pattern: str, figure: Figure) -> None:
    """Python's re would need years; nothing in the process could interrupt it."""
    shelf = pa.table(
        {"item_id": ["1", "2"], "title": ["a" * 39 + "!", "b"], "description": ["a" * 5000, ""], "categories": [[], []]}
    )
    began = sum(os.times()[:4])  # of the process and its child: the machine may be busy
    with pytest.raises(ConceptError, match=r"too long|No item matches") as error:
        parse_concept([f'text~"{pattern}"'], items_from_table(shelf))
    spent = sum(os.times()[:4]) - began
    figure("hostile: expressions that took over a second", int(spent >= 1.0), of=1)
    assert spent < 1.0
    assert error.value.remedy


# ------------------------------------------------------------------------------------------------------ strange words

STRANGE = [
    "\U0001f9e8 Firework \U0001f468\u200d\U0001f469",
    "\u05e9\u05dc\u05d5\u05dd \u202etxt.exe",
    "<script>alert(1)</script>",
    "]]> &amp; <b>",
    "long " * 2000,
    "tab\tline\nend\r",
    "\u0000nul",
    "'; DROP TABLE items; --",
    "../../etc/passwd",
    "{{7*7}}${x}%s",
    "=1+1",
    "\x1b[31mred",
]


def test_a_catalogue_of_strange_words_goes_the_whole_way(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """import -> tokenize -> concept: every title comes back as it was written, and none breaks the output."""
    n = len(STRANGE)
    rows = [
        {
            "item_id": f"{place}\u00e9",
            "title": STRANGE[place % n],
            "description": STRANGE[place // n % n],
            "categories": [STRANGE[place % n][:40], "all"],
            "brand": STRANGE[(place + 1) % n][:60],
        }
        for place in range(4 * n)
    ]
    seen = [
        {"user_id": f"\U0001f464{place % 7}", "item_id": row["item_id"], "timestamp": place}
        for place, row in enumerate(rows)
    ]
    for name, lines in (("items", rows), ("seen", seen)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data, sids = str(tmp_path / "data"), str(tmp_path / "sids")
    assert run(["import", "jsonl", f"{tmp_path}/items.jsonl", f"{tmp_path}/seen.jsonl", "--out", data]) == 0
    read = load_catalogue(data).items
    assert list(read.titles) == [row["title"] for row in rows]
    assert run(["tokenize", data, "--out", sids, "--codes", "8", "--dims", "8", "-q"]) == 0
    table, _, _ = load_sids(sids, item_ids=read.item_ids)
    assert table.item_ids.tolist() == [row["item_id"] for row in rows]
    capfd.readouterr()
    for word in STRANGE:
        for spec in (f"category={word[:40]}", f"title~{re.escape(word[:20].strip())}"):
            if "\0" in spec or spec.endswith("="):
                continue
            assert run(["concept", spec, "--data", data, "--sids", sids, "--json"]) in (0, 2)
            printed = capfd.readouterr()
            assert "Traceback" not in printed.err
            if printed.out:
                json.loads(printed.out)
    assert run(["concept", f"category={STRANGE[2][:40]}", "--data", data, "--sids", sids]) == 0
    shown = capfd.readouterr().out
    assert "\x1b" not in shown


def test_the_process_shows_one_line_for_strange_arguments(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "recerase",
            "concept",
            "text~(a+)+$",
            b"brand=\xff\xfe",
            "--data",
            str(tmp_path / "nowhere"),
        ],
        capture_output=True,
        check=False,
    )
    assert done.returncode in (2, 4)
    assert b"Traceback" not in done.stderr
