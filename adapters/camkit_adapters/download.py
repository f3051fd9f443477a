"""Downloads of weights: what goes wrong becomes one sentence, soon, and progress goes to the error output."""

import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

from camkit.errors import CamkitError

SECONDS_WITHOUT_ANSWER = 10.0


@contextmanager
def downloading(spec: str) -> Iterator[None]:
    """Within it, a request that gets no answer ends after seconds, and any failure is told as one sentence.

    Raises:
        CamkitError: the weights of `spec` could not be loaded; the sentence says what to do instead.
    """
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SECONDS_WITHOUT_ANSWER)
    try:
        # torch.hub prints to the standard output, which belongs to results.
        with redirect_stdout(sys.stderr):
            yield
    except CamkitError:
        raise
    # Each client has errors of its own, and httpx's do not derive from OSError.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CamkitError(
            f"The default weights of '{spec}' could not be loaded ({reason}); use --weights none for a model that is "
            "not trained, or --weights FILE for a checkpoint."
        ) from error
    finally:
        socket.setdefaulttimeout(before)
