"""Logging in and out, registering, passwords, API tokens, and what programs may do with them."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from django.contrib.auth.models import User
from django.core.cache import cache
from django.core.management import CommandError, call_command
from django.test import Client, RequestFactory

from browser import accounts, permissions, throttle
from browser.models import ApiToken
from sae_backend.models import Run
from tests.browser import run_rows

if TYPE_CHECKING:
    from playwright.sync_api import Page
    from pytest_django.live_server_helper import LiveServer

pytestmark = pytest.mark.django_db(transaction=True)
PASSWORD = "correct horse battery"


@pytest.fixture(autouse=True)
def uncounted() -> Iterator[None]:
    """Failures of one test do not keep the next one out."""
    yield
    for key in cache._cache.get_client().keys("*counted:*"):  # type: ignore[attr-defined]
        cache._cache.get_client().delete(key)  # type: ignore[attr-defined]


@pytest.fixture
def ada() -> User:
    return User.objects.create_user("ada", password=PASSWORD)


@pytest.fixture
def member(client: Client, ada: User) -> Client:
    client.force_login(ada)
    return client


def log_in(client: Client, password: str = PASSWORD, by: str = "", **more: str) -> Any:
    headers = {"X-Forwarded-For": by} if by else {}
    return client.post("/login", {"username": "ada", "password": password, **more}, headers=headers)


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


# ---- people ------------------------------------------------------------------------------------------


def test_logging_in_goes_on_where_one_was(client: Client, ada: User) -> None:
    page = client.get("/jobs").content.decode()
    assert 'href="/login?next=/jobs"' in page
    assert 'value="/jobs?x=1"' in client.get("/login?next=/jobs%3Fx%3D1").content.decode()
    assert log_in(client, next="/jobs?x=1")["Location"] == "/jobs?x=1"
    page = client.get("/jobs").content.decode()
    assert ">Log in<" not in page and 'href="/account"' in page and "ada" in page


@pytest.mark.parametrize(
    "target", ["https://elsewhere.example/", "//elsewhere.example", "javascript:alert(1)", "/\\elsewhere.example", ""]
)
def test_logging_in_leads_to_no_other_site(client: Client, ada: User, target: str) -> None:
    assert log_in(client, next=target)["Location"] == "/"


def test_a_wrong_password_is_a_sentence_that_names_neither(client: Client, ada: User) -> None:
    wrong = log_in(client, "guess").content.decode()
    unknown = client.post("/login", {"username": "bob", "password": PASSWORD}).content.decode()
    assert "No account has this name and this password" in wrong and "No account has this name" in unknown
    assert "sessionid" not in client.cookies


def test_whoever_guesses_on_and_on_must_wait(client: Client, ada: User) -> None:
    for _ in range(throttle.OF_ONE_NAME):
        log_in(client, "guess")
    assert "Too many wrong passwords" in log_in(client).content.decode()
    User.objects.create_user("eve", password=PASSWORD)
    other = client.post("/login", {"username": "eve", "password": PASSWORD})
    assert other.status_code == 302  # only the name that was guessed at waits


def test_behind_a_proxy_only_what_it_says_of_an_address_counts(client: Client, ada: User, settings: Any) -> None:
    settings.PROXIES = 1
    for n in range(throttle.OF_ONE_NAME):
        log_in(client, "guess", by=f"10.0.0.{n}, 192.0.2.7")  # the first is the guesser's word
    assert "Too many wrong" in log_in(client, by="10.9.9.9,192.0.2.7").content.decode()
    assert log_in(client, by="192.0.2.8").status_code == 302


@pytest.mark.parametrize(("seen", "counted"), [("2001:db8::1", "2001:db8::/64"), ("192.0.2.1",) * 2, (":x",) * 2])
def test_addresses_of_version_6_count_by_their_network(seen: str, counted: str) -> None:
    assert throttle.address(RequestFactory().get("/", REMOTE_ADDR=seen)) == counted


def test_accounts_are_made_only_so_often_from_one_address(client: Client, settings: Any) -> None:
    settings.OPEN_REGISTRATION = True
    for _ in range(throttle.ACCOUNTS):
        assert client.post("/register", {}).status_code == 200
    form = {"username": "grace", "password1": PASSWORD, "password2": PASSWORD}
    answer = client.post("/register", form)
    assert answer.status_code == 429 and "Too many accounts" in answer.content.decode() and not User.objects.exists()
    assert client.post("/register", form, REMOTE_ADDR="192.0.2.9").status_code == 302


def test_logging_out_needs_a_form_of_this_site(ada: User) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(ada)
    assert client.get("/logout").status_code == 405 and client.post("/logout").status_code == 403
    token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', client.get("/account").content.decode())
    assert token and client.post("/logout", {"csrfmiddlewaretoken": token[1]})["Location"] == "/"
    assert client.get("/account")["Location"] == "/login?next=/account"


def test_the_admin_asks_for_the_same_login(client: Client) -> None:
    assert client.get("/admin/", follow=True).redirect_chain[-1][0] == "/login?next=%2Fadmin%2F"


def test_accounts_are_made_by_whoever_comes_only_where_that_is_set(client: Client, settings: Any) -> None:
    form = {"username": "grace", "password1": PASSWORD, "password2": PASSWORD, "next": "/jobs"}
    assert client.post("/register", form).status_code == 404 and not User.objects.exists()
    assert "/register" not in client.get("/login").content.decode()
    settings.OPEN_REGISTRATION = True
    assert "/register" in client.get("/login").content.decode()
    assert "helptext\"><ul><li>Your password" in client.get("/register").content.decode()  # Django's own HTML
    assert "too short" in client.post("/register", {**form, "password1": "x", "password2": "x"}).content.decode()
    assert client.post("/register", form)["Location"] == "/jobs"
    grace = User.objects.get()
    assert (grace.username, grace.is_staff, grace.is_superuser) == ("grace", False, False)
    assert "grace" in client.get("/").content.decode()


def test_a_changed_password_ends_other_sessions_and_not_this_one(ada: User) -> None:
    here, elsewhere = Client(), Client()
    log_in(here), log_in(elsewhere)
    new = "another long password"
    form = {"old_password": "wrong", "new_password1": new, "new_password2": new}
    assert "incorrectly" in here.post("/account/password", form).content.decode()
    changed = here.post("/account/password", {**form, "old_password": PASSWORD}, follow=True)
    assert "The password is changed" in changed.content.decode()
    assert elsewhere.get("/account").status_code == 302
    assert log_in(Client(), new).status_code == 302


def test_a_page_that_is_kept_by_the_browser_is_not_another_accounts(ada: User) -> None:
    from tests.browser import sae_rows

    url = f"/s/{sae_rows.publish().sae.public_id}"
    client = Client()
    before = client.get(url)["ETag"]
    client.force_login(ada)
    again = client.get(url, headers={"if-none-match": before})
    assert again.status_code == 200 and "Cookie" in again["Vary"]


# ---- tokens ------------------------------------------------------------------------------------------


def test_a_token_is_shown_once_and_kept_as_a_digest(member: Client, ada: User) -> None:
    page = member.post("/account/tokens", {"name": "<cluster>"}).content.decode()
    key = re.search(r"lat_[\w-]{43}", page)
    assert key and "&lt;cluster&gt;" in page and "never" in page
    row = ApiToken.objects.get()
    assert row.sha256 == hashlib.sha256(key[0].encode()).hexdigest() and row.user == ada
    again = member.get("/account").content.decode()
    assert key[0] not in again and row.beginning in again
    assert key[0] not in str(ApiToken.objects.values())


def test_a_token_needs_a_name(member: Client) -> None:
    assert "This field is required" in member.post("/account/tokens", {"name": " "}).content.decode()
    assert not ApiToken.objects.exists()


def test_a_token_does_what_its_user_may_without_a_form_of_this_site(ada: User) -> None:
    run, client = run_rows.computing(), Client(enforce_csrf_checks=True)
    _, key = accounts.new_token(ada, "cluster")
    Run.objects.filter(pk=run.pk).update(owner=ada)
    cancel = f"/jobs/{run.pk}/cancel.json"
    assert client.post(cancel).status_code == 403
    assert client.post(cancel, headers=bearer(key)).json()["done"] is True
    assert ApiToken.objects.get().last_used_at is not None
    assert client.post(cancel).status_code == 403  # the next request has no token


def test_the_token_decides_and_not_the_session_that_comes_along(ada: User) -> None:
    client, eve = Client(), User.objects.create_user("eve")
    client.force_login(eve)
    _, key = accounts.new_token(ada, "cluster")
    page = client.get("/", headers=bearer(key)).content.decode()
    assert "ada" in page and "eve" not in page


@pytest.mark.parametrize("key", ["lat_" + "x" * 43, "", "é\0", "a b c"])
def test_an_unknown_token_is_refused_even_where_none_is_needed(client: Client, db: None, key: str) -> None:
    response = client.get("/saes.json", headers=bearer(key))
    assert response.status_code == 401 and "/account" in response.json()["message"]
    assert response["WWW-Authenticate"] == "Bearer"


def test_a_token_ends_with_its_revocation_or_its_account(member: Client, ada: User) -> None:
    row, key = accounts.new_token(ada, "cluster")
    User.objects.update(is_active=False)
    assert Client().get("/", headers=bearer(key)).status_code == 401
    User.objects.update(is_active=True)
    assert Client().get("/", headers=bearer(key)).status_code == 200
    assert "Revoked" in member.post(f"/account/tokens/{row.pk}/revoke", follow=True).content.decode()
    assert Client().get("/", headers=bearer(key)).status_code == 401


def test_nobody_revokes_the_token_of_another(member: Client) -> None:
    row, _ = accounts.new_token(User.objects.create_user("eve"), "hers")
    assert member.post(f"/account/tokens/{row.pk}/revoke").status_code == 404
    assert ApiToken.objects.filter(pk=row.pk).exists() and "hers" not in member.get("/account").content.decode()


def test_a_token_opens_no_page_of_the_account_or_the_admin(ada: User) -> None:
    User.objects.update(is_staff=True, is_superuser=True)
    _, key = accounts.new_token(ada, "cluster")
    for address in ("/account", "/account/tokens", "/account/password", "/admin/", "/admin/auth/user/", "/login"):
        for answer in (Client().get(address, headers=bearer(key)), Client().post(address, headers=bearer(key))):
            assert answer.status_code == 403 and "log in with a password" in answer.json()["message"], address
    assert ApiToken.objects.count() == 1


def test_a_proxys_own_password_is_no_token(client: Client, db: None) -> None:
    assert client.get("/", headers={"authorization": "Basic YTpi"}).status_code == 200


def test_many_wrong_tokens_slow_nobody_down_who_has_a_good_one(client: Client, ada: User) -> None:
    for _ in range(throttle.OF_ONE_ADDRESS):
        assert client.get("/saes.json", headers=bearer("x")).status_code == 401
    slowed = client.get("/saes.json", headers=bearer("x"))
    assert slowed.status_code == 429 and int(slowed["Retry-After"]) > 0
    assert client.get("/saes.json", headers=bearer(accounts.new_token(ada, "good")[1])).status_code == 200


def test_nobody_is_kept_out_while_redis_is_away(client: Client, ada: User, settings: Any) -> None:
    away = {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": "redis://127.0.0.1:1"}
    settings.CACHES = {"default": away}
    assert client.get("/saes.json", headers=bearer("x")).status_code == 401
    assert "No account has" in log_in(client, "guess").content.decode() and log_in(client).status_code == 302


def test_the_shell_makes_tokens_too(client: Client, ada: User) -> None:
    out = io.StringIO()
    call_command("create_token", "ada", name="night job", stdout=out)
    assert client.get("/", headers=bearer(out.getvalue().strip())).status_code == 200
    assert ApiToken.objects.get().name == "night job"
    with pytest.raises(CommandError, match="no open account is called 'eve'"):
        call_command("create_token", "eve")


# ---- who may what ------------------------------------------------------------------------------------


def test_what_one_brought_in_is_ones_own_and_the_staffs(ada: User, settings: Any) -> None:
    from django.contrib.auth.models import AnonymousUser

    eve, staff = User.objects.create_user("eve"), User.objects.create_user("grace", is_staff=True)
    hers, nobodys = Run(owner=ada), Run()
    may = permissions.may_change
    assert [may(user, hers) for user in (ada, eve, staff, AnonymousUser())] == [True, False, True, False]
    assert [may(user, nobodys) for user in (ada, staff, AnonymousUser())] == [False, True, False]
    assert permissions.may_upload(eve) and not permissions.may_upload(AnonymousUser())
    assert permissions.may_read_folders(staff) and not permissions.may_read_folders(eve)
    settings.OPEN_TO_ALL = True
    assert may(AnonymousUser(), nobodys) and permissions.may_read_folders(AnonymousUser())


# ---- seen --------------------------------------------------------------------------------------------


@pytest.mark.browser
def test_an_account_is_used_by_keyboard_on_a_narrow_screen(page: Page, live_server: LiveServer, ada: User) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(f"{live_server.url}/account")
    page.get_by_label("Username").focus()
    page.keyboard.type("ada")
    page.keyboard.press("Tab")
    page.keyboard.type(PASSWORD)
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="ada").wait_for()
    page.get_by_label("Name", exact=True).fill("cluster")
    page.keyboard.press("Enter")
    key = page.locator(".key").inner_text()
    assert re.fullmatch(r"lat_[\w-]{43}", key)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy", exact=True).click()
    page.get_by_text("Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == key
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.locator(".menu summary").click()
    assert page.locator(".menu nav").get_by_role("link", name="ada").is_visible()
