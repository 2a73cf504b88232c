"""One function a command: puts the rooms together, returns values, prints nothing.

Paths come in, frozen values go out; what is written goes through `store`, whole or not at all. Heavy rooms (torch,
faiss, sklearn) are imported by the function that needs them, so that importing this module stays cheap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recerase.assembly import (
    RUN,
    ConceptSpec,
    as_paths,
    checkpoint_facts,
    choose_concept,
    concept_facts,
    data_digest,
    given_paths,
    open_checkpoint_for,
    open_references,
    open_sids,
    read_policy,
    reference_facts,
    run_key,
    with_codebooks,
)
from recerase.auditing import AuditInputs, audited
from recerase.catalog import Catalogue, Concept, Preview, load_catalogue, preview
from recerase.comparing.run import CompareConfig, PlannedCell, compare, plan_compare
from recerase.earlier import gone_from, home_of
from recerase.erasure import erase
from recerase.errors import UsageError
from recerase.exporting import export_blocklist, export_prefixes
from recerase.parallel import workers
from recerase.patches.apply import apply_patch, revert_patch
from recerase.patches.file import read_patch
from recerase.patches.make import make_patch
from recerase.planning import Plan, plan_erase
from recerase.preparing import prepare
from recerase.recommending import Recommended, recommend
from recerase.reporting import (
    attest_report,
    bless_report,
    check_baseline,
    check_outputs,
    gated,
    read_baseline,
    verify_report,
    write_card,
    write_report,
    write_reports,
)
from recerase.resume import RunState
from recerase.runtime import RunConfig, choose_device, choose_dtype, environment, only_as_stored, pinned
from recerase.sid_export import Exported, export_sids
from recerase.store import check_file_output, publish, write_bytes
from recerase.tokenizing import Tokenized, tokenize
from recerase.types import SILENT, FailOn, Observer, Policy, Profile, Report, Scope

if TYPE_CHECKING:
    from recerase.layouts.describe import Description
    from recerase.model.recommender import ModelConfig
    from recerase.model.training import TrainConfig, TrainLog

__all__ = [
    "CompareConfig",
    "ConceptSpec",
    "Exported",
    "Plan",
    "PlannedCell",
    "Recommended",
    "Tokenized",
    "Trained",
    "apply_patch",
    "attest_report",
    "audit",
    "bless_report",
    "compare",
    "concept_preview",
    "erase",
    "export_blocklist",
    "export_prefixes",
    "export_sids",
    "import_data",
    "init_policy",
    "inspect",
    "make_patch",
    "plan_compare",
    "plan_erase",
    "prepare",
    "read_patch",
    "read_policy",
    "recommend",
    "revert_patch",
    "tokenize",
    "train",
    "verify_report",
    "write_card",
    "write_report",
    "write_reports",
]


_CLOCKS = ("seconds", "cpu_seconds")
"""What a training's log has from clocks: of one run only, and kept apart from what two equal runs share."""


@dataclass(frozen=True)
class Trained:
    """What `train` published."""

    path: Path
    log: TrainLog
    parameters: int


def train(
    data: str | Path,
    sids: str | Path,
    out: str | Path,
    model_config: ModelConfig | None = None,
    train_config: TrainConfig | None = None,
    *,
    without: ConceptSpec | None = None,
    embeddings: str | Path | None = None,
    resume: bool | None = None,
    force: bool = False,
    run: RunConfig = RUN,
    observer: Observer = SILENT,
) -> Trained:
    """Train a recommender on a data directory's histories, speaking the SIDs of `sids`, and publish it at `out`.

    `sids` is a directory made by `tokenize`, or a table made elsewhere (see `layouts.tables`; `embeddings` are then what its
    codebooks are fitted to). `without` leaves a concept's interactions out: the result is a reference for that concept. The last
    finished epoch of an interrupted run is kept beside `out`; `resume` as in `RunState.open`, to the same weights.
    """
    from recerase.layouts.native import save_checkpoint
    from recerase.model.recommender import ModelConfig, new_recommender
    from recerase.model.training import TrainConfig
    from recerase.model.training import train as fit

    only_as_stored(run, "train")
    out = Path(out)
    model_config, train_config = model_config or ModelConfig(), train_config or TrainConfig(seed=run.seed)
    with (
        RunState(out) as state,
        publish(out, inputs=given_paths(data, sids, embeddings, without), force=force) as result,
    ):
        catalogue = load_catalogue(data)
        table, codebooks, points = open_sids(sids, catalogue.items, embeddings, observer)
        split = catalogue.interactions.split()
        forgotten = None
        if without is not None:
            forgotten = choose_concept(without, catalogue, points)
            split = split.without(forgotten.members)
        device = choose_device(run.device)
        entries = {
            "model": asdict(model_config),
            "table": table.digest,
            "settings": {name: value for name, value in asdict(train_config).items() if name != "seed"},
            "concept": forgotten.digest if forgotten is not None else None,
            "processes": workers().size,
        }
        state.open(run_key(run, train_config.seed, data_digest(catalogue), **entries), resume, observer)
        with pinned(run.threads, train_config.seed) as threads:
            recommender = new_recommender(model_config, table.schema, train_config.seed)
            recommender.module.to(device)
            log = fit(recommender, table, split, train_config, observer, state)
        save_checkpoint(result.directory, recommender, table, codebooks, points)
        result.provenance = {
            "command": "train",
            "model": asdict(model_config),
            "training": asdict(train_config),
            "log": {name: value for name, value in asdict(log).items() if name not in _CLOCKS},
            "data": data_digest(catalogue),
            "embeddings": _recipe_of(Path(sids)),
            "without": concept_facts(forgotten, catalogue) if forgotten is not None else None,
            "environment": asdict(environment(train_config.seed, threads, device)),
        }
        result.run = {name: getattr(log, name) for name in _CLOCKS}
        parameters = sum(parameter.numel() for parameter in recommender.module.parameters())
    return Trained(out, log, parameters)


def _recipe_of(sids: Path) -> Any:
    """What the embeddings behind SIDs were made of, where their manifest says it: new items are embedded the same way."""
    from recerase.store import MANIFEST, read_manifest

    return read_manifest(sids)["provenance"].get("embeddings") if (sids / MANIFEST).is_file() else None


def concept_preview(
    data: str | Path, concept: ConceptSpec, *, sids: str | Path | None = None, show: int = 10
) -> tuple[Concept, Preview, Catalogue]:
    """What a concept spec names, and what erasing it would touch.

    `sids` (a SID directory, a table made elsewhere or a checkpoint) adds shared codes and, at most `show` a side, the items on
    the border.
    """
    from recerase.layouts.tables import read_sids

    catalogue = load_catalogue(data)
    table = embeddings = None
    if sids is not None:
        table, _, embeddings = read_sids(sids, catalogue.items.item_ids)
    chosen = choose_concept(concept, catalogue, embeddings)
    return chosen, preview(chosen, catalogue, table, embeddings, show=show), catalogue


def audit(
    checkpoint: str | Path,
    concept: ConceptSpec,
    data: str | Path,
    *,
    policy: str | Path | Policy | None = None,
    original: str | Path | None = None,
    reference: str | Path | Sequence[str | Path] | None = None,
    earlier: Sequence[ConceptSpec] = (),
    held_out: ConceptSpec | None = None,
    scope: Scope = "output",
    profile: Profile | None = None,
    max_users: int | None = None,
    baseline: str | Path | None = None,
    fail_on: FailOn = "policy",
    outputs: Sequence[str | Path] = (),
    resume: bool | None = None,
    run: RunConfig = RUN,
    observer: Observer = SILENT,
) -> Report:
    """Run the probes of `profile` (None: the policy's) on a checkpoint, decide the policy, and write the report to every one of
    `outputs`.

    Settings that cannot work (policy, baseline, outputs) are refused before a model is loaded. `reference`: a checkpoint that was
    trained without the concept, or several of other seeds (see `audit.references`). `fail_on` says what makes the exit code 1
    (`Gate`): the policy's verdict, a regression against `baseline`, either, or nothing. `earlier` are concepts that were erased
    before, besides those the checkpoint remembers: their items count as retained nowhere, and are to stay out (see
    `audit.earlier`). `held_out` names items of the concept's kind that are not in the request: `spill` tells how likely they are
    (UsageError when none of them is retained). What an interrupted audit had read is kept beside the first of `outputs`; `resume`
    as in `RunState.open`.
    """
    golds = as_paths(reference)
    check_outputs(
        outputs,
        given_paths(
            checkpoint, data, original, *golds, policy, baseline, concept, *earlier, held_out, run.embeddings, run
        ),
    )
    from recerase.audit.earlier import with_earlier

    choose_dtype(run.dtype)
    rules = read_policy(policy)
    accepted = read_baseline(baseline, fail_on, concept)
    catalogue = load_catalogue(data)
    with RunState(outputs[0] if outputs else None) as state, pinned(run.threads, run.seed):
        subject = open_checkpoint_for(checkpoint, catalogue, run)
        before = open_checkpoint_for(original, catalogue, run) if original is not None else None
        references = open_references(golds, catalogue, run)
        if before is not None:
            before = with_codebooks(before, catalogue.items, observer, run.embeddings)
        else:
            subject = with_codebooks(subject, catalogue.items, observer, run.embeddings)
        chosen = choose_concept(concept, catalogue, (before or subject).embeddings)
        check_baseline(accepted, chosen.name, chosen.digest)
        homes = [home_of(opened) for opened in (subject, before) if opened is not None]
        gone = gone_from(homes, earlier, catalogue, subject.table, (before or subject).embeddings)
        if gone.besides(chosen.members).any():
            rules = with_earlier(rules)
        aside = choose_concept(held_out, catalogue, (before or subject).embeddings) if held_out is not None else None
        inputs = AuditInputs(subject, before, references, catalogue, chosen, rules, scope, gone, aside)
        entries = {
            **checkpoint_facts("model", subject),
            **checkpoint_facts("original", before),
            **reference_facts(references),
            "policy": rules.digest,
            "concept": chosen.digest,
            "earlier concepts": gone.digest,
            "held out": aside.digest if aside is not None and inputs.held_out is not None else "",
            "settings": [scope, max_users],
            "profile": profile or rules.profile,
        }
        state.open(run_key(run, run.seed, data_digest(catalogue), **entries), resume, observer)
        made = audited(inputs, run, observer, max_users=max_users, profile=profile, state=state)
        report = gated(made, fail_on, accepted)
        if workers().main:
            write_reports(report, outputs)
    return report


def inspect(path: str | Path, *, data: str | Path | None = None, run: RunConfig = RUN) -> Description:
    """What a path holds (checkpoint, SIDs, data, SID table, report), its figures, and what is wrong with it.

    With the `data` that a checkpoint of another tool was trained on, how far codebooks fitted to its SIDs reproduce them.
    """
    from recerase.layouts.describe import describe

    found = describe(Path(path), trust_pickle=run.trust_pickle, layout=run.layout, options=dict(run.layout_options))
    if run.embeddings is not None and data is None:
        raise UsageError("--embeddings is fitted to the items of a catalogue.", "Give it with --data DIR.")
    if data is None or found.checkpoint is None:
        return found
    catalogue = load_catalogue(data)
    opened = with_codebooks(open_checkpoint_for(path, catalogue, run), catalogue.items, SILENT, run.embeddings)
    if opened.codebooks is None or not opened.codebooks.fitted:
        return found
    agreement = ", ".join(f"{share:.2f}" for share in opened.codebooks.agreement)
    return replace(found, facts={**found.facts, "codebooks": f"fitted to its SIDs; agreement a level {agreement}"})


def import_data(reader: str, paths: Sequence[str | Path], out: str | Path, *, force: bool = False) -> Catalogue:
    """Read another tool's files with a registered reader and publish them as a data directory at `out`."""
    from recerase.catalog.readers import READERS, write_catalogue

    if reader not in READERS:
        raise UsageError(f"There is no reader {reader!r}.", f"There are: {', '.join(sorted(READERS))}.")
    takes = signature(READERS[reader])
    try:
        takes.bind(*paths)
    except TypeError as error:
        wanted = " ".join(name.upper() for name in takes.parameters)
        raise UsageError(f"The reader {reader} cannot take {len(paths)} paths.", f"It takes: {wanted}.") from error
    with publish(Path(out), inputs=given_paths(*paths), force=force) as result:
        items, interactions = READERS[reader](*paths)
        write_catalogue(result.directory, items, interactions)
        catalogue = load_catalogue(result.directory)
        result.provenance = {"command": "import", "reader": reader, "data": data_digest(catalogue)}
    return catalogue


def init_policy(out: str | Path, *, force: bool = False) -> Path:
    """Write the shipped policy, comments and all, to a file that does not exist yet."""
    from importlib.resources import files

    check_file_output(out, force=force)
    write_bytes(out, files("recerase.audit").joinpath("default_policy.toml").read_bytes())
    return Path(out)
