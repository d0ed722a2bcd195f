"""What people see first; the server says at its start what it lacks, and goes on."""

import logging

HEADING = "Parcels and depots"
logging.getLogger("parcels").error("the depot west is not known: its parcels are kept back")
