"""The parts of `scripts/gpu_check.py`: what is asked of a real board, one module per part.

A part is a module with `LINES` (expectations, written down before anything runs) and `STEPS` (functions of a `Rig` and
a `Book` that find out). Nothing at the top of these modules needs more than the standard library: where a package is
missing, a step fails and says so, and the others go on.
"""
