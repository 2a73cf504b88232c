"""Where a comparison is written: one directory that keeps cells and grows, and report files wherever they are asked for.

The deciding choice is that the directory is ours from the first moment (it has a manifest that names a comparison), so that a
killed run finds its cells again and nobody else's directory is ever written into; its reports are replaced when all are made.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from recerase.errors import Interrupted, OutputError, UsageError
from recerase.report.compared import EARLIER, Comparison
from recerase.reporting import write_rendered
from recerase.resume import RunState
from recerase.store import MANIFEST, check_file_output, check_output, read_manifest, write_manifest

_FORMATS = {
    ".json": ("recerase.report.compared", "comparison_bytes"),
    ".md": ("recerase.report.compared_markdown", "comparison_markdown"),
    ".html": ("recerase.report.compared_html", "comparison_html"),
}
NAME = "comparison"
_SUBJECT = ("checkpoint", "data", "concept", EARLIER)
"""Of the inputs, those that say what a comparison is of."""
FILES = tuple(f"{NAME}{ending}" for ending in _FORMATS)


def check_comparison_outputs(outputs: Sequence[str | Path], out: Path, inputs: Sequence[Path]) -> None:
    """Refuse files that could not be written, are inputs, or lie in `out`, before any work is done. Raises UsageError."""
    place = Path(os.path.realpath(out))
    for path in map(Path, outputs):
        if path.suffix.lower() not in _FORMATS:
            raise UsageError(f"{path} has no known format of a comparison.", f"Use one of {', '.join(_FORMATS)}.")
        if Path(os.path.realpath(path)).is_relative_to(place):
            raise UsageError(
                f"{path} is, or lies inside, --out {out}.", f"{', '.join(FILES)} are written there anyway."
            )
        check_file_output(path, inputs=inputs, force=True)


@contextmanager
def claim(out: Path, subject: Mapping[str, str], inputs: Sequence[Path], force: bool) -> Iterator[Path]:
    """The directory of a comparison of `subject`, made when it is not there, and held against other runs.

    Raises OutputError when it is an input, was not made by a comparison, or (without `force`) holds that of another subject.
    """
    check_output(out, inputs=inputs, force=True)
    with RunState(out) as state:
        state.open(dict(subject))
        if (out / MANIFEST).is_file():
            told = read_manifest(out)["provenance"]
            if told.get("command") != "compare" or "subject" not in told:
                raise OutputError(f"--out {out} holds no comparison.", "Name another.")
            if told["subject"] != dict(subject) and not force:
                raise OutputError(
                    f"--out {out} holds a comparison of another checkpoint, concept, data or set of {EARLIER}.",
                    "Name another, or pass --force to replace its reports; its cells stay.",
                )
        else:
            out.mkdir(parents=True)
            write_manifest(out, _provenance(subject))
        try:
            yield out
        except (KeyboardInterrupt, Interrupted) as error:
            error.add_note(f"Finished cells are kept in {out}: run the same command again to continue.")
            raise


def finish(out: Path, comparison: Comparison, outputs: Sequence[str | Path]) -> None:
    """Write every report, all of them rendered before the first is written, and the manifest that names all files."""
    paths = [out / name for name in FILES] + [Path(path) for path in outputs]
    write_rendered({path: render_comparison(comparison, path) for path in paths})
    subject = {name: comparison.inputs[name] for name in _SUBJECT if name in comparison.inputs}
    write_manifest(out, _provenance(subject))


def render_comparison(comparison: Comparison, path: str | Path) -> bytes:
    """A comparison in the format that the extension of `path` names."""
    module, function = _FORMATS[Path(path).suffix.lower()]
    content = getattr(import_module(module), function)(comparison)
    return content if isinstance(content, bytes) else str(content).encode()


def _provenance(subject: Mapping[str, str]) -> dict[str, Any]:
    return {"command": "compare", "subject": dict(subject)}
