"""What people see first."""

HEADING = "Parcels"
