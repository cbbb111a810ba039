"""Downloads an image that is given by its address, within limits of size and time."""

import http.client
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from detr_jax.errors import UserError

MAX_BYTES = 100_000_000
WAIT_SECONDS = 20.0  # for a connection, or the next bytes
TOTAL_SECONDS = 120.0

_SCHEMES = ("http", "https")
_BLOCK = 1 << 16
_UNQUOTED = "%/:?#[]@!$&'()*+,;=~"


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http and https only: another could read the user's files."""

    def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: str) -> Any:
        scheme = urllib.parse.urlsplit(newurl).scheme
        if scheme not in _SCHEMES:
            raise UserError(
                f"{without_secrets(req.full_url)} redirects to an address that starts with {scheme}:, "
                "which is not followed. Download the image with a browser."
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def download(address: str) -> bytes:
    """The content at an address.

    Args:
      address: Starts with "http://" or "https://".

    Raises:
      UserError: The address is of another kind, cannot be reached, redirects to another kind, answers with an
        error, or answers with more than `MAX_BYTES`, or not within `TOTAL_SECONDS`.
    """
    name = without_secrets(address)
    if urllib.parse.urlsplit(address).scheme.lower() not in _SCHEMES:
        raise UserError(f"{name} is not read: the address of an image starts with http:// or https://")
    quoted = urllib.parse.quote(address, safe=_UNQUOTED)
    try:
        # Some servers, such as Wikimedia's, refuse clients that do not name themselves.
        request = urllib.request.Request(quoted, headers={"User-Agent": "detr-jax"})
        with _opener().open(request, timeout=WAIT_SECONDS) as response:
            return _content(response, name)
    except urllib.error.HTTPError as error:
        reason = f"the server answers {error.code} {_one_line(error.reason)}"
        raise UserError(f"{name} cannot be downloaded: {reason}") from None
    except urllib.error.URLError as error:
        raise UserError(f"{name} cannot be downloaded: {_one_line(error.reason)}") from None
    except (OSError, http.client.HTTPException) as error:
        raise UserError(f"{name} cannot be downloaded: {_one_line(error)}") from None
    except UserError:
        raise
    except ValueError as error:  # no host, or a port that is no number
        raise UserError(f"{name} is no valid address: {_one_line(error)}") from None


def _opener() -> urllib.request.OpenerDirector:
    """As `urllib.request.build_opener`, without its handlers of other schemes."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
        _Redirects,
    ):
        opener.add_handler(handler())
    return opener


def _content(response: http.client.HTTPResponse, name: str) -> bytes:
    """The body of a response, refused as soon as it is too large or too slow."""
    too_large = f"{name} is larger than {MAX_BYTES // 1_000_000} MB, the limit of an image that is downloaded"
    if response.length is not None and response.length > MAX_BYTES:
        raise UserError(too_large)
    deadline = time.monotonic() + TOTAL_SECONDS
    expected, content = response.length, bytearray()
    while block := response.read1(_BLOCK):
        content += block
        if len(content) > MAX_BYTES:
            raise UserError(too_large)
        if time.monotonic() > deadline:
            raise UserError(f"{name} cannot be downloaded: it takes longer than {TOTAL_SECONDS:g} seconds")
    if expected is not None and len(content) < expected:
        raise UserError(
            f"{name} cannot be downloaded: the connection ended after {len(content)} of {expected} bytes"
        )
    return bytes(content)


def without_secrets(address: str) -> str:
    """The address without a password or the secrets that a query can hold."""
    start, _, rest = address.partition("://")
    host, slash, path = rest.partition("/")
    return f"{start}://{host.rpartition('@')[2]}{slash}{path.partition('?')[0]}"


def _one_line(error: object) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
