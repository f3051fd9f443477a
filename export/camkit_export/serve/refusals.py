"""Requests that are not answered: why, and with which HTTP status."""

from collections.abc import Mapping
from types import MappingProxyType

from camkit.errors import CamkitError


class Refused(CamkitError):  # noqa: N818 - it is no failure of the server's
    """A request is refused; the text is one sentence for the client.

    Attributes:
        status: of HTTP.
        headers: what the answer has beside the sentence.
    """

    status = 422
    headers: Mapping[str, str] = MappingProxyType({})


class TooLarge(Refused):
    """The body has more bytes than are taken."""

    status = 413


class TooSlow(Refused):
    """The body did not arrive in time."""

    status = 408


class WrongType(Refused):
    """The body is of a content type or an encoding that is not read."""

    status = 415


class NoSuchModel(Refused):
    """The model's name is another."""

    status = 404


class QueueFull(Refused):
    """As many images are waiting as may."""

    status = 429
    headers = MappingProxyType({"Retry-After": "1"})


class Stopping(Refused):
    """The server answers what it has begun, and takes nothing new."""

    status = 503
    headers = MappingProxyType({"Retry-After": "5", "Connection": "close"})


class Gone(Refused):
    """The client hung up; nobody reads the answer. The status is what web servers write into their logs then."""

    status = 499
