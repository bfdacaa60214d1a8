"""Benchmarks as code: one file a question, every number a ratio against a peer measured in the same run."""
