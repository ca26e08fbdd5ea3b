"""Calls that only move bytes or only multiply: what the ops are measured against, in the same rounds."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

from bench.timing import seconds

# of the best rate: a product below it is no ceiling
FAR = 0.7


class Stream(NamedTuple):
    """A call that only moves bytes, and how many."""

    call: Callable[[], object]
    nbytes: int


class Product(NamedTuple):
    """A call that only multiplies, and how many FLOPs."""

    call: Callable[[], object]
    flops: int


def streaming_read(tensors: Sequence[torch.Tensor]) -> Stream:
    """Read the very tensors that a contender streams, so that both go through the same pages and memory."""
    views = [tensor.detach().reshape(-1).view(torch.float32) for tensor in tensors]

    def read() -> None:
        for view in views:
            view.sum()

    return Stream(read, sum(view.nbytes for view in views))


def streaming_copy(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> Stream:
    """Copy the first of each pair to the second: reads and writes count."""

    def copy() -> None:
        for source, target in pairs:
            target.copy_(source)

    return Stream(copy, sum(source.nbytes + target.nbytes for source, target in pairs))


def best_linear(
    rows: int, width: int, dtype: torch.dtype, device: torch.device, outs: tuple[int, ...] = (4096, 8192, 16384)
) -> list[Product]:
    """torch's linear at `rows`, for several output widths: the best rate of a round is what multiplying can reach.

    Where the processor has no instructions for a 16-bit dtype, the float32 product joins: widening is then the
    fastest way. What is far from the best is left out: it would only take time.
    """
    dtypes = {dtype} if device.type == "cuda" else {dtype, torch.float32}
    products: list[Product] = []
    for kind in dtypes:
        x = torch.randn(rows, width, device=device).to(kind)
        for out in outs:
            weight = torch.randn(out, width, device=device).to(kind)
            products.append(Product(functools.partial(F.linear, x, weight), 2 * rows * width * out))
    rates = []
    for product in products:
        product.call()
        rates.append(product.flops / seconds(product.call))
    return [product for product, rate in zip(products, rates, strict=True) if rate > FAR * max(rates)]
