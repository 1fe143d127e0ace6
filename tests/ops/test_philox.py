"""Draws: the published vectors, the written order of draws, and that streams look independent."""

import hashlib
from itertools import pairwise

import pytest
import torch

from sqcompile.ops.philox import draws, fold_seed, philox4x32, stream_id

KNOWN_ANSWERS = [
    # Random123 1.14, tests/kat_vectors, "philox4x32 10": counter, key, output
    ("00000000 00000000 00000000 00000000", "00000000 00000000",
     "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff",
     "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
     "d16cfe09 94fdcceb 5001e420 24126ea1"),
]  # fmt: skip
WORD = 2**32


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


def scalar_philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x32-10 in Python integers, after the paper: ten rounds, keys raised in between."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * c0, WORD)
        high1, low1 = divmod(0xCD9E8D57 * c2, WORD)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) % WORD, (k1 + 0xBB67AE85) % WORD
    return [c0, c1, c2, c3]


def scalar_draw(i: int, rng: list[int], stream: int) -> int:
    """Element i's draw by the written rule, one element at a time."""
    seed, step, micro_step, rank = (value % WORD for value in rng)
    block, d = i % 16 + 16 * (i // 128), (i // 16) % 8
    output = scalar_philox([block, step, micro_step, rank], [seed, stream % WORD])
    word = output[d // 2]
    return word % 2**16 if d % 2 == 0 else word // 2**16


def tensor(values: list[int]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_published_vectors(counter: str, key: str, expected: str) -> None:
    c = [torch.tensor(word) for word in words(counter)]
    k0, k1 = (torch.tensor(word) for word in words(key))
    assert [int(word) for word in philox4x32(c, (k0, k1))] == words(expected)
    assert scalar_philox(words(counter), words(key)) == words(expected)


@pytest.mark.parametrize("n", [0, 1, 15, 16, 17, 127, 128, 129, 400])
def test_order_of_draws(n: int) -> None:
    rng, stream = [0x9ABCDEF0, 3, 1, 7], 0xFEDCBA98
    got = draws(tensor(rng), n, stream)
    assert got.dtype == torch.int32
    assert got.tolist() == [scalar_draw(i, rng, stream) for i in range(n)]


def test_counters_and_keys_are_taken_modulo_2_to_32() -> None:
    rng = [2**40 + 5, 2**33 + 6, 2**32 + 7, 2**34 + 8]
    assert draws(tensor(rng), 200, 9).equal(draws(tensor([5, 6, 7, 8]), 200, 9))
    assert draws(tensor([-1, 0, 0, 0]), 40, 9).tolist() == [
        scalar_draw(i, [-1, 0, 0, 0], 9) for i in range(40)
    ]


def test_a_longer_tensor_starts_with_the_same_draws() -> None:
    rng = tensor([1, 2, 3, 4])
    assert draws(rng, 1000, 5)[:333].equal(draws(rng, 333, 5))


def test_every_part_of_the_state_changes_the_draws() -> None:
    base = [11, 12, 13, 14]
    runs = [draws(tensor(base), 64, 15)]
    for place in range(4):
        changed = list(base)
        changed[place] += 1
        runs.append(draws(tensor(changed), 64, 15))
    runs.append(draws(tensor(base), 64, 16))
    assert len({tuple(run.tolist()) for run in runs}) == len(runs)


def test_draws_are_uniform() -> None:
    got = draws(tensor([2024, 1, 0, 0]), 2**18, 77)
    assert int(got.min()) >= 0 and int(got.max()) < 2**16
    for part in (got >> 8, got & 0xFF):
        observed = torch.bincount(part, minlength=256).double()
        chi_square = float(((observed - 2**10) ** 2 / 2**10).sum())
        assert abs(chi_square - 255) < 5 * (2 * 255) ** 0.5


def test_neighbours_and_streams_are_uncorrelated() -> None:
    n = 2**16

    def centred(rng: list[int], stream: int) -> torch.Tensor:
        values = draws(tensor(rng), n, stream).double()
        return (values - values.mean()) / values.std()

    base = centred([5, 1, 0, 0], 1)
    for lag in (1, 2, 16, 32, 112, 128):
        assert abs(float((base[lag:] * base[:-lag]).mean())) < 5 / n**0.5
    others = [([6, 1, 0, 0], 1), ([5, 2, 0, 0], 1), ([5, 1, 1, 0], 1), ([5, 1, 0, 1], 1)]
    for rng, stream in [*others, ([5, 1, 0, 0], 2)]:
        assert abs(float((base * centred(rng, stream)).mean())) < 5 / n**0.5


def test_stream_id_is_the_start_of_a_sha256() -> None:
    digest = hashlib.sha256(b"layer1.0.conv/dgrad/gradient/2").digest()
    expected = digest[0] + (digest[1] << 8) + (digest[2] << 16) + (digest[3] << 24)
    assert stream_id("layer1.0.conv", "dgrad", "gradient", 2) == expected
    named = [("a", "dgrad", "g", 0), ("a", "wgrad", "g", 0), ("a", "dgrad", "g", 1)]
    ids = [stream_id(*name) for name in named]
    assert len(set(ids)) == 3 and all(0 <= value < WORD for value in ids)


def test_fold_seed_keeps_small_seeds_and_uses_all_64_bits() -> None:
    assert [fold_seed(seed) for seed in (0, 1, WORD - 1)] == [0, 1, WORD - 1]
    assert fold_seed(0x0123456789ABCDEF) == 0x01234567 ^ 0x89ABCDEF
    assert all(0 <= fold_seed(seed) < WORD for seed in (-1, -(2**63), 2**80))
    assert all(fold_seed(a << 32) != fold_seed(b << 32) for a, b in pairwise(range(5)))
