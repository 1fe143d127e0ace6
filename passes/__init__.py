"""Passes over the joint graph: GraphModule -> GraphModule, one file each (see pipeline.py)."""
