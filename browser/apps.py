"""The pages as a Django app."""

from __future__ import annotations

from django.apps import AppConfig


class BrowserConfig(AppConfig):
    name = "browser"
    verbose_name = "Latent browser"
