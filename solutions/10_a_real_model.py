"""Answers to the coded exercises of notebook 10."""

import numpy as np


def rows(computed, new):
    order = sorted(range(len(new)), key=lambda seq: new[seq] > 1)  # sorted keeps the order of equals
    return [(seq, computed[seq] + i) for seq in order for i in range(new[seq])]


def nucleus(logits, top_p):
    order = sorted(range(len(logits)), key=lambda token: -logits[token])
    weights = np.exp([logits[token] - logits[order[0]] for token in order])
    shares = np.cumsum(weights) / weights.sum()
    return order[: 1 + int((shares < top_p).sum())]
