"""Observe, decide, plan, tell: the law and the loop over a backend.

Read ``law``, then ``reconcile``.
"""
