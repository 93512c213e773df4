"""Patients, stays, bed assignments and reservations: check in, transfer, check out."""
