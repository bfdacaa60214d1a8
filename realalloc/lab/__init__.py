"""The lab: what ``realalloc bench``, ``stress``, ``record`` and ``replay`` are made of, and what ``bench/`` measures with.

Rooms, bottom up: ``results`` (records, nothing else), ``clock``, ``histogram``, ``counters``, ``machine`` (how things are
measured), ``streams``, ``loops``, ``peers``, ``workloads`` (what is measured), ``trace`` (recorded programs), ``stress``
(abuse with proof), ``report`` (what a person reads).
May not: be imported by anything but the command line, ``bench/`` and tests.
"""
