"""Calls that only move bytes or only multiply: what the ops are measured against, in the same rounds."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

from bench.peers import Peers
from bench.timing import seconds

# of the best rate: a product below it is no ceiling
FAR = 0.7
# times float32's: a 16-bit product beyond it is not computed by instructions made for it
SLOW = 4


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


@functools.cache
def slow_products(dtype: torch.dtype, device: torch.device) -> str | None:
    """Why torch's products in a 16-bit dtype are not worth timing here, if so: no instructions, a scalar loop."""
    if device.type == "cuda" or dtype == torch.float32:
        return None
    x, weight = torch.randn(64, 256), torch.randn(512, 256)
    times = {kind: min(seconds(functools.partial(F.linear, x.to(kind), weight.to(kind))) for _ in range(5))
             for kind in (dtype, torch.float32)}  # fmt: skip
    ratio = times[dtype] / times[torch.float32]
    name = str(dtype).removeprefix("torch.")
    return f"torch's products in {name} take {ratio:.0f} times as long as in float32 here" if ratio > SLOW else None


def with_products(peers: Peers, dtype: torch.dtype, device: torch.device) -> Peers:
    """The peers, or for all of them the reason why torch cannot multiply in their dtype at a speed worth timing."""
    reason = slow_products(dtype, device)
    return peers if reason is None else dict.fromkeys(peers, reason)


def best_linear(
    rows: int, width: int, dtype: torch.dtype, device: torch.device, outs: tuple[int, ...] = (4096, 8192, 16384)
) -> list[Product]:
    """torch's linear at `rows`, for several output widths: the best rate of a round is what multiplying can reach.

    Where the processor has no instructions for a 16-bit dtype it is the float32 product: widening is then the
    fastest way. What is far from the best is left out: it would only take time.
    """
    dtypes = {torch.float32 if slow_products(dtype, device) else dtype}
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
