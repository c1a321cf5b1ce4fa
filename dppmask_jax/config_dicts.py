"""ConfigDicts that are made of fields."""

from __future__ import annotations

from collections.abc import Mapping

from ml_collections import config_dict

from dppmask_jax.fields import Field, flatten


def built(fields: Mapping[str, Field]) -> config_dict.ConfigDict:
    """A config with every field at its default, and of the type of its rule."""
    config = config_dict.ConfigDict()
    for name, field in fields.items():
        *groups, leaf = name.split(".")
        node = config
        for group in groups:
            if group not in node:
                node[group] = config_dict.ConfigDict()
            node = node[group]
        if field.default is None:
            node[leaf] = config_dict.placeholder(field.rule.type)
        elif field.rule.type is object:
            node[leaf] = config_dict.FieldReference(field.default, field_type=object)
        else:
            node[leaf] = float(field.default) if field.rule.type is float else field.default
    return config


def shorten(config, epochs: float, fields: Mapping[str, Field]) -> None:
    """Sets the epochs of a config; its other fields that count some then take a tenth of them at
    most."""
    config.epochs = float(epochs)
    counting = {
        name: min(value, config.epochs / 10)
        for name, value in flatten(config).items()
        if name in fields and fields[name].in_epochs
    }
    config.update_from_flattened_dict(counting)
