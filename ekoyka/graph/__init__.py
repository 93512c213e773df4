"""The read path: a GraphQL type is declared once over its table; from it come the schema and the SQL.

Knows no domain. `declare` is how types are declared, `model` what they are as data, `types` makes Strawberry's
of them; `compile` turns a validated selection into one statement per root field, with `pages` for connections;
`plan` caches that by document and by what the actor's roles change; `execution` answers whole queries with it.
"""
