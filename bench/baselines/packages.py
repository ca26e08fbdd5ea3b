"""Public GPU packages, each called if it is installed and supports the shape; otherwise the reason why not.

Results are checked before they are timed, and exceptions become reasons, so that a changed interface cannot produce a
wrong ratio.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable

import torch
import torch.nn.functional as F

from bench.baselines import Baselines, Function
from openmythos.config import MythosConfig
from openmythos.ops.mla_attention.sample import Heads

PAGE = 64


def _baseline(
    package: str, device: torch.device, make: Callable[[], Function], *, min_capability: int = 80
) -> Function | str:
    """The function that `make` returns, created at the first call, or the reason why the package cannot run here.

    min_capability: ten times the compute capability that it needs, 90 for Hopper.
    """
    if device.type != "cuda":
        return "needs a GPU"
    if torch.version.hip:
        return "needs an NVIDIA GPU"
    if importlib.util.find_spec(package) is None:
        return f"the package {package} is not installed"
    major, minor = torch.cuda.get_device_capability(device)
    if 10 * major + minor < min_capability:
        return f"needs compute capability {min_capability / 10}, this is {major}.{minor}"
    made = functools.cache(make)
    return lambda *inputs: made()(*inputs)


def _absorbed(q_nope: torch.Tensor, w_uk: torch.Tensor) -> torch.Tensor:
    return torch.einsum("bthn,hnc->bthc", q_nope, w_uk)


def _through_values(latent_out: torch.Tensor, w_uv: torch.Tensor) -> torch.Tensor:
    return torch.einsum("bthc,hvc->bthv", latent_out, w_uv)


def _pages(latent: torch.Tensor, device: torch.device) -> tuple[int, torch.Tensor]:
    count = latent.shape[1] // PAGE
    if count * PAGE != latent.shape[1]:
        raise ValueError(f"{latent.shape[1]} keys: must be a multiple of {PAGE}")
    return count, torch.arange(count, dtype=torch.int32, device=device)


def _flash_mla(scale: float, heads: Heads, device: torch.device) -> Function:
    """FlashMLA's dense decode."""
    import flash_mla

    def run(q_nope, q_rope, latent, k_rope, w_uk, w_uv) -> torch.Tensor:
        count, table = _pages(latent, device)
        lengths = torch.full((1,), latent.shape[1], dtype=torch.int32, device=device)
        queries = torch.cat((_absorbed(q_nope, w_uk), q_rope), dim=-1)
        rows = latent._base.view(count, PAGE, 1, heads.latent + heads.rope)
        plan = flash_mla.get_mla_metadata(lengths, heads.heads, 1)
        out, _ = flash_mla.flash_mla_with_kvcache(
            queries, rows, table[None], lengths, heads.latent, *plan, softmax_scale=scale, causal=True
        )
        return _through_values(out, w_uv)

    return run


def _flash_infer(scale: float, heads: Heads, device: torch.device) -> Function:
    """FlashInfer's paged latent attention, planned once as a server does for all layers of a step."""
    import flashinfer

    wrapper = flashinfer.mla.BatchMLAPagedAttentionWrapper(torch.empty(128 * 2**20, dtype=torch.uint8, device=device))
    planned: set[int] = set()

    def run(q_nope, q_rope, latent, k_rope, w_uk, w_uv) -> torch.Tensor:
        count, indices = _pages(latent, device)
        if count not in planned:
            bounds = [torch.tensor([0, end], dtype=torch.int32, device=device) for end in (1, count)]
            lengths = torch.tensor([latent.shape[1]], dtype=torch.int32, device=device)
            sizes = (heads.heads, heads.latent, heads.rope, PAGE)
            wrapper.plan(*bounds, indices, lengths, *sizes, False, scale, latent.dtype, latent.dtype)
            planned.add(count)
        pools = [part.reshape(count, PAGE, -1) for part in (latent, k_rope)]
        out = wrapper.run(_absorbed(q_nope, w_uk)[0], q_rope[0], *pools)
        return _through_values(out[None], w_uv)

    return run


def _flash_attention_3(scale: float) -> Function:
    """FlashAttention 3 with the latent as values and the absorbed query as `qv`."""
    from flash_attn_interface import flash_attn_with_kvcache

    def run(q_nope, q_rope, latent, k_rope, w_uk, w_uv) -> torch.Tensor:
        folded = _absorbed(q_nope, w_uk)
        out = flash_attn_with_kvcache(
            q_rope, k_rope[:, :, None], latent[:, :, None], qv=folded, softmax_scale=scale, causal=True
        )
        return _through_values(out, w_uv)

    return run


def mla_decode(scale: float, heads: Heads, device: torch.device) -> Baselines:
    """Absorbed attention of one token."""
    infer = functools.partial(_flash_infer, scale, heads, device)
    flash3 = functools.partial(_flash_attention_3, scale)
    mla: Function | str = f"latent 512 + 64 only, this is {heads.latent} + {heads.rope}"
    if (heads.latent, heads.rope) == (512, 64):
        mla = _baseline("flash_mla", device, functools.partial(_flash_mla, scale, heads, device), min_capability=90)
    return {
        "FlashMLA": mla,
        "FlashInfer": _baseline("flashinfer", device, infer),
        "FlashAttention 3": _baseline("flash_attn_interface", device, flash3, min_capability=90),
    }


def moe(
    cfg: MythosConfig,
    router: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    shared: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]],
) -> Baselines:
    """Routed experts by a package, routing and shared experts by torch."""
    device, k = router.device, cfg.n_experts_per_tok
    both = gate_up.flatten(1, 2)

    def layer(routed: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]) -> Function:
        def run(x: torch.Tensor) -> torch.Tensor:
            values, ids = F.linear(x, router).float().topk(k, dim=-1)
            out = routed(x, ids.to(torch.int32), values.softmax(-1)).float()
            for gate, up, back in shared:
                out = out + F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), back)
            return out.to(x.dtype)

        return run

    def vllm() -> Function:
        from vllm.model_executor.layers.fused_moe import fused_experts

        return layer(lambda x, ids, weights: fused_experts(x, both, down, weights, ids))

    def liger() -> Function:
        from liger_kernel.ops.fused_moe import LigerFusedMoEFunction

        return layer(lambda x, ids, weights: LigerFusedMoEFunction.apply(x, both, down, ids, weights.to(x.dtype)))

    def scatter() -> Function:
        from scattermoe import flatten_sort_count, parallel_linear

        def routed(x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
            order = flatten_sort_count(ids.long(), num_experts=cfg.n_experts)
            hidden = parallel_linear(x, both.transpose(1, 2), k, *order, grouped_out=True)
            gate, up = hidden.chunk(2, dim=-1)
            act, weights = F.silu(gate) * up, weights.to(x.dtype)
            return parallel_linear(act, down.transpose(1, 2), 1, *order, grouped_in=True, gates=weights)

        return layer(routed)

    def sonic() -> Function:
        from sonicmoe.enums import ActivationType
        from sonicmoe.functional import moe_general_routing_inputs

        def routed(x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
            rows = torch.arange(x.shape[0], dtype=torch.int32, device=device).repeat_interleave(k)
            up, back = both.permute(1, 2, 0), down.permute(1, 2, 0)
            stream = torch.cuda.current_stream().cuda_stream
            fixed = (up, None, back, None, cfg.n_experts, stream, ActivationType.SWIGLU)
            return moe_general_routing_inputs(
                x, weights.flatten(), rows, ids.flatten(), *fixed, is_inference_mode_enabled=True, concat_layout=True
            )[0]

        return layer(routed)

    named = {
        "vLLM fused_experts": ("vllm", 80, vllm),
        "Liger fused MoE": ("liger_kernel", 80, liger),
        "ScatterMoE": ("scattermoe", 80, scatter),
        "SonicMoE": ("sonicmoe", 90, sonic),
    }
    return {
        name: _baseline(package, device, make, min_capability=capability)
        for name, (package, capability, make) in named.items()
    }
