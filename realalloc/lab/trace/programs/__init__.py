"""Three small real programs that are recorded: a JSON and CSV job, a NumPy pipeline, an HTTP server under load.

Each runs on its own (``python json_csv.py 3``: three times the work), uses the standard library and NumPy only, draws from a
fixed seed, and prints one line that proves what it did.
"""
