"""What people type, checked before anything is done with it."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib.auth.forms import AuthenticationForm
from django.core.exceptions import ValidationError
from django.http import HttpRequest

from browser import throttle

SLOWLY = f"Too many wrong passwords for this name. Wait {throttle.SECONDS // 60} minutes and try again."


class LoginForm(AuthenticationForm):
    """Name and password; whoever has guessed too often is not even asked."""

    request: HttpRequest
    error_messages = {
        "invalid_login": "No account has this name and this password. Capitals matter in both.",
        "inactive": "This account is closed.",
    }

    def clean(self) -> dict[str, Any]:
        address, name = throttle.address(self.request), str(self.cleaned_data.get("username", ""))
        if self._guessed(address, name):
            raise ValidationError(SLOWLY, code="throttled")
        try:
            return super().clean()
        except ValidationError:
            throttle.count("password", address, name.lower())
            throttle.count("password", address)
            raise

    def _guessed(self, address: str, name: str) -> bool:
        return (
            throttle.counted("password", address, name.lower()) >= throttle.OF_ONE_NAME
            or throttle.counted("password", address) >= throttle.OF_ONE_ADDRESS
        )


class TokenForm(forms.Form):
    """A name for a new API token."""

    name = forms.CharField(label="Name", max_length=100, help_text="where it will be used, say “cluster”")
