"""Model files: what is read from them, and what is said when they fail."""

import sys
from textwrap import dedent

import pytest
import torch

from sqcompile.errors import CaptureError, UsageError
from sqcompile.modelfile import MINIMUM, load


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def write(text, name="net.py"):
        (tmp_path / name).write_text(dedent(text))
        return name

    return write


def failure(action):
    with pytest.raises((CaptureError, UsageError)) as caught:
        action()
    return caught.value.exit_code, str(caught.value)


def test_the_smallest_model_file(write):
    file = load(write(MINIMUM))
    (x,) = file.example_inputs()
    assert file.make_model()(x).shape == (8, 4)
    assert not file.has("loss")


def test_a_model_variable_is_enough(write):
    file = load(write("import torch\nmodel = torch.nn.Linear(2, 2)\n"))
    assert file.make_model() is file.module.model


def test_two_files_of_one_name_do_not_share_a_namespace(write, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first, second = load(write("value = 1", "a/net.py")), load(write("value = 2", "b/net.py"))
    assert (first.module.value, second.module.value) == (1, 2)


def test_a_file_imports_from_its_folder(write):
    write("width = 3", "sizes_of_net.py")
    file = load(write("import torch, sizes_of_net\nmodel = torch.nn.Linear(sizes_of_net.width, 1)"))
    assert file.make_model().in_features == 3


@pytest.mark.parametrize(
    ("name", "message"),
    [("ned.py", "there is no model file ned.py; did you mean net.py?"), (".", ". is a folder")],
)
def test_no_such_file(write, name, message):
    write(MINIMUM)
    code, text = failure(lambda: load(name))
    assert code == 2
    assert message in text


def test_a_file_that_is_no_python(write):
    code, text = failure(lambda: load(write("{}", "net.json")))
    assert code == 2
    assert "net.json is not a .py file" in text


def test_what_the_file_raises_is_told_with_its_line(write):
    source = """\
    import torch

    def width():
        return [][0]

    model = torch.nn.Linear(width(), 1)
    """
    code, text = failure(lambda: load(write(source)))
    assert code == 3
    assert text.startswith("net.py:4  return [][0]\n  the model file raised IndexError: list index")


def test_make_model_that_raises_inside_torch_is_told_at_its_line(write):
    source = """\
    import torch

    def make_model():
        return torch.zeros(2).view(3)
    """
    code, text = failure(load(write(source)).make_model)
    assert code == 3
    assert text.startswith("net.py:4  return torch.zeros(2).view(3)\n  make_model() raised Runtime")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import torch\nx = (\n", "net.py:2  x = (\n  SyntaxError: '(' was never closed"),
        ("import no_such_package", "install no_such_package"),
        ("raise SystemExit(3)", 'if __name__ == "__main__":'),
        ("raise ValueError", "raised ValueError: (no message)"),
    ],
)
def test_remedies(write, source, message):
    code, text = failure(lambda: load(write(source)))
    assert code == 3
    assert message in text


@pytest.mark.parametrize(
    ("source", "code", "message"),
    [
        ("", 2, "net.py does not define make_model"),
        ("def make_mode(): pass", 2, "it has 'make_mode': did you mean that?"),
        ("def make_model(): return 4", 3, "make_model() returned int, not a torch.nn.Module"),
        ("model = None", 3, "`model` is NoneType"),
    ],
)
def test_no_model(write, source, code, message):
    found, text = failure(load(write(source)).make_model)
    assert found == code
    assert message in text


@pytest.mark.parametrize(
    ("source", "code", "message"),
    [
        ("", 2, "net.py does not define example_inputs"),
        ("import torch\ndef example_inputs(): return torch.zeros(2)", 3, "(x,) for one"),
        ("def example_inputs(): return ()", 3, "returned tuple without elements"),
    ],
)
def test_no_inputs(write, source, code, message):
    found, text = failure(load(write(source)).example_inputs)
    assert found == code
    assert message in text


def test_batches_of_one_or_several_inputs(write):
    source = """\
    import torch

    def data():
        yield torch.ones(2), torch.zeros(2)
        yield (torch.ones(2), torch.ones(3)), torch.zeros(2)
    """
    first, second = load(write(source)).batches()
    assert [len(inputs) for inputs, _ in (first, second)] == [1, 2]
    assert torch.equal(first[1], torch.zeros(2))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def data():\n    yield 1\n    ", "gave int as a batch"),
        ("def data():\n    yield 1, 2\n    yield 1 / 0", "net.py:3  yield 1 / 0\n  data() raised"),
        ("def data(): return 4", "'int' object is not iterable"),
    ],
)
def test_batches_that_fail(write, source, message):
    code, text = failure(lambda: list(load(write(source)).batches()))
    assert code == 3
    assert message in text
