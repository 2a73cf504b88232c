"""`recerase patch`: the change from one checkpoint to another as a small file, put in and taken out again.

It is a group of its own, not a part of `export`: what it makes is read by recerase itself, and `patch apply` does what it says.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from recerase.cli.options import ForceOption, JsonOption, LayoutOption, LayoutSetOption, QuietOption, TrustOption
from recerase.cli.options import layout_options as options_of
from recerase.cli.progress import emit, observing, say

if TYPE_CHECKING:
    from recerase.patches.file import Patch

app = typer.Typer(
    help="Keep the change from one checkpoint to another as a small file: apply it, and revert it.",
    no_args_is_help=True,
)

PatchArgument = Annotated[Path, typer.Argument(metavar="PATCH", help="A file that `recerase patch make` wrote.")]
OutOption = Annotated[Path, typer.Option("--out", metavar="DIR", help="Where to publish what the patch makes.")]


@app.command("make")
def make(
    before: Annotated[Path, typer.Argument(metavar="BEFORE", help="Checkpoint directory before the change.")],
    after: Annotated[Path, typer.Argument(metavar="AFTER", help="Checkpoint directory after it.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Where to write it.")] = Path("patch.safetensors"),
    one_way: Annotated[
        bool,
        typer.Option(
            "--one-way",
            help="Hold no byte of BEFORE: the patch cannot be reverted. What AFTER says of BEFORE (report.json, erased.json) stays.",
            show_default=False,
        ),
    ] = False,
    leave: Annotated[
        list[str] | None,
        typer.Option(
            "--leave",
            metavar="NAME",
            help="A file or folder (or several: 'optimizer*') that has no part in the patch. Repeat.",
        ),
    ] = None,
    force: ForceOption = False,
    layout: LayoutOption = None,
    layout_set: LayoutSetOption = None,
    trust_pickle: TrustOption = False,
    quiet: QuietOption = False,
) -> int:
    """Write what changed between two checkpoint directories of any layout: rows of weights, SIDs, listing, every other file.

    A patch holds the old bytes as well, to be reverted: it carries what was erased, and must be kept like the original. With --one-way
    it does not, and cannot. The report.json of an erasure names old SIDs, and erased.json those of all that was erased: --leave them
    out where they must not travel. Without erased.json a later erasure has to be told what was erased, by --already-erased.

    Links are refused; permissions do not travel.

    **Examples**

        recerase patch make model erased --out acme.patch.safetensors

        recerase patch make model erased --out acme.patch.safetensors --one-way --leave report.json --leave erased.json
    """
    from recerase import api
    from recerase.runtime import RunConfig

    with observing(quiet) as observer:
        patch = api.make_patch(
            before,
            after,
            out,
            one_way=one_way,
            leave=leave or (),
            force=force,
            run=RunConfig(
                device="cpu", trust_pickle=trust_pickle, layout=layout, layout_options=options_of(layout_set)
            ),
            observer=observer,
        )
    facts = patch.facts()
    told = "" if facts["moves"] == "not told" else f"; {facts['moves']} SIDs moved, {facts['unlisted']} items unlisted"
    say(f"{facts['files']}{told}", quiet)
    say(f"{out.stat().st_size:,} bytes, for changed files of {facts['changed bytes']:,}", quiet)
    say(facts["note"], quiet)
    emit(str(out))
    return 0


@app.command("apply")
def apply(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The checkpoint that the patch was made from.")],
    patch: PatchArgument,
    out: OutOption,
    force: ForceOption = False,
    quiet: QuietOption = False,
) -> int:
    """Publish the checkpoint that a patch makes of the one it was made from; any other is refused.

    Every file read and every file written is held against its digest in the patch. The result is the one that the patch was made
    with, byte for byte.

    **Examples**

        recerase patch apply model acme.patch.safetensors --out erased
    """
    from recerase import api

    with observing(quiet) as observer:
        made = api.apply_patch(directory, patch, out, force=force, observer=observer)
    return _told(made, out, quiet)


@app.command("revert")
def revert(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The checkpoint that the patch made.")],
    patch: PatchArgument,
    out: OutOption,
    force: ForceOption = False,
    quiet: QuietOption = False,
) -> int:
    """Publish the checkpoint as it was before a patch, byte for byte; what was erased is back.

    Where the original had no recerase.json, the result has one beside the original files.

    **Examples**

        recerase patch revert erased acme.patch.safetensors --out model-again
    """
    from recerase import api

    with observing(quiet) as observer:
        made = api.revert_patch(directory, patch, out, force=force, observer=observer)
    return _told(made, out, quiet)


@app.command("show")
def show(patch: PatchArgument, as_json: JsonOption = False) -> int:
    """Say what is in a patch: kind, files, rows of tensors, SIDs that move. With --json all of it, digests too.

    **Examples**

        recerase patch show acme.patch.safetensors
    """
    from recerase import api
    from recerase.cli.tables import facts_table
    from recerase.store import canonical_json

    read = api.read_patch(patch)
    emit(canonical_json(dict(read.document)).decode() if as_json else facts_table(f"patch {patch.name}", read.facts()))
    return 0


def _told(patch: Patch, out: Path, quiet: bool) -> int:
    say(str(patch.facts()["files"]), quiet)
    emit(str(out))
    return 0
