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
    requires_human_review = db.Column(db.Boolean, nullable=False, server_default=db.false(), default=False)
    review_type = db.Column(db.String(40))
    review_reason = db.Column(db.Text)

    __table_args__ = (db.Index("ix_leads_review", "requires_human_review", "review_type"),)

    def as_json(self):
        """What the interface says of the lead."""
        return {"id": self.id, "email": self.email, "company": self.company, "score": self.score}


class ReviewDecision(db.Model):
    """What a person decided about a lead."""

    __tablename__ = "review_decisions"

    id = db.Column(db.Integer, primary_key=True)
    lead_id = db.Column(db.ForeignKey("leads.id", ondelete="CASCADE"), nullable=False)
    decision = db.Column(db.String(20), nullable=False)
    reviewer = db.Column(db.String(80), nullable=False)
    decided_at = db.Column(db.DateTime, nullable=False, default=now)

    __table_args__ = (db.Index("ix_review_decisions_decided_at", "decided_at"),)
