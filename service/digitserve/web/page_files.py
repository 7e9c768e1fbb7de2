"""The files of the page at ``/``: read once, when the service starts, and served from memory. Runs on the supervisor's event loop.

    GET /            index.html
    GET /page/NAME   any other file of the folder ``page/``

The page is not secret, so it needs no token. What it shows comes from the HTTP API and ``/metrics``, which check the client.
"""

import hashlib
from collections.abc import Iterator
from importlib.resources import files
from importlib.resources.abc import Traversable

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

INDEX = "index.html"

CONTENT_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
    "png": "image/png",
    "jpg": "image/jpeg",
}
"""By the suffix of the name. Files with other suffixes are not served."""

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Content-Security-Policy: scripts, styles and connections of this service only, and no page may embed this one."""

_HEADERS = {
    # Browsers keep the files, and ask each time whether they have changed.
    "cache-control": "no-cache",
    "content-security-policy": POLICY,
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), display-capture=(), geolocation=(), microphone=(), payment=(), usb=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


class PageFile:
    """One file in memory; owned by ``page_routes``.

    Attributes:
        content: of the file.
        headers: of the answer with the content, and of 304.
    """

    def __init__(self, name: str, content: bytes) -> None:
        """Prepare the answers.

        Args:
            name: of the file; its suffix decides the content type.
            content: of the file.
        """
        self.content = content
        self.headers = {**_HEADERS, "etag": f'"{hashlib.sha256(content).hexdigest()[:32]}"'}
        self._content_type = CONTENT_TYPES[_suffix(name)]

    def answer(self, request: Request) -> Response:
        """Return the file, or 304 if the client has it already."""
        if _matches(request.headers.get("if-none-match", ""), self.headers["etag"]):
            return Response(status_code=304, headers=self.headers)
        return Response(self.content, headers={**self.headers, "content-type": self._content_type})


def page_routes() -> list[Route]:
    """Read all files of the page, and return the routes that serve them."""
    found = dict(_read(files("digitserve.web") / "page"))

    # A name is only looked up in a dict, so no path leads to another file.
    async def index(request: Request) -> Response:
        return found[INDEX].answer(request)

    async def other(request: Request) -> Response:
        file = found.get(request.path_params["name"])
        return PlainTextResponse("Not Found", 404) if file is None else file.answer(request)

    return [Route("/", index), Route("/page/{name:path}", other)]


def _read(folder: Traversable, prefix: str = "") -> Iterator[tuple[str, PageFile]]:
    for path in folder.iterdir():
        name = prefix + path.name
        if path.is_dir():
            yield from _read(path, f"{name}/")
        elif _suffix(name) in CONTENT_TYPES:
            yield name, PageFile(name, path.read_bytes())


def _suffix(name: str) -> str:
    return name.rpartition(".")[2]


def _matches(if_none_match: str, etag: str) -> bool:
    """Return whether the client already has the content with this ETag: RFC 9110, section 13.1.2, by the weak comparison."""
    sent = {tag.strip().removeprefix("W/") for tag in if_none_match.split(",")}
    return etag in sent or "*" in sent
