"""Hints to the operating system about the memory of weights: huge pages, unused pages, freed heap."""

from __future__ import annotations

import ctypes
import functools
import mmap
from collections.abc import Iterable

import torch

HUGE_PAGE = 2 * 2**20
# Linux's madvise; a kernel without one of these returns an error and changes nothing.
_DONTNEED, _HUGEPAGE, _COLLAPSE = 4, 14, 25


@functools.cache
def _libc() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(None)
    except OSError:
        return None


def _advise(tensor: torch.Tensor, page: int, advice: int) -> None:
    """madvise on the whole pages inside a contiguous CPU tensor."""
    libc = _libc()
    if tensor.device.type != "cpu" or type(tensor.data) is not torch.Tensor or not hasattr(libc, "madvise"):
        return
    start = -(-tensor.data_ptr() // page) * page
    length = (tensor.data_ptr() + tensor.nbytes - start) // page * page
    if length > 0:
        libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), advice)


def prefer_huge_pages(tensor: torch.Tensor) -> torch.Tensor:
    """Request huge pages for a tensor that has not been written to yet; returns it.

    With 4 KB pages, address translation costs a sixth of the bandwidth when weights are streamed
    (docs/performance.md).
    """
    if tensor.is_contiguous():
        _advise(tensor, HUGE_PAGE, _HUGEPAGE)
    return tensor


def gather_huge_pages(tensors: Iterable[torch.Tensor]) -> None:
    """Move the data of CPU tensors of 2 MB and more into huge pages, if the kernel can (Linux 6.1)."""
    for tensor in tensors:
        if tensor.nbytes >= HUGE_PAGE and tensor.is_contiguous():
            _advise(tensor, HUGE_PAGE, _HUGEPAGE)
            _advise(tensor, HUGE_PAGE, _COLLAPSE)


def forget_pages(tensor: torch.Tensor) -> None:
    """Let the kernel drop the pages of a mapped file, which otherwise count as this process's memory."""
    _advise(tensor, mmap.PAGESIZE, _DONTNEED)


def release_free_memory() -> None:
    """Return freed heap memory to the system: glibc keeps freed blocks of up to 32 MB."""
    libc = _libc()
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
