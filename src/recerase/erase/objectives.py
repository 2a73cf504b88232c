"""The losses of erasing, each a function of log-probabilities; every one averages over histories, so a batch may be split."""

from __future__ import annotations

import torch
from torch import Tensor


def nll(sid_log_prob: Tensor) -> Tensor:
    """L_R of equation 7: mean over histories of -log p(T(i)|h); sid_log_prob [B]."""
    return -sid_log_prob.mean()


def ascent(sid_log_prob: Tensor) -> Tensor:
    """L_F of equation 8: mean of +log p(T(i)|h) over D_F, [B]. Unbounded below."""
    return sid_log_prob.mean()


def npo(sid_log_prob: Tensor, original: Tensor, beta: float) -> Tensor:
    """Negative Preference Optimization: -(2/b) log sigmoid(-b log(p / p_0)), mean over [B]. At least 0."""
    return -(2 / beta) * torch.nn.functional.logsigmoid(-beta * (sid_log_prob - original)).mean()


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
