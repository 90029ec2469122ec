"""What is the same for every request and response: whose token it carries, and headers."""

from __future__ import annotations

import gzip
import secrets
from collections.abc import Callable

from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.middleware.gzip import GZipMiddleware, re_accepts_gzip
from django.utils.cache import patch_vary_headers

from browser import accounts, pages, throttle

POLICY = "; ".join(
    (
        "default-src 'self'",
        "style-src 'self' 'unsafe-inline'",  # charts place their labels with style attributes
        "img-src 'self' data:",
        "script-src 'self'",
        "object-src 'none'",
        "base-uri 'none'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)
EFFORT = 4  # of zlib's 9; Django's 6 takes half as long again for a sixteenth less of a page
FNAME = b"\x08"  # a gzip header's flag: a file name follows
FOR_PEOPLE = ("/account", "/admin/", "/login", "/logout", "/register")  # where a program has nothing to do
UNKNOWN = "This token is not known here, or was revoked, or its account is closed: make one at /account"
NO_PLACE = "Tokens are for everything but accounts: log in with a password to use this page"
Answer = Callable[[HttpRequest], HttpResponseBase]


class Gzip(GZipMiddleware):
    """Django's, with less effort on what is not streamed."""

    def process_response(self, request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
        if not isinstance(response, HttpResponse) or len(response.content) < 200 or not _asks(request, response):
            return super().process_response(request, response)
        packed = self._packed(response.content)
        if len(packed) < len(response.content):
            response.content = packed
            response.headers["Content-Length"] = str(len(packed))
            response.headers["Content-Encoding"] = "gzip"
            if (etag := response.headers.get("ETag", "")).startswith('"'):
                response.headers["ETag"] = f"W/{etag}"
        patch_vary_headers(response, ("Accept-Encoding",))
        return response

    def _packed(self, content: bytes) -> bytes:
        """With a file name of random length in the header, as Django has it: lengths tell nothing of what is secret."""
        packed, name = gzip.compress(content, EFFORT, mtime=0), b"a" * secrets.randbelow(self.max_random_bytes)
        return packed[:3] + FNAME + packed[4:10] + name + b"\0" + packed[10:]


def _asks(request: HttpRequest, response: HttpResponse) -> bool:
    accepted = request.META.get("HTTP_ACCEPT_ENCODING", "")
    return not response.has_header("Content-Encoding") and re_accepts_gzip.search(accepted) is not None


class ContentSecurityPolicy:
    """Allow no script but the site's own files; a view that set its own policy keeps it."""

    def __init__(self, get_response: Answer) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        response = self.get_response(request)
        response.headers.setdefault("Content-Security-Policy", POLICY)
        return response


class ApiTokens:
    """Let `Authorization: Bearer` say who asks. Another site cannot send that header, so its forms need no CSRF token.

    Stands after Django's own, so that the token decides and not a session that came along with it.
    """

    def __init__(self, get_response: Answer) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        scheme, _, key = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer":  # a proxy's own password, perhaps
            return self.get_response(request)
        return self._by_token(request, key.strip())

    def _by_token(self, request: HttpRequest, key: str) -> HttpResponseBase:
        user = accounts.user_of(key)
        if user is None:
            return self._refused(request)
        if request.path_info.startswith(FOR_PEOPLE):
            return pages.as_json({"error": "not allowed", "message": NO_PLACE}, 403)
        request.user = user
        request._dont_enforce_csrf_checks = True  # type: ignore[attr-defined]  # as Django's own test client says it
        return self.get_response(request)

    def _refused(self, request: HttpRequest) -> HttpResponseBase:
        """401, or 429 to who asks on and on. Those with a good token at the same address are not kept out for it."""
        if throttle.count("token", throttle.address(request)) > throttle.OF_ONE_ADDRESS:
            slow = {"error": "too many requests", "message": f"Too many wrong tokens. {UNKNOWN}"}
            response = pages.as_json(slow, 429)
            response["Retry-After"] = str(throttle.SECONDS)
            return response
        response = pages.as_json({"error": "not logged in", "message": UNKNOWN}, 401)
        response["WWW-Authenticate"] = "Bearer"
        return response
