"""Models with what a reading of them must say, worked out by hand from their architecture.

Models in plain JAX stand in files by family of architecture, and enter themselves into the table of
`plain`; those of Flax, Equinox and Haiku stand in files by framework or by what they are made for.
"""
