"""What gunicorn and the command `flask` load."""

from leadbook import create_app

app = create_app()
