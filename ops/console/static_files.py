"""The page's own files and the chart library of the installed plotly package: read once, served compressed, and cached
for good, as their address changes with their content."""

import asyncio
import gzip
import hashlib
import mimetypes
from importlib import resources
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

FOR_GOOD = "public, max-age=31536000, immutable"
CHARTS = "plotly.min.js"
TYPES = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml"}


class File(NamedTuple):
    """One file as it is sent."""

    content: bytes
    packed: bytes
    media_type: str


class Files:
    """All files of `ops/console/static`, and the page that begins with their addresses."""

    def __init__(self, base: str) -> None:
        """`base`: the path that the console is served under, e.g. `/console`."""
        folder = resources.files("ops.console") / "static"
        found = {file.name: file.read_bytes() for file in folder.iterdir() if not file.name.startswith(("_", "."))}
        page = found.pop("index.html").decode()
        self.mark = hashlib.sha256(b"".join(name.encode() + found[name] for name in sorted(found))).hexdigest()[:16]
        self._files = {name: _file(name, content) for name, content in found.items()}
        self._charts_mark, self._charts = _charts()
        charts = f"{base}/static/{self._charts_mark}/{CHARTS}" if self._charts else ""
        page = page.replace("{{base}}", base).replace("{{files}}", f"{base}/static/{self.mark}")
        self.page = page.replace("{{charts}}", charts).encode()
        self._packing = asyncio.Lock()

    async def index(self, request: Request) -> Response:
        """The page: holds nothing secret, and asks for a login by itself."""
        return Response(self.page, media_type="text/html", headers={"cache-control": "no-cache"})

    async def static(self, request: Request) -> Response:
        """One file, by its mark and name."""
        mark, name = request.path_params["mark"], request.path_params["name"]
        if mark == self._charts_mark and name == CHARTS and self._charts:
            async with self._packing:  # a third of a second of work, once, and not on the event loop
                if not self._charts.packed:
                    packed = await asyncio.to_thread(gzip.compress, self._charts.content, 6)
                    self._charts = self._charts._replace(packed=packed)
            return _told(request, self._charts)
        file = self._files.get(name) if mark == self.mark else None
        return _told(request, file) if file is not None else PlainTextResponse("no such file", 404)


def _told(request: Request, file: File) -> Response:
    packed = "gzip" in request.headers.get("accept-encoding", "")
    headers = {"cache-control": FOR_GOOD, "vary": "accept-encoding"}
    if packed:
        headers["content-encoding"] = "gzip"
    return Response(file.packed if packed else file.content, media_type=file.media_type, headers=headers)


def _file(name: str, content: bytes) -> File:
    suffix = name[name.rindex(".") :]
    kind = TYPES.get(suffix) or mimetypes.guess_type(name)[0] or "application/octet-stream"
    return File(content, gzip.compress(content, 9), kind)


def _charts() -> tuple[str, File | None]:
    """The library as its package has it; None where the extra `console` is not installed."""
    try:
        content = (resources.files("plotly") / "package_data" / CHARTS).read_bytes()
    except (ModuleNotFoundError, FileNotFoundError):
        return "", None
    return hashlib.sha256(content).hexdigest()[:16], File(content, b"", TYPES[".js"])
