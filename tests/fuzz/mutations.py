"""A small fuzzer where there is no libFuzzer: seeds in, changed ones out, the same for the same number."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

_TELLING = b'\x00\n "\\%&,.:;-[]{}09azv\x7f\x80\xc3\xff'


def mutated(seeds: Sequence[bytes], number: int, *, seed: int, words: Sequence[bytes]) -> Iterator[bytes]:
    """Yield `number` inputs: each a seed with one to eight changes, a word of `words` being one of them."""
    chance = random.Random(seed)
    for _ in range(number):
        data = bytearray(chance.choice(seeds))
        for _ in range(chance.choice((1, 1, 2, 3, 8))):
            _change(data, chance, seeds, words)
        yield bytes(data)


def _change(data: bytearray, chance: random.Random, seeds: Sequence[bytes], words: Sequence[bytes]) -> None:
    place = chance.randint(0, len(data))
    end = min(len(data), place + chance.choice((0, 1, 1, 2, 4, 16, 64)))
    match chance.randrange(6):
        case 0:  # one bit
            if place < len(data):
                data[place] ^= 1 << chance.randrange(8)
        case 1:
            data[place:end] = bytes([chance.choice(_TELLING)])
        case 2:
            del data[place:end]
        case 3:
            data[place:place] = data[place:end] * chance.choice((1, 2, 20))
        case 4:
            data[place:end] = chance.choice(words)
        case _:  # goes on as another does
            other = chance.choice(seeds)
            data[place:] = other[chance.randint(0, len(other)) :]
