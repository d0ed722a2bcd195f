"""Who may write."""

import functools
import hmac

from flask import abort, current_app, request


def token_required(view):
    """Answer 401 to requests without the token."""

    @functools.wraps(view)
    def guarded(*arguments, **named):
        given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), current_app.config["TOKEN"].encode()):
            abort(401)
        return view(*arguments, **named)

    return guarded
