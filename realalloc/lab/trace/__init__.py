"""Allocations of real programs: recorded, kept in a compact file, looked at, and replayed against any allocator.

Files, bottom up: ``raw`` (the log that a recorded program writes), ``hooks`` (the machine code that writes it; the program
gets it from ``realalloc/inject``), ``format`` (the file), ``walk`` (over events), ``resolve`` (a log becomes events),
``reading`` (files, logs, older traces, and shipped ones by name), ``statistics``, ``recorder`` (runs a program), ``schedule``
(who waits for whom), ``rounds`` (a trace as turns), ``replay`` (speed) and ``resident`` (memory, a process for each peer).
``programs`` are those that were recorded.
"""
