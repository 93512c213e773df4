OPERATIONS: dict[str, str] = {}


def variables(name, variables):
    return variables


def answer(name, data):
    return data
