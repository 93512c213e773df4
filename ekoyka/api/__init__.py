"""The GraphQL surface: types, mutations, subscriptions, permissions; holds no rule of the domain."""
