"""Reversible patches: what changed between two checkpoint directories, as a small file that applies and reverts.

The deciding choice is that a patch knows files, not layouts: it names every file by its digest before and after, so what it gives is
what was audited, byte for byte, whatever tool made it. What the bytes mean (rows of a tensor, SIDs) is told beside them, for people.

    delta.py     one file from another: bytes copied from the source, and bytes that are new
    segments.py  where the tensors of a safetensors file or a torch archive lie, so that whole rows are compared
    file.py      the patch file: one safetensors file, written and read without believing it
    moves.py     which items' SIDs and listing differ
    make.py      `make_patch`
    apply.py     `apply_patch` and `revert_patch`
"""
