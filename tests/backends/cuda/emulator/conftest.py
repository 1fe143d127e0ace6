"""Without a C++ compiler nothing here can run."""

import os

import pytest

from sqcompile.backends.cuda.emulator import compiler
from sqcompile.errors import TargetUnavailableError
from tests.conftest import REQUIRE_TOOLS


@pytest.fixture(scope="session", autouse=True)
def _compiler() -> None:
    try:
        compiler.compiler()
    except TargetUnavailableError as error:
        if os.environ.get(REQUIRE_TOOLS) == "1":
            pytest.fail(str(error))
        pytest.skip(str(error))
