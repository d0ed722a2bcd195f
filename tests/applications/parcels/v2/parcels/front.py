"""What people see first."""

HEADING = "Parcels and depots"
