"""Digit scenes: a small multi-label data set with known boxes, and three models trained on it."""
