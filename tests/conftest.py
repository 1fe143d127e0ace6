"""What all tests share."""

import os
import shutil

import pytest
from hypothesis import settings

# The same examples on every run, and no time limit for one, which a busy machine would exceed.
settings.register_profile("sqcompile", deadline=None, derandomize=True, database=None)
settings.load_profile("sqcompile")

REQUIRE_TOOLS = "SQCOMPILE_REQUIRE_TOOLS"
"""Environment variable: when it is 1, a missing system tool fails a test instead of skipping it."""


def require_tool(name: str) -> str:
    """The path of a system tool (gcc, objdump, ...) that the calling test runs.

    Where it is missing the test is skipped with the reason, or fails under `.ci/run`, which
    installs the packages in .ci/packages first.
    """
    path = shutil.which(name)
    if path is not None:
        return path
    reason = f"{name} is not installed"
    if os.environ.get(REQUIRE_TOOLS) == "1":
        pytest.fail(f"{reason}: name its package in .ci/packages")
    pytest.skip(reason)


@pytest.fixture(scope="session", autouse=True)
def _cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Builds of tests are kept apart from the user's, in SQCOMPILE_CACHE_DIR when it is set.

    The processes of one run (pytest-xdist) share them.
    """
    if "SQCOMPILE_CACHE_DIR" not in os.environ:
        place = tmp_path_factory.getbasetemp()
        place = place.parent if "PYTEST_XDIST_WORKER" in os.environ else place
        os.environ["SQCOMPILE_CACHE_DIR"] = str(place / "cache")
