"""The queue of leads that a person looks at before anything is sent."""

from flask import Blueprint, abort, jsonify, request
from leadbook.access import token_required
from leadbook.models import Lead, ReviewDecision, db

blueprint = Blueprint("review_queue", __name__, url_prefix="/api/v1/review-queue")


def waiting():
    """The query of the leads that wait."""
    return db.select(Lead).where(Lead.requires_human_review.is_(True))


@blueprint.get("/stats")
@token_required
def stats():
    """How many wait, by type, and since when."""
    leads = list(db.session.scalars(waiting().order_by(Lead.created_at)))
    kinds = {}
    for lead in leads:
        kinds[lead.review_type] = kinds.get(lead.review_type, 0) + 1
    oldest = leads[0].created_at.isoformat() if leads else None
    return jsonify(total_pending=len(leads), by_type=kinds, oldest_task_created_at=oldest)


@blueprint.get("/tasks")
@token_required
def tasks():
    """The leads that wait, the oldest first."""
    leads = db.session.scalars(waiting().order_by(Lead.created_at).limit(50))
    return jsonify(
        [{**lead.as_json(), "type": lead.review_type, "reason": lead.review_reason} for lead in leads]
    )


@blueprint.post("/tasks/<int:number>/flag")
@token_required
def flag(number):
    """Put a lead into the queue."""
    lead = db.get_or_404(Lead, number)
    given = request.get_json()
    lead.requires_human_review = True
    lead.review_type, lead.review_reason = given.get("type", "manual"), given.get("reason", "")
    db.session.commit()
    return jsonify(lead.as_json())


@blueprint.post("/tasks/<int:number>/<any(approve, reject):decision>")
@token_required
def decide(number, decision):
    """Take a lead out of the queue, and remember who decided what."""
    lead = db.get_or_404(Lead, number)
    if not lead.requires_human_review:
        abort(404)
    reviewer = (request.get_json(silent=True) or {}).get("reviewer", "unknown")
    lead.requires_human_review = False
    db.session.add(ReviewDecision(lead_id=lead.id, decision=decision, reviewer=reviewer))
    db.session.commit()
    return jsonify(lead.as_json())
