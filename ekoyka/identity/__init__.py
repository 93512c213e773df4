"""Accounts, roles, credentials, sessions and the access log."""
