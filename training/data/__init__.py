"""Data sets: what is learned from."""
