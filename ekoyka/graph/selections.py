"""Which fields a document selects on an object: fragments, type conditions, `@skip` and `@include` resolved."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from graphql import (
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLIncludeDirective,
    GraphQLObjectType,
    GraphQLSchema,
    GraphQLSkipDirective,
    InlineFragmentNode,
    SelectionSetNode,
    get_directive_values,
    is_abstract_type,
)
from graphql.execution.values import VariableValues

Selections = dict[str, list[FieldNode]]
"""The fields of one object by response key, in the document's order."""


@dataclass(frozen=True)
class Selector:
    """Reads the selections of one operation, with its variables."""

    schema: GraphQLSchema
    fragments: Mapping[str, FragmentDefinitionNode]
    variables: VariableValues

    def collect(self, type_name: str, sets: Sequence[SelectionSetNode]) -> Selections:
        """The fields selected on an object of this type, fragments and directives resolved."""
        fields: Selections = {}
        for selection_set in sets:
            self._collect(type_name, selection_set, fields, set())
        return fields

    def _collect(
        self, type_name: str, selection_set: SelectionSetNode, fields: Selections, seen: set[str]
    ) -> None:
        for node in selection_set.selections:
            if not self._included(node):
                continue
            if isinstance(node, FieldNode):
                fields.setdefault(node.alias.value if node.alias else node.name.value, []).append(node)
            elif isinstance(node, InlineFragmentNode):
                if self._applies(node.type_condition.name.value if node.type_condition else None, type_name):
                    self._collect(type_name, node.selection_set, fields, seen)
            elif isinstance(node, FragmentSpreadNode) and node.name.value not in seen:
                seen.add(node.name.value)
                fragment = self.fragments[node.name.value]
                if self._applies(fragment.type_condition.name.value, type_name):
                    self._collect(type_name, fragment.selection_set, fields, seen)

    def _included(self, node: Any) -> bool:
        if not node.directives:
            return True
        skip = get_directive_values(GraphQLSkipDirective, node, self.variables)
        include = get_directive_values(GraphQLIncludeDirective, node, self.variables)
        return not (skip and skip["if"]) and (include is None or bool(include["if"]))

    def _applies(self, condition: str | None, type_name: str) -> bool:
        if condition is None or condition == type_name:
            return True
        wider, narrower = self.schema.type_map[condition], self.schema.type_map[type_name]
        return (
            is_abstract_type(wider)
            and isinstance(narrower, GraphQLObjectType)
            and self.schema.is_sub_type(wider, narrower)
        )

    def names_type(self, type_name: str, sets: Sequence[SelectionSetNode]) -> bool:
        """Whether a fragment asks for this very type, as opposed to an interface of its."""
        pending, seen = list(sets), set[str]()
        while pending:
            for node in pending.pop().selections:
                if isinstance(node, InlineFragmentNode) and self._included(node):
                    if node.type_condition is not None and node.type_condition.name.value == type_name:
                        return True
                    pending.append(node.selection_set)
                elif (
                    isinstance(node, FragmentSpreadNode)
                    and node.name.value not in seen
                    and self._included(node)
                ):
                    seen.add(node.name.value)
                    fragment = self.fragments[node.name.value]
                    if fragment.type_condition.name.value == type_name:
                        return True
                    pending.append(fragment.selection_set)
        return False


def sets_of(nodes: list[FieldNode]) -> list[SelectionSetNode]:
    """What is selected inside a field, wherever the document names it."""
    return [node.selection_set for node in nodes if node.selection_set]
