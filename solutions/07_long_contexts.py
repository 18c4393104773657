"""Answers to the coded exercises of notebook 07; the second in Metal."""

from math import exp, inf


def merge_e(a, b):
    top = max(a[0], b[0])
    if top == -inf:  # no key on either side: inf - inf would be NaN
        return a
    scale_a, scale_b = exp(a[0] - top), exp(b[0] - top)
    return top, a[1] * scale_a + b[1] * scale_b, a[2] * scale_a + b[2] * scale_b


add = """
    if (partial_total[at] != 0.0f)  // else its top is -inf, and so may be the common one
      acc += exp(partial_top[at] - top) * partial_acc[at * HEAD_DIM + dim];
"""
