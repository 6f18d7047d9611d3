"""Models with what a reading of them must say, worked out by hand from their architecture."""
