"""accelerate: upstream's logits, weights moved or copied, and the error of a source whose weights have moved."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

import openmythos
from openmythos import acceleration
from tests.io.checkpoints import ATTENTION, assert_same, weights
from tests.models import tokens
from tests.tolerances import errors
from tests.upstream.oracle import pair, upstream, upstream_config

LOGITS = 1e-5


@pytest.mark.parametrize("copied", [False, True], ids=["move", "copy"])
@pytest.mark.parametrize("attn_type", ATTENTION)
def test_logits_are_upstreams(attn_type: str, copied: bool) -> None:
    theirs, ours = pair(attn_type)
    ids = tokens(2, 9)
    with torch.no_grad():
        expected, ours_before = theirs(ids), ours(ids)
        fast = openmythos.accelerate(theirs, copy=copied)
        assert errors(fast(ids), expected).frobenius <= LOGITS
        assert torch.equal(fast(ids), ours_before)
    assert_same(fast, weights(ours))
    assert type(fast) is openmythos.OpenMythos
    assert fast.cfg == ours.cfg
    assert fast.head.weight is fast.embed.weight


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("copied", [False, True], ids=["move", "copy"])
def test_dtype(dtype: torch.dtype, copied: bool) -> None:
    theirs, ours = pair()
    fast = openmythos.accelerate(theirs, dtype, copy=copied)
    assert_same(fast, weights(ours.to(dtype)))
    with torch.no_grad():
        assert torch.equal(fast(tokens(2, 9)), ours(tokens(2, 9)))


def test_tensors_outside_the_experts_keep_their_storage() -> None:
    theirs, _ = pair()
    before = {name: value.data_ptr() for name, value in theirs.named_parameters()}
    fast = openmythos.accelerate(theirs)
    same = {name for name, value in fast.named_parameters() if before.get(name) == value.data_ptr()}
    stacked = {"recurrent.block.ffn.gate_up", "recurrent.block.ffn.down"}
    assert {name for name, _ in fast.named_parameters()} - same == stacked


def test_copy_leaves_the_source_whole_and_shares_nothing() -> None:
    theirs, _ = pair()
    theirs(tokens(2, 5)).sum().backward()
    state = {name: value.clone() for name, value in theirs.state_dict().items()}
    grads = {name: value.grad.clone() for name, value in theirs.named_parameters() if value.grad is not None}
    fast = openmythos.accelerate(theirs, copy=True)
    assert all(parameter.grad is None for parameter in fast.parameters())
    with torch.no_grad():
        for value in (*fast.parameters(), *fast.buffers()):
            value.fill_(3.0)
    assert all(torch.equal(value, state[name]) for name, value in theirs.state_dict().items())
    assert all(torch.equal(dict(theirs.named_parameters())[name].grad, value) for name, value in grads.items())
    assert grads


USES = {
    "call": lambda model: model(tokens(1, 3)),
    "forward": lambda model: model.forward(tokens(1, 3)),
    "generate": lambda model: model.generate(tokens(1, 3), 2),
    "state_dict": lambda model: model.state_dict(),
    "load_state_dict": lambda model: model.load_state_dict({}),
    "parameters": lambda model: list(model.parameters()),
    "named_parameters": lambda model: list(model.named_parameters()),
    "buffers": lambda model: list(model.buffers()),
    "to": lambda model: model.to(torch.bfloat16),
    "cuda": lambda model: model.cuda(),
    "half": lambda model: model.half(),
    "eval": lambda model: model.eval(),
    "embed": lambda model: model.embed,
    "recurrent": lambda model: model.recurrent,
    "freqs_cis": lambda model: model.freqs_cis,
    "deepcopy": copy.deepcopy,
    "pickle": pickle.dumps,
    "accelerate": openmythos.accelerate,
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_the_emptied_source_says_so(use: object) -> None:
    theirs, _ = pair()
    openmythos.accelerate(theirs)
    with pytest.raises(RuntimeError, match=r"openmythos.accelerate moved its weights .* copy=True"):
        use(theirs)
    assert "Moved" in repr(theirs)
    assert not hasattr(theirs, "embed")


def test_a_part_of_the_emptied_source_says_so_too() -> None:
    theirs, _ = pair()
    attn, expert = theirs.recurrent.block.attn, theirs.recurrent.block.ffn.routed_experts[1]
    openmythos.accelerate(theirs)
    for part in (attn, expert, attn.wo if hasattr(attn, "wo") else expert):
        with pytest.raises(RuntimeError, match=r"openmythos.accelerate moved its weights"):
            part(torch.ones(1, 2, 48))


def test_moved_weights_are_freed_though_others_hold_the_parameters() -> None:
    theirs, _ = pair()
    optimizer = torch.optim.AdamW(theirs.parameters())
    held = [theirs.recurrent.block.ffn.routed_experts[i].down.weight for i in range(5)]
    theirs(tokens(2, 5)).sum().backward()
    openmythos.accelerate(theirs, torch.bfloat16)
    assert all(parameter.numel() == 0 and parameter.grad is None for parameter in held)
    assert sum(parameter.nbytes for group in optimizer.param_groups for parameter in group["params"]) == 0


def test_requires_grad_and_training_mode_are_kept() -> None:
    theirs, _ = pair()
    theirs.train()
    theirs.prelude[0].eval()
    theirs.embed.weight.requires_grad_(False)
    for expert in theirs.recurrent.block.ffn.routed_experts:
        expert.down.weight.requires_grad_(False)
    fast = openmythos.accelerate(theirs)
    frozen = {name for name, value in fast.named_parameters() if not value.requires_grad}
    assert frozen == {"embed.weight", "recurrent.block.ffn.down"}
    assert fast.training
    assert fast.coda[0].training
    assert not fast.prelude[0].training
    assert not fast.prelude[0].attn.training
    fast(tokens(2, 5)).sum().backward()
    assert fast.recurrent.block.ffn.gate_up.grad.abs().sum() > 0


@pytest.mark.parametrize("copied", [False, True], ids=["move", "copy"])
def test_changed_settings_are_kept(copied: bool) -> None:
    theirs, _ = pair()
    theirs.recurrent.block.ffn.topk = 3
    theirs.norm.eps = 0.1
    theirs.cfg.act_threshold = 2.0
    theirs.cfg.max_loop_iters = 6
    with torch.no_grad():
        expected = theirs(tokens(2, 9))
        fast = openmythos.accelerate(theirs, copy=copied)
        assert errors(fast(tokens(2, 9)), expected).frobenius <= LOGITS
    assert fast.recurrent.lora.scale.weight.shape[0] == fast.recurrent.lora.scale.num_embeddings == 4
    assert (fast.recurrent.block.ffn.topk, fast.norm.eps) == (3, 0.1)


def test_fewer_default_loops_keep_all_rows() -> None:
    theirs, _ = pair()
    theirs.cfg.max_loop_iters = 2
    with torch.no_grad():
        expected = theirs(tokens(2, 9), n_loops=4)
        assert errors(openmythos.accelerate(theirs)(tokens(2, 9), n_loops=4), expected).frobenius <= LOGITS


@pytest.mark.parametrize("copied", [False, True], ids=["move", "copy"])
def test_an_untied_head_stays_untied(copied: bool) -> None:
    theirs, _ = pair()
    theirs.head.weight = torch.nn.Parameter(torch.randn(101, 48) / 7)
    with torch.no_grad():
        expected = theirs(tokens(2, 9))
        fast = openmythos.accelerate(theirs, copy=copied)
        assert errors(fast(tokens(2, 9)), expected).frobenius <= LOGITS
    assert fast.head.weight is not fast.embed.weight


def test_a_source_in_bfloat16_is_taken_as_it_is() -> None:
    theirs, ours = pair()
    with pytest.warns(UserWarning, match="imaginary"):
        theirs.to(torch.bfloat16)
    assert_same(openmythos.accelerate(theirs), weights(ours.to(torch.bfloat16)))


def test_random_numbers_are_left_alone() -> None:
    theirs, _ = pair()
    before = torch.get_rng_state()
    openmythos.accelerate(theirs)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("copied", [False, True], ids=["move", "copy"])
def test_our_own_model_is_cast(copied: bool) -> None:
    _, ours = pair()
    expected, original = weights(ours), ours
    fast = openmythos.accelerate(ours, torch.bfloat16, copy=copied)
    assert_same(fast, {name: value.bfloat16() for name, value in expected.items()})
    assert (fast is original) is not copied
    if copied:
        assert_same(original, expected)


class _FailingMover(acceleration._Mover):
    """Fails at the third tensor, or at the last ones."""

    error: BaseException = MemoryError()
    after = 3

    def move(self, tensor: torch.Tensor, place: torch.Tensor) -> None:
        if len(self.emptied) == self.after:
            raise self.error
        super().move(tensor, place)


@pytest.mark.parametrize("after", [0, 3, 14], ids=lambda count: f"after-{count}")
@pytest.mark.parametrize("error", [MemoryError(), KeyboardInterrupt()], ids=["memory", "interrupt"])
@pytest.mark.parametrize("dtype", [None, torch.float64], ids=str)
def test_an_error_gives_everything_back(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype | None, error: BaseException, after: int
) -> None:
    theirs, _ = pair()
    state = {name: value.clone() for name, value in theirs.state_dict().items()}
    with torch.no_grad():
        expected = theirs(tokens(2, 9))
    monkeypatch.setattr(_FailingMover, "error", error)
    monkeypatch.setattr(_FailingMover, "after", after)
    with monkeypatch.context() as patched:
        patched.setattr(acceleration, "_Mover", _FailingMover)
        with pytest.raises(type(error)):
            openmythos.accelerate(theirs, dtype)
    assert all(torch.equal(value, state[name]) for name, value in theirs.state_dict().items())
    assert all(value.dtype == state[name].dtype for name, value in theirs.state_dict().items())
    with torch.no_grad():
        assert torch.equal(theirs(tokens(2, 9)), expected)
        assert errors(openmythos.accelerate(theirs)(tokens(2, 9)), expected).frobenius <= LOGITS


def test_an_interrupted_narrowing_cast_warns_of_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, _ = pair()
    state = {name: value.clone() for name, value in theirs.state_dict().items()}
    monkeypatch.setattr(acceleration, "_Mover", _FailingMover)
    with pytest.warns(UserWarning, match="3 weights of the source are rounded"), pytest.raises(MemoryError):
        openmythos.accelerate(theirs, torch.bfloat16)
    rounded = 0
    for name, value in theirs.state_dict().items():
        if not torch.equal(value, state[name]):
            assert torch.equal(value, state[name].bfloat16().float())
            rounded += 1
    assert rounded == 3


def test_no_room_for_the_stack_leaves_the_source_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, _ = pair()
    state = {name: value.clone() for name, value in theirs.state_dict().items()}

    def no_room(*args: object) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patched:
        patched.setattr(acceleration, "_allocate", no_room)
        with pytest.raises(RuntimeError, match="out of memory"):
            openmythos.accelerate(theirs, torch.bfloat16)
    assert all(torch.equal(value, state[name]) for name, value in theirs.state_dict().items())


@pytest.mark.gpu
@pytest.mark.parametrize("source", ["cpu", "cuda"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=str)
@pytest.mark.parametrize("copied", [False, True], ids=["move", "copy"])
def test_to_the_gpu(source: str, dtype: torch.dtype | None, copied: bool) -> None:
    theirs, ours = pair()
    fast = openmythos.accelerate(theirs.to(source), dtype, "cuda", copy=copied)
    assert all(value.is_cuda for value in (*fast.parameters(), *fast.buffers()))
    assert_same(fast.cpu(), weights(ours.to(dtype or torch.float32)))


def test_a_model_straight_from_upstream() -> None:
    torch.manual_seed(4)
    theirs = upstream.OpenMythos(upstream_config())
    torch.manual_seed(4)
    ours = openmythos.OpenMythos(openmythos.MythosConfig.from_any(upstream_config()))
    assert_same(openmythos.accelerate(theirs), weights(ours))
