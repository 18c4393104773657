"""Answers to the coded exercises of notebook 04."""


def x_split_k(block, head, token, dim, g, x):
    group, inside = divmod(dim, x)
    groups_before = (block * g.num_kv_heads + head) * (g.head_dim // x) + group
    return (groups_before * g.block_size + token) * x + inside


def element(axes, shape, at):
    offset = 0
    for axis, size in zip(axes, shape, strict=True):  # Horner's rule: each axis is a digit, its size the base
        offset = offset * size + at[axis]
    return offset
