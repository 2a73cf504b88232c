"""TRACER (arXiv 2606.07688): reassign the concept's items to other codes, learned together with the model.

Preset `paper` is equations 5-11 as written (SGD, fixed tau, gradient mask, per-level argmax). Preset `default` keeps the idea and
replaces what breaks: bounded losses against the target of erase/target.py, an annealed tau, a commit that forbids taken SIDs, and
a second phase that settles the old and the new SIDs of the concept beside what a model that never saw them would give.
`renormalise` is that second phase alone, with no item moved.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recerase.erase import objectives
from recerase.erase.ahead import attacked
from recerase.erase.both import Both
from recerase.erase.examples import draw, neighbours
from recerase.erase.frontier import continuation, walk
from recerase.erase.method import Erased, EraseRequest
from recerase.erase.paths import SoftTokens, item_rows, node_log_probs, sid_log_probs, soft_tokens, start
from recerase.erase.precision import student
from recerase.erase.reassign import (
    CommitConfig,
    Quantiser,
    commit,
    gradient_mask,
    q_phi,
    quantiser,
    require_needed,
)
from recerase.erase.supply import Supply
from recerase.erase.target import Target
from recerase.erase.tracer_config import TracerConfig, check
from recerase.errors import ConceptError, EraseError
from recerase.model.batches import IGNORED
from recerase.model.recommender import Recommender, State
from recerase.sid.table import SidTable


def erase(request: EraseRequest, config: TracerConfig) -> Erased:
    """Reassign, commit, settle; the request's model is copied, never changed.

    Raises:
        UsageError: reassigning needs codebooks and item embeddings, and there are none; or SIDs differ in length.
        EraseError: fewer items moved than `min_moved`, or the concept has no SID of its own.
    """
    began = time.monotonic()
    check(request.table, request.codebooks, request.embeddings, config)
    run = _Run(request, config)
    if not run.reachable and (config.settle_steps or config.forget_loss == "renormalise"):
        raise EraseError(
            "Every SID of the concept is also that of a retained item, so no weight can tell them apart.",
            "Give its items SIDs of their own first with `recerase tokenize`, or hide them with --method filter.",
        )
    table = request.table
    summary: dict[str, Any] = {}
    if config.reassign_steps:
        table, figures = run.reassign()
        summary |= figures
    moved = float(table.moved(request.table)[request.concept].mean())
    if config.reassign_steps and moved < config.min_moved:
        raise EraseError(
            f"TRACER moved {moved:.1%} of the concept's items, less than min_moved = {config.min_moved:.0%}.",
            "Raise tau_start or phi_lr, or accept it with --set min_moved=0.",
        )
    if config.settle_steps:
        summary |= run.settle(table)
    run.model.module.eval()
    codes = (table.codes != request.table.codes)[request.concept].mean(0)
    summary |= {
        "moved_items": moved,
        "unreachable_items": int(run.members.sum()) - run.reachable,
        "moved_codes": [round(float(x), 4) for x in codes],
        "seconds": round(time.monotonic() - began, 3),
    }
    return Erased(run.model, table, summary)


_ATTACK = 32
"""Pairs of the attack that is looked ahead at."""
_LOOKS = 4
"""Times in settling that what follows the concept's codes is read anew."""


class _Run:
    """One erasure under way: the student, the teacher, and the examples both read."""

    def __init__(self, request: EraseRequest, config: TracerConfig) -> None:
        self.request, self.config = request, config
        self.model: Recommender = student(request.model)
        self.model.module.eval()  # no dropout: the student must match the teacher exactly where nothing is to change
        self.supply = Supply(request, config)
        self.teacher, self.rng = self.supply.teacher, self.supply.rng
        self.members = request.concept & request.table.present
        self.reachable = int(np.setdiff1d(np.flatnonzero(self.members), self.teacher.frontier.unreachable).size)

    # -- phase A: learn where the items go -------------------------------------------------------------------------

    def reassign(self) -> tuple[SidTable, dict[str, Any]]:
        """Learn phi and the weights together (equation 10), and commit."""
        request, config = self.request, self.config
        assert request.codebooks is not None
        assert request.embeddings is not None
        given = (request.table, self.members, request.codebooks, request.embeddings)
        quant = quantiser(*given, offered=request.offered, gone=request.earlier)
        require_needed(request.table, self.members, quant, request.needed)
        phi = [torch.zeros_like(d, requires_grad=True) for d in quant.distances]
        retained = request.table.present & ~request.out
        self.near = neighbours(request.embeddings, request.concept, config.neighbours, retained)
        kind = torch.optim.SGD if config.optimizer == "sgd" else torch.optim.AdamW
        weights = kind(self.model.module.parameters(), lr=config.lr, weight_decay=0.0)
        codes = kind(phi, lr=config.phi_lr, weight_decay=0.0)
        batches = self.supply.batches() if config.forget_loss == "renormalise" else None
        observer = request.observer
        observer.start("reassign", config.reassign_steps)
        figures: dict[str, float] = {}
        for step in range(config.reassign_steps):
            tau = _between(config.tau_start, config.tau_end, step / max(1, config.reassign_steps - 1))
            q = q_phi(quant, phi, tau)
            soft = soft_tokens(self.model, self.members, q)
            with self.supply.precision():
                kept, forget, coherence = self._losses(next(batches) if batches else None, soft)
            size = torch.stack([p.abs().sum() for p in phi]).sum()
            loss = (
                kept
                + config.forget_weight * forget
                + config.coherence_weight * coherence
                + config.reg_weight * size.to(kept.dtype)
            )
            masks = None
            if config.mask:
                alone = torch.autograd.grad(forget, phi, retain_graph=True)
                masks = gradient_mask(quant, q, list(alone), without_current=config.commit == "assignment")
            weights.zero_grad()
            codes.zero_grad()
            loss.backward()
            for level, mask in enumerate(masks or []):
                gradient = phi[level].grad
                assert gradient is not None
                gradient.mul_(mask)
            if config.clip:
                torch.nn.utils.clip_grad_norm_(self.model.module.parameters(), config.clip)
            weights.step()
            codes.step()
            figures = {"retain": float(kept.detach()), "forget": float(forget.detach()), "tau": tau}
            observer.advance("reassign", 1, **figures)
        observer.finish("reassign")
        table = self._commit(quant, phi)
        return table, {
            "distances": "pinned" if request.codebooks.fitted else "stored",
            "agreement": [round(a, 4) for a in quant.agreement],
            "reassign_losses": {k: round(v, 5) for k, v in figures.items()},
            "phi_changed": round(float(torch.cat([(p != 0).double().flatten() for p in phi]).mean()), 6),
        }

    def _losses(self, target: Target | None, soft: SoftTokens) -> tuple[Tensor, Tensor, Tensor]:
        """L_R, L_F and L_Coh of one step, with soft tokens in the histories."""
        if target is None:
            return self._paper_losses(soft)
        model = self.model
        state = start(model, self.request.table, target.histories, soft)
        kept = objectives.distil(node_log_probs(model, state, target.path), target.log_probs)
        lost = self._reached(state, target)
        wanted = np.flatnonzero(self.members[np.maximum(target.histories.targets, 0)] & (target.histories.targets >= 0))
        if not len(wanted) or not self.config.coherence_weight:
            return kept, lost, kept.new_zeros(())
        near = item_rows(model, self.request.table, self.near[target.histories.targets[wanted]])  # [b, K, L]
        found = sid_log_probs(model, state.take(torch.from_numpy(wanted)), near).sum(2)
        return kept, lost, self._coherence(found)

    def _paper_losses(self, soft: SoftTokens) -> tuple[Tensor, Tensor, Tensor]:
        """Equations 7, 8 (or NPO in its place) and 9 on a batch of D_R and one of D_F."""
        config, request, model = self.config, self.request, self.model
        forget, retain = (
            draw(self.supply.examples.forget, config.batch, self.rng),
            draw(self.supply.examples.retain, config.batch, self.rng),
        )
        if len(forget) == 0:
            raise ConceptError(
                "No training interaction leads to the concept, so D_F is empty.",
                "Use forget_loss=renormalise, which needs none.",
            )
        rows = item_rows(model, request.table, retain.targets)[:, None]  # [B, 1, L]
        kept = objectives.nll(sid_log_probs(model, start(model, request.table, retain, soft), rows).sum((1, 2)))
        near = item_rows(model, request.table, self.near[forget.targets])  # [B, K, L]
        old = item_rows(model, request.table, forget.targets)[:, None]  # [B, 1, L]
        state = start(model, request.table, forget, soft)
        found = sid_log_probs(model, state, torch.cat([old, near], 1)).sum(2)  # [B, 1 + K]
        if config.forget_loss == "ascent":
            return kept, objectives.ascent(found[:, 0]), self._coherence(found[:, 1:])
        with torch.no_grad():
            before = start(request.model, request.table, forget)
            original = sid_log_probs(request.model, before, old).sum((1, 2))
        return kept, objectives.npo(found[:, 0], original, config.beta), self._coherence(found[:, 1:])

    def _coherence(self, found: Tensor) -> Tensor:
        together = objectives.coherence_pairs if self.config.coherence == "pairs" else objectives.coherence_mass
        return together(found)

    def _reached(self, state: State, target: Target) -> Tensor:
        """How far the old SIDs are from their target: each closed prefix, and all of them together."""
        found = self.teacher.frontier
        reached = walk(self.model, state, found).closed(found)
        onwards = continuation(self.model, self._few(state, target), found).mean(0)  # hardly depends on the history
        return _matched(reached + onwards, target.closed)

    def _commit(self, quant: Quantiser, phi: list[Tensor]) -> SidTable:
        request, config = self.request, self.config
        assert request.codebooks is not None
        assert request.embeddings is not None
        if config.commit == "assignment":
            weights = CommitConfig(candidates=config.commit_candidates, sharing=config.commit_sharing)
            given = (request.table, self.members, request.codebooks, request.embeddings, quant, phi, weights)
            return commit(*given, request.needed, request.earlier, request.left)
        q = q_phi(quant, [p.detach() for p in phi], config.tau_end)
        codes = torch.stack([x.argmax(1) for x in q], 1).numpy().astype(np.int32)
        table = request.table.replace(np.flatnonzero(self.members), codes)
        if request.needed is not None and not (table.codes == request.needed).any():
            raise EraseError(
                f"No item has the code {request.needed} any more, from which the other tool takes the shape of its model.",
                "Use preset default, or --method renormalise or npo.",
            )
        return table

    # -- phase B: settle on both tables ----------------------------------------------------------------------------

    def settle(self, table: SidTable) -> dict[str, Any]:
        """Distil the target under the new table and, for stale histories, the old one."""
        config, request, model = self.config, self.request, self.model
        optimizer = torch.optim.AdamW(model.module.parameters(), lr=config.settle_lr, weight_decay=0.0)
        batches = self.supply.batches()
        observer = request.observer
        observer.start("settle", config.settle_steps)
        both, few = Both(self.teacher, table), self.supply.few()
        figures: dict[str, float] = {}
        for step in range(config.settle_steps):
            for group in optimizer.param_groups:
                group["lr"] = config.settle_lr * _between(1.0, 0.05, step / max(1, config.settle_steps - 1))
            if step % -(-config.settle_steps // _LOOKS) == 0:
                both.look(model, few)
            target = next(batches)
            optimizer.zero_grad()
            if config.look_ahead and step % config.look_ahead == config.look_ahead - 1:
                self._look_ahead(both, target, table if step // config.look_ahead % 2 == 0 else request.table)
            stale = self.rng.random() < config.stale
            with self.supply.precision():
                state = start(model, request.table if stale else table, target.histories)
                kept = objectives.distil(node_log_probs(model, state, target.path), target.log_probs)
                lost = self._both_reached(both, state, target)
                if config.sequences:
                    kept = kept + self._retained()
            (kept + config.forget_weight * lost).backward()
            torch.nn.utils.clip_grad_norm_(model.module.parameters(), config.clip)
            optimizer.step()
            figures = {"retain": float(kept.detach()), "concept": float(lost.detach())}
            observer.advance("settle", 1, **figures)
        observer.finish("settle")
        return {"settle_losses": {k: round(v, 5) for k, v in figures.items()}}

    def _look_ahead(self, both: Both, target: Target, table: SidTable) -> None:
        """Gradients of how far the concept's SIDs are from their target in the model that one step of relearning makes of this one.

        Nothing where no training interaction leads to the concept: then nobody can relearn from such.
        """
        pairs = draw(self.supply.examples.forget, _ATTACK, self.rng)
        if not len(pairs):
            return
        with attacked(self.model, table, pairs, self.config.look_rate):
            with self.supply.precision():
                lost = self._both_reached(both, start(self.model, table, target.histories), target)
            (self.config.forget_weight * lost).backward()

    def _both_reached(self, both: Both, state: State, target: Target) -> Tensor:
        """How far the SIDs of either table are from their target: each closed prefix, all of a table's together, single items."""
        found, wanted = both.found(self.model, state, self._few(state, target)), both.wanted(target)
        groups = (torch.from_numpy(group).to(found.device) for group in both.groups)
        lost = torch.stack([_matched(found[:, group], wanted[:, group]) for group in groups]).sum()
        if not self.config.own_weight:
            return lost
        found, wanted, known = both.one_by_one(self.model, state, target, self.rng)
        own, drawn = (_matched_where(found[:, i], wanted[:, i], known[:, i]) for i in (0, 1))
        rows = known[:, 0].any(1).sum() / len(found)  # rare pairs weigh no more than others
        return lost + self.config.own_weight * (2 * rows * own + drawn)

    def _few(self, state: State, target: Target) -> State:
        return state.take(torch.from_numpy(self.rng.permutation(len(target.histories))[: self.config.forced]))

    def _retained(self) -> Tensor:
        """KL from p* on fresh retained data: whole sequences of a causal model on bare SIDs, pairs of any other.

        Inside a prompt nobody asks for an item in the middle of a history, so what the model says there is left alone.
        """
        model = self.model
        if model.kind != "causal" or model.prompt is not None or len(self.supply.examples.sequences) == 0:
            target = self.supply.pairs()
            state = start(model, self.request.table, target.histories)
            return objectives.distil(node_log_probs(model, state, target.path), target.log_probs)
        inputs, wanted = self.supply.sequences()
        log_probs = model.module(input_ids=inputs["input_ids"], use_cache=False).logits.float().log_softmax(-1)
        known = inputs["labels"] != IGNORED  # [B, T]
        divergence = (wanted.exp() * (wanted - log_probs)).sum(2)[known]
        return divergence.mean() * self.request.table.levels


def _matched(found: Tensor, target: Tensor) -> Tensor:
    """Each of P log-probabilities [B, P] beside its target, and their total beside the targets' total.

    The total is what leaks; alone it would let one prefix hide behind another.
    """
    return objectives.match(found, target) + objectives.match(found.logsumexp(1), target.logsumexp(1))


def _matched_where(found: Tensor, target: Tensor, where: Tensor) -> Tensor:
    """`objectives.match` over those `where`, which may be none: then 0."""
    some = where.sum()
    gap = objectives.match(torch.where(where, found, 0.0), torch.where(where, target, 0.0))
    return gap * (where.numel() / some.clamp(min=1))


def _between(first: float, last: float, t: float) -> float:
    """Geometric interpolation."""
    return float(first * (last / first) ** t)
