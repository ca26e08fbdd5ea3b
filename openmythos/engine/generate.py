"""generate and stream: sample from a model with a KV cache until the end of the sequence."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import torch

from openmythos.cache import KVCache
from openmythos.engine.sampling import sample
from openmythos.engine.step import DecodeStep, why_no_graph, without_dropout
from openmythos.nn import OpenMythos
from openmythos.nn.model import check_vocabulary

_log = logging.getLogger("openmythos")


def _check(max_new_tokens: int, temperature: float, top_k: int, model: OpenMythos, input_ids: torch.Tensor) -> None:
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens={max_new_tokens}: must be at least 0")
    if not temperature >= 0:
        raise ValueError(f"temperature={temperature}: must be at least 0 (0 takes the most likely token)")
    if top_k < 0:
        raise ValueError(f"top_k={top_k}: must be at least 0 (0 samples from all)")
    if input_ids.dim() != 2 or input_ids.shape[1] == 0:
        raise ValueError(f"input_ids {tuple(input_ids.shape)}: must be (B, T) with at least one token")
    # the last sampled token is never fed back, so its position needs no place
    total = input_ids.shape[1] + max(max_new_tokens - 1, 0)
    if total > model.cfg.max_seq_len:
        raise ValueError(
            f"max_new_tokens={max_new_tokens}: with a prompt of {input_ids.shape[1]} that is {total} positions, "
            f"max_seq_len={model.cfg.max_seq_len}"
        )
    check_vocabulary(input_ids, model.cfg.vocab_size)


def stream(
    model: OpenMythos,
    input_ids: torch.Tensor,
    max_new_tokens: int = 64,
    n_loops: int = 8,
    temperature: float = 1.0,
    top_k: int = 50,
    *,
    eos_token_id: int | None = None,
    generator: torch.Generator | None = None,
    graph: bool | None = False,
) -> Iterator[torch.Tensor]:
    """Yield each step's tokens, (B, 1). Arguments and errors as in `generate`, checked before the first step."""
    _check(max_new_tokens, temperature, top_k, model, input_ids)
    model.recurrent.loops(n_loops)
    graph = _graphed(graph, model)
    return _steps(model, input_ids, max_new_tokens, n_loops, temperature, top_k, eos_token_id, generator, graph)


def _graphed(graph: bool | None, model: OpenMythos) -> bool:
    """Whether to replay a graph; for None `why_no_graph` decides, and its reason is logged."""
    if graph is False:
        return False
    reason = why_no_graph(model)
    if reason is not None and graph:
        raise ValueError(f"graph=True: {reason}; graph=None runs without a graph then")
    if reason is not None:
        _log.info("generate runs without a graph: %s", reason)
    return reason is None


def _steps(model, input_ids, max_new_tokens, n_loops, temperature, top_k, eos_token_id, generator, graph):
    cache = KVCache(model.cfg.max_seq_len)
    done = torch.zeros((input_ids.shape[0], 1), dtype=torch.bool, device=input_ids.device)
    current, position, step = input_ids, 0, None
    for index in range(max_new_tokens):
        if graph and index == 1:
            step = DecodeStep(model, cache, n_loops, tokens=input_ids.shape[1] + max_new_tokens - 1, graph=True)
        with torch.no_grad(), without_dropout(model):
            if step is not None:
                logits = step(current)
            else:
                logits = model(current, n_loops=n_loops, kv_cache=cache, start_pos=position, last_token_only=True)
        token = sample(logits[:, -1], temperature, top_k, generator)
        if eos_token_id is not None:
            token = token.masked_fill(done, eos_token_id)
            done = done | (token == eos_token_id)
        yield token
        if eos_token_id is not None and bool(done.all()):
            return
        position += current.shape[1]
        current = token


@torch.no_grad()
def generate(
    model: OpenMythos,
    input_ids: torch.Tensor,
    max_new_tokens: int = 64,
    n_loops: int = 8,
    temperature: float = 1.0,
    top_k: int = 50,
    *,
    eos_token_id: int | None = None,
    generator: torch.Generator | None = None,
    on_token: Callable[[torch.Tensor], None] | None = None,
    graph: bool | None = False,
) -> torch.Tensor:
    """Continue the prompt token by token with a KV cache.

    input_ids integers (B, T) -> (B, T + new) with new <= max_new_tokens. The same seed and logits give
    upstream's samples. temperature 0 is greedy; top_k 0 (or above the vocabulary) samples from all. With
    eos_token_id a row that has produced it repeats it, and generation ends when every row has. `generator`
    seeds the sampling; `on_token` gets each step's tokens (B, 1). Dropout is off in any mode of the model.

    With `graph` every token after the first is one replay of a captured CUDA or HIP graph (`DecodeStep`),
    and room for all tokens is allocated at once. None uses a graph if possible; otherwise the reason from
    `why_no_graph(model)` is logged.

    Raises:
        ValueError: before anything runs, naming the argument, when the prompt is empty or holds an id
            outside the vocabulary, the continuation does not fit into max_seq_len, a number is out of range,
            or graph=True where there can be no graph.
    """
    steps = stream(
        model,
        input_ids,
        max_new_tokens,
        n_loops,
        temperature,
        top_k,
        eos_token_id=eos_token_id,
        generator=generator,
        graph=graph,
    )
    tokens = [input_ids]
    for token in steps:
        tokens.append(token)
        if on_token is not None:
            on_token(token)
    return torch.cat(tokens, dim=1)
