"""The `key=value` arguments after the colon of --config=FILE:…"""

import difflib


def parse(argument: str, allowed: dict[str, tuple]) -> dict[str, str]:
    """Parses `key=value,key=value`.

    Args:
      argument: what stands after the colon of --config=FILE:…
      allowed: for each key the values that it may take, the default first; a default of type int
        allows any positive whole number.

    Raises:
      ValueError: an unknown key or value, in one line.
    """
    chosen = {key: values[0] for key, values in allowed.items()}
    for part in filter(None, argument.split(",")):
        key, separator, value = part.partition("=")
        if not separator or key not in allowed:
            near = difflib.get_close_matches(key, allowed, n=1)
            hint = f"did you mean {near[0]}=…?" if near else f"known: {', '.join(allowed)}"
            raise ValueError(f"unknown config argument {part!r}; {hint}")
        values = allowed[key]
        if isinstance(values[0], int):
            if not value.isdigit() or int(value) < 1:
                raise ValueError(f"config argument {key}={value}: it takes a whole number from 1")
            chosen[key] = int(value)
        elif value not in values:
            raise ValueError(
                f"config argument {key}={value}: it takes {' | '.join(filter(None, values))}"
            )
        else:
            chosen[key] = value
    return chosen
