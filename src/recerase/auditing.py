"""An audit as the commands run it: models and world from what was opened, the probes, and a Report around the result.

The one decision: whatever a report says of its inputs (digests, moves, fitted codebooks) is said here, from the checkpoints that the
probes read, so that no command can report of another one.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from recerase.assembly import concept_facts, data_digest
from recerase.catalog import Catalogue, Concept
from recerase.earlier import Gone
from recerase.errors import UsageError
from recerase.growing import codebooks_for
from recerase.resume import Pieces
from recerase.runtime import RunConfig, choose_device, code_digest, environment
from recerase.store import canonical_json, sha256_bytes
from recerase.types import BoolArray, Move, Observer, Policy, Profile, Report, Scope

if TYPE_CHECKING:
    from recerase.audit.probes import AuditConfig, AuditModel
    from recerase.audit.run import AuditResult
    from recerase.layouts.native import Checkpoint
    from recerase.sid.table import SidTable
    from recerase.types import Role


@dataclass(frozen=True)
class AuditInputs:
    """What an audit reads, opened and in one item order."""

    subject: Checkpoint
    original: Checkpoint | None
    references: tuple[Checkpoint, ...]
    """Trained without the concept, no two with the same weights; what looks at one of them takes that of the smallest digest."""
    catalogue: Catalogue
    concept: Concept
    policy: Policy
    """With rules on earlier concepts, where there are any."""
    scope: Scope
    gone: Gone | None = None
    """What was erased before; None: nothing is known to be."""
    aside: Concept | None = None
    """Items of the concept's kind that are not in the request; what of them the concept has, or an earlier one, does not count."""

    @property
    def before(self) -> BoolArray:
        """[N] items of earlier concepts that are not in this one."""
        members = self.concept.members
        return np.zeros(len(members), bool) if self.gone is None else self.gone.besides(members)

    @property
    def held_out(self) -> BoolArray | None:
        """[N] retained items of the concept's kind; None: none were named. Raises UsageError when all that were named are gone."""
        if self.aside is None:
            return None
        left: BoolArray = self.aside.members & ~self.concept.members & ~self.before
        if not left.any():
            raise UsageError(
                f"--held-out names {int(self.aside.members.sum())} items, and all of them are in the concept.",
                "Name items of the concept's kind that are to stay.",
            )
        return left


def audited(
    inputs: AuditInputs,
    run: RunConfig,
    observer: Observer,
    *,
    max_users: int | None = None,
    profile: Profile | None = None,
    state: Pieces | None = None,
) -> Report:
    """Run the probes of `profile` (None: the policy's), decide the policy, and put everything a report needs around the result."""
    from recerase.audit.probes import AuditConfig, Earlier, build_world
    from recerase.audit.run import run_audit

    started, began = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), time.monotonic()
    policy = inputs.policy
    profile = profile or policy.profile
    config = AuditConfig(max_users=max_users, profile=profile, seed=run.seed, confidence=policy.confidence)
    source = inputs.original or inputs.subject
    world = build_world(
        inputs.catalogue,
        inputs.concept,
        embeddings=source.embeddings,
        codebooks=codebooks_for(source, inputs.subject),
        scope=inputs.scope,
        config=config,
        earlier=Earlier(inputs.before, inputs.gone.sids) if inputs.gone is not None and inputs.before.any() else None,
    )
    world = replace(world, held_out=inputs.held_out)
    original = inputs.original
    result = run_audit(
        audit_model("subject", inputs.subject, original.table if original else inputs.subject.table),
        audit_model("original", original, original.table) if original else None,
        [audit_model("reference", reference, reference.table) for reference in inputs.references],
        world,
        inputs.policy,
        observer,
        state=state,
    )
    device = choose_device(run.device)
    volatile = {
        "started": started,
        "seconds": round(time.monotonic() - began, 3),
        "seconds_a_probe": dict(result.seconds),
        "environment": asdict(environment(run.seed, run.threads, device, _dtype(inputs.subject))),
    }
    return _report(result, inputs, config, volatile)


def _dtype(checkpoint: Checkpoint) -> str:
    """What its weights are computed in, as torch calls it."""
    return str(next(checkpoint.recommender.module.parameters()).dtype).removeprefix("torch.")


def audit_model(role: Role, checkpoint: Checkpoint, old_table: SidTable) -> AuditModel:
    """A checkpoint as a model of an audit; `old_table` is that of the original."""
    from recerase.audit.probes import AuditModel

    return AuditModel(
        role=role,
        recommender=checkpoint.recommender,
        table=checkpoint.table,
        old_table=old_table.unfiltered,  # a stale client filters nothing
        listed=checkpoint.table.listed,
        reads_concept=role != "reference",
        digest=checkpoint.digest,
    )


def _report(result: AuditResult, inputs: AuditInputs, config: AuditConfig, volatile: Mapping[str, Any]) -> Report:
    from recerase.audit.gate import gate
    from recerase.audit.references import reference_names

    golds = zip(reference_names(len(inputs.references)), inputs.references, strict=True)
    opened: dict[str, Checkpoint | None] = {"subject": inputs.subject, "original": inputs.original, **dict(golds)}
    digests = {role: checkpoint.digest for role, checkpoint in opened.items() if checkpoint is not None}
    digests |= {
        "data": data_digest(inputs.catalogue),
        "policy": inputs.policy.digest,
        "concept": inputs.concept.digest,
        "settings": sha256_bytes(canonical_json(asdict(config))),
        "code": code_digest(),
    }
    if inputs.aside is not None:
        digests["held out"] = inputs.aside.digest
    told = inputs.subject.manifest.get("provenance", {}).get("method")
    erased = told if isinstance(told, dict) else {}
    return Report(
        decision=result.decision,
        gate=gate(result.decision),
        measurements=result.measurements,
        skipped=result.skipped,
        concept={**concept_facts(inputs.concept, inputs.catalogue), "scope": inputs.scope},
        inputs=digests,
        method=erased,
        moves=moves(inputs.original.table, inputs.subject.table, inputs.catalogue) if inputs.original else (),
        examples=result.examples,
        curves=result.curves,
        policy=inputs.policy,
        run=volatile,
        limits=(
            *result.limits,
            *(() if inputs.gone is None else inputs.gone.noted(inputs.concept.members)),
            *_aside(inputs),
            *_fitted(inputs.original or inputs.subject),
            *inputs.subject.extra.get("limits", ()),
            *_unwritten(inputs.subject),
        ),
        references=result.references,
        likeness=result.likeness,
    )


def _fitted(source: Checkpoint) -> tuple[str, ...]:
    """What a report about another tool's checkpoint says of the codebooks that were fitted to it."""
    codebooks = source.codebooks
    if source.layout == "native" or codebooks is None or not codebooks.fitted:
        return ()
    shares = ", ".join(f"{share:.0%}" for share in codebooks.agreement)
    made_from = source.extra.get("fitted from", "what it was erased with")
    return (
        f"Layout {source.layout} keeps no codebooks: they were fitted from {made_from}, and give {shares} of its codes, "
        "level by level. Probes in embedding space rest on them.",
    )


def _aside(inputs: AuditInputs) -> tuple[str, ...]:
    """What a report says of items of the concept's kind that the request left out."""
    if inputs.held_out is None:
        return ()
    return (
        f"Held out: {int(inputs.held_out.sum())} items of the concept's kind that are not in the request. How likely they are stands "
        "under spill.held_out where the profile runs it; no shipped rule asks, for whether they were to go is not known.",
    )


def _unwritten(subject: Checkpoint) -> tuple[str, ...]:
    """What a report says of files beside the weights that name SIDs and were not read."""
    names = subject.extra.get("naming", ())
    return (f"Files that name SIDs and were neither read nor rewritten: {', '.join(names)}.",) if names else ()


def moves(before: SidTable, after: SidTable, catalogue: Catalogue) -> tuple[Move, ...]:
    """Every item whose SID differs between two tables in the catalogue's order."""
    rows = np.flatnonzero(before.moved(after))
    return tuple(
        Move(
            item_id=str(catalogue.items.item_ids[row]),
            title=catalogue.items.titles[row],
            old=tuple(before.codes[row].tolist()),
            new=tuple(after.codes[row].tolist()),
        )
        for row in rows
    )
