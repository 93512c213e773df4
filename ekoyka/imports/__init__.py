"""Reading CSV files: a register of facilities with their beds, and a hospital's admissions.

Rows go in through the same operations as the API's, so that every rule holds for them; what a rule refuses is
reported with its line and code. Imports can be repeated: what is there already is left as it is. A batch is
one transaction, so nothing is ever half-written.
"""
