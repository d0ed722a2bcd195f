"""The tables."""

from datetime import datetime, timezone

from flask_migrate import Migrate
from flask_sqlalchemy import SQLAlchemy

db = SQLAlchemy()
migrate = Migrate()


def now():
    """The time in UTC, as a column without a zone takes it."""
    return datetime.now(timezone.utc).replace(tzinfo=None)


class Lead(db.Model):
    """Somebody who may become a customer."""

    __tablename__ = "leads"

    id = db.Column(db.Integer, primary_key=True)
    email = db.Column(db.String(200), nullable=False)
    company = db.Column(db.String(120), nullable=False)
    score = db.Column(db.Integer, nullable=False, server_default="0")
    created_at = db.Column(db.DateTime, nullable=False, default=now)

    def as_json(self):
        """What the interface says of the lead."""
        return {"id": self.id, "email": self.email, "company": self.company, "score": self.score}
