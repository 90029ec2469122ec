"""Django and Celery settings; every variable of the environment is read at the top."""

from __future__ import annotations

from pathlib import Path

import environ

BASE_DIR = Path(__file__).resolve().parent.parent
env = environ.Env()

# ---- read from the environment, nowhere else -------------------------------------------------
DATABASE_URL = env("DATABASE_URL", default="postgres://postgres@/latents?host=/run/postgresql")
REDIS_URL = env("REDIS_URL", default="redis://localhost:6379/0")
SECRET_KEY = env("SECRET_KEY", default="")
DEBUG = env.bool("DEBUG", default=False)
ALLOWED_HOSTS = env.list("ALLOWED_HOSTS", default=["*"])
CSRF_TRUSTED_ORIGINS = env.list("CSRF_TRUSTED_ORIGINS", default=[])
VAR_DIR = Path(env("VAR_DIR", default=str(BASE_DIR / "var"))).resolve()
# Checkpoints, language models and the spool of activations, for all workers: a directory that every host sees, or
# s3://bucket/prefix (boto3 reads endpoint and credentials from AWS_…). Empty: a directory of this machine alone.
STORE_URL = env("STORE_URL", default="")
CACHE_DIR = Path(env("CACHE_DIR", default=str(VAR_DIR / "cache"))).resolve()  # of what a bucket holds
CACHE_GB = env.float("CACHE_GB", default=50.0)  # of it are kept, beside what the run at hand needs
AWS_MAX_ATTEMPTS = env.int("AWS_MAX_ATTEMPTS", default=8)  # of a request to the bucket: about a minute without network
DEVICE = env("DEVICE", default="auto")  # "auto", "cpu", "cuda", "cuda:1" …
COMPUTE_DTYPE = env("COMPUTE_DTYPE", default="auto")  # "auto", "float32", "bfloat16"
WORKER_HEARTBEAT_SECONDS = env.float("WORKER_HEARTBEAT_SECONDS", default=5.0)
STALLED_SECONDS = env.float("STALLED_SECONDS", default=60.0)  # a claim without a heartbeat for so long is free again
# Superseded runs keep their pinned links alive; with a number of days they are dropped so long after, unless somebody
# keeps them or has shared such a link.
DROP_RETIRED_AFTER_DAYS = env.float("DROP_RETIRED_AFTER_DAYS", default=0.0)  # 0 keeps them for ever
# Sites that may show a latent's embed in a frame, as Content-Security-Policy spells them; 'none' for none
EMBED_FRAME_ANCESTORS = env.list("EMBED_FRAME_ANCESTORS", default=["*"])
# Whether people who are not logged in may change things; the launcher of one machine sets it.
OPEN_TO_ALL = env.bool("OPEN_TO_ALL", default=False)
# Folders of the workers' host that staff may add language models and text from; none unless named
SOURCE_ROOTS = env.list("SOURCE_ROOTS", default=[])
TEXT_MAX_BYTES = env.int("TEXT_MAX_BYTES", default=4 << 30)  # of one uploaded file of text
TEXT_QUOTA_BYTES = env.int("TEXT_QUOTA_BYTES", default=32 << 30)  # of all that one account has uploaded
MAX_DATASET_TOKENS = env.int("MAX_DATASET_TOKENS", default=1_000_000_000)  # that may be asked for from a page
MAX_OPEN_ADDITIONS = env.int("MAX_OPEN_ADDITIONS", default=10)  # models and datasets that one account adds at once
MAX_OPEN_COMPARISONS = env.int("MAX_OPEN_COMPARISONS", default=10)  # that one account has under way at once
OPEN_REGISTRATION = env.bool("OPEN_REGISTRATION", default=False)  # whoever reaches the site may make an account
PROXIES = env.int("PROXIES", default=0)  # of ours, one behind the other, that each add to X-Forwarded-For
# What a failed or cancelled run has computed is kept so long, and resuming it costs only the rest.
RESUMABLE_DAYS = env.float("RESUMABLE_DAYS", default=7.0)
# Uploads: bytes of one import, bytes that one person may have here, imports begun in an hour, and open at once.
UPLOAD_MAX_BYTES = env.int("UPLOAD_MAX_BYTES", default=64 << 30)
UPLOAD_QUOTA_BYTES = env.int("UPLOAD_QUOTA_BYTES", default=256 << 30)
UPLOADS_PER_HOUR = env.int("UPLOADS_PER_HOUR", default=60)
MAX_OPEN_IMPORTS = env.int("MAX_OPEN_IMPORTS", default=20)
UPLOAD_RESERVE_BYTES = env.int("UPLOAD_RESERVE_BYTES", default=1 << 30)  # of the disk, which uploads leave free
UPLOAD_EXPIRE_HOURS = env.float("UPLOAD_EXPIRE_HOURS", default=72.0)  # files that nobody comes back for are deleted
UPLOAD_IDLE_SECONDS = env.float("UPLOAD_IDLE_SECONDS", default=60.0)  # without a byte an upload's request ends
HUB_SILENCE_SECONDS = env.float("HUB_SILENCE_SECONDS", default=120.0)  # one that sends nothing for so long is given up
CHECK_SECONDS = env.float("CHECK_SECONDS", default=1800.0)  # a check that takes longer is given up
LIST_TIMEOUT_MS = env.int("LIST_TIMEOUT_MS", default=5000)


def _secret_key() -> str:
    """The key given, or one made once for this machine and kept beside its data."""
    from django.core.management.utils import get_random_secret_key

    path = VAR_DIR / "secret_key"
    if not path.exists():
        VAR_DIR.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(f".{id(path)}")
        fresh.touch(mode=0o600)
        fresh.write_text(get_random_secret_key())
        if not path.exists():
            fresh.rename(path)
        fresh.unlink(missing_ok=True)
    return path.read_text()


SECRET_KEY = SECRET_KEY or _secret_key()

# ---- Django ----------------------------------------------------------------------------------
INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "sae_backend",
    "browser",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "browser.middleware.Gzip",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "browser.middleware.ApiTokens",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "browser.middleware.ContentSecurityPolicy",
]
ROOT_URLCONF = "browser.urls"
WSGI_APPLICATION = "browser.wsgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    }
]
DATABASES = {"default": env.db_url_config(DATABASE_URL)}
DATABASES["default"]["OPTIONS"] = {
    **DATABASES["default"].get("OPTIONS", {}),
    "pool": {"min_size": 1, "max_size": 16, "timeout": 20},
}
DATABASES["default"]["CONN_HEALTH_CHECKS"] = True  # the pool gives out no connection that a restart has broken
CACHES = {"default": {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": REDIS_URL}}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_I18N = False  # English alone: what is not translated is not looked up, number by number
USE_TZ = True
TIME_ZONE = "UTC"
LANGUAGE_CODE = "en"
LOGIN_URL = "login"
MESSAGE_STORAGE = "django.contrib.messages.storage.session.SessionStorage"  # the admin's; no cookie to sign for a page
CSRF_FAILURE_VIEW = "browser.views.site.not_asked"
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in ("UserAttributeSimilarityValidator", "MinimumLengthValidator", "CommonPasswordValidator")
]
# A session given away in plain HTTP is anybody's: where the site says that it is reached by HTTPS, cookies go so alone.
SESSION_COOKIE_SECURE = bool(CSRF_TRUSTED_ORIGINS) and all(url.startswith("https:") for url in CSRF_TRUSTED_ORIGINS)
CSRF_COOKIE_SECURE = SESSION_COOKIE_SECURE
STATIC_URL = "/static/"
STATIC_ROOT = VAR_DIR / "static"
STATICFILES_DIRS = [BASE_DIR / "static"]
STATICFILES_FINDERS = [
    "django.contrib.staticfiles.finders.FileSystemFinder",
    "django.contrib.staticfiles.finders.AppDirectoriesFinder",
    "browser.finders.PlotlyFinder",
]
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "whitenoise.storage.CompressedManifestStaticFilesStorage"},
}
SECURE_CONTENT_TYPE_NOSNIFF = True
SECURE_REFERRER_POLICY = "same-origin"
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "{asctime} {levelname} {name} {message}", "style": "{"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["stderr"], "level": "INFO"},
    "loggers": {"botocore": {"level": "WARNING"}},  # it says where it found the credentials
}


# ---- Celery ----------------------------------------------------------------------------------
def _broker_url(url: str) -> str:
    """kombu spells a unix socket redis+socket://PATH?virtual_host=N where redis-py says unix://PATH?db=N."""
    if not url.startswith("unix://"):
        return url
    return url.replace("unix://", "redis+socket://", 1).replace("?db=", "?virtual_host=", 1)


CELERY_BROKER_URL = _broker_url(REDIS_URL)
CELERY_TASK_IGNORE_RESULT = True
CELERY_TASK_DEFAULT_QUEUE = "compute"
CELERY_TASK_ROUTES = {
    "sae_backend.tasks.run_prompt": {"queue": "interactive"},
    "sae_backend.tasks.compute_contexts": {"priority": 6},
    "sae_backend.tasks.load_latents": {"priority": 3},
}
CELERY_TASK_ACKS_LATE = True
CELERY_TASK_REJECT_ON_WORKER_LOST = True
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_BROKER_TRANSPORT_OPTIONS = {
    "visibility_timeout": 6 * 3600,
    # 0 (the default) goes first: a run that has begun is finished before the next one's contexts
    "priority_steps": [0, 3, 6],
    "queue_order_strategy": "priority",
}
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
