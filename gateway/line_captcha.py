"""The captcha hook: a guest's answer is verified by whoever made the captcha, server to server.

The form is the one that all of them share: a POST of `secret`, `response` and `remoteip`, answered by JSON with
`success`. What cannot be verified lets nobody in: 503, and the guest may try again.
"""

import asyncio
import json
import ssl
from urllib.parse import urlencode, urlsplit

import httptools

from core.errors import Fault, Overloaded
from gateway.line_proof import ProofNeeded, ProofWrong

ANSWER_BYTES = 65_536
MAX_AT_ONCE = 100  # verifications under way; each is a connection


class CaptchaUnavailable(Fault):
    """Nobody could say whether the answer is right."""

    status = 503
    code = "captcha_unavailable"
    retryable = True


class Captcha:
    """The verifier of a deployment."""

    def __init__(self, url: str, secret: str, timeout_s: float) -> None:
        """`url` "" = there is none: campaigns that want one let no guest in."""
        parts = urlsplit(url)
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._host, self._port = parts.hostname or "", parts.port or (443 if self._tls else 80)
        self._authority, self._path = parts.netloc.rpartition("@")[2], parts.path or "/"
        if parts.query:
            self._path += "?" + parts.query
        self._secret = secret
        self._timeout_s = timeout_s
        self._under_way = 0

    async def judge(self, answer: str, client_ip: str) -> None:
        """The answer is right. Raises ProofNeeded, ProofWrong; CaptchaUnavailable, Overloaded: nobody knows."""
        if not answer:
            raise ProofNeeded("send the captcha's answer too")
        if not self._host:
            raise CaptchaUnavailable("RUSHGATE_CAPTCHA_URL is not set")
        if self._under_way >= MAX_AT_ONCE:
            raise Overloaded("too many captchas are being verified")
        self._under_way += 1
        try:
            async with asyncio.timeout(self._timeout_s):
                status, body = await self._ask(answer, client_ip)
        except (TimeoutError, OSError, EOFError, httptools.HttpParserError, ValueError) as exc:
            raise CaptchaUnavailable(f"the verifier did not answer: {type(exc).__name__}") from exc
        finally:
            self._under_way -= 1
        if status != 200:
            raise CaptchaUnavailable(f"the verifier answered {status}")
        try:
            said = json.loads(body)
            right = said["success"]
        except (ValueError, RecursionError, KeyError, TypeError) as exc:
            raise CaptchaUnavailable("the verifier's answer cannot be read") from exc
        if right is not True:
            raise ProofWrong("the captcha's answer is wrong or too old")

    async def _ask(self, answer: str, client_ip: str) -> tuple[int, bytes]:
        form = {"secret": self._secret, "response": answer, **({"remoteip": client_ip} if client_ip else {})}
        body = urlencode(form).encode()
        head = (
            f"POST {self._path} HTTP/1.1\r\nhost: {self._authority}\r\nconnection: close\r\n"
            f"accept: application/json\r\ncontent-type: application/x-www-form-urlencoded\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        )
        reader, writer = await asyncio.open_connection(self._host, self._port, ssl=self._tls, limit=ANSWER_BYTES)
        try:
            writer.write(head.encode("latin-1") + body)
            answered = _Answer()
            parser = httptools.HttpResponseParser(answered)
            size = 0
            while not answered.complete:
                data = await reader.read(ANSWER_BYTES)
                if not data:
                    if answered.headed and not answered.sized:
                        break
                    raise EOFError
                size += len(data)
                if size > ANSWER_BYTES:
                    raise ValueError("the answer is too long")
                parser.feed_data(data)
            return parser.get_status_code(), bytes(answered.body)
        finally:
            writer.transport.abort()  # not awaited: a verifier that never closes keeps nobody


class _Answer:
    """Called by the parser."""

    def __init__(self) -> None:
        self.body = bytearray()
        self.complete = self.headed = self.sized = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self.sized |= name.lower() in (b"content-length", b"transfer-encoding")

    def on_headers_complete(self) -> None:
        self.headed = True

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.complete = True
