"""Fixtures of all tests: settings without built files, processes beside the test, and a real browser."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.looking import PATIENCE

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--disable-quic",
]


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Serve static files from where they are: the manifest of the built ones comes from collectstatic."""
    from django.conf import settings

    plain = {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"}
    settings.STORAGES = {**settings.STORAGES, "staticfiles": plain}
    settings.STATIC_ROOT.mkdir(parents=True, exist_ok=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if CHROMIUM is None:
        for item in items:
            if item.get_closest_marker("browser"):
                item.add_marker(pytest.mark.skip(reason="no chromium here: apt-get install chromium"))


@pytest.fixture
def site_environment(transactional_db: None) -> dict[str, str]:
    """The environment of a process, say a Celery worker, that shares this test's database and Redis."""
    from django.db import connection

    name, host = connection.settings_dict["NAME"], connection.settings_dict["HOST"]
    options = connection.settings_dict["OPTIONS"]
    user, host = connection.settings_dict["USER"], options.get("host") or host
    url = f"postgres://{user}@/{name}?host={host}"
    return {**os.environ, "DATABASE_URL": url}


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """Debian's chromium, driven by Playwright, which runs an event loop in this thread."""
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=1000 * PATIENCE)  # what is expected comes when it comes: machines are slow at times
    os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "1"  # the loop is Playwright's: Django's queries are not in it
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def context(chromium: Browser) -> Iterator[BrowserContext]:
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(1000 * PATIENCE)
    yield context
    context.close()


@pytest.fixture
def page(context: BrowserContext) -> Page:
    return context.new_page()


@pytest.fixture
def plain(chromium: Browser) -> Iterator[Page]:
    """A page in a browser that runs no scripts."""
    context = chromium.new_context(java_script_enabled=False)
    context.set_default_timeout(1000 * PATIENCE)
    yield context.new_page()
    context.close()
