"""What is the same for every request and response: whose token it carries, and headers."""

from __future__ import annotations

from collections.abc import Callable

from django.http import HttpRequest, HttpResponseBase

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
FOR_PEOPLE = ("/account", "/admin/", "/login", "/logout", "/register")  # where a program has nothing to do
UNKNOWN = "This token is not known here, or was revoked, or its account is closed: make one at /account"
NO_PLACE = "Tokens are for everything but accounts: log in with a password to use this page"
Answer = Callable[[HttpRequest], HttpResponseBase]


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
