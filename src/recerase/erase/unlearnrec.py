"""UnlearnRec: an influence encoder is trained once on requests that nobody made, and then answers any request in one pass.

Prepare: each step simulates a concept, draws pairs that lead to it and pairs that do not, lets the encoder (influence.py) rewrite the
rows of its codes, and goes down L_M + forget_weight L_U + keep_weight L_P + contrast_weight L_C: NLL on the rest; -log sigmoid(-y) on
the request, y = log p(T(i)|h) - log 1/N, so that an item is forgotten where it is no likelier than by chance; squared change of the
cosine between the rows of items that follow each other; InfoNCE between H of the request and H of it with edges left out. Half of the
concepts are sub-tries (what a brand or a category looks like), half are items from anywhere.
Erase: the encoder's rows for the real request, then `steps` steps on its MLPs alone, without L_C; H0 and w stay as prepared.
The departure: in the source nodes are the users and items of a graph recommender and each has an embedding of its own. Here they are
codes, which items share, and the rest of the model stays as it is; there is only so much that rows of shared codes can say.
How the gradient comes to the encoder: the loss is differentiated by the rows where they lie, and that is handed on, which is the chain
rule; so any recommender will do.
Source: Chen et al. 2025, arXiv 2505.22649, by way of METHODS 3 and the public port Shuvayu12/UnlearnRec (core/influence_encoder.py,
core/loss_function.py); a reconstruction, the authors' own code was not at hand.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy, softplus

from recerase.catalog.interactions import Histories
from recerase.erase import objectives
from recerase.erase.examples import draw, examples
from recerase.erase.influence import InfluenceEncoder, Nodes, request_graph, row_tensors
from recerase.erase.method import Erased, EraseRequest, Prepared
from recerase.erase.precision import student
from recerase.erase.steps import (
    StepConfig,
    check,
    finished,
    grounds,
    learn,
    require,
    rounded,
    target_log_probs,
)  # fmt: skip
from recerase.errors import CheckpointError, UsageError
from recerase.model.recommender import Recommender
from recerase.types import BoolArray, IntArray

_PREPARE = 37
"""The stream of random numbers of a seed that requests are simulated with."""
_LARGEST_SHARE = 0.25
"""Of the items that training pairs lead to, the most that a simulated concept has."""
_CONTRASTED = 256
"""Most nodes that L_C tells apart."""
_EDGES_LEFT_OUT = 0.1
_TEMPERATURE = 1.0

_OF_PREPARING = ("prepare_steps", "prepare_lr", "hops", "contrast_weight")


@dataclass(frozen=True)
class UnlearnRecConfig(StepConfig):
    """Settings of `unlearnrec`; weights and hops as in the port, the rest untuned. Steps and rate are those of the answer."""

    steps: int = 20
    lr: float = 3e-3
    prepared: str = ""
    """Directory made by `recerase prepare`; empty: the encoder is prepared for this request alone."""
    prepare_steps: int = 400
    prepare_lr: float = 3e-3
    hops: int = 3
    forget_weight: float = 1.0
    keep_weight: float = 1.0
    contrast_weight: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, least={"prepare_steps": 1, "hops": 1}, positive=("prepare_lr", "forget_weight"))


class Rewriting:
    """A model whose rows of codes an encoder rewrites."""

    def __init__(self, request: EraseRequest, config: UnlearnRecConfig) -> None:
        """Raises: as `influence.row_tensors`."""
        self.request, self.config, self.model = request, config, student(request.model)
        self.nodes = Nodes.of(request.table)
        self.tensors = row_tensors(self.model)
        self.place = torch.from_numpy(self.nodes.rows).to(self.model.device)
        self.rows = {name: weight.detach()[self.place] for name, weight in self.tensors.items()}
        widths = {name: rows.shape[1] for name, rows in self.rows.items()}
        self.encoder = InfluenceEncoder(widths, len(self.place), config.hops, request.seed).to(self.model.device)
        self.chance = -float(np.log(max(1, int(request.table.present.sum()))))

    def graph(self, members: BoolArray, pairs: Histories, drop: float, rng: np.random.Generator) -> Tensor:
        """`influence.request_graph` of the items [N] that have a SID, where the model is."""
        items = np.flatnonzero(members & self.request.table.present)
        return request_graph(self.nodes, items, pairs, drop, rng).to(self.model.device)

    def put(self, rows: dict[str, Tensor]) -> None:
        """Write rows [C, D] into the model, those that differ from the original's alone."""
        with torch.no_grad():
            for name, weight in self.tensors.items():
                weight[self.place] = rows[name].detach().to(weight.dtype)

    def loss(
        self, forget: Histories, retain: Histories, graph: Tensor, thinned: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """L and its parts for a request; differentiable in the encoder. `thinned` is S with edges left out, for L_C."""
        new, estimates = self.encoder(graph, self.rows)
        self.put(new)
        model, table, config = self.model, self.request.table, self.config
        kept = objectives.nll(target_log_probs(model, table, retain))
        lost = softplus(target_log_probs(model, table, forget) - self.chance).mean()
        weights = list(self.tensors.values())
        slopes = torch.autograd.grad(kept + config.forget_weight * lost, weights)
        told = sum((new[name] * slope[self.place]).sum() for name, slope in zip(new, slopes, strict=True))
        held = self._held(new, retain)
        total = told + config.keep_weight * held
        parts = {"retain": kept, "forget": lost, "similarity": held}
        if thinned is not None:
            apart = _contrast(estimates, self.encoder(thinned, self.rows)[1], graph)
            total, parts = total + config.contrast_weight * apart, {**parts, "contrast": apart}
        return total, parts

    def _held(self, new: dict[str, Tensor], pairs: Histories) -> Tensor:
        """L_P: mean squared change of the cosine between the rows of the last item of a history and of its target."""
        last, target = pairs.padded(1)[:, 0], pairs.targets
        there = last >= 0
        ends = [torch.from_numpy(self.nodes.of_items[x[there]]).to(self.place.device) for x in (last, target)]

        def alike(rows: Tensor) -> Tensor:
            return cosine_similarity(rows[ends[0]].flatten(1), rows[ends[1]].flatten(1), dim=1)

        return torch.stack([(alike(new[n]) - alike(rows)).square().mean() for n, rows in self.rows.items()]).mean()


def _contrast(whole: dict[str, Tensor], thinned: dict[str, Tensor], graph: Tensor) -> Tensor:
    """L_C: InfoNCE by cosine, each node of the request beside itself with edges left out, among the others."""
    nodes = torch.unique(graph.indices()[0])[:_CONTRASTED]
    if not len(nodes):
        return next(iter(whole.values())).sum() * 0.0
    same = torch.arange(len(nodes), device=nodes.device)
    found = []
    for name, rows in whole.items():
        a, b = (torch.nn.functional.normalize(x[nodes], dim=1, eps=1e-8) for x in (rows, thinned[name]))
        found.append(cross_entropy(a @ b.T / _TEMPERATURE, same))
    return torch.stack(found).mean()


class Simulated:
    """Requests that nobody made, one a call."""

    def __init__(self, rewriting: Rewriting, pairs: Histories) -> None:
        """Raises UsageError where the pairs lead to too few items to forget some and keep the others."""
        self.rewriting, self.pairs = rewriting, pairs
        self.first = rewriting.request.table.codes[:, 0]
        self.items = np.unique(pairs.targets)
        if len(self.items) < 4:
            raise UsageError(
                "Training pairs lead to fewer than four items, so no request can be simulated.", "Use npo."
            )

    def __call__(self, rng: np.random.Generator) -> tuple[Histories, Histories]:
        """A batch that leads to the simulated concept, and one that does not; sets `graph` and `thinned`."""
        members = np.zeros(len(self.first), bool)
        members[self._concept(rng)] = True
        mine = members[self.pairs.targets]
        forget, retain = self.pairs.take(mine), self.pairs.take(~mine)
        self.graph = self.rewriting.graph(members, forget, 0.0, rng)
        self.thinned = self.rewriting.graph(members, forget, _EDGES_LEFT_OUT, rng)
        size = self.rewriting.config.batch
        return draw(forget, size, rng), draw(retain, size, rng)

    def _concept(self, rng: np.random.Generator) -> IntArray:
        """Items of some sub-tries, or any; at least one that a pair leads to, and at most a quarter of those."""
        most = max(1, int(_LARGEST_SHARE * len(self.items)))
        size = int(rng.integers(1, most + 1))
        mixed = rng.permutation(self.items)
        if rng.random() < 0.5:  # whole sub-tries, one after the other
            codes = self.first[mixed]
            order = {code: place for place, code in reversed(list(enumerate(codes.tolist())))}
            mixed = mixed[np.argsort([order[code] for code in codes.tolist()], kind="stable")]
        return mixed[:size]


def prepare(request: EraseRequest, config: UnlearnRecConfig) -> Prepared:
    """Train the influence encoder of a checkpoint. The request's concept is not looked at.

    Raises: as `Rewriting`, `Simulated` and `steps.learn`.
    """
    check(request.table, None, None, None)
    nothing = np.zeros(len(request.table), bool)
    found = examples(request.interactions, request.table, nothing, request.model.window, request.gone)
    rewriting = Rewriting(request, config)
    simulated = Simulated(rewriting, found.retain)

    def loss(model: Recommender, forget: Histories, retain: Histories) -> tuple[Tensor, dict[str, Tensor]]:
        return rewriting.loss(forget, retain, simulated.graph, simulated.thinned)

    own = dataclasses.replace(config, steps=config.prepare_steps, lr=config.prepare_lr)
    parameters = list(rewriting.encoder.parameters())
    figures = learn(
        "prepare", request, rewriting.model, found, own, loss, parameters=parameters, stream=_PREPARE, batches=simulated
    )
    tensors = {name: value.detach().cpu().numpy() for name, value in rewriting.encoder.state_dict().items()}
    settings = {name: getattr(config, name) for name in _OF_PREPARING}
    return Prepared(tensors, {"settings": settings, "rows": list(rewriting.rows), "losses": rounded(figures)})


def _restored(prepared: Prepared, rewriting: Rewriting) -> None:
    """Put what was prepared into the encoder. Raises CheckpointError where it is of another shape."""
    wanted = rewriting.encoder.state_dict()
    shapes = {name: tuple(value.shape) for name, value in prepared.tensors.items()}
    if shapes != {name: tuple(value.shape) for name, value in wanted.items()} or prepared.facts["rows"] != list(
        rewriting.rows
    ):
        raise CheckpointError("The prepared encoder is of another model.", "Run `recerase prepare` again.")
    rewriting.encoder.load_state_dict({name: torch.from_numpy(np.array(v)) for name, v in prepared.tensors.items()})


def erase(request: EraseRequest, config: UnlearnRecConfig) -> Erased:
    """A copy of the model with new rows for the codes of the request; the table stays as it is.

    Raises: as `steps.grounds`, `prepare` and `steps.learn`; CheckpointError where what was prepared does not fit.
    """
    began = time.monotonic()
    found, prepared = grounds(request), request.prepared
    if prepared is None:
        prepared = prepare(request, config)
        request.observer.note(
            f"the influence encoder was prepared for this request alone, in {time.monotonic() - began:.0f} s; `recerase prepare` "
            "does it once for all requests"
        )
    config = dataclasses.replace(config, **prepared.facts["settings"])
    rewriting = Rewriting(request, config)
    _restored(prepared, rewriting)
    graph = rewriting.graph(request.concept, found.forget, 0.0, np.random.default_rng(0))

    def loss(model: Recommender, forget: Histories, retain: Histories) -> tuple[Tensor, dict[str, Tensor]]:
        return rewriting.loss(forget, retain, graph, None)

    tuned = list(rewriting.encoder.mixers.parameters())
    figures = learn("unlearnrec", request, rewriting.model, found, config, loss, parameters=tuned)
    with torch.no_grad():
        rewriting.put(rewriting.encoder(graph, rewriting.rows)[0])
    moved = int(torch.unique(graph.indices()[0]).numel())
    told = {
        "losses": rounded(figures),
        "rows_changed": moved,
        "prepared": "before" if request.prepared is not None else f"here, in {config.prepare_steps} steps",
    }
    return finished(request, rewriting.model, told, began)
