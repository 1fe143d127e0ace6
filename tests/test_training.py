"""The training loop: the same batches for every model, and what files may say about it."""

import pytest
import torch
from torch import nn

import sqcompile
from sqcompile import modelfile, training
from sqcompile.errors import CaptureError, UsageError
from sqcompile.training import Settings, fit

FILE = """
import random
import numpy as np
import torch
from torch import nn

SEEN = []

def data():
    for _ in range(3):
        x = torch.randn(5, 4) + random.random() + np.random.rand()
        SEEN.append(x)
        yield x, torch.randint(3, (5,))

def loss(output, target):
    return nn.functional.cross_entropy(output, target)
"""


@pytest.fixture
def write(tmp_path):
    def write(extra="", text=FILE):
        path = tmp_path / "net.py"
        path.write_text(text + extra)
        return modelfile.load(path)

    return write


def model(dropout=0.0):
    torch.manual_seed(0)
    return nn.Sequential(nn.Dropout(dropout), nn.Linear(4, 3))


def test_batches_do_not_depend_on_what_the_model_draws(write):
    file = write()
    for dropout in (0.0, 0.5):
        fit(model(dropout), file, Settings(epochs=2))
    plain, random = file.module.SEEN[:6], file.module.SEEN[6:]
    assert all(torch.equal(a, b) for a, b in zip(plain, random, strict=True))
    assert not torch.equal(plain[0], plain[3]), "epochs have batches of their own"


def test_the_same_settings_give_the_same_run(write):
    file = write()
    first, second = (fit(model(), file, Settings(epochs=2)) for _ in range(2))
    assert first.epochs == second.epochs
    other = fit(model(), file, Settings(epochs=2, seed=5))
    assert other.epochs != first.epochs


def test_without_eval_data_accuracy_is_that_of_the_batches(write):
    run = fit(model(), write(), Settings(epochs=1))
    assert run.accuracy is not None and (run.accuracy * 15) % 1 == pytest.approx(0, abs=1e-9)
    assert len(run.step_ms) == 3
    assert run.to_json()["steps"] == 3


def test_a_file_judges_and_optimises_by_itself(write):
    file = write(
        """
def eval_data():
    yield torch.zeros(2, 4), torch.zeros(2)
    yield torch.zeros(6, 4), torch.ones(6)

def accuracy(output, target):
    return target.mean()

def optimizer(parameters):
    return torch.optim.SGD(parameters, lr=0.0)
"""
    )
    trained = model()
    before = [parameter.clone() for parameter in trained.parameters()]
    assert fit(trained, file, Settings(epochs=1)).accuracy == 6 / 8
    assert all(torch.equal(a, b) for a, b in zip(before, trained.parameters(), strict=True))


JUDGED = """
def eval_data():
    yield torch.zeros(2, 4), {target}

def accuracy(output, target):
    return {share}
"""


@pytest.mark.parametrize(
    ("target", "share", "rows"),
    [
        ("(torch.zeros(2), torch.zeros(7))", "0.5", 2),
        ("torch.zeros(())", "torch.tensor([0.5])", 1),
        ("['a', 'b', 'c']", "np.float32(0.5)", 3),
        ("None", "0.5", 1),
    ],
)
def test_an_accuracy_counts_by_the_samples_of_its_batch(write, target, share, rows):
    file = write(JUDGED.format(target=target, share=share))
    counted = training.evaluate(model(), file)
    assert counted.share == 0.5
    assert counted._rows == rows


@pytest.mark.parametrize(
    ("share", "told"), [("torch.zeros(2)", "a tensor of 2 elements"), ("'all'", "'all'")]
)
def test_an_accuracy_that_is_no_number_is_told(write, share, told):
    file = write(JUDGED.format(target="torch.zeros(2)", share=share))
    with pytest.raises(CaptureError, match=rf"accuracy\(\) returned {told}\n  return a number"):
        training.evaluate(model(), file)


def test_evaluation_without_a_batch_is_told(write):
    file = write("BATCHES = iter([])\ndef eval_data():\n    return BATCHES\n")
    with pytest.raises(CaptureError, match=r"eval_data\(\) gave no batch\n  it is called after"):
        fit(model(), file, Settings(epochs=1))


def test_an_optimiser_that_needs_a_closure_is_told(write):
    file = write("def optimizer(parameters):\n    return torch.optim.LBFGS(parameters)\n")
    with pytest.raises(CaptureError, match=r"net.py(.|\n)*optimiser's step(.|\n)*closure"):
        fit(model(), file, Settings(epochs=1))


def test_targets_that_are_no_classes_give_no_accuracy(write):
    file = write(
        """
def data():
    yield torch.ones(2, 4), torch.ones(2, 3)

def loss(output, target):
    return (output - target).square().mean()
"""
    )
    run = fit(model(), file, Settings(epochs=1))
    assert run.accuracy is None
    assert run.to_json()["unjudged"].startswith("targets are torch.float32, not torch.int64 class")


class Echo(nn.Module):
    """Gives back its input, moved by a parameter that is zero."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return x + self.shift


def judged(write, *batches, extra=""):
    """A training run over batches whose output is its input, with steps of no length."""
    file = write(
        """
def loss(output, target):
    return output.square().mean()

def optimizer(parameters):
    return torch.optim.SGD(parameters, lr=0.0)
"""
        + extra
    )
    file.module.data = lambda: batches
    return fit(Echo(), file, Settings(epochs=1))


def scores(target, axis, classes):
    """Outputs that are largest at the target's index, on one axis."""
    one_hot = nn.functional.one_hot(target.clamp(min=0), classes).float()
    return one_hot.movedim(-1, axis)


@pytest.mark.parametrize(
    ("shape", "axis", "classes"),
    [
        ((4,), 1, 3),
        ((4, 5), -1, 7),  # (N, T, V): a language model
        ((4, 5), 1, 7),  # (N, V, T): what cross_entropy reads
        ((5, 5), 1, 3),
        ((2, 3, 4), 1, 6),  # (N, C, H, W)
        ((), -1, 6),
    ],
)
def test_classes_are_on_the_axis_that_targets_lack(write, shape, axis, classes):
    torch.manual_seed(0)
    target = torch.randint(classes, shape)
    output = scores(target, axis, classes)
    assert judged(write, (output, target)).accuracy == 1.0
    assert judged(write, (output, (target + 1) % classes)).accuracy == 0.0


def test_targets_below_0_are_no_classes(write):
    target = torch.tensor([[0, 2, -100], [1, -100, -100]])
    assert judged(write, (scores(target, -1, 4), target)).accuracy == 1.0


@pytest.mark.parametrize(
    ("output", "why"),
    [
        ((4, 5, 5), "an output [4, 5, 5] with targets [4, 5] may have classes on axis 1 or on the"),
        ((4, 6, 7), "an output [4, 6, 7] with targets [4, 5] has no class axis"),
        ((4, 5), "an output [4, 5] with targets [4, 5] has no class axis"),
    ],
)
def test_no_accuracy_where_the_axis_of_classes_is_not_known(write, output, why):
    batch = torch.zeros(output), torch.zeros(4, 5, dtype=torch.int64)
    clear = torch.zeros(4, 5, 7), torch.zeros(4, 5, dtype=torch.int64)
    for batches in ([batch], [clear, batch], [batch, clear]):
        run = judged(write, *batches)
        assert run.accuracy is None
        assert run.unjudged.startswith(why)
        assert "; define accuracy(output, target) in" in run.unjudged
    own = judged(write, batch, extra="def accuracy(output, target): return 0.5")
    assert (own.accuracy, own.unjudged) == (0.5, "")


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("def loss(output, target): return output", "loss() returned a tensor of 15 elements"),
        ("def loss(output, target): return 1.0", "loss() returned 1.0"),
        ("def loss(output, target): return output.sum() * float('nan')", "the loss is nan at ste"),
        ("def loss(output, target): return output.sum() / 0", "the loss is"),
        ("def data(): return []", "data() gave no batch"),
        ("def optimizer(parameters): return 4", "optimizer() returned int"),
    ],
)
def test_what_cannot_be_trained(write, extra, message):
    with pytest.raises(CaptureError) as error:
        fit(model(), write(extra), Settings(epochs=1))
    assert message in str(error.value)


FAILING_BACKWARD = {
    "in the file": (
        """
class Failing(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.sum()

    @staticmethod
    def backward(ctx, grad):
        raise ValueError("no gradient today")

def loss(output, target):
    return Failing.apply(output)
""",
        'net.py:25  raise ValueError("no gradient today")\n'
        "  the backward of loss() raised ValueError: no gradient today\n",
    ),
    "in PyTorch": (
        """
def loss(output, target):
    raised = output.exp()
    total = raised.sum()
    raised.detach().zero_()
    return total
""",
        "net.py\n  the backward of loss() raised RuntimeError: one of the variables needed for",
    ),
}


@pytest.mark.parametrize("where", FAILING_BACKWARD)
def test_a_loss_whose_backward_fails_is_the_files(write, where):
    extra, message = FAILING_BACKWARD[where]
    with pytest.raises(CaptureError) as error:
        fit(model(), write(extra), Settings(epochs=1))
    assert message in str(error.value)


def test_a_compiled_backward_that_fails_is_not_the_files(write, monkeypatch):
    step = sqcompile.compile(model(), (torch.randn(5, 4),))

    def failing(*given):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(type(step.variants[0]), "run_backward", failing)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        fit(step, write(), Settings(epochs=1))


@pytest.mark.parametrize(
    "own", ["", "def optimizer(parameters): return torch.optim.SGD(parameters)"]
)
def test_something_must_be_there_to_train(write, own):
    frozen = model().requires_grad_(False)
    with pytest.raises(UsageError, match="all 2 parameters of the model are frozen"):
        fit(frozen, write(own), Settings(epochs=1))
    with pytest.raises(UsageError, match="the model has no parameters: there is nothing to train"):
        fit(nn.ReLU(), write(own), Settings(epochs=1))


def test_data_and_loss_are_needed(write):
    with pytest.raises(UsageError, match="does not define loss, which training needs"):
        training.check(write(text="def data(): pass\n"))
