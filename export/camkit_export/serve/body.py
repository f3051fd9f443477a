"""Bodies of requests: read into memory up to a limit of bytes and seconds, whatever their headers say."""

import asyncio
from collections.abc import AsyncGenerator

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from camkit_export.serve.refusals import Gone, Refused, TooLarge, TooSlow, WrongType

SECONDS = 30


async def read(request: Request, limit: int) -> bytes:
    """The body, of at most `limit` bytes.

    Raises:
        Refused: it is larger, is compressed, does not arrive within `SECONDS`, or the client hangs up.
    """
    encoding = request.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise WrongType(f"The body is encoded as {encoding[:40]}; only plain bodies are read.")
    declared = request.headers.get("content-length", "0")
    if len(declared) > 18 or int(declared) > limit:
        raise _too_large(limit)
    body = bytearray()
    try:
        async with asyncio.timeout(SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit:
                    raise _too_large(limit)
    except TimeoutError:
        raise TooSlow(f"The body did not arrive within {SECONDS} seconds.") from None
    except ClientDisconnect:
        raise Gone("The client hung up before its request was complete.") from None
    return bytes(body)


async def read_image(request: Request, limit: int) -> tuple[bytes, str]:
    """An image file's content and its name: the body itself, or the one file of a form.

    Raises:
        Refused: as for `read`, or the body is neither.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await _file(request, await read(request, limit))
    if kind.startswith("image/") or kind == "application/octet-stream":
        return await read(request, limit), "body"
    raise WrongType(
        "The body must be an image of the content type image/* or application/octet-stream, or a form "
        f"(multipart/form-data) with one file; this one is '{kind[:80]}'."
    )


async def _file(request: Request, body: bytes) -> tuple[bytes, str]:
    async def whole() -> AsyncGenerator[bytes, None]:
        yield body

    parser = MultiPartParser(request.headers, whole(), max_files=1, max_fields=8)
    # it is in memory already; a temporary file would only hold it a second time
    parser.spool_max_size = len(body) + 1
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise Refused(f"The form cannot be read: {error.message.rstrip('.')}.") from None
    files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
    if not files:
        raise Refused("The form holds no file; send the image as one.")
    try:
        return await files[0].read(), files[0].filename or "body"
    finally:
        await form.close()


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"The body is larger than the {limit} bytes that are taken.")
