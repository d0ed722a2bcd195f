# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What went wrong with an object store, in one sentence: from the facts that ``_agent_store.fault`` gives.

This module util is PRIVATE to the collection: it can change at any time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem
from ansible_collections.runbook.deploy.plugins.module_utils._store_spec import VARIABLE, Settings

# S3 refuses a request whose time differs by more than this from its own ("Authenticating requests"), in seconds.
SKEW_LIMIT = 15 * 60
# By the code of the answer ("Error responses" of the S3 API, and those of MinIO and Ceph): what is wrong, what to do.
CODES = {
    "NoSuchBucket": ("there is no such bucket", "make it, or correct {variable}.bucket"),
    "InvalidBucketName": ("the store takes no bucket of this name", "correct {variable}.bucket"),
    "InvalidAccessKeyId": ("the store does not know the access key", "correct {variable}.access_key"),
    "SignatureDoesNotMatch": (
        "the secret key is not that of the access key",
        "correct {variable}.secret_key",
    ),
    "InvalidToken": ("the store does not know the token", "correct {variable}.access_key"),
    "ExpiredToken": ("the credentials have expired", "renew those of the host, or give access_key"),
    "AccessDenied": (
        "the access key may not do this",
        "allow it to list the bucket, and to read, write and delete objects below the prefix",
    ),
    "RequestTimeTooSkewed": ("the clocks of host and store differ too much", "set the host's clock (NTP)"),
    "PermanentRedirect": ("the bucket is in another region", "correct {variable}.region"),
    "AuthorizationHeaderMalformed": ("the bucket is in another region", "correct {variable}.region"),
    "IllegalLocationConstraintException": ("the bucket is in another region", "correct {variable}.region"),
    "EntityTooLarge": ("the store takes no object of this size", "raise its limit, or use another store"),
    "BadDigest": ("what arrived was not what was sent", "try again, and look at the network when it repeats"),
    "XAmzContentSHA256Mismatch": (
        "what arrived was not what was sent",
        "try again, and look at the network when it repeats",
    ),
    "XAmzContentChecksumMismatch": (
        "what arrived was not what was sent",
        "try again, and look at the network when it repeats",
    ),
    "NoSuchUpload": (
        "the upload was given up by somebody else while it went on",
        "see that no other host copies to the same place, then try again",
    ),
    "NoSuchKey": ("the object is not there", "choose another backup"),
    "PreconditionFailed": (
        "the object was replaced while it was read",
        "see that no other host writes there, then try again",
    ),
}
FULL = ("QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "InsufficientCapacity")
SLOW = ("SlowDown", "ServiceUnavailable", "RequestTimeout", "InternalError", "Busy")
# By the class of the exception where there was no answer.
TYPES = {
    "EndpointConnectionError": (
        "it cannot be reached",
        "correct {variable}.endpoint, or open the way from this host",
    ),
    "ConnectTimeoutError": (
        "nobody answers there",
        "correct {variable}.endpoint, or open the way from this host",
    ),
    "ProxyConnectionError": ("the proxy cannot be reached", "correct {variable}.proxy"),
    "SSLError": (
        "its certificate is not one that this host trusts",
        "name the certificates of its authority in {variable}.ca_path",
    ),
    "NoCredentialsError": (
        "there are no credentials",
        "give {variable}.access_key and secret_key, or a role to the host",
    ),
    "PartialCredentialsError": ("the credentials are incomplete", "give both access_key and secret_key"),
    "NoAuthTokenError": ("there are no credentials", "give {variable}.access_key and secret_key"),
    "ReadTimeoutError": ("it stopped answering", "try again, and look at the store when it repeats"),
    "ConnectionClosedError": (
        "the connection broke off",
        "try again, and look at the network when it repeats",
    ),
    "ResponseStreamingError": (
        "the connection broke off",
        "try again, and look at the network when it repeats",
    ),
    "IncompleteReadError": ("the connection broke off", "try again, and look at the network when it repeats"),
    "ProtocolError": ("the connection broke off", "try again, and look at the network when it repeats"),
    "IncompleteRead": ("the connection broke off", "try again, and look at the network when it repeats"),
    "HTTPClientError": ("the connection failed", "try again, and look at the network when it repeats"),
    "ResponseParserError": (
        "what answers there does not speak S3",
        "correct {variable}.endpoint",
    ),
}


def reason(failed: Mapping[str, Any]) -> tuple[str, str]:
    """Return (what is wrong, what to do) for the facts *failed*."""
    code, status, skew = failed["code"], failed["status"], failed["skew"]
    if skew is not None and abs(skew) > SKEW_LIMIT and status in (400, 401, 403):
        ahead = "ahead of" if skew > 0 else "behind"
        return f"this host's clock is {abs(skew)} s {ahead} the store's", "set the host's clock (NTP)"
    if code in CODES:
        return CODES[code]
    if code in FULL or status == 507:
        return (
            "the bucket is full",
            "make room there, raise its quota, or lower {variable}.keep",
        )
    if code in SLOW or status in (429, 500, 502, 503, 504):
        return (
            f"the store says that it cannot answer now ({status} {code})".replace(" )", ")"),
            "try again later",
        )
    if status in (401, 403):
        return CODES["AccessDenied"]
    if status == 404:
        return "what was asked for is not there", "correct {variable}.bucket and endpoint"
    if status == 301:
        return CODES["PermanentRedirect"]
    if failed["type"] in TYPES:
        return TYPES[failed["type"]]
    said = " ".join(str(failed["message"]).split())[:200].rstrip(".")
    # The words of the store or of the library: nobody has seen this before.
    return f"{failed['type']}: {said}", "see what it says, then try again"


def problem(doing: str, failed: Mapping[str, Any], settings: Settings, after: str) -> Problem:
    """Return the Problem for *failed*.

    :param doing: what could not be done, the beginning of the sentence: ``The backup x could not be copied to``.
    :param after: what is true all the same: ``the backup on this host is whole``.
    """
    what, advice = reason(failed)
    told = {key: failed[key] for key in ("operation", "code", "status", "type") if failed[key]}
    evidence = ", ".join(f"{key} {value}" for key, value in told.items())
    said = " ".join(str(failed["message"]).split())[:300]
    return Problem(
        f"{doing} {settings.place()}: {what}; {after}: {advice.format(variable=VARIABLE)}.",
        f"{evidence}: {said}",
    )
