"""What is timed is what the page says."""

from first_five_minutes import from_page


def test_the_model_and_the_command_come_from_the_page() -> None:
    model, command = from_page()
    named: dict[str, object] = {}
    exec(compile(model, "model.py", "exec"), named)
    assert {"make_model", "example_inputs", "data", "loss"} <= set(named)
    assert command == ["sqcompile", "model.py", "--verify", "-o", "runs/mine"]
