"""Calls on several streams and GPUs, on a torch that records what it is asked: memory that one call
frees is the next one's, whatever its stream, and TVM leaves its GPU the current one."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import tvm_ffi

from sqcompile.runtime import cuda


class Stream:
    """A stream of torch's, as far as it is asked."""

    def __init__(self, address: int) -> None:
        self.cuda_stream = address
        self.waited_for: list[Stream] = []

    def wait_stream(self, other: "Stream") -> None:
        """What comes after waits for what `other` was given until now."""
        self.waited_for.append(other)


class Torch:
    """torch.cuda: the current GPU and, by GPU, the current stream."""

    def __init__(self) -> None:
        self.index = 0
        self.streams: dict[int, Stream] = {}

    def current_stream(self, index: int) -> Stream:
        """The current stream of a GPU."""
        return self.streams[index]

    @contextmanager
    def device(self, index: int) -> Iterator[None]:
        """As torch's: the GPU before is the current one again, whatever was done inside."""
        before, self.index = self.index, index
        try:
            yield
        finally:
            self.index = before


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Torch:
    """Two GPUs on which nothing has run."""
    found = Torch()
    monkeypatch.setattr(torch.cuda, "current_stream", found.current_stream)
    monkeypatch.setattr(torch.cuda, "device", found.device)
    monkeypatch.setattr(cuda, "_calls", {}, raising=False)
    return found


def call(gpus: Torch, stream: Stream, index: int = 0) -> int:
    """One call on a stream; the address of the stream that TVM launches on."""
    gpus.streams[index] = stream
    with cuda.torch_stream(index):
        return int(tvm_ffi.get_raw_stream(tvm_ffi.device("cuda", index)))


def test_a_call_on_another_stream_waits_for_the_stream_of_the_last_one(gpus: Torch) -> None:
    one, two = Stream(0x10), Stream(0x20)
    assert [call(gpus, stream) for stream in (one, one, two, two, one)] == [
        *(0x10, 0x10, 0x20, 0x20, 0x10)
    ]
    assert two.waited_for == [one] and one.waited_for == [two]


def test_streams_of_another_gpu_are_not_waited_for(gpus: Torch) -> None:
    one, two = Stream(0x10), Stream(0x20)
    call(gpus, one, 0)
    call(gpus, two, 1)
    call(gpus, one, 0)
    assert not one.waited_for and not two.waited_for


def test_the_current_gpu_is_the_same_after_a_call_on_another(gpus: Torch) -> None:
    gpus.streams[1] = Stream(0x10)
    with cuda.torch_stream(1):
        assert gpus.index == 1
        gpus.index = 7  # as TVM does, which sets the GPU of what it allocates and launches
    assert gpus.index == 0
