"""Doubly linked lists of numbered nodes, kept in words outside the blocks.

Node ``i`` has its link at ``base + i * stride``: ``next << 32 | prev``. A head packs ``first << 32 | last``. Node 0 does
not exist, so 0 ends a list.
Invariant: ``next(prev(i)) = i = prev(next(i))`` for every node inside, first has no prev and last has no next.
"""

from __future__ import annotations

from realalloc.mm.jit import Words, kernel
from realalloc.mm.layout import LIST_PREV_MASK


@kernel
def first(words: Words, head: int) -> int:
    """Return the first node, 0 if the list is empty."""
    return words[head] >> 32


@kernel
def next_of(words: Words, base: int, stride: int, node: int) -> int:
    """Return the node behind, 0 at the end."""
    return words[base + node * stride] >> 32


@kernel
def push_front(words: Words, head: int, base: int, stride: int, node: int) -> None:
    """Put a node in front."""
    old = words[head]
    front = old >> 32
    words[base + node * stride] = front << 32
    if front == 0:
        words[head] = (node << 32) | node
    else:
        words[base + front * stride] |= node
        words[head] = (node << 32) | (old & LIST_PREV_MASK)


@kernel
def push_back(words: Words, head: int, base: int, stride: int, node: int) -> None:
    """Put a node at the end."""
    old = words[head]
    back = old & LIST_PREV_MASK
    words[base + node * stride] = back
    if back == 0:
        words[head] = (node << 32) | node
    else:
        words[base + back * stride] |= node << 32
        words[head] = (old ^ back) | node


@kernel
def remove(words: Words, head: int, base: int, stride: int, node: int) -> None:
    """Take a node out, wherever it is."""
    link = words[base + node * stride]
    after = link >> 32
    before = link & LIST_PREV_MASK
    if before == 0:
        words[head] = (after << 32) | (words[head] & LIST_PREV_MASK)
    else:
        words[base + before * stride] = (after << 32) | (words[base + before * stride] & LIST_PREV_MASK)
    if after == 0:
        words[head] = (words[head] >> 32 << 32) | before
    else:
        words[base + after * stride] = (words[base + after * stride] >> 32 << 32) | before
    words[base + node * stride] = 0


@kernel
def count_list(words: Words, head: int, base: int, stride: int, end: int, limit: int) -> int:
    """Walk the list both ways' links; return its length, or -1 if a link is wrong, leads to no node below ``end``, or it
    exceeds ``limit``. It ends whatever the links say: one that goes back disagrees with the link of where it leads.
    """
    node = words[head] >> 32
    before = 0
    count = 0
    while node != 0:
        if count >= limit or not 0 < node < end or words[base + node * stride] & LIST_PREV_MASK != before:
            return -1
        before = node
        node = words[base + node * stride] >> 32
        count += 1
    return count if words[head] & LIST_PREV_MASK == before else -1
