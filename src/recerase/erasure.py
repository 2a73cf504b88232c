"""The erase command: run a method, read the result back from the disk, audit it, and publish what no rule refuses.

The one decision: what is audited is what was written. The method's values are saved into the staging directory,
loaded again like any checkpoint, and only then judged, so that a report never speaks of weights nobody can have. What
an interrupted run keeps of the method's work is these same files, so a continued run publishes the same bytes. Of several
processes the main one writes and reads back, and the others audit what it read.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from recerase.assembly import (
    RUN,
    ConceptSpec,
    as_paths,
    changes,
    checkpoint_facts,
    choose_concept,
    concept_facts,
    data_digest,
    given_paths,
    open_checkpoint_for,
    open_references,
    read_policy,
    reference_facts,
    run_key,
    with_codebooks,
)
from recerase.auditing import AuditInputs, audited
from recerase.catalog import Catalogue, load_catalogue
from recerase.earlier import gone_from, home_of, remember
from recerase.errors import UsageError, WriteError
from recerase.growing import Offer, check_grow, offer, offered_codes
from recerase.parallel import workers
from recerase.planning import check_alone, key_values
from recerase.preparing import prepared_for, told_settings
from recerase.reporting import check_outputs, render_reports, write_rendered
from recerase.resume import RunState
from recerase.runtime import RunConfig, choose_device, environment, only_as_stored, pinned
from recerase.store import canonical_json, check_output, publish, read_bytes, write_bytes, write_manifest
from recerase.types import SILENT, Observer, Policy, Report, Scope, Verdict

if TYPE_CHECKING:
    from recerase.erase.method import EraseRequest, Method
    from recerase.layouts.native import Checkpoint
    from recerase.model.recommender import Recommender


def erase(
    checkpoint: str | Path,
    concept: ConceptSpec,
    data: str | Path,
    out: str | Path,
    *,
    method: str = "tracer",
    overrides: Sequence[str] = (),
    scope: Scope = "output",
    grow: str | None = None,
    policy: str | Path | Policy | None = None,
    reference: str | Path | Sequence[str | Path] | None = None,
    earlier: Sequence[ConceptSpec] = (),
    max_users: int | None = None,
    outputs: Sequence[str | Path] = (),
    force: bool = False,
    resume: bool | None = None,
    run: RunConfig = RUN,
    observer: Observer = SILENT,
) -> Report:
    """Erase a concept, read the result back, audit it against what went in, and publish it at `out`.

    `method` is a name or `name/preset`, `overrides` are its `key=value` settings. `grow` lets it give items codes that have no
    vocabulary row yet: `auto`, or the most rows that may be added; None keeps to the rows there are. Concepts that the checkpoint
    remembers, and those of `earlier`, were erased before: nothing of them is kept or moved, and the audit holds them to staying out.
    With Verdict.FAIL nothing is
    published; the report goes to `outputs` whatever the verdict, and to report.json in what is published, there
    without clock times: equal runs publish equal bytes. What an interrupted run had finished is kept beside `out`;
    `resume` as in `RunState.open`.
    """
    from recerase.audit.earlier import with_earlier
    from recerase.erase.methods import get_method, make_config
    from recerase.layouts.naming import not_rewritten

    only_as_stored(run, "erase")
    eraser, preset = get_method(method)
    settings = make_config(eraser, preset, key_values(overrides))
    prepared = getattr(settings, "prepared", "") or None
    inputs = given_paths(checkpoint, data, *as_paths(reference), policy, concept, *earlier, prepared, run)
    check_outputs(outputs, inputs)
    _check_apart(outputs, Path(out))
    out, rules = Path(out), read_policy(policy)
    check_grow(eraser, grow)
    with (
        RunState(out) as state,
        publish(out, inputs=inputs, force=force) as result,
        pinned(run.threads, run.seed) as threads,
    ):
        catalogue = load_catalogue(data)
        opened = open_checkpoint_for(checkpoint, catalogue, run)
        check_alone(opened)
        before = with_codebooks(opened, catalogue.items, observer, run.embeddings)
        if workers().main and before.extra.get("base") is not None:
            check_output(out, inputs=[before.extra["base"]], force=force)
            check_outputs(outputs, [before.extra["base"]])
        for told in not_rewritten(before):
            observer.note(told)
        golds = open_references(as_paths(reference), catalogue, run)
        chosen = choose_concept(concept, catalogue, before.embeddings)
        gone = gone_from([home_of(before)], earlier, catalogue, before.table, before.embeddings)
        if gone.besides(chosen.members).any():
            observer.note(f"erased before: {gone.told}")
            rules = with_earlier(rules)
        given = AuditInputs(before, before, golds, catalogue, chosen, rules, scope, gone)
        offered = offer(before, chosen.members, eraser, settings, grow, run.seed, gone)
        if offered is not None:
            observer.note(offered.told)
        ready = prepared_for(
            eraser, settings, lambda: before.digest, before.table, gone, data_digest(catalogue), observer
        )
        request = replace(_request(given, offered, run, state, observer), prepared=ready)
        entries = {
            "method": method,
            "settings": [told_settings(settings, ready), scope, max_users],
            "recipe": request.training,
            "earlier concepts": gone.digest,
            **({} if grow is None else {"grow_vocabulary": grow}),
        }
        state.open(_key(given, run, {**entries, "processes": workers().size}), resume, observer)
        summary, seconds = _written(result.directory, state, eraser, request, settings, before, offered)
        facts = {"name": method, "config": told_settings(settings, ready), "scope": scope, "summary": summary}
        result.provenance = {
            "command": "erase",
            "method": facts,
            "concept": concept_facts(chosen, catalogue),
            "data": data_digest(catalogue),
            "erased": remember(result.directory, gone, chosen, before.table, method),
            "original": before.digest,
            "environment": asdict(environment(run.seed, threads, choose_device(run.device))),
            **{key: value for key, value in request.training.items() if key in ("model", "training", "embeddings")},
        }
        write_manifest(result.directory, result.provenance)
        judged = replace(given, subject=_read_back(result.directory, catalogue, replace(run, layout=before.layout)))
        report = audited(judged, run, observer, max_users=max_users, state=state)
        done = {**facts, "changes": changes(before, judged.subject)}
        report = replace(report, method=done, run={**report.run, "erase_seconds": seconds})
        rendered: dict[Path, bytes] = {}
        if workers().main:
            rendered = render_reports(report, outputs)  # before publishing: a report that cannot be made is a crash
            _put_report(result, report)
        workers().wait()  # what is published is everybody's
    _write_beside(rendered, report, out)
    return report


def _request(
    given: AuditInputs, offered: Offer | None, run: RunConfig, state: RunState, observer: Observer
) -> EraseRequest:
    """What the method may know of what was opened."""
    from recerase.erase.method import EraseRequest

    before = given.subject if offered is None else offered.checkpoint
    return EraseRequest(
        model=before.recommender,
        table=before.table,
        interactions=given.catalogue.interactions,
        concept=given.concept.members,
        embeddings=before.embeddings,
        codebooks=before.codebooks,
        offered=() if offered is None else offered_codes(given.subject, before),
        scope=given.scope,
        seed=run.seed,
        training=before.manifest["provenance"],
        observer=observer,
        state=state,
        needed=before.extra.get("needed"),
        gone=given.before,
        left=None if given.gone is None else given.gone.left,
    )


def _key(given: AuditInputs, run: RunConfig, entries: Mapping[str, Any]) -> dict[str, str]:
    """Everything the published bytes depend on; see `run_key`."""
    facts = {
        **checkpoint_facts("model", given.subject),
        **reference_facts(given.references),
        "policy": given.policy.digest,
        "concept": given.concept.digest,
    }
    return run_key(run, run.seed, data_digest(given.catalogue), **facts, **entries)


def _write_beside(rendered: Mapping[Path, bytes], report: Report, out: Path) -> None:
    """Write the report files asked for; by now the checkpoint is published, and an error says so."""
    try:
        write_rendered(rendered)
    except WriteError as error:
        if report.decision.verdict is Verdict.FAIL:
            raise
        again = f"The checkpoint is published: `recerase report show {out}/report.json -o FILE` writes its report."
        raise WriteError(error.message, again) from error


def _check_apart(outputs: Sequence[str | Path], out: Path) -> None:
    """Refuse a report file in the directory that is published: it would not be what the manifest there says."""
    place = Path(os.path.realpath(out))
    for path in outputs:
        if Path(os.path.realpath(path)).is_relative_to(place):
            raise UsageError(
                f"{path} is, or lies inside, --out {out}.", "A report.json is published there; name another."
            )


def _put_report(result: publish, report: Report) -> None:
    """Lay the report beside the checkpoint, without clock times; with Verdict.FAIL none of it will be published."""
    from recerase.report.schema import report_bytes

    result.provenance["verdict"] = report.decision.verdict.value
    steady = replace(report, run={"environment": report.run["environment"]})
    write_bytes(result.directory / "report.json", report_bytes(steady))
    if report.decision.verdict is Verdict.FAIL:
        result.discard()


def _written(
    directory: Path,
    state: RunState,
    eraser: Method,
    request: EraseRequest,
    settings: Any,
    before: Checkpoint,
    offered: Offer | None,
) -> tuple[dict[str, Any], float]:
    """Put what the method makes into `directory`, or what an earlier run made with it; its summary, and its seconds."""
    from recerase.layouts.registry import named_layout

    who = workers()
    told = state.read("erased")
    kept = {name: state.read(quote(name, "")) for name in json.loads(told)["files"]} if told is not None else {}
    files = {name: content for name, content in kept.items() if content is not None}
    if who.told(told is not None and len(files) == len(kept)):
        made = who.told(json.loads(told) if told is not None else None)
        request.observer.note("the method had finished: its result is taken from the interrupted run")
        for name, content in files.items():
            if who.main:
                (directory / name).parent.mkdir(parents=True, exist_ok=True)
            write_bytes(directory / name, content)
        return made["summary"], made["seconds"]
    began = time.monotonic()
    erased = eraser.run(request, settings)
    if who.size > 1 and len(set(who.gathered(_digest(erased.model)))) > 1:
        request.observer.note(
            "the processes came to other weights each; those of the main one are audited and published"
        )
    summary = {name: value for name, value in erased.summary.items() if name != "seconds"}
    source, model, table = before, erased.model, erased.table
    if offered is not None:
        source, model, table, figures = offered.settled(before, model, table)
        summary |= figures
    summary, seconds = who.told((summary, round(time.monotonic() - began, 3)))
    if not who.main:
        return summary, seconds
    named_layout(before.layout).write_back(source, model, table, directory)
    names = sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())
    for name in names:
        state.write(quote(name, ""), read_bytes(directory / name))  # pieces of a state lie in no folders
    made = {"files": names, "summary": summary, "seconds": seconds}
    state.write("erased", canonical_json(made))  # last: it says that the files above are there
    return summary, seconds


def _read_back(directory: Path, catalogue: Catalogue, run: RunConfig) -> Checkpoint:
    """What was written, as it is read from the disk; processes but the main one, which cannot see it, get it from there."""
    if workers().size == 1:
        return open_checkpoint_for(directory, catalogue, run)
    read = open_checkpoint_for(directory, catalogue, run) if workers().main else None
    portable = None
    if read is not None:
        model = read.recommender
        model.module.cpu()  # and back: a copy would need the device's memory
        portable = replace(read, recommender=model.around(model.module))
    told: Checkpoint = workers().told(portable)
    here = told if read is None else read
    here.recommender.module.to(choose_device(run.device))
    return here


def _digest(model: Recommender) -> str:
    """sha256 over all weights, each with its name, dtype and shape."""
    import torch

    whole = hashlib.sha256()
    for name, tensor in model.module.state_dict().items():
        whole.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        whole.update(tensor.detach().cpu().flatten().contiguous().view(torch.uint8).numpy())
    return whole.hexdigest()
