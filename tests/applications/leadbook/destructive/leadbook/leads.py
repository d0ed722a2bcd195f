"""Leads: read by anybody inside, written with the token."""

from flask import Blueprint, abort, jsonify, request
from leadbook.access import token_required
from leadbook.models import Lead, db

blueprint = Blueprint("leads", __name__, url_prefix="/api/v1/leads")


@blueprint.get("")
def listed():
    """The newest leads."""
    rows = db.session.scalars(db.select(Lead).order_by(Lead.id.desc()).limit(50))
    return jsonify([lead.as_json() for lead in rows])


@blueprint.get("/<int:number>")
def one(number):
    """One lead; 404 where there is none."""
    return jsonify(db.get_or_404(Lead, number).as_json())


@blueprint.post("")
@token_required
def added():
    """Write a lead; answers 201 with its id."""
    given = request.get_json()
    if not isinstance(given, dict) or not given.get("email"):
        abort(400)
    lead = Lead(email=given["email"], score=int(given.get("score", 0)))
    db.session.add(lead)
    db.session.commit()
    return jsonify(lead.as_json()), 201


@blueprint.patch("/<int:number>")
@token_required
def changed(number):
    """Change the score of a lead."""
    lead = db.get_or_404(Lead, number)
    lead.score = int(request.get_json()["score"])
    db.session.commit()
    return jsonify(lead.as_json())


@blueprint.delete("/<int:number>")
@token_required
def removed(number):
    """Remove a lead."""
    db.session.delete(db.get_or_404(Lead, number))
    db.session.commit()
    return "", 204
