"""The pool on Kubernetes: what is watched, one turn of a pool, its writes, who leads."""
