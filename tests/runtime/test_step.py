"""The compiled step as users hold it: a module that trains, saves its state and resumes."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import sqcompile
from sqcompile.errors import InputError, UsageError
from tests.models import Mlp, SmallResNet, make


def _compiled(name="mlp", recipe="w4a4g4", **options):
    model, inputs = make(name)
    return sqcompile.compile(model, inputs, recipe=recipe, **options), model, inputs


def _train(step, inputs, optimizer, steps):
    labels = torch.arange(inputs[0].shape[0]) % 7
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(step(*inputs), labels)
        loss.backward()
        optimizer.step()
    return loss.detach()


def _bits(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def _same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


def test_the_state_is_the_models_own():
    step, model, _ = _compiled("resnet")
    assert list(step.state_dict()) == list(model.state_dict())
    assert all(a is b for a, b in zip(step.parameters(), model.parameters(), strict=True))
    other = SmallResNet()
    other.load_state_dict(step.state_dict(), strict=True)
    step.load_state_dict(other.state_dict(), strict=True)


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, nesterov=True),
        lambda p: torch.optim.AdamW(p, 0.01),
        lambda p: torch.optim.Adagrad(p, 0.05),
        lambda p: torch.optim.RMSprop(p, 0.005),
    ],
    ids=["sgd", "adamw", "adagrad", "rmsprop"],
)
def test_any_optimizer_trains_it(optimizer):
    step, _, inputs = _compiled()
    labels = torch.arange(inputs[0].shape[0]) % 7
    before = F.cross_entropy(step(*inputs), labels).item()
    chosen = optimizer(step.parameters())
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(chosen, 40)
    for _ in range(40):
        _train(step, inputs, chosen, 1)
        schedule.step()
    assert F.cross_entropy(step(*inputs), labels).item() < before / 2


def test_train_updates_running_statistics_and_eval_reads_them():
    step, model, inputs = _compiled("resnet")
    mean = model.norm.running_mean.clone()
    first = step(*inputs)
    assert not torch.equal(model.norm.running_mean, mean)
    assert model.norm.num_batches_tracked == 1
    step.eval()
    assert not model.norm.training
    statistics = model.norm.running_mean.clone()
    with torch.no_grad():
        out = step(*inputs)
    assert torch.equal(model.norm.running_mean, statistics)
    assert not torch.equal(out, first)
    with torch.no_grad():
        assert torch.equal(step(*inputs), out)
    step.train()
    assert model.blocks[0].norm1.training


def test_gradients_accumulate_over_micro_steps():
    step, model, inputs = _compiled()
    step(*inputs).sum().backward()
    first = model.middle.weight.grad.clone()
    step(*inputs).sum().backward()
    total = model.middle.weight.grad.clone()
    assert not torch.equal(total, first)
    assert not torch.equal(total - first, first), "each micro-step has draws of its own"
    assert step.training_state()["micro_step"] == 2


def test_the_same_seed_gives_the_same_bits_and_another_does_not():
    runs = []
    for seed in (3, 3, 4):
        step, model, inputs = _compiled(seed=seed)
        _train(step, inputs, torch.optim.SGD(step.parameters(), 0.1), 3)
        runs.append(_bits(model))
    assert _same(runs[0], runs[1])
    assert not _same(runs[0], runs[2])


def test_resuming_is_bit_for_bit():
    step, model, inputs = _compiled("resnet")
    optimizer = torch.optim.SGD(step.parameters(), 0.05, momentum=0.9)
    _train(step, inputs, optimizer, 3)
    kept = copy.deepcopy((step.state_dict(), optimizer.state_dict(), step.training_state()))
    _train(step, inputs, optimizer, 3)

    again, restored, _ = _compiled("resnet", seed=99)
    second = torch.optim.SGD(again.parameters(), 0.05, momentum=0.9)
    again.load_training_state(kept[2])
    again.load_state_dict(kept[0])
    second.load_state_dict(kept[1])
    _train(again, inputs, second, 3)
    assert _same(_bits(model), _bits(restored))


def test_checkpointing_replays_the_draws():
    plain, model, inputs = _compiled()
    plain(*inputs).sum().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    for reentrant in (False, True):
        step, again, _ = _compiled()
        x = inputs[0].clone().requires_grad_()
        step.prepare(x)
        checkpoint(step, x, use_reentrant=reentrant).sum().backward()
        assert _same(expected, {name: p.grad for name, p in again.named_parameters()})
        assert step.training_state()["micro_step"] == 1


def test_another_shape_compiles_once():
    step, _, inputs = _compiled()
    assert len(step.variants) == 1
    for _ in range(2):
        assert step(inputs[0][:5]).shape == (5, 10)
        assert step(inputs[0]).shape == (12, 10)
    assert len(step.variants) == 2


def test_frozen_parameters_and_input_gradients():
    step, model, inputs = _compiled()
    model.first.weight.requires_grad_(False)
    x = inputs[0].clone().requires_grad_()
    step(x).sum().backward()
    assert model.first.weight.grad is None
    assert model.first.bias.grad is not None
    assert x.grad.shape == x.shape


class Structured(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 6)

    def forward(self, x, *, scale=2, extra=None):
        y = self.fc(x) * scale
        if extra is not None:
            y = y + extra["bias"]
        return {"y": y, "parts": (y.relu(), x), "n": 3}


def test_arguments_and_results_keep_their_structure():
    model = Structured()
    step = sqcompile.compile(model, (torch.randn(4, 6),))
    x, extra = torch.randn(4, 6), {"bias": torch.full((6,), 100.0)}
    out = step(x, scale=3, extra=extra)
    assert set(out) == {"y", "parts", "n"} and out["n"] == 3
    assert torch.equal(out["parts"][1], x)
    assert (out["y"] > 50).all()
    (out["y"].sum() + out["parts"][0].sum()).backward()
    assert model.fc.weight.grad is not None


BAD = {
    "empty": (torch.zeros(0, 20), "empty"),
    "dtype": (torch.zeros(12, 20, dtype=torch.float64), "float32"),
    "half": (torch.zeros(12, 20, dtype=torch.bfloat16), "float32"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_tensors_are_refused_by_name(case):
    step, model, _ = _compiled()
    before = _bits(model)
    tensor, word = BAD[case]
    with pytest.raises(InputError, match=word):
        step(tensor)
    assert _same(before, _bits(model))


def test_a_wrong_shape_is_a_capture_error_with_the_line():
    step, _, _ = _compiled()
    with pytest.raises(sqcompile.errors.CaptureError, match="models.py"):
        step(torch.zeros(12, 21))


GOOD = {
    "zeros": lambda x: torch.zeros_like(x),
    "denormal": lambda x: torch.full_like(x, 1e-40),
    "huge": lambda x: x * 1e18,
    "constant": lambda x: torch.ones_like(x),
    "one": lambda x: x[:1],
    "strided": lambda x: x.repeat(1, 2)[:, ::2],
    "transposed": lambda x: x.t().contiguous().t(),
    "misaligned": lambda x: torch.empty(x.numel() + 1)[1:].view(x.shape).copy_(x),
}


@pytest.mark.parametrize("case", GOOD)
def test_odd_tensors_give_finite_results_equal_to_the_reference(case):
    step, model, inputs = _compiled()
    x = GOOD[case](inputs[0])
    out = step(x)
    out.square().mean().backward()
    assert torch.isfinite(out).all()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    assert sqcompile.verify(step, (x,)).equal


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_nan_or_infinity_does_not_crash_and_check_finite_names_the_node(value):
    step, _, inputs = _compiled()
    bad = inputs[0].clone()
    bad[1, 2] = value
    step(bad).sum().backward()
    checked, _, _ = _compiled(check_finite=True)
    checked(inputs[0]).sum().backward()
    with pytest.raises(InputError, match=r"models\.py:\d+.*\n.*fprop first"):
        checked(bad)


def test_check_finite_sees_a_bad_incoming_gradient():
    step, _, inputs = _compiled(check_finite=True)
    out = step(*inputs)
    with pytest.raises(InputError, match="NaN or an infinity"):
        out.backward(torch.full_like(out, float("nan")))


def test_wrong_arguments_of_compile_are_usage_errors():
    model, inputs = make("mlp")
    with pytest.raises(UsageError, match="nn.Module"):
        sqcompile.compile(lambda x: x, inputs)
    with pytest.raises(UsageError, match=r"\(x,\)"):
        sqcompile.compile(model, inputs[0])
    with pytest.raises(UsageError, match="w4a4g4"):
        sqcompile.compile(model, inputs, recipe="w4a4g5")
    with pytest.raises(UsageError, match="float32 master weights"):
        sqcompile.compile(Mlp().double(), inputs)


def test_results_do_not_depend_on_threads():
    step, _, inputs = _compiled("resnet")
    before = sqcompile.get_num_threads()
    results = []
    try:
        for threads in (1, 2):
            sqcompile.set_num_threads(threads)
            assert sqcompile.verify(step, inputs).equal
            results.append(
                step.variants[0].run_forward(
                    step.values_of(step.variants[0], inputs, {}), torch.tensor([1, 0, 0, 0])
                )[0]
            )
    finally:
        sqcompile.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_a_copy_trains_on_its_own_and_averaging_takes_it():
    step, model, inputs = _compiled("resnet")
    _train(step, inputs, torch.optim.SGD(step.parameters(), 0.05), 2)
    twin = copy.deepcopy(step)
    assert twin.training_state() == step.training_state()
    assert len(twin.variants) == 1
    before = _bits(model)
    _train(twin, inputs, torch.optim.SGD(twin.parameters(), 0.05), 2)
    assert _same(before, _bits(model))
    _train(step, inputs, torch.optim.SGD(step.parameters(), 0.05), 2)
    assert _same(_bits(twin), _bits(step))
    averaged = torch.optim.swa_utils.AveragedModel(step)
    averaged.update_parameters(step)
    assert averaged(*inputs).shape == (4, 10)


def test_a_step_is_not_pickled(tmp_path):
    step, _, _ = _compiled()
    with pytest.raises(TypeError, match=r"step\.save\(directory\)"):
        torch.save(step, tmp_path / "step.pt")


class Passing(nn.Module):
    """Returns a parameter and an input as they are, beside a result."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(16, 16)

    def forward(self, x):
        return self.layer(x), {"weight": self.layer.weight, "x": x}


def test_outputs_that_are_a_parameter_or_an_input_are_the_callers_own(tmp_path):
    model, x = Passing(), torch.randn(8, 16, requires_grad=True)
    step = sqcompile.compile(model, (x,))
    step.save(str(tmp_path / "run"))
    for made in (step, sqcompile.load(tmp_path / "run")):
        y, others = made(x)
        weight = made.get_parameter("layer.weight")
        assert others["weight"] is weight and others["x"] is x
        made.zero_grad(), setattr(x, "grad", None)
        ((others["weight"] * 2).sum() + (others["x"] * 3).sum() + y.sum() * 0).backward()
        assert (weight.grad == 2).all() and (x.grad == 3).all()
