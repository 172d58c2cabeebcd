"""What stands between a browser and harm: headers, a limit on bodies, and tokens that forms must carry.

Pages load scripts and styles from this service only, none inline, and are framed nowhere; so text of a model or a rater
that slipped through the escaping could still run nothing. A request that changes something carries a token that is
signed and bound to the user's session; pages of other sites cannot read it, and their requests are refused besides.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from itsdangerous import BadSignature, URLSafeTimedSerializer
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from components.review.people import User

__all__ = ["CONTENT_SECURITY_POLICY", "FormTokens", "Protection", "is_foreign"]

CONTENT_SECURITY_POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    ]
)

_HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",  # with no-referrer a browser sends our own forms with Origin: null
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=()",
}
_LARGEST_BODY = 32 * 1024 * 1024
"""Bytes; an import of labels is the largest thing that anybody sends."""


class Protection:
    """ASGI middleware: security headers on every answer, no body beyond the limit, no page kept in a cache.

    Args:
        app: What it protects.
        largest_body: In bytes.
    """

    def __init__(self, app: ASGIApp, largest_body: int = _LARGEST_BODY) -> None:
        self._app = app
        self._largest_body = largest_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        protected = self._protected(scope, send)
        declared = Headers(scope=scope).get("content-length", "0")
        if not declared.isdecimal() or int(declared) > self._largest_body:
            await PlainTextResponse("The request is too large.\n", status_code=413)(scope, receive, protected)
            return
        await self._app(scope, self._limited(receive), protected)

    def _limited(self, receive: Receive) -> Receive:
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._largest_body:
                return {"type": "http.disconnect"}
            return message

        return limited

    def _protected(self, scope: Scope, send: Send) -> Send:
        async def protected(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("cache-control", "no-store")
            await send(message)

        return protected


class FormTokens:
    """Tokens that a request which changes something must carry.

    Args:
        secret: Of the service.
        hours: How long a page may lie open before it is sent.
    """

    def __init__(self, secret: str, *, hours: float) -> None:
        self._serializer = URLSafeTimedSerializer(secret, salt="plumbline form")
        self._seconds = int(hours * 3600)

    def make(self, user: User) -> str:
        """A token for the forms of a user's session."""
        return str(self._serializer.dumps([user.login, user.session]))

    def accepts(self, token: str, user: User) -> bool:
        """Whether a token was made for this user's session, and lately."""
        try:
            return self._serializer.loads(token, max_age=self._seconds) == [user.login, user.session]
        except BadSignature:
            return False


def is_foreign(headers: Headers) -> bool:
    """Whether a browser says that a page of another site sent this request."""
    if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return True
    origin = headers.get("origin")
    return origin is not None and urlsplit(origin).netloc != headers.get("host")
