"""One comparison of a result with its reference; of the standard library only, so that serving can verify too."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """One comparison: the largest error relative to the largest reference value, and the tolerance it had to meet."""

    name: str
    error: float
    tolerance: float
    images: int
    ties_left_out: int = 0

    @property
    def passed(self) -> bool:
        """Whether the error is within the tolerance; a NaN is not."""
        return self.error <= self.tolerance
