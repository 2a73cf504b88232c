"""TRACER as written (preset paper) against equations 5-11 by hand, and what the default must do where those break."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tests.erase.conftest import CODES, N, World, forward, interactions_of, items_of, walks
from torch import Tensor

from recerase.catalog.interactions import Histories
from recerase.erase import tracer
from recerase.erase.examples import examples
from recerase.erase.method import EraseRequest
from recerase.erase.methods import METHODS, make_config
from recerase.erase.target import Teacher
from recerase.erase.tracer import erase
from recerase.erase.tracer_config import RenormaliseConfig, TracerConfig
from recerase.errors import ConceptError, EraseError, UsageError
from recerase.model.mass import concept_mass, forced_log_probs
from recerase.model.recommender import Recommender, wrap
from recerase.types import Silent

PAPER = dataclasses.replace(
    TracerConfig.preset("paper"),
    reassign_steps=3,
    lr=0.05,
    phi_lr=0.5,
    tau_start=0.05,
    tau_end=0.05,
    batch=4,
    min_moved=0.0,
)
"""The paper's equations with rates at which three steps can be seen."""
QUICK = TracerConfig(reassign_steps=6, settle_steps=6, pool=3, batch=16, sequences=4, min_moved=0.0)
SETTLE = RenormaliseConfig(settle_steps=100, pool=6, batch=24, sequences=8, settle_lr=5e-3)


class Figures(Silent):
    """Keeps the figures of every step."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float | str]] = []

    def advance(self, task: str, step: int = 1, **figures: float | str) -> None:
        self.rows.append({"task": task, **figures})


def first(histories: Histories, n: int, rng: np.random.Generator) -> Histories:
    """A draw without chance: the first n."""
    return histories.take(np.arange(n))


# -- the paper's equations ---------------------------------------------------------------------------------------------


def by_hand(request: EraseRequest, world: World, config: TracerConfig) -> tuple[Recommender, list[Tensor], list[float]]:
    """Equations 5-11 with transformers' forward, one history at a time; theta, phi and L_F a step after all steps."""
    model = wrap(copy.deepcopy(request.model.module), request.model.schema, request.model.window)
    found = examples(request.interactions, request.table, request.concept, model.window)
    forget, retain = (h.take(np.arange(config.batch)) for h in (found.forget, found.retain))
    members = np.flatnonzero(world.members).tolist()
    rows = torch.from_numpy(request.table.rows())
    unit = world.embeddings / np.linalg.norm(world.embeddings, axis=1, keepdims=True)
    cosine = np.where(world.retained[None], unit @ unit.T, -2.0)
    near = {i: np.argsort(-cosine[i])[: config.neighbours] for i in members}
    distances = [
        torch.from_numpy(world.codebooks.distances(world.embeddings, world.table.codes, x)[members]) for x in range(3)
    ]
    stored = torch.from_numpy(world.table.codes[members]).long()
    margins = [torch.zeros_like(d) for d in distances]
    for x, d in enumerate(distances):
        for m in range(len(members)):
            rest = torch.cat([d[m, : stored[m, x]], d[m, stored[m, x] + 1 :]]).min()
            if d[m, stored[m, x]] >= rest:
                margins[x][m, stored[m, x]] = d[m, stored[m, x]] - rest + 0.02
    rho = [
        torch.tensor(
            [float((world.table.codes[world.retained, x] == k).mean()) for k in range(size)], dtype=torch.float64
        )
        for x, size in enumerate(CODES)
    ]
    phi = [torch.zeros_like(d, requires_grad=True) for d in distances]
    theta = list(model.module.parameters())
    history_of_forget = []
    for _ in range(config.reassign_steps):
        q = [torch.softmax((-d + m + p) / config.tau_start, 1) for d, m, p in zip(distances, margins, phi, strict=True)]
        weight = model.module.get_input_embeddings().weight
        soft = {
            i: torch.stack([q[x][m].float() @ weight[torch.from_numpy(model.schema.rows[x])] for x in range(3)])
            for m, i in enumerate(members)
        }

        def log_p(history: list[int], items: Any, soft: dict[int, Tensor] = soft) -> Tensor:
            paths = rows[items]
            steps = forward(model, request.table, history, paths, soft)
            return steps.gather(2, paths[..., None]).sum((1, 2))

        l_r = -torch.stack(
            [log_p(items_of(retain, b), [int(retain.targets[b])])[0] for b in range(config.batch)]
        ).mean()
        l_f = torch.stack([log_p(items_of(forget, b), [int(forget.targets[b])])[0] for b in range(config.batch)]).mean()
        pairs = [log_p(items_of(forget, b), near[int(forget.targets[b])]).sum() for b in range(config.batch)]
        l_coh = -torch.stack(pairs).mean() / config.neighbours
        l_reg = torch.stack([p.abs().sum() for p in phi]).sum()
        loss = l_r + config.forget_weight * l_f + config.coherence_weight * l_coh + config.reg_weight * l_reg
        alone = torch.autograd.grad(l_f, phi, retain_graph=True)
        gradients = torch.autograd.grad(loss, [*theta, *phi])
        history_of_forget.append(float(l_f.detach()))
        with torch.no_grad():
            for p, g in zip(theta, gradients, strict=False):
                p -= config.lr * g
            for x in range(3):
                mean = (q[x] * rho[x]).sum(1, keepdim=True)
                mask = (rho[x] > mean) & (alone[x] > 0)
                phi[x] -= config.phi_lr * gradients[len(theta) + x] * mask
    return model, phi, history_of_forget


def test_paper_preset_takes_the_steps_of_equation_10(
    world: World, ask: Callable[..., EraseRequest], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three SGD steps on L_R + L_F + L_Coh + 1e-3 L_reg, phi masked by equation 11: same theta, same phi, same codes."""
    monkeypatch.setattr(tracer, "draw", first)
    seen: list[list[Tensor]] = []
    keep = tracer.q_phi
    monkeypatch.setattr(tracer, "q_phi", lambda quant, phi, tau: seen.append(phi) or keep(quant, phi, tau))
    figures = Figures()
    request = ask(kind, observer=figures)
    erased = erase(request, PAPER)
    model, phi, forget = by_hand(request, world, PAPER)
    told = [float(r["forget"]) for r in figures.rows if r["task"] == "reassign"]
    assert told == pytest.approx(forget, abs=1e-4)
    for x, (mine, exact) in enumerate(zip(seen[-1], phi, strict=True)):
        torch.testing.assert_close(
            mine.detach(), exact.detach(), rtol=5e-3, atol=1e-7, msg=lambda m, x=x: f"level {x + 1}: {m}"
        )
    assert 0 < sum(int((p != 0).sum()) for p in phi) < sum(p.numel() for p in phi)
    before = request.model.module.state_dict()
    exact_state = model.module.state_dict()
    moved = 0.0
    for name, value in erased.model.module.state_dict().items():
        torch.testing.assert_close(value, exact_state[name], rtol=1e-3, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}")
        moved = max(moved, float((value - before[name]).abs().max()))
    assert moved > 1e-2
    codes = np.stack([_argmax(world, x, p, PAPER.tau_end) for x, p in enumerate(phi)], 1)
    assert (erased.table.codes[world.members] == codes).all()


def _argmax(world: World, level: int, phi: Tensor, tau: float) -> np.ndarray:
    from recerase.erase.reassign import q_phi, quantiser

    quant = quantiser(world.table, world.members, world.codebooks, world.embeddings)
    phis = [phi if x == level else torch.zeros_like(d) for x, d in enumerate(quant.distances)]
    return q_phi(quant, phis, tau)[level].argmax(1).numpy()


def test_the_mask_may_be_left_out(ask: Callable[..., EraseRequest]) -> None:
    """Without equation 11 every code of a concept item that was read may gain or lose."""
    masked = erase(ask(), PAPER).summary["phi_changed"]
    free = erase(ask(), dataclasses.replace(PAPER, mask=False)).summary["phi_changed"]
    assert 0 < masked < free


def test_at_the_papers_tau_sgd_moves_next_to_nothing_and_says_so(ask: Callable[..., EraseRequest]) -> None:
    """METHODS 1b: a run that moved about nothing fails loudly."""
    still = make_config(METHODS["tracer"], "paper", {"reassign_steps": "3", "batch": "8", "min_moved": "0.9"})
    with pytest.raises(EraseError, match="less than min_moved = 90%"):
        erase(ask(), still)


# -- the default -------------------------------------------------------------------------------------------------------


def test_tau_is_annealed_from_start_to_end(ask: Callable[..., EraseRequest]) -> None:
    figures = Figures()
    erase(ask(observer=figures), QUICK)
    tau = [float(r["tau"]) for r in figures.rows if r["task"] == "reassign"]
    assert tau[0] == pytest.approx(QUICK.tau_start)
    assert tau[-1] == pytest.approx(QUICK.tau_end)
    assert tau == sorted(tau, reverse=True)


def test_every_concept_item_moves_to_a_sid_nobody_had_and_the_report_says_so(
    world: World, ask: Callable[..., EraseRequest]
) -> None:
    erased = erase(ask(), QUICK)
    had = {tuple(c) for c in world.table.codes[world.table.present].tolist()}
    new = [tuple(c) for c in erased.table.codes[world.members].tolist()]
    assert len(set(new)) == len(new)
    assert not set(new) & had
    assert erased.summary["moved_items"] == pytest.approx(world.members.sum() / world.concept.sum())
    share = (erased.table.codes != world.table.codes)[world.concept].mean(0)
    assert erased.summary["moved_codes"] == pytest.approx(share, abs=1e-4)
    assert erased.summary["distances"] == "stored"
    assert erased.summary["agreement"] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("missing", ["codebooks", "embeddings"])
def test_reassigning_needs_codebooks_and_embeddings_and_settling_does_not(
    ask: Callable[..., EraseRequest], missing: str
) -> None:
    request = ask(**{missing: None})
    with pytest.raises(UsageError, match=f"needs the (item )?{missing} behind") as caught:
        erase(request, QUICK)
    assert "renormalise" in caught.value.remedy
    erase(request, dataclasses.replace(RenormaliseConfig(), settle_steps=1, pool=1, batch=8))


def test_settling_brings_the_concept_to_its_target_and_keeps_the_rest(
    world: World, ask: Callable[..., EraseRequest], kind: str
) -> None:
    """On training histories: old SIDs nearer to what the teacher wants, the retained distribution nearer to p*."""
    request = ask(kind)
    erased = erase(request, SETTLE)
    assert (erased.table.codes == request.table.codes).all()
    found = examples(request.interactions, request.table, request.concept, request.model.window)
    teacher = Teacher(request.model, request.table, world.members, "output", 0)
    target = teacher.target(found.forget, np.full(len(found.forget), -1))

    def figures(model: Recommender) -> tuple[float, float, float]:
        told = Teacher(model, request.table, world.members, "output", 0)
        closed = tracer.walk(model, told.read(found.forget), told.frontier).closed(told.frontier)
        kept = tracer.node_log_probs(model, told.read(found.forget), target.path)
        miss = float((closed.logsumexp(1) - target.closed.logsumexp(1)).abs().mean())
        mass = float(concept_mass(model, request.table, world.members, found.forget).mass.mean())
        return miss, mass, float(tracer.objectives.distil(kept, target.log_probs))

    with torch.no_grad():
        before, after = figures(request.model), figures(erased.model)
    assert after[0] < before[0] / 2
    assert after[1] < before[1] / 4
    assert after[2] < before[2]


def test_influence_scope_forgets_what_the_concept_said_of_other_items(
    world: World, ask: Callable[..., EraseRequest]
) -> None:
    """After settling with scope influence, a history reads more like itself without the concept; with output, less so."""
    found = examples(ask().interactions, world.table, world.concept, 5).touched
    clean = found.without(world.concept)
    gap = {}
    for scope in ("output", "influence"):
        model = erase(ask(scope=scope), SETTLE).model
        with torch.no_grad():
            read, bare = (model.start(*model.tokens(h, world.table)).log_probs for h in (found, clean))
        gap[scope] = float((bare.exp() * (bare - read)).sum(1).mean())
    assert gap["influence"] < 0.7 * gap["output"]


def test_a_concept_that_is_nobodys_target_can_be_erased(world: World, ask: Callable[..., EraseRequest]) -> None:
    """No training pair leads to it, none passes it: D_F is empty, and the default still moves and settles it."""
    request = ask(interactions=interactions_of(walks(60, 2, first=16)))
    request = dataclasses.replace(request, concept=np.arange(N) < 6)
    assert not request.concept[request.interactions.items].any()
    erased = erase(request, QUICK)
    assert erased.summary["moved_items"] == 1.0
    assert all(torch.isfinite(p).all() for p in erased.model.module.parameters())
    with pytest.raises(ConceptError, match="D_F is empty"):
        erase(request, PAPER)


def test_a_concept_without_a_sid_of_its_own_is_refused(world: World, ask: Callable[..., EraseRequest]) -> None:
    """Its only item shares its SID with a retained one: there is nothing to press on that is the concept's alone."""
    codes = world.table.codes.copy()
    codes[3] = codes[20]
    table = dataclasses.replace(world.table, codes=codes, resolved=world.table.resolved | (np.arange(N) == 3))
    request = ask(table=table, concept=np.arange(N) == 3)
    for config in (QUICK, RenormaliseConfig(settle_steps=3, pool=2, batch=8)):
        with pytest.raises(EraseError, match="no weight can tell them apart"):
            erase(request, config)


def test_coherence_may_be_zero_or_negative(ask: Callable[..., EraseRequest], world: World) -> None:
    """For a sensitive concept, raising its neighbours is itself a leak."""
    request = ask()
    pairs = examples(request.interactions, request.table, request.concept, 5).forget
    near = tracer.neighbours(world.embeddings, world.concept, QUICK.neighbours, world.table.present)[pairs.targets]
    liking = []
    for weight in (1.0, 0.0, -1.0):
        config = dataclasses.replace(QUICK, reassign_steps=10, settle_steps=0, coherence_weight=weight, lr=5e-3)
        model = erase(request, config).model
        chances = np.stack([forced_log_probs(model, request.table, pairs, n) for n in near.T])
        liking.append(float(np.logaddexp.reduce(chances, 0).mean()))
    assert liking == sorted(liking, reverse=True)
    assert np.isfinite(liking).all()


def test_teacher_targets_are_computed_once_a_batch(
    ask: Callable[..., EraseRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both phases learn from the same `pool` batches."""
    calls = []
    keep = Teacher.target
    monkeypatch.setattr(Teacher, "target", lambda self, h, p: calls.append(len(h)) or keep(self, h, p))
    erase(ask(), dataclasses.replace(QUICK, pool=2))
    assert len(calls) == 2


@pytest.mark.parametrize("bad", [{"pool": 0}, {"tau_end": 0.0}, {"batch": 0}, {"reassign_steps": 0, "settle_steps": 0}])
def test_settings_that_cannot_work_are_refused_by_name(bad: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(bad))):
        TracerConfig(**bad)
