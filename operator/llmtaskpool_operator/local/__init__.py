"""The pool on this machine: workers as child processes behind one front, no cluster."""
