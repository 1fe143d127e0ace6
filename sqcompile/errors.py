"""What can go wrong, by whose fault and with which exit code of the command line."""


class SqError(Exception):
    """Any failure that a user is told about; the text names what they wrote and what to do."""

    exit_code = 1


class UsageError(SqError, ValueError):
    """A wrong option, recipe or argument."""

    exit_code = 2


class InputError(SqError, ValueError):
    """A tensor that a compiled step cannot take: shape, dtype, device or an empty batch."""

    exit_code = 2


class CaptureError(SqError):
    """The model does not load or cannot be traced."""

    exit_code = 3


class UnsupportedOpError(SqError):
    """Ops that the target has no kernel for; the text lists all of them."""

    exit_code = 4


class TargetUnavailableError(SqError):
    """A target, toolchain or device that is not there."""

    exit_code = 5


class VerificationError(SqError):
    """A compiled step that differs from its reference, or a product left in float."""

    exit_code = 6


class GateError(SqError):
    """`bench --gate`: slower, beside a peer, than a bound allows."""

    exit_code = 7


class IllegalAccessError(SqError):
    """A VTA program that leaves a memory, reads what nothing wrote, or does not wait for it."""

    exit_code = 10


class EncodingError(SqError, ValueError):
    """Bits that are no instruction of this accelerator, or a field that its layout cannot hold."""

    exit_code = 11


class PortabilityError(SqError):
    """A VTA program that upstream's implementations do not agree on."""

    exit_code = 11


class TokenError(SqError):
    """A VTA program that stops before its end, leaves tokens behind, or ends before its work."""

    exit_code = 12


def first_line(error: BaseException) -> str:
    """The first line of an error's message; its type's name where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
