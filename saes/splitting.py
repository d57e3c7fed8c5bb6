"""Which groups a split holds out: the same for a corpus and for the store that was harvested from it."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable


def held_out_groups(groups: Iterable[str], held_out: float, seed: int) -> frozenset[str]:
    """The groups on the held-out side, chosen so that their members are about `held_out` of all.

    Groups are taken in the order of a hash of seed and name, so that a group that joins or leaves changes little. With
    two groups or more, neither side is empty.

    Args:
        groups: the group of each member.
        held_out: the part to hold out, between 0 and 1.
        seed: another seed holds out other groups.
    """
    counts = Counter(groups)
    wanted = held_out * counts.total()
    taken: list[str] = []
    size = 0
    for group in sorted(counts, key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).digest()):
        if (taken and size >= wanted) or len(taken) == len(counts) - 1:
            break
        taken.append(group)
        size += counts[group]
    return frozenset(taken)
