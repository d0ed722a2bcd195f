"""Which routes there are."""

from leadbook import health, leads


def register(application):
    """Add all routes to *application*."""
    application.register_blueprint(health.blueprint)
    application.register_blueprint(leads.blueprint)
