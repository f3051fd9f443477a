"""Digit scenes: a small multi-label data set with known boxes, three models trained on it, and one that cheats."""
