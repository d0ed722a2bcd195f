"""What people see first, if there were anything."""

HEADING = ""
