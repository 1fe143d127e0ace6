"""torch.compile(backend="sqcompile"): the bits of sqcompile.compile, in loops that users write."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import sqcompile
from sqcompile.dynamo import torch_backend
from sqcompile.errors import InputError, UnsupportedOpError, UsageError
from sqcompile.recipe import Recipe
from sqcompile.runtime.clocks import load_training_state, training_state
from tests.models import make

FLAT = Recipe("flat", rules=())
"""No rule for first and last products, which differ where a graph is broken in two."""


@pytest.fixture(autouse=True)
def _graphs_of_its_own():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(model, **options):
    return torch.compile(model, backend="sqcompile", options=options)


def counting(graphs):
    """The backend, which also appends every graph that it compiles to `graphs`."""

    def backend(graph, inputs, **keywords):
        run = torch_backend(graph, inputs, **keywords)
        graphs.append(graph)
        return run

    return backend


def grads(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


class Whole(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x):
        return self.b(F.relu(self.a(x)))


class Broken(Whole):
    def forward(self, x):
        h = self.a(x)
        torch._dynamo.graph_break()
        return self.b(F.relu(h))


class BrokenInPlace(Whole):
    def forward(self, x):
        h = self.a(x)
        torch._dynamo.graph_break()
        return self.b(F.relu_(h))


def whole(seed):
    torch.manual_seed(seed)
    return Whole()


def halves(kind=Whole):
    torch.manual_seed(0)
    return kind(), torch.randn(6, 8)


def test_it_is_registered_under_its_name():
    assert "sqcompile" in torch._dynamo.list_backends()
    assert torch._dynamo.lookup_backend("sqcompile") is torch_backend


def small_mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 4)), torch.randn(6, 8)


def small_cnn():
    torch.manual_seed(0)
    body = [nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU()]
    head = [nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 5)]
    return nn.Sequential(*body, *head), torch.randn(3, 1, 6, 6)


@pytest.mark.parametrize("made", [small_mlp, small_cnn])
def test_the_bits_are_those_of_compile(made):
    model, x = made()
    other = copy.deepcopy(model)
    step = sqcompile.compile(model, (x,), recipe="w6a6g6", seed=3)
    again = compiled(other, recipe="w6a6g6", seed=3)
    pairs = [(m, torch.optim.SGD(m.parameters(), 0.05)) for m in (step, again)]
    for number in range(4):
        results = []
        for module, optimizer in pairs:
            out = module(x)
            out.square().mean().backward()
            results.append(out)
            if number % 2:  # two micro-steps a step
                optimizer.step()
        assert torch.equal(*results)
        assert same(grads(model), grads(other))
        assert same(model.state_dict(), other.state_dict())
    (clock,) = [c for c in training_state(again)["clocks"] if c["parameters"]]
    assert clock.pop("parameters") == [name for name, _ in model.named_parameters()]
    assert clock == step.training_state()
    for module, _ in pairs:
        module.eval()
    with torch.no_grad():
        assert torch.equal(step(x), again(x))


@pytest.mark.parametrize("kind", [Broken, BrokenInPlace])
def test_a_graph_break_changes_no_bit(kind):
    whole, x = halves()
    parts, _ = halves(kind)
    graphs = []
    first = torch.compile(whole, backend=torch_backend, options={"recipe": FLAT})
    second = torch.compile(parts, backend=counting(graphs), options={"recipe": FLAT})
    for _ in range(2):
        out = first(x), second(x)
        for one in out:
            one.sum().backward()
        assert torch.equal(*out)
        assert same(grads(whole), grads(parts))
    assert len(graphs) == 2


def test_views_stay_views_across_a_graph_break():
    layer = nn.Linear(4, 6)

    def of_an_input(x):
        flat, y = x.view(-1), layer(x)
        torch._dynamo.graph_break()
        return flat, y

    def of_an_output(x):
        y = layer(x)
        return y, y.view(-1), *y.chunk(2, 1)

    x = torch.randn(3, 4)
    flat, _ = compiled(of_an_input)(x)
    flat.fill_(7.0)
    assert (x == 7.0).all()

    y, flat, left, right = compiled(of_an_output)(x)
    assert torch.equal(torch.cat([left, right], 1), y)
    with torch.no_grad():
        flat.fill_(5.0)
    assert all((part == 5.0).all() for part in (y, left, right))
    (left.sum() + y.sum()).backward()
    assert torch.equal(layer.bias.grad, torch.tensor([6.0] * 3 + [3.0] * 3))


def test_a_graph_of_views_alone_is_left_to_torch():
    x = torch.randn(3, 4, requires_grad=True)
    out = compiled(lambda x: (x.view(-1)[2:], 3))(x)
    assert out[1] == 3 and out[0]._base is x


def test_a_write_into_memory_that_inputs_share_is_refused():
    def write(x, part):
        part.add_(1.0)
        return x * 2

    x = torch.randn(3, 4)
    with pytest.raises(Exception, match="memory that two inputs share"):
        compiled(write)(x, x[:2])


@pytest.mark.parametrize("dynamic", [None, True, False])
def test_every_shape_compiles_once_with_its_sizes_as_constants(dynamic):
    layer, graphs = nn.Linear(6, 3), []
    run = torch.compile(layer, backend=counting(graphs), dynamic=dynamic)
    for _ in range(2):
        for batch in (4, 5, 7):
            x = torch.randn(batch, 6)
            assert run(x).shape == (batch, 3)
    assert len(graphs) == 3


def test_numbers_are_constants():
    layer, graphs = nn.Linear(6, 3), []
    run = torch.compile(lambda x, by: layer(x) * by, backend=counting(graphs))
    x = torch.randn(4, 6)
    once = run(x, 1.0)
    for _ in range(2):
        for by in (2.0, 4.0, 3):
            assert torch.equal(run(x, by), once * by)
    assert len(graphs) == 4


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


def test_functions_of_several_modules():
    one, two = nn.Linear(6, 6), nn.Linear(6, 6)
    x = torch.randn(4, 6)

    def both(x):
        return {"sum": one(x) + two(x).relu(), "n": 3}

    out = compiled(both)(x)
    assert out["n"] == 3
    out["sum"].sum().backward()
    assert torch.equal(one.bias.grad, torch.full((6,), 4.0))
    assert two.weight.grad.shape == (6, 6)


def test_rules_go_by_module_path(monkeypatch):
    paths = []
    precision = Recipe.precision
    monkeypatch.setattr(
        Recipe, "precision", lambda self, *at: paths.append(at[0]) or precision(self, *at)
    )
    model, x = halves()
    compiled(lambda x: model(x))(x)
    compiled(nn.ModuleDict({"net": model})["net"])(x)
    assert paths == ["a", "b"] * 2


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


class Wave(nn.Module):
    def __init__(self):
        super().__init__()
        self.mixer = nn.Sequential(nn.Linear(8, 8), nn.Mish())

    def forward(self, x):
        h = self.mixer(x)
        return torch.fft.rfft(h).abs()  # the line of the transform


def test_unsupported_ops_are_reported_at_the_users_lines():
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed) as caught:
        compiled(Wave())(torch.randn(4, 8))
    assert isinstance(caught.value.inner_exception, UnsupportedOpError)
    for part in ("# the line of the transform", "test_torch_compile.py:", "(module: mixer.1)"):
        assert part in str(caught.value)


def test_suppressed_errors_fall_back_to_eager(caplog):
    model, x = Wave(), torch.randn(4, 8)
    with torch._dynamo.config.patch(suppress_errors=True):
        assert torch.equal(compiled(model)(x), model(x))


WRONG = {
    "option": ({"options": {"recipee": "w6a6g6"}}, UsageError, "recipe.*target, recipe, seed"),
    "recipe": ({"options": {"recipe": "w6"}}, UsageError, "named recipes"),
    "seed": ({"options": {"seed": "x"}}, UsageError, "seed is 'x'"),
    "mode": ({"mode": "reduce-overhead"}, UsageError, "has no mode"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_options_are_usage_errors(case):
    keywords, kind, text = WRONG[case]
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match=text) as caught:
        torch.compile(nn.Linear(4, 4), backend="sqcompile", **keywords)(torch.randn(3, 4))
    assert isinstance(caught.value.inner_exception, kind)


def test_other_dtypes_autocast_and_empty_batches_are_refused():
    def refused(module, x):
        with pytest.raises(torch._dynamo.exc.BackendCompilerFailed) as caught:
            compiled(module)(x)
        return caught.value.inner_exception

    assert isinstance(refused(nn.Linear(4, 4).double(), torch.randn(3, 4).double()), UsageError)
    assert isinstance(refused(nn.Linear(4, 4), torch.randn(0, 4)), InputError)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        error = refused(nn.Linear(4, 4), torch.randn(3, 4))
    assert isinstance(error, UsageError) and "autocast" in str(error)


def test_check_finite_names_the_node():
    module = compiled(nn.Linear(4, 4), check_finite=True)
    x = torch.randn(3, 4)
    module(x)
    x[1, 1] = float("nan")
    with pytest.raises(InputError, match="NaN or an infinity"):
        module(x)
