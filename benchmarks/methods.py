"""Measures what each method costs beside the same method of other libraries; see README.md."""

import argparse
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Iterator

# before torch and tqdm are imported: see explain.py, whose import does the first
os.environ.setdefault("TQDM_DISABLE", "1")

import explain
import torch
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import Progress
from torch import Tensor, nn

import method_memory
from contestants import CASES, METHODS, PLAIN, THREADS, Call, Case, Contestant, ignore_warnings, make_images, plain
from method_tables import Measured, Results, document
from rows import CONTESTANTS, LONG, SUBSETS, applies, channels
from timing import interleave

BATCH = 1
