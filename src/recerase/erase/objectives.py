"""The losses of erasing, each a function of log-probabilities; every one averages over histories, so a batch may be split."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def nll(sid_log_prob: Tensor) -> Tensor:
    """L_R of equation 7: mean over histories of -log p(T(i)|h); sid_log_prob [B]."""
    return -sid_log_prob.mean()


def ascent(sid_log_prob: Tensor, floor: float = -math.inf) -> Tensor:
    """L_F of equation 8: mean of +log p(T(i)|h) over D_F, [B]. Unbounded below, but for a `floor`: what is under it counts as it."""
    return sid_log_prob.clamp(min=floor).mean()


def npo(sid_log_prob: Tensor, original: Tensor, beta: float) -> Tensor:
    """Negative Preference Optimization: -(2/b) log sigmoid(-b log(p / p_0)), mean over [B]. At least 0."""
    return -(2 / beta) * torch.nn.functional.logsigmoid(-beta * (sid_log_prob - original)).mean()


def simnpo(sid_log_prob: Tensor, codes: int, beta: float, margin: float = 0.0) -> Tensor:
    """NPO without a reference: -(2/b) log sigmoid(-(b/|y|) log p - margin), |y| = `codes` of a SID; mean over [B]. At least 0."""
    return -(2 / beta) * torch.nn.functional.logsigmoid(-beta / codes * sid_log_prob - margin).mean()


def ranked(higher: Tensor, lower: Tensor) -> Tensor:
    """Bayesian personalised ranking: -log sigmoid(higher - lower), both log-probabilities [B, K], mean over all. At least 0."""
    return torch.nn.functional.softplus(lower - higher).mean()


def coherence_pairs(sid_log_prob: Tensor) -> Tensor:
    """L_Coh of equation 9: -(1/K) sum over the K neighbours' log p(T(p)|h), mean over histories; [B, K]."""
    return -sid_log_prob.mean()


def coherence_mass(sid_log_prob: Tensor) -> Tensor:
    """-log of the neighbours' total probability, mean over histories; [B, K]. Asks for one neighbour, not all of them."""
    return -torch.logsumexp(sid_log_prob, 1).mean()


def distil(log_probs: Tensor, target: Tensor) -> Tensor:
    """KL(target || model) summed over the nodes of a path, mean over histories; both [B, L, V] log-probabilities.

    Rows that the model cannot choose (-inf, where each level has a softmax of its own) have no part in it.
    """
    gap = (target - log_probs).masked_fill(log_probs == float("-inf"), 0.0)
    return (target.exp() * gap).sum((1, 2)).mean()


def match(sid_log_prob: Tensor, target: Tensor, slope: float = 2.0) -> Tensor:
    """Huber distance of log-probabilities [B, P] from their targets, mean over all; linear beyond `slope` nats.

    Two-sided and bounded in gradient: a concept SID may be neither likelier than its target nor tellingly less likely.
    """
    return torch.nn.functional.huber_loss(sid_log_prob, target, delta=slope)


def apart(hidden: Tensor, target: Tensor) -> Tensor:
    """Mean squared difference of hidden states [B, L, D] from `target`, of the same shape, mean over all: nothing broadcasts."""
    if hidden.shape != target.shape:
        raise ValueError(f"hidden states {tuple(hidden.shape)} beside targets {tuple(target.shape)}")
    return (hidden.float() - target.float()).square().mean()
