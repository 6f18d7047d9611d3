"""Traced programs: equations, graphs of them, and the table of primitives."""
