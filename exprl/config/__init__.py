"""YAML to validated dataclasses: `extends`, dotted overrides, component choices, and errors that name the key.

`fields` is what a Config declares, `validate` checks values against it (from YAML and from code alike), `reading` turns
text into plain values, `layers` puts files and overrides over each other. None of them imports a component.
"""

from exprl.config.layers import (
    from_layers,
    load,
    load_layers,
    load_resolved,
    merge,
    override_layers,
    parse_overrides,
    plugins_of,
)
from exprl.config.saving import flat, free_keys, mapping_keys, to_node, to_yaml
from exprl.config.validate import checked, coerce, validate, validate_choice

__all__ = [
    "checked",
    "coerce",
    "flat",
    "free_keys",
    "from_layers",
    "load",
    "load_layers",
    "load_resolved",
    "mapping_keys",
    "merge",
    "override_layers",
    "parse_overrides",
    "plugins_of",
    "to_node",
    "to_yaml",
    "validate",
    "validate_choice",
]
