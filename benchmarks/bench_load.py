"""The memory that opening a checkpoint takes at its highest, as a multiple of its weights, each way in a fresh process.

The peers are transformers' own `from_pretrained`, and what one writes around safetensors (read the file, `load`, fill a new
model), which is what recerase did before. Everything is imported first; counted is how far the resident memory rises above
that (VmHWM; a file that is mapped counts as well) until every weight has been read once: `from_pretrained` maps the file, and
takes its memory only then. What it maps are pages of the file, which the system can take back and read again; what it holds of its
own is a row beside (RssAnon afterwards, which recerase's weights are all of). Weights are random: what they take does not depend
on them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import Row, main

TARGET = 1.2
WIDTH, LAYERS = 1024, {"causal": 6, "seq2seq": 4}
"""About 400 MB in float32."""
OURS, HALF = "recerase", "recerase --dtype bfloat16"
PEERS = ("transformers from_pretrained", "safetensors load + load_state_dict")


def rows(scale: float = 1.0) -> list[Row]:
    """A row a way and kind of model: MB at the highest, and the weights beside it; `scale` shrinks the width."""
    found = []
    with tempfile.TemporaryDirectory() as place:
        home = Path(place)
        _data(home)
        for kind in LAYERS:
            path = _checkpoint(home, kind, max(64, round(WIDTH * scale) // 64 * 64))
            found += [line for way in (OURS, HALF, *PEERS) for line in _rows(way, kind, path)]
    return found


def _rows(way: str, kind: str, path: Path) -> list[Row]:
    weights = (path / "model.safetensors").stat().st_size / 1e6
    peak, own = _in_fresh_process(way, path)
    target, beside = f"<= {TARGET}" if way == OURS else "", f"the weights: {weights:.1f} MB"
    found = [Row(f"peak memory: {way}, {kind}", peak, "MB", beside, peak / weights, target)]
    if way in (OURS, PEERS[0]):
        found.append(Row(f"of its own afterwards: {way}, {kind}", own, "MB", beside, own / weights))
    return found


def _data(home: Path) -> None:
    from recerase import api
    from recerase.catalog.demo import demo_catalogue
    from recerase.catalog.readers import write_catalogue
    from recerase.sid.quantize import TokenizeConfig
    from recerase.store import publish

    with publish(home / "data") as made:
        write_catalogue(made.directory, *demo_catalogue(0, n_items=300, n_users=400))
    api.tokenize(home / "data", home / "sids", TokenizeConfig(codes=32), dims=32)


def _checkpoint(home: Path, kind: Any, width: int) -> Path:
    """A model with random weights beside the data, published as `train` would."""
    from recerase.layouts.native import load_sids, save_checkpoint
    from recerase.model.recommender import ModelConfig, new_recommender
    from recerase.store import publish

    sids = load_sids(home / "sids")
    shape = ModelConfig(kind=kind, width=width, layers=LAYERS[kind], heads=8, feed_forward=4 * width)
    path = home / f"{kind}-{width}"
    with publish(path) as made:
        save_checkpoint(made.directory, new_recommender(shape, sids[0].schema), *sids)
        made.provenance = {"command": "benchmark"}
    return path


def _in_fresh_process(way: str, path: Path) -> list[float]:
    command = [sys.executable, __file__, way, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: list[float] = json.loads(done.stdout.splitlines()[-1])
    return found


def memory_of(way: str, path: Path) -> list[float]:
    """MB that the resident memory of this process rises while the checkpoint is opened that way, and what of it no file backs then."""
    run = _way(way, path)
    anonymous = _memory("RssAnon")
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the highest so far is forgotten
        before = _memory("VmRSS")
    except OSError:
        before = _memory("VmHWM")
    made = run()
    module = getattr(getattr(made, "recommender", None), "module", made)
    for parameter in module.parameters() if hasattr(module, "parameters") else ():
        parameter.detach().amax()
    return [_memory("VmHWM") - before, _memory("RssAnon") - anonymous]


def _way(way: str, path: Path) -> Callable[[], Any]:
    """What is measured, with all that it imports imported."""
    import torch
    from safetensors.torch import load
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, LlamaForCausalLM
    from transformers import T5ForConditionalGeneration as T5

    from recerase.layouts.native import load_checkpoint

    torch.set_num_threads(1)
    family: Any = AutoModelForSeq2SeqLM if path.name.startswith("seq2seq") else AutoModelForCausalLM
    assert LlamaForCausalLM
    assert T5

    def filled() -> Any:
        tensors = load((path / "model.safetensors").read_bytes())
        module = family.from_config(AutoConfig.from_pretrained(path))
        module.load_state_dict(tensors, strict=False)
        return module

    return {
        OURS: lambda: load_checkpoint(path),
        HALF: lambda: load_checkpoint(path, dtype=torch.bfloat16),
        PEERS[0]: lambda: family.from_pretrained(path, local_files_only=True),
        PEERS[1]: filled,
    }[way]


def _memory(field: str) -> float:
    """MB of a line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":")) * 1024 / 1e6


if __name__ == "__main__":
    if len(sys.argv) == 3 and not sys.argv[1].startswith("-"):
        print(json.dumps(memory_of(sys.argv[1], Path(sys.argv[2]))))
        sys.exit(0)
    sys.exit(main(rows, argparse.ArgumentParser(description=__doc__)))
