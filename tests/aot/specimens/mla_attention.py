"""Specimens of latent attention: both forms and the backward, at the dimensions of the variants."""

from __future__ import annotations

from functools import partial
from unittest import mock

import torch

from openmythos import reference
from openmythos.triton_kernels import mla_attention as kernels
from openmythos.triton_kernels.mla_attention import decompressed
from tests.aot.specimens import Specimen, by_arguments, large

FLOAT, HALF, BFLOAT = torch.float32, torch.float16, torch.bfloat16
PAGE = 64
# {variant: (heads, (dn, dr, dc, dv))}; 100b differs from 50b, and 1t from 500b, in the number of heads only
MODELS = {
    "1b": (16, (64, 32, 256, 64)),
    "3b": (24, (96, 32, 384, 96)),
    "10b": (32, (128, 64, 512, 128)),
    "50b": (48, (128, 64, 512, 128)),
    "500b": (96, (128, 64, 1024, 128)),
}


def _parts(
    dims: tuple, dtype: torch.dtype, device: str, batch: int, new: int, total: int, heads: int, huge: bool = False
) -> list:
    """The op's tensors, latent and k_rope as views of one cache (in 2 GiB if `huge`), w_uk and w_uv of one weight."""
    dn, dr, dc, dv = dims

    def normal(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return (torch.randn(shape, device=device) * scale).to(dtype)

    cache, weight = normal(batch, total, dc + dr), normal(heads, dn + dv, dc, scale=dc**-0.5)
    queries = [normal(batch, new, heads, dn), normal(batch, new, heads, dr)]
    if huge:
        cache = large(cache)
    return [*queries, cache[..., :dc], cache[..., dc:], weight[:, :dn], weight[:, dn:]]


def _lengths(batch: int, total: int, device: str) -> torch.Tensor:
    """total, total / 2, total / 3, ..."""
    return torch.tensor([total // (i + 1) for i in range(batch)], dtype=torch.int32).to(device)


def _scale(dims: tuple) -> float:
    return (dims[0] + dims[1]) ** -0.5


def _plain(dims: tuple, dtype: torch.dtype, causal: bool, device: str, *size: int) -> tuple:
    return *_parts(dims, dtype, device, *size), _scale(dims), causal


def _huge(dims: tuple, dtype: torch.dtype, causal: bool, device: str, *size: int) -> tuple:
    return *_parts(dims, dtype, device, *size, huge=True), _scale(dims), causal


def _ragged(dims: tuple, dtype: torch.dtype, causal: bool, device: str, *size: int) -> tuple:
    return *_plain(dims, dtype, causal, device, *size), _lengths(size[0], size[2], device)


def _paged(dims: tuple, dtype: torch.dtype, causal: bool, device: str, *size: int, huge: bool = False) -> tuple:
    """A cache of `total` tokens a sequence in pages whose order is reversed."""
    batch, new, total, heads = size
    parts = _parts(dims, dtype, device, batch * total // PAGE, new, PAGE, heads, huge)
    queries = _parts(dims, dtype, device, batch, new, 1, heads)[:2]
    table = torch.arange(batch * total // PAGE - 1, -1, -1, dtype=torch.int32, device=device).view(batch, -1)
    return *queries, *parts[2:], _scale(dims), causal, _lengths(batch, total, device), table


def _backward(ragged: bool, dims: tuple, dtype: torch.dtype, causal: bool, device: str, *size: int) -> tuple:
    inputs = (_ragged if ragged else _plain)(dims, dtype, causal, device, *size)
    out, lse = reference.mla_decompressed(*inputs)
    return torch.randn(out.shape, device=device).to(dtype), *inputs[:6], out, lse, *inputs[6:]


ABSORBED = by_arguments("mla_absorbed", kernels.mla_absorbed)
DECOMPRESSED = by_arguments("mla_decompressed", kernels.mla_decompressed)
BACKWARD = by_arguments("mla_attention_backward", kernels.mla_attention_backward)


def _in_three_segments(*args: object) -> tuple[torch.Tensor, torch.Tensor]:
    """Prefill with room for a third of the keys and values."""
    latent, w_uk, w_uv = args[2], args[4], args[5]
    row = latent.shape[0] * w_uk.shape[0] * (w_uk.shape[1] + w_uv.shape[1]) * latent.element_size()
    with mock.patch.object(decompressed, "WORKSPACE", -(-latent.shape[1] // 3) * row):
        return DECOMPRESSED(*args)


DECODE = (1, 1, 4096)
TEXT = (1, 4096, 4096)


def _specimen(
    what: str, model: str, dtype: torch.dtype, *, size: tuple = DECODE, kind: str = "plain", heads: int = 0
) -> Specimen:
    """`what` is decode, prefill, full (prefill that is not causal), segments, backward or full-backward."""
    many, dims = MODELS[model]
    heads = heads or many
    causal = not what.startswith("full")
    inputs = {"plain": _plain, "ragged": _ragged, "paged": _paged, "huge": _huge}.get(kind)
    if kind == "huge-pages":
        inputs = partial(_paged, huge=True)
    call, truth = {
        "decode": (ABSORBED, reference.mla_absorbed),
        "segments": (_in_three_segments, reference.mla_decompressed),
    }.get(what, (DECOMPRESSED, reference.mla_decompressed))
    if what.endswith("backward"):
        inputs = partial(_backward, kind == "ragged")
        call, truth = BACKWARD, reference.mla_attention_backward
    tokens = 1 if what == "decode" else 37
    small = (2, min(size[1] + 1, tokens), 128, 3) if "page" in kind else (2, min(size[1] + 1, tokens), 97, 3)
    shape = "x".join(map(str, (*size, heads)))
    name = f"mla_attention/{what}/{model}/{kind}/{shape}/{str(dtype).removeprefix('torch.')}"
    return Specimen(name, call, truth, partial(inputs, dims, dtype, causal), (*size, heads), small, dtype)


MANY = (32, 1, 4096)

SPECIMENS = [
    *(_specimen("decode", model, BFLOAT) for model in ("1b", "3b", "10b", "50b", "500b")),
    *(_specimen("prefill", model, BFLOAT, size=TEXT) for model in ("1b", "3b", "10b")),
    *(_specimen("backward", model, BFLOAT, size=TEXT) for model in ("1b", "3b", "10b")),
    # four tokens a sequence, many sequences, a model whose heads are spread over several GPUs
    _specimen("decode", "1b", BFLOAT, size=(1, 4, 4096)),
    _specimen("decode", "1b", BFLOAT, size=MANY),
    _specimen("decode", "10b", BFLOAT, size=MANY),
    _specimen("decode", "10b", BFLOAT, heads=16),
    _specimen("decode", "500b", BFLOAT, heads=16),
    _specimen("decode", "500b", BFLOAT, heads=48),
    _specimen("decode", "1b", BFLOAT, kind="ragged", size=(4, 1, 4096)),
    *(_specimen("decode", model, BFLOAT, kind="paged", size=(4, 1, 4096)) for model in MODELS),
    _specimen("decode", "1b", BFLOAT, kind="paged", size=(4, 4, 4096)),
    # a cache of 2 GiB and more, which needs wider offsets
    *(_specimen("decode", model, BFLOAT, kind="huge") for model in ("1b", "10b", "500b")),
    _specimen("decode", "10b", BFLOAT, kind="huge", heads=16),
    _specimen("decode", "10b", FLOAT, kind="huge"),
    *(_specimen("decode", model, BFLOAT, kind="huge-pages", size=(4, 1, 4096)) for model in ("1b", "10b", "500b")),
    _specimen("prefill", "10b", BFLOAT, kind="huge", size=TEXT),
    *(_specimen("decode", model, HALF) for model in ("1b", "3b", "10b", "500b")),
    *(_specimen("decode", model, FLOAT) for model in ("1b", "10b", "500b")),
    _specimen("decode", "1b", FLOAT, size=MANY),
    _specimen("decode", "1b", FLOAT, kind="ragged", size=(4, 1, 4096)),
    *(_specimen("prefill", "10b", dtype, size=(1, 8, 4096)) for dtype in (BFLOAT, HALF)),
    _specimen("full", "10b", BFLOAT, size=TEXT),
    *(_specimen("segments", model, BFLOAT, size=TEXT) for model in ("3b", "10b")),
    _specimen("segments", "3b", FLOAT, size=TEXT),
    _specimen("prefill", "1b", BFLOAT, kind="ragged", size=TEXT),
    _specimen("prefill", "10b", BFLOAT, kind="paged", size=(2, 512, 4096)),
    _specimen("prefill", "3b", FLOAT, kind="paged", size=(2, 512, 4096)),
    *(_specimen("prefill", model, HALF, size=TEXT) for model in ("1b", "3b", "10b")),
    *(_specimen("prefill", model, FLOAT, size=TEXT) for model in ("1b", "3b", "10b")),
    _specimen("full-backward", "10b", BFLOAT, size=TEXT),
    *(_specimen("backward", model, BFLOAT, kind="ragged", size=TEXT) for model in ("1b", "10b")),
    _specimen("backward", "3b", FLOAT, kind="ragged", size=TEXT),
    *(_specimen("backward", model, HALF, size=TEXT) for model in ("1b", "3b", "10b")),
    *(_specimen("backward", model, FLOAT, size=TEXT) for model in ("1b", "3b", "10b")),
]
