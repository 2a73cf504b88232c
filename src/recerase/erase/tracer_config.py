"""Settings of `tracer` and `renormalise`, and which requests cannot work under them.

The one decision: both are one dataclass, so that `renormalise` is TRACER's second phase by its settings alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from recerase.errors import EraseError, UsageError
from recerase.sid.quantize import Codebooks, beyond_chance
from recerase.sid.table import SidTable
from recerase.types import FloatArray, Scope

ForgetLoss = Literal["ascent", "npo", "renormalise"]


@dataclass(frozen=True)
class TracerConfig:
    """Settings of `tracer`; every one may be given as --set key=value."""

    reassign_steps: int = 8
    """Steps in which phi is learned (0: no item moves)."""
    settle_steps: int = 150
    """Steps after the commit, on both tables."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: float = 5e-4
    """Rate of the weights while phi is learned."""
    phi_lr: float = 5e-2
    tau_start: float = 0.1
    tau_end: float = 0.02
    batch: int = 12
    """Histories a step (paper: pairs of D_F and of D_R each)."""
    sequences: int = 8
    """Retained sequences (seq2seq: pairs) distilled in each settling step besides the batch; 0: none."""
    forced: int = 2
    """Histories of a step after which what follows the concept's own prefixes is read, and pressed on."""
    natural: float = 0.4
    """Share of the histories of a step drawn as users are; the rest have to do with the concept."""
    pool: int = 75
    """Batches whose targets are computed once and used in turn."""
    neighbours: int = 5
    """K of equation 9."""
    forget_loss: ForgetLoss = "renormalise"
    forget_weight: float = 0.15
    """l1 of equation 10."""
    own_weight: float = 1.0
    """In settling, how much single items count beside their prefixes: the one that a history leads to, for what was learnt of such
    pairs is the last to go, and one of those that share a prefix. Else their order tells who took what."""
    look_ahead: int = 0
    """Every so many settling steps also the model that one step of relearning makes of this one is held to the target; 0: never. 3
    makes relearning slower, for half as many seconds again and some utility."""
    look_rate: float = 1.5e-3
    """How far every weight moves in that step: five of the audit's attacker."""
    coherence: Literal["mass", "pairs"] = "mass"
    coherence_weight: float = 0.02
    """l2; 0 or negative where even the concept's neighbours would tell."""
    reg_weight: float = 1e-5
    """l3."""
    mask: bool = True
    """Equation 11."""
    stale: float = 0.33
    """Share of settling steps in which histories spell concept items by their old SIDs."""
    beta: float = 0.1
    """npo's b."""
    commit: Literal["assignment", "argmax"] = "assignment"
    commit_candidates: int = 48
    commit_sharing: float = 0.5
    min_moved: float = 0.5
    """Fail when a smaller share of the concept's items moved."""
    min_agreement: float = 0.1
    """Refuse codebooks fitted to a table made elsewhere that explain less of its first codes than this share, with what fitting
    explains of a shuffled table taken off: their distances say nothing. Public tables reach .25 to .82 from the items' words."""
    settle_lr: float = 8e-4
    """Peak rate of settling; it falls to 5 %."""
    clip: float = 1.0
    bf16: bool = False
    """Forward passes in bfloat16; weights and optimiser stay float32."""

    def __post_init__(self) -> None:
        """Raises UsageError for settings with which no step could be taken, all at once."""
        least = {"batch": 4, "pool": 1, "forced": 1, "neighbours": 1, "commit_candidates": 1}
        least |= {"reassign_steps": 0, "settle_steps": 0, "sequences": 0, "own_weight": 0}
        problems = [f"{name} must be at least {n}" for name, n in least.items() if not getattr(self, name) >= n]
        problems += [
            f"{name} must be from 0 to 1" for name in ("natural", "stale") if not 0 <= getattr(self, name) <= 1
        ]
        positive = ("look_rate", "lr", "phi_lr", "settle_lr", "tau_start", "tau_end", "beta")
        problems += [f"{name} must be above 0" for name in positive if not getattr(self, name) > 0]
        problems += ["look_ahead must be 0 or more"] if self.look_ahead < 0 else []
        if not self.reassign_steps and not self.settle_steps:
            problems.append("reassign_steps and settle_steps cannot both be 0")
        if problems:
            raise UsageError(f"These settings cannot work: {'; '.join(problems)}.", "Change them with --set key=value.")

    @property
    def scopes(self) -> tuple[Scope, ...]:
        """The scopes that these settings press for: `influence` is in the teacher's target, which not every run reads."""
        return ("output", "influence") if self.settle_steps or self.forget_loss == "renormalise" else ("output",)

    @classmethod
    def preset(cls, name: str) -> TracerConfig:
        """`default`, or `paper`: equations 5-11 with the published ports' settings."""
        if name != "paper":
            return cls()
        return cls(
            reassign_steps=500, settle_steps=0, optimizer="sgd", lr=1e-4, phi_lr=1e-2, tau_start=0.005, tau_end=0.005,
            forget_loss="ascent", forget_weight=1.0, coherence="pairs", coherence_weight=1.0, reg_weight=1e-3,
            commit="argmax", min_moved=0.01, clip=0.0, batch=32,
        )  # fmt: skip


@dataclass(frozen=True)
class RenormaliseConfig(TracerConfig):
    """Settings of `renormalise`: TRACER's settling phase on the codes as they are."""

    reassign_steps: int = 0
    settle_steps: int = 150
    min_moved: float = 0.0


def check(table: SidTable, codebooks: Codebooks | None, embeddings: FloatArray | None, config: TracerConfig) -> None:
    """Refuse, with UsageError, SIDs that cannot be worked with, and with EraseError codebooks that do not explain them."""
    table.require_one_length("This method", "Use --method retrain or filter.")
    if not config.reassign_steps:
        return
    if codebooks is None:
        raise UsageError(
            "TRACER needs the codebooks behind the SIDs, and this checkpoint has none.",
            "Fit them with `recerase train --sids TABLE`, or use --method renormalise or npo.",
        )
    if embeddings is None:
        raise UsageError(
            "TRACER needs the item embeddings behind the SIDs, and this checkpoint does not carry them.",
            "Tokenize again with --keep-embeddings and train on that, or use --method renormalise or npo.",
        )
    if not codebooks.fitted or config.min_agreement <= 0:
        return
    share = beyond_chance(embeddings, table, codebooks)
    if share < config.min_agreement:
        raise EraseError(
            f"Codebooks fitted to these SIDs explain {share:.1%} of their first codes beyond chance, less than min_agreement = "
            f"{config.min_agreement:.0%}: TRACER's distances would say nothing.",
            "Use --method renormalise or npo, or accept it with --set min_agreement=0.",
        )
