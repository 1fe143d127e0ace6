"""Emitter of the random draws: Philox4x32-10 in int64, without a product that passes 2^63."""

import torch

from sqcompile.onnx.body import Body, Value
from sqcompile.onnx.shapes import joined, reshaped, sliced
from sqcompile.onnx.table import Call, cast, emits
from sqcompile.ops.philox import (
    DRAWS_PER_BLOCK,
    LANES,
    MULTIPLIERS,
    ROUNDS,
    WEYL,
    WORD,
    draws,
)

_HALF, _LOW = 1 << 16, 0xFFFF


class _Words:
    """Arithmetic on 32-bit words in int64, all of it below 2^63."""

    def __init__(self, body: Body) -> None:
        self.body = body

    def number(self, value: int) -> Value:
        return self.body.constant(value, torch.int64)

    def low(self, x: Value, mask: int) -> Value:
        return self.body.call("BitwiseAnd", x, self.number(mask))

    def high(self, x: Value) -> Value:
        """x >> 16, x not negative."""
        return self.body.call("Div", x, self.number(_HALF))

    def xor(self, *words: Value) -> Value:
        total = words[0]
        for word in words[1:]:
            total = self.body.call("BitwiseXor", total, word)
        return total

    def added(self, x: Value, number: int) -> Value:
        """Modulo 2^32."""
        return self.low(self.body.call("Add", x, self.number(number)), WORD)

    def product(self, x: Value, multiplier: int) -> tuple[Value, Value]:
        """(high word, low word) of x * multiplier, from products with the halves of x."""
        body, factor = self.body, self.number(multiplier)
        top = body.call("Mul", self.high(x), factor)
        bottom = body.call("Mul", self.low(x, _LOW), factor)
        middle = body.call("Add", top, self.high(bottom))
        low = body.call("Mul", self.low(middle, _LOW), self.number(_HALF))
        return self.high(middle), body.call("Add", low, self.low(bottom, _LOW))


@emits(draws)
def _(call: Call) -> Value:
    """As the reference: key (seed, stream), counter (block, step, micro_step, rank)."""
    body, words, count = call.body, _Words(call.body), call["n"]
    groups = -(-count // (LANES * DRAWS_PER_BLOCK))
    block = body.constant(torch.arange(groups * LANES, dtype=torch.int64))
    state = [words.low(sliced(body, call["rng"], 0, at, at + 1), WORD) for at in range(4)]
    stream = call.value(call["stream"], torch.int64)
    counter = [words.low(block, WORD), *(_spread(body, one, block) for one in state[1:])]
    key = [state[0], words.low(reshaped(body, stream, [1]), WORD)]
    halves = []
    for word in _rounds(body, counter, key):
        for half in (words.low(word, _LOW), words.high(word)):
            halves.append(reshaped(body, half, [groups, 1, LANES]))
    every = reshaped(body, joined(body, halves, 1), [groups * LANES * DRAWS_PER_BLOCK])
    return cast(body, sliced(body, every, 0, 0, count), torch.int32)


def _spread(body: Body, word: Value, like: Value) -> Value:
    return body.call("Expand", word, body.numbers(like.shape), shape=like.shape)


def _rounds(body: Body, counter: list[Value], key: list[Value]) -> list[Value]:
    """The four words after all rounds: a Loop."""
    inner = body.part("round")
    words = _Words(inner)
    flag = Value(body.store.name("go_on"), torch.bool, ())
    number = Value(body.store.name("number"), torch.int64, ())
    c0, c1, c2, c3 = old = [inner.fresh("word", word) for word in counter]
    keys = [inner.fresh("key", word) for word in key]
    (high0, low0), (high1, low1) = (
        words.product(word, factor) for word, factor in zip((c0, c2), MULTIPLIERS, strict=True)
    )
    new = [words.xor(high1, c1, keys[0]), low1, words.xor(high0, c3, keys[1]), low0]
    new += [words.added(word, step) for word, step in zip(keys, WEYL, strict=True)]
    still = inner.call("Identity", flag)
    graph = inner.graph("round", [number, flag, *old, *keys], [still, *new])
    results = [body.fresh("rounds", word) for word in [*counter, *key]]
    times = [body.constant(ROUNDS, torch.int64), body.constant(torch.tensor(True))]
    body.several("Loop", [*times, *counter, *key], results, body=graph)
    return results[:4]
