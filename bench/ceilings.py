"""The ceilings of a case: calls that only move bytes or only multiply, timed in the same rounds."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

from bench.baselines import Baselines
from openmythos.timing import seconds

# products below this fraction of the best rate are not timed
MIN_SHARE = 0.7
# a 16-bit product this many times slower than float32 does not use 16-bit instructions
SLOW = 4


class Stream(NamedTuple):
    """A call that only moves bytes, and their number."""

    call: Callable[[], object]
    nbytes: int


class Product(NamedTuple):
    """A call that only multiplies, and the number of its FLOPs."""

    call: Callable[[], object]
    flops: int


def streaming_read(tensors: Sequence[torch.Tensor]) -> Stream:
    """Read the tensors that the op streams, so that both use the same memory pages."""
    views = [tensor.detach().reshape(-1).view(torch.float32) for tensor in tensors]

    def read() -> None:
        for view in views:
            view.sum()

    return Stream(read, sum(view.nbytes for view in views))


def streaming_copy(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> Stream:
    """Copy the first tensor of each pair to the second; reads and writes both count."""

    def copy() -> None:
        for source, target in pairs:
            target.copy_(source)

    return Stream(copy, sum(source.nbytes + target.nbytes for source, target in pairs))


@functools.cache
def slow_products(dtype: torch.dtype, device: torch.device) -> str | None:
    """The reason why torch's products in a 16-bit dtype are not timed here (scalar code), or None."""
    if device.type == "cuda" or dtype == torch.float32:
        return None
    x, weight = torch.randn(64, 256), torch.randn(512, 256)
    times = {kind: min(seconds(functools.partial(F.linear, x.to(kind), weight.to(kind))) for _ in range(5))
             for kind in (dtype, torch.float32)}  # fmt: skip
    ratio = times[dtype] / times[torch.float32]
    name = str(dtype).removeprefix("torch.")
    return f"torch's products in {name} take {ratio:.0f} times as long as in float32 here" if ratio > SLOW else None


def with_products(baselines: Baselines, dtype: torch.dtype, device: torch.device) -> Baselines:
    """The baselines, or the reason why torch's products in this dtype are not timed, for each of them."""
    reason = slow_products(dtype, device)
    return baselines if reason is None else dict.fromkeys(baselines, reason)


def best_linear(
    rows: int, width: int, dtype: torch.dtype, device: torch.device, outs: tuple[int, ...] = (4096, 8192, 16384)
) -> list[Product]:
    """torch's linear at `rows` rows for several output widths; the fastest of a round is the ceiling.

    Where the processor has no instructions for a 16-bit dtype, the ceiling is the float32 product. Widths whose rate
    is far below the best are left out.
    """
    kind = torch.float32 if slow_products(dtype, device) else dtype
    x = torch.randn(rows, width, device=device).to(kind)
    products: list[Product] = []
    for out in outs:
        weight = torch.randn(out, width, device=device).to(kind)
        products.append(Product(functools.partial(F.linear, x, weight), 2 * rows * width * out))
    rates = []
    for product in products:
        product.call()
        rates.append(product.flops / seconds(product.call))
    return [product for product, rate in zip(products, rates, strict=True) if rate > MIN_SHARE * max(rates)]
