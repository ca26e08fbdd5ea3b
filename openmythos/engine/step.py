"""One decode step that a CUDA or HIP graph can capture: no reallocation, and no value is read back to the host.

The token, its position, the cache's rows and the logits keep their addresses; a kernel advances the position. All
loops run: a sequence that has halted continues with weight zero, which is exact, so the host never decides on an exit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from openmythos import dispatch
from openmythos.cache import KVCache
from openmythos.engine.cache import StepRows
from openmythos.nn import OpenMythos
from openmythos.nn.fusion import explain_module, hooks_on_all_modules


@contextmanager
def without_dropout(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; afterwards each module's own mode is restored."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def why_no_step(model: OpenMythos) -> str | None:
    """The reason why `model` cannot decode by a `DecodeStep`, or None."""
    if model.cfg.attn_type != "mla":
        return f"attn_type={model.cfg.attn_type!r}: only latent attention reads the length of its cache on the device"
    if hooks_on_all_modules():
        return "a hook on all modules sees every call"
    with without_dropout(model):
        modified = explain_module(model)
    if modified:
        name, reason = next(iter(modified.items()))
        return f"{name} {reason}: what a modified module does on the host would happen once, not at every step"
    if not model.is_fusable():
        return "a layer was replaced by a module of another kind"
    if torch.is_autocast_enabled(model.embed.weight.device.type):
        return "autocast is on: convert the model instead, by model.to(dtype)"
    return None


def why_no_graph(model: OpenMythos) -> str | None:
    """The reason why decode steps of `model` cannot be captured as a graph, or None."""
    device = model.embed.weight.device
    if device.type != "cuda":
        return f"the model is on {device.type}, and graphs exist on CUDA and ROCm devices"
    return why_no_step(model) or _waits(model)


def _waits(model: OpenMythos) -> str | None:
    """The reason why a step waits for the device, or None: only the experts' reference does, to find their rows."""
    ffn = model.recurrent.block.ffn
    if ffn.topk == 0:
        return None
    x = ffn.router.weight.new_zeros(1, model.cfg.dim)
    ids = torch.zeros((1, ffn.topk), dtype=torch.int32, device=x.device)
    args = (x, ids, ids.float(), ffn.gate_up, ffn.down)
    shared = tuple((expert.gate.weight, expert.up.weight, expert.down.weight) for expert in ffn.shared_experts)
    for arguments in ((*args, shared), args):
        if any(entry.chosen and entry.backend != "reference" for entry in dispatch.explain("moe_experts", *arguments)):
            return None
    return "the experts are served by the reference, which waits for the device"


class DecodeStep:
    """The step from one token a sequence to the logits of the next: `logits = step(token)`.

    `cache` holds the prompt, of the same length for every sequence, and keeps what the steps append. With `graph` the
    first call runs normally, which compiles kernels; the second captures the graph, and it and all later ones replay
    it. The next call overwrites the logits (B, 1, V). Weights may change in place, but a graph holds their addresses:
    a model that was moved or cast needs a new step.

    Raises:
        ValueError: when this model allows no step or graph (`why_no_step`, `why_no_graph`), the cache is empty or
            uneven, or `tokens`, the largest number that it has to hold, exceeds max_seq_len.
    """

    def __init__(
        self, model: OpenMythos, cache: KVCache, n_loops: int | None = None, *, tokens: int, graph: bool = False
    ) -> None:
        reason = why_no_graph(model) if graph else why_no_step(model)
        if reason is not None:
            raise ValueError(f"graph={graph}: {reason}")
        self.model, self.cache, self.tokens = model, cache, tokens
        self.loops = model.recurrent.loops(n_loops)
        self.rows = StepRows(cache, model.cache_keys(self.loops), tokens, model.rope)
        device = model.embed.weight.device
        self.token = torch.zeros((self.rows.batch, 1), dtype=torch.int64, device=device)
        self.logits: torch.Tensor | None = None
        self._wants_graph, self._graph = graph, None

    @torch.no_grad()
    def __call__(self, token: torch.Tensor) -> torch.Tensor:
        """token (B, 1) integers -> logits (B, 1, V).

        Raises:
            ValueError: when the cache is full or was changed by another call, or the model was modified.
        """
        if self.rows.start >= self.tokens:
            raise ValueError(f"tokens={self.tokens}: the cache holds {self.rows.start}; make a step with more tokens")
        if not self.rows.current():
            raise ValueError("kv_cache: was extended or allocated anew behind this step; make another one")
        self.token.copy_(token)
        with without_dropout(self.model):
            if self._graph is not None:
                self._graph.replay()
            elif self._wants_graph and self.logits is not None:
                self._capture().replay()
            else:
                self._run()
        self.rows.commit()
        return self.logits

    def _run(self) -> None:
        model, rows = self.model, self.rows
        if not model.is_fusable():
            raise ValueError("the model was modified behind this step; undo that, or decode by model(...)")
        cos_sin = model.rope.index_select(0, rows.position[:1])
        logits = model.run(model.embedded(self.token), cos_sin, None, self.loops, rows, last_token_only=True)
        rows.advance()
        if self.logits is None:
            self.logits = torch.empty_like(logits)
        self.logits.copy_(logits)

    def _capture(self) -> torch.cuda.CUDAGraph:
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._run()
        return self._graph
