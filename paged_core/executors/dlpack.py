"""Where an MLX array's numbers lie in memory, without a copy."""

from __future__ import annotations

import ctypes

import mlx.core as mx


class _DLTensor(ctypes.Structure):
    """The head of a DLPack capsule (dlpack.h, DLTensor)."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", ctypes.c_int32 * 2),
        ("ndim", ctypes.c_int32),
        ("dtype", ctypes.c_uint8 * 4),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


_capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_capsule_pointer.restype = ctypes.c_void_p
_capsule_pointer.argtypes = [ctypes.py_object, ctypes.c_char_p]


def pointer(x: mx.array) -> tuple[int, mx.array]:
    """The address of the first element of the evaluated array `x`, laid out in C order, and the array that owns it.

    The owner is `x` itself, or a contiguous copy where `x` is a view with other strides. The address is good as long as
    the owner is alive and not written.
    """
    capsule = x.__dlpack__()
    tensor = _DLTensor.from_address(_capsule_pointer(capsule, b"dltensor"))
    if not _in_c_order(x.shape, tensor):
        copy = mx.contiguous(x)
        mx.eval(copy)
        return pointer(copy)
    return (tensor.data or 0) + tensor.byte_offset, x


def _in_c_order(shape: tuple[int, ...], tensor: _DLTensor) -> bool:
    if not tensor.strides:
        return True
    step = 1
    for size, stride in zip(reversed(shape), reversed(tensor.strides[: tensor.ndim]), strict=True):
        if size != 1 and stride != step:
            return 0 in shape
        step *= size
    return True
