"""Which routes there are."""

from leadbook import health, leads, review_queue


def register(application):
    """Add all routes to *application*."""
    application.register_blueprint(health.blueprint)
    application.register_blueprint(leads.blueprint)
    application.register_blueprint(review_queue.blueprint)
