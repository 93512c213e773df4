"""The read path: a GraphQL type is declared once over its table; from it come the schema and the SQL.

Knows no domain. `declare` holds the declarations, `ids` and `cursors` what clients hold in their hands,
`compile` turns a validated selection into one statement per root field, `plan` caches that by document and
by what the actor's roles change, `execution` answers whole queries with it.
"""
