"""Paged KV-cache attention, to understand, to teach and to experiment with.

allocator -> sequence, prefix -> scheduler    who holds which block: plain Python, no tensor
layouts -> pool            where K and V lie
executors -> attention     one set of kernels, run by whatever this machine has
reference                  dense attention in float64: the oracle
batch -> engine            where the two wings meet: many requests, one model (paged_core.models has some)
"""

from paged_core.allocator import BlockAllocator
from paged_core.attention import paged_attention, trace
from paged_core.batch import Batch
from paged_core.engine import Engine, Token
from paged_core.errors import (
    CacheFileError,
    CheckpointError,
    ExecutorUnavailable,
    InvalidBlock,
    InvalidBlockTable,
    InvalidRequest,
    KernelError,
    PagedCoreError,
    PoolExhausted,
    RequestRefused,
    SequenceTooLong,
    SwapError,
)
from paged_core.executors import available_executors
from paged_core.layouts import PoolLayout
from paged_core.pool import PagedPool, slot_mapping
from paged_core.prefix import BlockChain, PrefixCache
from paged_core.reference import attention_error_bound, dense_attention
from paged_core.sampling import Sampling
from paged_core.scheduler import Plan, Preemption, Request, Scheduler, State, Work
from paged_core.sequence import PagedSeqState, batch_tables
from paged_core.swap import HostBlocks

__all__ = [
    "Batch",
    "BlockAllocator",
    "BlockChain",
    "CacheFileError",
    "CheckpointError",
    "Engine",
    "ExecutorUnavailable",
    "HostBlocks",
    "InvalidBlock",
    "InvalidBlockTable",
    "InvalidRequest",
    "KernelError",
    "PagedCoreError",
    "PagedPool",
    "PagedSeqState",
    "Plan",
    "PoolExhausted",
    "PoolLayout",
    "Preemption",
    "PrefixCache",
    "Request",
    "RequestRefused",
    "Sampling",
    "Scheduler",
    "SequenceTooLong",
    "State",
    "SwapError",
    "Token",
    "Work",
    "attention_error_bound",
    "available_executors",
    "batch_tables",
    "dense_attention",
    "paged_attention",
    "slot_mapping",
    "trace",
]
