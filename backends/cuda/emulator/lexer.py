"""The words, numbers and signs of a PTX text, with their lines."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from sqcompile.backends.cuda.emulator.faults import PtxError


@dataclass(frozen=True)
class Token:
    """A word, number, string or sign; `start` is its place in the text."""

    text: str
    line: int
    start: int


_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.S)
_TOKEN = re.compile(
    r"""0[fF][0-9a-fA-F]{8}|0[dD][0-9a-fA-F]{16}|0[xX][0-9a-fA-F]+U?|[0-9]+U?
    |[.%$_A-Za-z][\w$]*(?:(?:\.|::)[\w$]+)*|"[^"]*"|[][,;{}()<>|=+\-!@:]""",
    re.X,
)
_SPACE = re.compile(r"\s+")


def blank_comments(text: str) -> str:
    """The text with spaces where comments were, so that places and lines stay."""
    return _COMMENT.sub(lambda match: re.sub(r"[^\n]", " ", match.group()), text.rstrip("\0"))


END = Token("the end of the text", 0, 0)


def tokens(text: str) -> Iterator[Token]:
    """The tokens of a text without comments."""
    at, line = 0, 1
    while at < len(text):
        if space := _SPACE.match(text, at):
            line += space.group().count("\n")
            at = space.end()
            continue
        match = _TOKEN.match(text, at)
        if match is None:
            raise PtxError(f"line {line}: this is no PTX: {text[at : at + 40].splitlines()[0]!r}")
        yield Token(match.group(), line, at)
        at = match.end()


class Cursor:
    """A place among the tokens of a text."""

    def __init__(self, text: str) -> None:
        self.text = blank_comments(text)
        self.tokens = list(tokens(self.text))
        self.at = 0

    @property
    def next(self) -> Token:
        """The token here, END after the last."""
        return self.tokens[self.at] if self.at < len(self.tokens) else END

    def take(self, expected: str | None = None) -> Token:
        """The next token, which must be `expected` when that is given."""
        token = self.next
        if token is END or (expected is not None and token.text != expected):
            raise self.error(f"{expected or 'more'} is expected, not {token.text!r}", token)
        self.at += 1
        return token

    def accept(self, text: str) -> bool:
        """Take the next token if it is `text`."""
        if self.next.text != text:
            return False
        self.at += 1
        return True

    def error(self, what: str, token: Token | None = None) -> PtxError:
        """The error that something is wrong with a token, or here."""
        return PtxError(f"line {(token or self.next).line}: {what}")

    def skip_past(self, end: str) -> None:
        """Take all up to a token, and it."""
        while self.take().text != end:
            pass

    def integer(self) -> int:
        """An integer in C's notation, perhaps with a minus."""
        negative = self.accept("-")
        token = self.take()
        if not re.fullmatch(r"0[xX][0-9a-fA-F]+U?|[0-9]+U?", token.text):
            raise self.error(f"an integer is expected, not {token.text!r}", token)
        digits = token.text.rstrip("U")
        octal = len(digits) > 1 and digits.isdecimal() and digits[0] == "0"
        value = int(digits, 8 if octal else 0)
        return -value if negative else value
