"""The structures that Python and the C++ runtime share, field by field as in ptx.h and block.h."""

import ctypes

SLOT_BITS = 36
FIRST_SLOT = 0x100000
SHARED_WINDOW = 1 << 48
LOCAL_WINDOW = 2 << 48
CHECK_SHARED, CHECK_GLOBAL = 1, 2

_u32, _u64, _pointer = ctypes.c_uint32, ctypes.c_uint64, ctypes.c_void_p


class Allocation(ctypes.Structure):
    """Global memory: where it is on the host, and what is known of its bytes."""

    _fields_ = [
        ("host", _pointer),
        ("size", _u64),
        ("written", _pointer),
        ("touched", _pointer),
        ("constant", _u32),
    ]


class Launch(ctypes.Structure):
    """A grid to run."""

    _fields_ = [
        ("kernel", _pointer),
        ("params", _pointer),
        ("grid", _u32 * 3),
        ("block", _u32 * 3),
        ("static_shared", _u32),
        ("dynamic_shared", _u32),
        ("checks", _u32),
        ("workers", _u32),
        ("stack_bytes", _u64),
        ("branches", _u64),
        ("allocations", _pointer),
        ("slots", _u64),
        ("symbols", _pointer),
        ("counts", _pointer),
    ]


class Report(ctypes.Structure):
    """The first fault of a launch."""

    _fields_ = [
        ("kind", _u32),
        ("line", _u32),
        ("block", _u32 * 3),
        ("thread", _u32 * 3),
        ("address", _u64),
        ("bytes", _u64),
        ("text", ctypes.c_char * 4096),
    ]
