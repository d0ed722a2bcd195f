"""What is done in the background."""

import os

from celery import Celery

from parcels.database import ask

app = Celery("parcels", broker=os.environ["PARCELS_BROKER_URL"])
app.conf.task_ignore_result = True
app.conf.broker_connection_retry_on_startup = True
app.conf.beat_schedule = {"count": {"task": "parcels.tasks.count", "schedule": 5.0}}


@app.task(name="parcels.tasks.count")
def count():
    """Count the parcels."""
    ask("SELECT count(*) FROM parcels")
