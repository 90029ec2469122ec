"""Shared files in an S3-compatible bucket: written on this host and uploaded whole, read from a cache on this host.

Keys are STORE_URL's prefix and the file's folder and name. Endpoint and credentials come from where boto3 always finds
them: AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, a profile, or the host's role.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import boto3
from boto3.exceptions import Boto3Error, S3UploadFailedError
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
)
from django.conf import settings

from sae_backend.cache import Cache, Stored
from sae_backend.storage import StorageError, check

PARALLEL = 4  # files under way at once, each in parts
DELETED_AT_ONCE = 1000  # S3's limit
AWAY = (ConnectionError, HTTPClientError, IncompleteReadError)
NO_KEY = (NoCredentialsError, PartialCredentialsError)
REFUSED = ("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "403")


@cache
def of(url: str, folder: Path, gigabytes: float) -> Bucket:
    """The bucket of an s3://bucket/prefix, with its cache in a folder of this host."""
    name, _, prefix = url.removeprefix("s3://").partition("/")
    if not name:
        raise StorageError(f"STORE_URL is {url}; it must be a directory or s3://bucket/prefix")
    return Bucket(name, prefix.strip("/"), Cache(folder / name / prefix.strip("/"), gigabytes * 1e9))


class Bucket:
    """Folders as prefixes of a bucket."""

    shared = True

    def __init__(self, bucket: str, prefix: str, cache: Cache) -> None:
        self.bucket, self.prefix, self.cache = bucket, prefix, cache

    @cached_property
    def client(self) -> Any:
        # The newer modes of retrying share a budget that the parallel parts of one file use up within a second
        retries = {"mode": "legacy", "total_max_attempts": settings.AWS_MAX_ATTEMPTS}
        return boto3.session.Session().client("s3", config=Config(retries=retries, connect_timeout=10, read_timeout=60))

    def keep(self, folder: str, files: Mapping[str, Path]) -> None:
        with self._explained():
            there = self._listed(folder)
            if {name: stored.size for name, stored in there.items()} == {n: p.stat().st_size for n, p in files.items()}:
                return
            self._delete(f"{folder}/{name}" for name in there.keys() - files.keys())
            for name, source in files.items():
                self._upload(source, f"{folder}/{name}")

    @contextmanager
    def writing(self, folder: str, name: str) -> Iterator[Path]:
        with self.cache.using(folder), self.cache.partial(f"{folder}/{name}") as partial:
            yield partial
            with self._explained():
                self.cache.adopt(partial, f"{folder}/{name}", self._upload(partial, f"{folder}/{name}"))
        self.cache.trim()

    @contextmanager
    def reading(self, folder: str, names: Collection[str] | None = None) -> Iterator[Path]:
        with self.cache.using(folder):
            with self._explained(), self.cache.fetching(folder):  # of several workers on this host, one does
                there = self._listed(folder)
                check(folder, self._where, names, there)
                self._fetch(folder, {n: stored for n, stored in there.items() if names is None or n in names})
            yield self.cache.root / folder
        self.cache.trim()

    def names(self, folder: str) -> set[str]:
        with self._explained():
            return set(self._listed(folder))

    def folders(self, parent: str) -> set[str]:
        with self._explained():
            pages = self._pages(f"{parent}/", Delimiter="/")
            return {found["Prefix"].split("/")[-2] for page in pages for found in page.get("CommonPrefixes", ())}

    def remove(self, folder: str, names: Collection[str] | None = None) -> None:
        with self._explained():
            self._delete(f"{folder}/{name}" for name in (self._listed(folder) if names is None else names))
        if names is None:
            shutil.rmtree(self.cache.root / folder, ignore_errors=True)

    def explain(self, error: Exception) -> str:
        return (
            f"{self.cache.root} cannot be used: {error}. It needs free space for what a run writes; mend that, or set "
            "CACHE_DIR to another directory, and run it again"
        )

    def _fetch(self, folder: str, files: Mapping[str, Stored]) -> None:
        wanted = {f"{folder}/{name}": stored for name, stored in files.items()}
        lacking = {name: stored for name, stored in wanted.items() if not self.cache.has(name, stored)}
        with ThreadPoolExecutor(PARALLEL) as pool:
            list(pool.map(self._download, lacking, lacking.values()))

    def _download(self, name: str, stored: Stored) -> None:
        """Into the cache; boto3 compares checksums where the bucket has them, and the size is compared always."""
        with self.cache.partial(name) as partial:
            self.client.download_file(self.bucket, self._key(name), str(partial))
            if partial.stat().st_size != stored.size:
                raise StorageError(f"{name} came from {self._where} incomplete or was changed meanwhile; run it again")
            self.cache.adopt(partial, name, stored)

    def _upload(self, source: Path, name: str) -> Stored:
        self.client.upload_file(str(source), self.bucket, self._key(name))
        stored = _stored(self.client.head_object(Bucket=self.bucket, Key=self._key(name)), "ContentLength")
        if stored.size != source.stat().st_size:
            raise StorageError(f"{name} did not arrive whole in {self._where}; run it again")
        return stored

    def _listed(self, folder: str) -> dict[str, Stored]:
        """What a folder holds by name; the bucket shows what was written before it was asked."""
        start = len(self._key(f"{folder}/"))
        pages = self._pages(f"{folder}/")
        return {found["Key"][start:]: _stored(found, "Size") for page in pages for found in page.get("Contents", ())}

    def _pages(self, prefix: str, **options: str) -> Iterable[Any]:
        pages = self.client.get_paginator("list_objects_v2")
        return pages.paginate(Bucket=self.bucket, Prefix=self._key(prefix), **options)

    def _delete(self, names: Iterable[str]) -> None:
        keys = [{"Key": self._key(name)} for name in names]
        for i in range(0, len(keys), DELETED_AT_ONCE):
            batch = {"Objects": keys[i : i + DELETED_AT_ONCE], "Quiet": True}
            left = self.client.delete_objects(Bucket=self.bucket, Delete=batch).get("Errors", ())
            for error in left:
                raise StorageError(f"{error['Key']} in {self._where} cannot be deleted: {error['Message']}")

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{name}" if self.prefix else name

    @property
    def _where(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (BotoCoreError, ClientError, Boto3Error) as error:
            raise StorageError(self._sentence(error)) from error

    def _sentence(self, error: Exception) -> str:
        cause = getattr(error, "last_exception", None) or error
        if isinstance(cause, S3UploadFailedError):
            cause = cause.__context__
        code = cause.response["Error"]["Code"] if isinstance(cause, ClientError) else ""
        if code == "NoSuchBucket":
            return f"there is no bucket {self.bucket} at {self._endpoint}: create it, or set STORE_URL to another"
        if code in REFUSED or isinstance(cause, NO_KEY):
            return (
                f"{self._endpoint} refuses this worker {self._where} ({code or cause}): set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY to those of a user who may list, read, write and delete there"
            )
        if isinstance(cause, AWAY):
            return (
                f"{self._endpoint} cannot be reached ({cause}), though it was tried again and again: check the network "
                "and AWS_ENDPOINT_URL of this worker, then run it again"
            )
        return f"{self._where} cannot be used: {cause}"

    @property
    def _endpoint(self) -> str:
        return str(self.client.meta.endpoint_url)


def _stored(answer: Mapping[str, Any], size: str) -> Stored:
    return Stored(int(answer[size]), int(answer["LastModified"].timestamp()))
