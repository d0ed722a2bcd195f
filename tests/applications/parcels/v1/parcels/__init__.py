"""Parcels and their depots."""
