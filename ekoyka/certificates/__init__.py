"""The discharge certificate: how it is numbered, printed, kept and verified."""
