"""Data sets: cards, sources of raw examples and labels, and the proof that row i is row i."""
