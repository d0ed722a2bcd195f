# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Copies in an object store, by boto3, in an environment of its own.

This text is sent to that environment's Python (see ``_agent.py``), so it must run on Python 3.8 and import nothing of
the collection. It judges nothing: an operation answers what the store said, or ``{"failed": {…}}`` with the facts of the
fault, and ``_store_faults.py`` puts them into a sentence.

Checksums go into headers of their own, not into trailers, which many servers that speak S3 do not take
(``request_checksum_calculation`` of botocore's configuration). The payload is signed as well, so that a server that
knows no checksums but checks signatures refuses damaged bytes, too.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

import base64
import collections
import concurrent.futures
import email.utils
import hashlib
import json
import os
import time
from collections.abc import Iterator
from typing import Any, Callable

CHUNK = 1024 * 1024
# Parts that are on their way at the same time; each is in memory once.
PARALLEL = 4
# How often a download goes on where the connection broke off.
RESUMED = 3


class Store:
    """The client and the bucket, made by :func:`connect` and kept in the agent's memory."""

    def __init__(self, client: Any, bucket: str, attempts: int) -> None:
        self.client = client
        self.bucket = bucket
        self.attempts = attempts


def fault(error: BaseException) -> dict[str, Any]:
    """Return the facts of *error*: ``{type, code, status, operation, message, skew}``.

    ``skew``: seconds that this host's clock is ahead of the store's, None where the store gave no time.
    """
    response = getattr(error, "response", None) or {}
    about = response.get("ResponseMetadata") or {}
    said = response.get("Error") or {}
    theirs = store_time(response)
    skew = None if theirs is None else round(time.time() - theirs)
    return {
        "type": type(error).__name__,
        "code": str(said.get("Code") or ""),
        "status": about.get("HTTPStatusCode"),
        "operation": str(getattr(error, "operation_name", "") or ""),
        "message": str(said.get("Message") or error),
        "skew": skew,
    }


def answering(operation: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Answer the faults of network, store and files as facts; anything else is a mistake and goes on as an exception."""

    def call(context: Any, **arguments: Any) -> dict[str, Any]:
        import botocore.exceptions
        import urllib3.exceptions

        try:
            return operation(context.memory["store"], **arguments)
        except (
            botocore.exceptions.BotoCoreError,
            botocore.exceptions.ClientError,
            urllib3.exceptions.HTTPError,
            OSError,
        ) as error:
            return {"failed": fault(error)}
        except RecursionError as error:
            # botocore asks again and again for the region of a bucket where each answer sends it elsewhere.
            return {"failed": {**fault(error), "code": "PermanentRedirect"}}

    return call


def connect(context: Any, **options: Any) -> dict[str, Any]:
    """Make the client; nothing is asked of the network yet.

    :param options: ``endpoint`` ("" for AWS), ``bucket``, ``region``, ``ca_path``, ``proxy``, ``attempts``,
        ``connect_timeout`` and ``read_timeout`` in seconds.
    """
    import boto3
    import botocore.exceptions
    from botocore.config import Config

    proxy = options["proxy"]
    try:
        config = Config(
            connect_timeout=options["connect_timeout"],
            read_timeout=options["read_timeout"],
            retries={"mode": "standard", "total_max_attempts": options["attempts"]},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            max_pool_connections=PARALLEL + 1,
            proxies={"http": proxy, "https": proxy} if proxy else {},
            # By path where the server is the user's own: it seldom has a name for each bucket.
            s3={
                "payload_signing_enabled": True,
                "addressing_style": "path" if options["endpoint"] else "auto",
            },
        )
        client = boto3.session.Session().client(
            "s3",
            endpoint_url=options["endpoint"] or None,
            region_name=options["region"] or "us-east-1",
            verify=options["ca_path"] or None,
            config=config,
        )
    except (botocore.exceptions.BotoCoreError, ValueError, OSError) as error:
        return {"failed": fault(error)}
    context.memory["store"] = Store(client, options["bucket"], options["attempts"])
    return {"version": boto3.__version__}


@answering
def look(store: Store, prefix: str) -> dict[str, Any]:
    """Return ``{objects: [{key, size, modified}], uploads: [{key, id, begun}], unseen, now}`` of what begins with *prefix*.

    Times are seconds since 1970 by the store's clock; ``now`` is its time, None where it does not say. ``unseen``: why
    unfinished uploads cannot be seen (a right that is missing, a server that does not list them), or "".
    """
    import botocore.exceptions

    objects: list[dict[str, Any]] = []
    now = None
    for page in store.client.get_paginator("list_objects_v2").paginate(Bucket=store.bucket, Prefix=prefix):
        for entry in page.get("Contents") or []:
            objects.append(
                {"key": entry["Key"], "size": entry["Size"], "modified": entry["LastModified"].timestamp()}
            )
        now = store_time(page)
    uploads: list[dict[str, Any]] = []
    unseen = ""
    try:
        pages = store.client.get_paginator("list_multipart_uploads")
        for page in pages.paginate(Bucket=store.bucket, Prefix=prefix):
            for entry in page.get("Uploads") or []:
                uploads.append(
                    {"key": entry["Key"], "id": entry["UploadId"], "begun": entry["Initiated"].timestamp()}
                )
    except botocore.exceptions.ClientError as error:
        unseen = fault(error)["code"] or "no reason given"
        if unseen not in ("AccessDenied", "NotImplemented", "MethodNotAllowed", "501", "405"):
            raise
    return {"objects": objects, "uploads": uploads, "unseen": unseen, "now": now}


def store_time(answer: dict[str, Any]) -> float | None:
    """Return the time at which the store gave *answer*, None where it does not say."""
    date = ((answer.get("ResponseMetadata") or {}).get("HTTPHeaders") or {}).get("date")
    try:
        return email.utils.parsedate_to_datetime(date).timestamp() if date else None
    except (TypeError, ValueError):
        return None


@answering
def probe(store: Store, prefix: str) -> dict[str, Any]:
    """Ask for one name below *prefix*: it shows that address, bucket and keys are right."""
    store.client.list_objects_v2(Bucket=store.bucket, Prefix=prefix, MaxKeys=1)
    return {}


@answering
def lifecycle(store: Store) -> dict[str, Any]:
    """Return ``{rules}`` of the bucket as the store writes them, with dates as text; none where there is no configuration."""
    import botocore.exceptions

    try:
        found = store.client.get_bucket_lifecycle_configuration(Bucket=store.bucket)
    except botocore.exceptions.ClientError as error:
        if fault(error)["code"] != "NoSuchLifecycleConfiguration":
            raise
        return {"rules": []}
    return {"rules": json.loads(json.dumps(found.get("Rules") or [], default=str))}


@answering
def read_text(store: Store, key: str, limit: int) -> dict[str, Any]:
    """Return ``{text}`` of the small object *key*, at most *limit* bytes; None where there is none."""
    try:
        found = store.client.get_object(Bucket=store.bucket, Key=key)
    except store.client.exceptions.NoSuchKey:
        return {"text": None}
    return {"text": found["Body"].read(limit + 1)[:limit].decode("utf-8", "replace")}


@answering
def put_text(store: Store, key: str, text: str, extra: dict[str, Any]) -> dict[str, Any]:
    """Write *text* as the object *key*; the store shows it whole or not at all."""
    put(store, key, text.encode("utf-8"), extra)
    return {}


def put(store: Store, key: str, data: bytes, extra: dict[str, Any]) -> None:
    """Write *data* in one request, with its checksum."""
    store.client.put_object(Bucket=store.bucket, Key=key, Body=data, ChecksumSHA256=checksum(data), **extra)


def checksum(data: bytes) -> str:
    """Return the SHA-256 of *data* as headers have it."""
    return base64.b64encode(hashlib.sha256(data).digest()).decode("ascii")


def parts_of(path: str, part_size: int, whole: Any) -> Iterator[tuple[int, bytes]]:
    """Yield (number from 1, bytes) of the file *path*, and add them to the digest *whole*."""
    with open(path, "rb") as stream:
        number = 0
        while True:
            data = stream.read(part_size)
            if not data and number:
                return
            number += 1
            whole.update(data)
            yield number, data
            if len(data) < part_size:
                return


@answering
def upload(
    store: Store, path: str, key: str, part_size: int, sha256: str, extra: dict[str, Any]
) -> dict[str, Any]:
    """Write the file *path* as the object *key*; return ``{size, sha256, parts, etag}`` of what was sent.

    The object appears when all of it is there, and only if it has the *sha256* that is expected: otherwise nothing is
    finished, and the answer says what the file has now.
    """
    whole = hashlib.sha256()
    if os.path.getsize(path) <= part_size:
        with open(path, "rb") as stream:
            data = stream.read()
        whole.update(data)
        if whole.hexdigest() == sha256:
            put(store, key, data, extra)
        return {"size": len(data), "sha256": whole.hexdigest(), "parts": 1}
    begun = store.client.create_multipart_upload(
        Bucket=store.bucket, Key=key, ChecksumAlgorithm="SHA256", **extra
    )
    try:
        size, parts = send_parts(store, path, key, begun["UploadId"], part_size, whole)
        if whole.hexdigest() == sha256:
            store.client.complete_multipart_upload(
                Bucket=store.bucket, Key=key, UploadId=begun["UploadId"], MultipartUpload={"Parts": parts}
            )
        else:
            abort_one(store, key, begun["UploadId"])
    except BaseException:
        abort_one(store, key, begun["UploadId"])
        raise
    return {"size": size, "sha256": whole.hexdigest(), "parts": len(parts)}


def send_parts(
    store: Store, path: str, key: str, upload_id: str, part_size: int, whole: Any
) -> tuple[int, list[dict[str, Any]]]:
    """Send the parts of *path*, some at a time; return how many bytes, and what the end of the upload has to name."""

    def send(number: int, data: bytes) -> dict[str, Any]:
        value = checksum(data)
        answer = store.client.upload_part(
            Bucket=store.bucket,
            Key=key,
            UploadId=upload_id,
            PartNumber=number,
            Body=data,
            ChecksumSHA256=value,
        )
        return {"PartNumber": number, "ETag": answer["ETag"], "ChecksumSHA256": value}

    size, parts = 0, []
    under_way: Any = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(PARALLEL) as pool:
        try:
            for number, data in parts_of(path, part_size, whole):
                size += len(data)
                under_way.append(pool.submit(send, number, data))
                if len(under_way) >= PARALLEL:
                    parts.append(under_way.popleft().result())
            while under_way:
                parts.append(under_way.popleft().result())
        except BaseException:
            for future in under_way:
                future.cancel()
            raise
    return size, parts


def abort_one(store: Store, key: str, upload_id: str) -> None:
    """Give up a multipart upload as far as the store lets us; the next run looks for what is left."""
    try:
        store.client.abort_multipart_upload(Bucket=store.bucket, Key=key, UploadId=upload_id)
    except Exception:  # noqa: BLE001 - why the upload failed is what counts
        return


def stream(store: Store, key: str, take: Callable[[bytes], Any]) -> int:
    """Give the bytes of the object *key* to *take*, going on where a connection breaks off; return how many.

    Only the version that was begun counts: an object that changes meanwhile is an error.
    """
    import botocore.exceptions
    import urllib3.exceptions

    broken = (
        botocore.exceptions.HTTPClientError,
        botocore.exceptions.IncompleteReadError,
        urllib3.exceptions.HTTPError,
        OSError,
    )
    at, etag, resumed = 0, None, 0
    total: int | None = None
    while total is None or at < total:
        asked: dict[str, Any] = {"Bucket": store.bucket, "Key": key}
        if at:
            asked.update(Range=f"bytes={at}-", IfMatch=etag)
        found = store.client.get_object(**asked)
        if total is None:
            total, etag = found["ContentLength"], found["ETag"]
        try:
            for data in found["Body"].iter_chunks(CHUNK):
                taken(take, data)
                at += len(data)
        except Writing as error:
            raise error.error from error
        except broken:
            resumed += 1
            if resumed >= min(RESUMED, store.attempts):
                raise
        finally:
            found["Body"].close()
    return at


class Writing(Exception):
    """What went wrong on this host, and not on the network: a full disk is not read again."""

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error


def taken(take: Callable[[bytes], Any], data: bytes) -> None:
    """Give *data* to *take*; tell its errors from those of the network."""
    try:
        take(data)
    except OSError as error:
        raise Writing(error) from error


@answering
def digest(store: Store, key: str) -> dict[str, Any]:
    """Return ``{size, sha256}`` of the object *key* as it comes back; nothing is written to the disk."""
    whole = hashlib.sha256()
    size = stream(store, key, whole.update)
    return {"size": size, "sha256": whole.hexdigest()}


@answering
def download(store: Store, key: str, path: str) -> dict[str, Any]:
    """Write the object *key* to the new file *path* (0600), on the disk when this returns ``{size, sha256}``."""
    whole = hashlib.sha256()
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as target:

        def take(data: bytes) -> None:
            whole.update(data)
            target.write(data)

        size = stream(store, key, take)
        target.flush()
        os.fsync(target.fileno())
    return {"size": size, "sha256": whole.hexdigest()}


@answering
def remove(store: Store, keys: list[str]) -> dict[str, Any]:
    """Remove the objects *keys*, in this order; return ``{removed}``."""
    for key in keys:
        # One by one: DeleteObjects needs a checksum that some servers know in another form, and keeps no order.
        store.client.delete_object(Bucket=store.bucket, Key=key)
    return {"removed": keys}


@answering
def abort(store: Store, uploads: list[dict[str, Any]]) -> dict[str, Any]:
    """Give up the multipart *uploads*, ``{key, id}``; their parts go. Return ``{aborted}``: the keys."""
    done = []
    for entry in uploads:
        try:
            store.client.abort_multipart_upload(Bucket=store.bucket, Key=entry["key"], UploadId=entry["id"])
        except store.client.exceptions.NoSuchUpload:
            continue
        done.append(entry["key"])
    return {"aborted": done}


OPERATIONS = {
    "connect": connect,
    "probe": probe,
    "look": look,
    "lifecycle": lifecycle,
    "read_text": read_text,
    "put_text": put_text,
    "upload": upload,
    "digest": digest,
    "download": download,
    "remove": remove,
    "abort": abort,
}
