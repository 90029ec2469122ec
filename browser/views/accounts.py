"""Logging in and out, making an account, and an account's password and API tokens."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.contrib import auth
from django.contrib.auth.decorators import login_required
from django.contrib.auth.forms import PasswordChangeForm, UserCreationForm
from django.contrib.auth.models import User
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.utils.http import url_has_allowed_host_and_scheme
from django.views.decorators.cache import never_cache
from django.views.decorators.debug import sensitive_post_parameters
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from browser import accounts, pages, throttle
from browser.errors import NotFound
from browser.forms import LoginForm, TokenForm
from browser.queries.accounts import AccountPage, LoginPage, RegisterPage, tokens

SAID = {"password": "The password is changed. Tokens go on working: revoke those you doubt.", "revoked": "Revoked."}
OFTEN = f"Too many accounts were asked for from where you are. Wait {throttle.SECONDS // 60} minutes and try again."
GET_OR_POST = require_http_methods(["GET", "HEAD", "POST"])


@GET_OR_POST
@never_cache
@sensitive_post_parameters("password")
def login(request: HttpRequest) -> HttpResponse:
    form = LoginForm(request, request.POST if request.method == "POST" else None)
    if form.is_bound and form.is_valid():
        auth.login(request, form.get_user())
        return redirect(_target(request))
    return pages.show(request, LoginPage(form, _target(request), settings.OPEN_REGISTRATION))


@require_POST
@never_cache
def logout(request: HttpRequest) -> HttpResponse:
    auth.logout(request)
    return redirect("home")


@GET_OR_POST
@never_cache
@sensitive_post_parameters("password1", "password2")
def register(request: HttpRequest) -> HttpResponse:
    """Make an account, where settings.OPEN_REGISTRATION lets whoever comes do so."""
    if not settings.OPEN_REGISTRATION:
        raise NotFound("Accounts are not made here", "Whoever runs this site makes accounts: ask for one.")
    form: UserCreationForm[User] = UserCreationForm(request.POST if request.method == "POST" else None)
    often = form.is_bound and throttle.count("account", throttle.address(request)) > throttle.ACCOUNTS
    if often:
        form.add_error(None, OFTEN)
    if form.is_bound and form.is_valid():
        auth.login(request, form.save())
        return redirect(_target(request))
    return pages.show(request, RegisterPage(form, _target(request)), 429 if often else 200)


def _target(request: HttpRequest) -> str:
    """Where to go on: a path of this site, whatever the link says that led here."""
    wanted = request.POST.get("next", request.GET.get("next", ""))
    hosts = {request.get_host()}
    ours = url_has_allowed_host_and_scheme(wanted, allowed_hosts=hosts, require_https=request.is_secure())
    return wanted if ours else "/"


@require_safe
@never_cache
@login_required
def account(request: HttpRequest) -> HttpResponse:
    return _shown(request, said=SAID.get(request.GET.get("said", ""), ""))


@require_POST
@never_cache
@login_required
def token_create(request: HttpRequest) -> HttpResponse:
    """Make a token and show its key, which nobody can show again."""
    form = TokenForm(request.POST)
    if not form.is_valid():
        return _shown(request, token_form=form)
    _, key = accounts.new_token(_user(request), form.cleaned_data["name"])
    return _shown(request, key=key)


@require_POST
@never_cache
@login_required
def token_revoke(request: HttpRequest, pk: int) -> HttpResponse:
    if not accounts.revoke(_user(request), pk):
        raise NotFound("There is no such token", "It is revoked already, or is not yours.")
    return redirect("/account?said=revoked")


@require_POST
@never_cache
@login_required
@sensitive_post_parameters()
def password_change(request: HttpRequest) -> HttpResponse:
    """Change the password; other sessions of this account end, this one goes on."""
    form = PasswordChangeForm(_user(request), request.POST)
    if not form.is_valid():
        return _shown(request, password_form=form)
    auth.update_session_auth_hash(request, form.save())
    return redirect("/account?said=password")


def _shown(request: HttpRequest, **changed: Any) -> HttpResponse:
    user = _user(request)
    forms: dict[str, Any] = {"token_form": TokenForm(), "password_form": PasswordChangeForm(user)}
    forms |= changed
    forms["password_form"].fields["old_password"].widget.attrs.pop("autofocus", None)  # it is not what the page is for
    return pages.show(request, AccountPage(tokens(user), **forms))


def _user(request: HttpRequest) -> User:
    """Whoever is logged in, which login_required has seen to."""
    assert isinstance(request.user, User)
    return request.user
