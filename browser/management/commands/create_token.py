"""manage.py create_token USER: make an API token and print it, once."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.models import User
from django.core.management.base import BaseCommand, CommandError, CommandParser

from browser import accounts


class Command(BaseCommand):
    help = "Make an API token for an account and print it; it cannot be shown again."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("user", help="name of the account")
        parser.add_argument("--name", default="shell", help="what the account's page calls the token")

    def handle(self, *args: Any, **options: Any) -> None:
        user = User.objects.filter(username=options["user"], is_active=True).first()
        if user is None:
            raise CommandError(f"no open account is called {options['user']!r}: make one with createsuperuser")
        self.stdout.write(accounts.new_token(user, options["name"])[1])
