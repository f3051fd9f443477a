"""Operators written in the language of a format. What they import is heavy, and needed by who exports alone."""
