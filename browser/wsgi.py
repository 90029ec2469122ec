"""The entry point of a WSGI server: gunicorn browser.wsgi."""

from __future__ import annotations

import os

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "sae_backend.settings")
application = get_wsgi_application()
