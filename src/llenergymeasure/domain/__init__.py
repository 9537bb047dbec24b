"""Pure data: what a measurement yields, frozen, with a unit on every figure."""
