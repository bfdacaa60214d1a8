"""Jitted loops of the workloads, each written once and made for every kind of allocator and every layer around it.

``kinds`` says what an allocator is to a loop and which there are; ``layers`` puts timing or checking around one; ``basic``,
``fills``, ``crowds`` and ``pages`` are the loops; ``waits`` is what loops of several threads share.
"""
