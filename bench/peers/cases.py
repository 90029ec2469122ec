"""What is compared: a peer, a width, a number of tokens; chosen by the environment."""

from __future__ import annotations

import os
from dataclasses import dataclass

NAMES = {"saedashboard": "SAEDashboard", "delphi": "delphi"}
DEFAULT = "saedashboard:4096x65536 saedashboard:16384x65536 delphi:4096x1048576 delphi:65536x65536"
AIMS = {"saedashboard:4096": 100, "saedashboard:16384": 500, "delphi:4096": 7, "delphi:65536": 20}
DTYPES = os.environ.get("BENCH_DTYPES", "bfloat16 float32").split()
BATCHES = int(os.environ.get("BENCH_BATCHES", 2))  # of 128 latents, measured of SAEDashboard; 0 for all
AT_ONCE = int(os.environ.get("BENCH_AT_ONCE", 0))  # contexts in one forward of a peer; 0 for what we found fastest


@dataclass(frozen=True)
class Case:
    peer: str
    d_sae: int
    tokens: int

    @property
    def aim(self) -> str:
        """The ratio that we work towards, where there is one."""
        aim = AIMS.get(f"{self.peer}:{self.d_sae}")
        return "" if aim is None else f"; the aim is {aim}"

    @property
    def size(self) -> str:
        return f"{self.d_sae}x{self.tokens}"


def chosen() -> list[Case]:
    """The cases that BENCH_PEERS names, by width and length, so that what they share is measured once."""
    return [_case(word) for word in os.environ.get("BENCH_PEERS", DEFAULT).split()]


def _case(word: str) -> Case:
    peer, _, size = word.partition(":")
    numbers = size.split("x")
    if peer not in NAMES or len(numbers) != 2 or not all(n.isdecimal() for n in numbers):
        example = "saedashboard:4096x65536 delphi:65536x65536"
        raise SystemExit(f"BENCH_PEERS has {word!r}; write peer, latents and tokens of each, as in {example}")
    return Case(peer, int(numbers[0]), int(numbers[1]))
