"""What errors say."""

import pytest

from sqcompile.errors import first_line


@pytest.mark.parametrize(
    ("error", "line"),
    [(ValueError("\n one\ntwo"), "one"), (AssertionError(), "AssertionError")],
)
def test_the_first_line_is_there_without_a_message(error, line):
    assert first_line(error) == line
