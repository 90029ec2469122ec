"""Benchmarks: every claim of speed or size in the documentation is a line that one of these prints."""
