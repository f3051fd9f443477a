"""Presets of ``camkit evaluate``: TOML files, each listed in the entry-point group ``camkit.presets``."""

from pathlib import Path

TABLE8 = Path(__file__).with_name("table8.toml")
