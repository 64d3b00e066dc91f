"""What clients and the operator speak to: routes, bodies, answers, errors, limits and keys."""
