"""The pages of an account: logging in, registering, the password, API tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from django.contrib.auth.forms import PasswordChangeForm
from django.contrib.auth.models import User
from django.forms import BaseForm

from browser.forms import TokenForm
from browser.models import ApiToken


@dataclass(frozen=True)
class LoginPage:
    """Asks for name and password; `target` is where to go on."""

    form: BaseForm
    target: str
    registration: bool  # whether accounts can be made by whoever comes
    template: ClassVar[str] = "browser/account_login.html"


@dataclass(frozen=True)
class RegisterPage:
    """Asks for the name and password of a new account."""

    form: BaseForm
    target: str
    template: ClassVar[str] = "browser/account_register.html"


@dataclass(frozen=True)
class AccountPage:
    """An account as its owner sees it. `key` is a new token's, which is shown this once."""

    tokens: list[ApiToken]
    token_form: TokenForm
    password_form: PasswordChangeForm
    key: str = ""
    said: str = ""  # what has just been done
    template: ClassVar[str] = "browser/account_detail.html"


def tokens(user: User) -> list[ApiToken]:
    """A user's tokens, the newest first."""
    return list(ApiToken.objects.filter(user=user).order_by("-pk"))
