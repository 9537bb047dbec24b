"""Stands for AMD's bindings, which fail without their library in a way that Ray does not expect."""

raise ImportError("no AMD GPU here")
