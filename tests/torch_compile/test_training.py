"""torch.compile(backend="sqcompile") in loops that users write: optimisers, state, wrappers."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import sqcompile
from sqcompile.errors import UsageError
from sqcompile.runtime.clocks import load_training_state, training_state
from tests.models import make
from tests.torch_compile.modules import (
    FLAT,
    Broken,
    Whole,
    compiled,
    counting,
    grads,
    halves,
    same,
)


def looped(module, inputs, *, steps=4):
    """Mixed parameter groups, accumulation, clipping and a schedule -> the losses."""
    labels = torch.arange(inputs[0].shape[0]) % 4
    decayed = [p for p in module.parameters() if p.dim() > 1]
    rest = [p for p in module.parameters() if p.dim() == 1]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": rest, "lr": 0.02}]
    optimizer = torch.optim.AdamW(groups, lr=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [0.02, 0.03], total_steps=40)
    losses = []
    for _ in range(steps):
        for _ in range(2):
            loss = F.cross_entropy(module(*inputs), labels) / 2
            loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def test_a_training_loop_ends_in_the_bits_of_compile():
    model, other = halves()[0], halves()[0]
    inputs = (torch.randn(6, 8),)
    losses = looped(compiled(model), inputs, steps=20)
    assert losses == looped(sqcompile.compile(other, inputs), inputs, steps=20)
    assert losses[-1] < 0.6 * losses[0]
    assert same(model.state_dict(), other.state_dict())


def whole(seed):
    torch.manual_seed(seed)
    return Whole()


def test_two_models_train_as_each_would_alone():
    def trained(names):
        modules = {name: compiled(whole(seed)) for name, seed in names}
        inputs = halves()[1:]
        optimizers = [torch.optim.SGD(m.parameters(), 0.1) for m in modules.values()]
        for _ in range(3):
            for module, optimizer in zip(modules.values(), optimizers, strict=True):
                optimizer.zero_grad()
                module(*inputs).square().mean().backward()
                optimizer.step()
        return {name: module.state_dict() for name, module in modules.items()}

    together = trained([("a", 0), ("b", 1)])
    assert same(together["a"], trained([("a", 0)])["a"])
    assert same(together["b"], trained([("b", 1)])["b"])


def test_resuming_replays_the_draws():
    def run(model, x, optimizer, steps):
        for _ in range(steps):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()

    model, x = halves(Broken)
    module = compiled(model, seed=5)
    optimizer = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9)
    run(module, x, optimizer, 3)
    state = json.dumps(training_state(module))
    kept = copy.deepcopy((module.state_dict(), optimizer.state_dict()))
    run(module, x, optimizer, 2)

    torch._dynamo.reset()
    again = compiled(halves(Broken)[0], seed=5)
    second = torch.optim.SGD(again.parameters(), 0.1, momentum=0.9)
    again.load_state_dict(kept[0])
    second.load_state_dict(kept[1])
    load_training_state(again, json.loads(state))
    run(again, x, second, 2)
    assert same(module.state_dict(), again.state_dict())
    with pytest.raises(UsageError, match="another model"):
        load_training_state(make("mlp")[0], json.loads(state))
    with pytest.raises(UsageError, match="no state"):
        load_training_state(again, {"step": 1})


def test_checkpointing_replays_the_draws():
    plain, x = halves()
    module = compiled(copy.deepcopy(plain))
    compiled(plain)(x).sum().backward()
    for reentrant in (False, True):
        module.zero_grad()
        twin = copy.deepcopy(module)
        y = checkpoint(twin, x.clone().requires_grad_(), use_reentrant=reentrant)
        y.sum().backward()
        assert same(grads(plain), grads(twin._orig_mod))


def test_modes_and_frozen_parameters_are_guarded():
    model, graphs = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)), []
    module = torch.compile(model, backend=counting(graphs))
    x = torch.randn(8, 6)
    module(x).sum().backward()
    assert model[1].num_batches_tracked == 1
    module.eval()
    with torch.no_grad():
        out = module(x)
        assert torch.equal(module(x), out) and not out.requires_grad
    assert model[1].num_batches_tracked == 1
    module.train()
    model[0].requires_grad_(False)
    module.zero_grad()
    module(x).sum().backward()
    assert model[0].weight.grad is None and model[2].weight.grad is not None
    assert model[1].num_batches_tracked == 2
    assert len(graphs) == 3


def test_copies_and_state_are_those_of_torch_compile():
    model, x = halves()
    module = compiled(model)
    twin = copy.deepcopy(module)
    for one in (module, twin):
        one(x).sum().backward()
    assert same(grads(model), grads(twin._orig_mod))
    plain, _ = halves()
    plain.load_state_dict(twin._orig_mod.state_dict(), strict=True)
    assert list(module.state_dict()) == [f"_orig_mod.{name}" for name in plain.state_dict()]


def test_a_whole_step_in_one_function():
    model, x = halves()
    twin = compiled(copy.deepcopy(model))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def step(x):
        loss = model(x).square().sum()
        loss.backward()
        return loss.detach()

    run = compiled(step)
    for _ in range(2):
        run(x)
        optimizer.step()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert twin(x).shape == (6, 4)


class TwoBuckets(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(520, 520), nn.Linear(520, 520)

    def forward(self, x):
        return self.b(self.a(x))


def test_wrappers_hooks_and_data_parallel():
    """torch's own DistributedDataParallel, and what accelerate's prepare() does: it sets a
    forward of its own on the module and hooks around it."""

    parallel = nn.parallel.DistributedDataParallel
    x = torch.randn(4, 520)
    model, graphs = TwoBuckets(), []
    torch.compile(model, backend=counting(graphs), options={"recipe": FLAT})(x).sum().backward()
    expected = grads(model)
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    try:
        for wrap in (
            lambda m: parallel(compiled(m, recipe=FLAT)),
            lambda m: compiled(parallel(m), recipe=FLAT),
            lambda m: torch.compile(
                parallel(m, bucket_cap_mb=1), backend=counting(graphs), options={"recipe": FLAT}
            ),
        ):
            torch._dynamo.reset()
            inner = TwoBuckets()
            wrap(inner)(x).sum().backward()
            assert same(grads(inner), expected)
    finally:
        torch.distributed.destroy_process_group()
    assert len(graphs) == 3, "torch cuts the graph at the second bucket"

    inner, x = halves()
    compiled(inner)(x).sum().backward()
    expected = grads(inner)
    module, seen = compiled(halves()[0]), []
    forward = module.forward
    module.forward = lambda *args: forward(*args).float()
    module.register_forward_pre_hook(lambda module, args: seen.append("before"))
    module.register_forward_hook(lambda module, args, out: seen.append("after"))
    for parameter in module.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: seen.append("grad"))
    module(x).sum().backward()
    assert seen == ["before", "after"] + ["grad"] * len(expected)
    assert same(grads(module._orig_mod), expected)
