"""Measures the transformation side by side with its references; see `python tools/bench --help`."""
