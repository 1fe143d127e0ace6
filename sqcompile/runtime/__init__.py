"""Running a compiled step: binding to autograd, artifacts, build cache, threads."""
