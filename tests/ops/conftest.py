"""Property tests of this folder: the same examples on every run, no time limit for one."""

from hypothesis import settings

settings.register_profile("ops", deadline=None, derandomize=True, database=None)
settings.load_profile("ops")
